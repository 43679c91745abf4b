//! The device: config space and queue.

use event_manager::{EventOps, Events};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;

use super::BlkError;
use super::disk::{Disk, SECTOR_SIZE};
use super::request::{self, ID_LEN, RANGE_SECTORS_MAX, RANGES_MAX};
use crate::spec::DriveSpec;
use crate::virtio::device::{Active, Device, DeviceError, OWN_DATA_FIRST};
use crate::virtio::drain::{Wake, drain};
use crate::virtio::state::DeviceState;

/// One request queue.
const QUEUE_SIZES: [u16; 1] = [256];

/// Buffers of one request: a queue less header and status.
const SEGMENTS_MAX: u32 = QUEUE_SIZES[0] as u32 - 2;

/// Bytes of struct virtio_blk_config up to `write_zeroes_may_unmap` and its padding.
const CONFIG_LEN: usize = 60;

/// Ranges are freed in pages of the host.
const DISCARD_ALIGN_SECTORS: u32 = 8;

/// What is saved of the device: the config space, which the drive of a restored
/// machine must have, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkState {
    config: Vec<u8>,
}

/// A virtio-blk device.
pub struct Blk {
    disk: Disk,
    id: [u8; ID_LEN],
    config: [u8; CONFIG_LEN],
    active: Option<Active>,
    again: Wake,
}

impl Blk {
    /// Takes over drive number `index`, counted from 0.
    pub fn new(index: usize, spec: DriveSpec) -> Result<Self, BlkError> {
        let disk = Disk::new(index, spec)?;
        let again = Wake::new()?;
        let mut id = [0; ID_LEN];
        let name = format!("vmrun-{index}");
        for (to, from) in id.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        Ok(Self {
            config: config(&disk),
            disk,
            id,
            active: None,
            again,
        })
    }
}

/// struct virtio_blk_config (virtio 1.2, 5.2.4).
fn config(disk: &Disk) -> [u8; CONFIG_LEN] {
    let mut config = [0; CONFIG_LEN];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &disk.capacity_sectors.to_le_bytes());
    put(12, &SEGMENTS_MAX.to_le_bytes()); // seg_max
    put(20, &(SECTOR_SIZE as u32).to_le_bytes()); // blk_size
    if disk.can_discard {
        put(36, &RANGE_SECTORS_MAX.to_le_bytes()); // max_discard_sectors
        put(40, &RANGES_MAX.to_le_bytes()); // max_discard_seg
        put(44, &DISCARD_ALIGN_SECTORS.to_le_bytes()); // discard_sector_alignment
        put(48, &RANGE_SECTORS_MAX.to_le_bytes()); // max_write_zeroes_sectors
        put(52, &RANGES_MAX.to_le_bytes()); // max_write_zeroes_seg
        put(56, &[1]); // write_zeroes_may_unmap
    }
    config
}

impl Device for Blk {
    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn name(&self) -> &'static str {
        "blk"
    }

    fn features(&self) -> u64 {
        let always = [
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_RING_F_EVENT_IDX,
        ];
        let read_only = self.disk.read_only.then_some(VIRTIO_BLK_F_RO);
        let discard = [VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES];
        let discard = discard.into_iter().filter(|_| self.disk.can_discard);
        always
            .into_iter()
            .chain(read_only)
            .chain(discard)
            .fold(0, |all, bit| all | 1 << bit)
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
    }

    fn active(&self) -> Option<&Active> {
        self.active.as_ref()
    }

    fn freeze(&self) -> Result<DeviceState, &'static str> {
        Ok(DeviceState::Blk(BlkState {
            config: self.config.to_vec(),
        }))
    }

    fn thaw(&mut self, state: DeviceState) -> Result<(), DeviceError> {
        match state {
            DeviceState::Blk(BlkState { config }) if config == self.config => Ok(()),
            _ => Err(DeviceError::State),
        }
    }

    fn queue_event(&mut self, index: usize) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let Some(queue) = active.queues.get_mut(index).filter(|queue| queue.ready()) else {
            return Ok(());
        };
        let (memory, disk, id) = (&active.memory, &mut self.disk, &self.id);
        let drained = drain(queue, memory, |chain| {
            request::serve(disk, id, memory, chain)
        })
        .map_err(|source| DeviceError::Queue { index, source })?;
        if drained.notify {
            active.interrupt.signal_used_queue();
        }
        if drained.more {
            self.again.request();
        }
        Ok(())
    }

    fn register(&mut self, ops: &mut EventOps) -> Result<(), DeviceError> {
        self.again.register(ops, OWN_DATA_FIRST)
    }

    fn own_event(&mut self, _events: Events, _ops: &mut EventOps) -> Result<(), DeviceError> {
        self.again.clear();
        self.queue_event(0)
    }
}
