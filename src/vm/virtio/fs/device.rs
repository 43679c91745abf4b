//! The device: config space, queues, and the loop that serves them.

use std::sync::Arc;

use event_manager::{EventOps, Events};
use fuse_backend_rs::api::server::Server;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;

use super::budget::Budget;
use super::owner::Owner;
use super::share::{Exports, Share};
use super::thread::Prepared;
use super::{FsError, request};
use crate::spec::FsSpec;
use crate::virtio::device::{Active, Device, DeviceError, OWN_DATA_FIRST};
use crate::virtio::drain::{Wake, drain};
use crate::virtio::state::DeviceState;

/// hiprio takes FORGET only. A request has up to 256 pages of data and four
/// descriptors for headers and arguments; Linux shrinks its requests to the queue.
const QUEUE_SIZES: [u16; 2] = [64, 512];

/// Bytes of the tag in the config space (struct virtio_fs_config).
const TAG_LEN: usize = 36;

/// A virtio-fs device with one hiprio and one request queue.
pub struct Fs {
    config: [u8; TAG_LEN + 4],
    share: Arc<Share>,
    server: Server<Arc<Share>>,
    thread: Prepared,
    active: Option<Active>,
    again: Wake,
}

impl Fs {
    /// Opens the exports; the guest sees none of them before it mounts the share.
    pub fn new(spec: FsSpec) -> Result<Self, FsError> {
        Self::with(spec, Owner::of_process(), Budget::of_process())
    }

    pub(super) fn with(spec: FsSpec, owner: Owner, budget: Budget) -> Result<Self, FsError> {
        let tag = spec.tag.as_bytes();
        if tag.is_empty() || tag.len() > TAG_LEN || tag.contains(&0) {
            return Err(FsError::Tag(spec.tag));
        }
        let mut config = [0; TAG_LEN + 4];
        config[..tag.len()].copy_from_slice(tag);
        // num_request_queues
        config[TAG_LEN..].copy_from_slice(&1u32.to_le_bytes());

        let share = Arc::new(Share::new(owner, budget));
        for export in spec.exports {
            share.add(export)?;
        }
        let again = Wake::new()?;
        Ok(Self {
            config,
            server: Server::new(share.clone()),
            share,
            thread: Prepared::default(),
            active: None,
            again,
        })
    }

    /// The exports, to add more later.
    pub fn exports(&self) -> Exports {
        Exports(self.share.clone())
    }

    /// Descriptors that the guest makes the host hold.
    #[cfg(test)]
    pub(super) fn share_held(&self) -> usize {
        self.share.held()
    }

    fn serve(&mut self, index: usize) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let Some(queue) = active.queues.get_mut(index).filter(|queue| queue.ready()) else {
            return Ok(());
        };
        let prepared = self.thread.current(self.share.owner);
        prepared.map_err(|source| DeviceError::Host {
            what: "preparing the thread that serves files",
            source,
        })?;
        let (memory, server) = (&active.memory, &self.server);
        let drained = drain(queue, memory, |chain| request::serve(server, memory, chain))
            .map_err(|source| DeviceError::Queue { index, source })?;
        if drained.notify {
            active.interrupt.signal_used_queue();
        }
        if drained.more {
            self.again.request();
        }
        Ok(())
    }
}

impl Device for Fs {
    fn id(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn name(&self) -> &'static str {
        "fs"
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let rest = self.config.get(offset..).unwrap_or_default();
        for (to, from) in data.iter_mut().zip(rest) {
            *to = *from;
        }
    }

    fn activate(&mut self, active: Active) -> Result<(), DeviceError> {
        self.active = Some(active);
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.share.end_session();
    }

    fn active(&self) -> Option<&Active> {
        self.active.as_ref()
    }

    fn freeze(&self) -> Result<DeviceState, &'static str> {
        self.share.freeze().map(DeviceState::Fs)
    }

    fn thaw(&mut self, state: DeviceState) -> Result<(), DeviceError> {
        match state {
            DeviceState::Fs(state) => self.share.thaw(state),
            _ => Err(DeviceError::State),
        }
    }

    fn queue_event(&mut self, index: usize) -> Result<(), DeviceError> {
        self.serve(index)
    }

    fn register(&mut self, ops: &mut EventOps) -> Result<(), DeviceError> {
        self.again.register(ops, OWN_DATA_FIRST)
    }

    fn own_event(&mut self, _events: Events, _ops: &mut EventOps) -> Result<(), DeviceError> {
        self.again.clear();
        for index in 0..QUEUE_SIZES.len() {
            self.serve(index)?;
        }
        Ok(())
    }
}
