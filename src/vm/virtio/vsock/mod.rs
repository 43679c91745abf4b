//! virtio-vsock (virtio 1.2, 5.10): streams between ports of the guest and unix
//! sockets of the host.
//!
//! ```text
//! guest --tx--> receive --> Muxer --> Connection --> UnixStream --> host
//! guest <--rx-- fill <----- (whose turn)   <------ (epoll, edges) <-- host
//! ```
//! Payload goes between guest memory and the socket without a copy, except for
//! what the host does not take at once. Both directions have credit, so neither
//! side can make this one buffer more than a window for each connection. Nothing
//! is read for a guest that has no buffers or no credit left; the guest then
//! notifies of new buffers, and its packets carry new credit.

mod connection;
mod event;
mod handle;
mod muxer;
mod ports;
#[cfg(test)]
mod tests;
mod to_guest;
mod to_host;
mod wire;

use std::io;
use std::sync::mpsc::Receiver;

use event_manager::{EventOps, Events};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use virtio_vsock::packet::VsockPacket;
use vm_memory::GuestMemoryMmap;

use self::handle::HostConnect;
pub use self::handle::VsockHandle;
use self::muxer::Muxer;
use self::ports::Ports;
use self::wire::{GUEST_CID_FIRST, HEADER_LEN, Header, PAYLOAD_MAX};
use super::device::{Active, Device, DeviceError, OWN_DATA_FIRST};
use super::drain::{CHAINS_PER_TURN, Wake, drain, register};
use super::state::DeviceState;
use crate::spec::VsockSpec;

const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
/// Queues for packets to the guest, from it, and for transport events. Linux fills the first one with buffers of 4 KiB at boot, two
/// descriptors each, so this is what its window of 256 KiB needs and no more.
const QUEUE_SIZES: [u16; 3] = [128, 128, 8];

/// Event data of the streams' epoll.
const STREAMS: u32 = OWN_DATA_FIRST;
/// Event data of the eventfd for [`VsockHandle`] and for another turn.
const WAKE: u32 = OWN_DATA_FIRST + 1;

/// The device.
pub struct Vsock {
    muxer: Muxer,
    requests: Receiver<HostConnect>,
    wake: Wake,
    active: Option<Active>,
    /// The guest is to be told that all its connections are gone.
    reset_due: bool,
}

impl Vsock {
    /// The device, and what opens connections through it.
    pub fn new(spec: VsockSpec) -> Result<(Self, VsockHandle), DeviceError> {
        let host = |what| move |source: io::Error| DeviceError::Host { what, source };
        if spec.guest_cid < GUEST_CID_FIRST || spec.guest_cid >= u64::from(u32::MAX) {
            let text = format!("context id {} is reserved", spec.guest_cid);
            return Err(host("vsock")(io::Error::other(text)));
        }
        let ports = Ports::new(spec.host_ports).map_err(host("vsock: port"))?;
        let muxer = Muxer::new(spec.guest_cid, ports).map_err(host("epoll"))?;
        let wake = Wake::new()?;
        let (handle, requests) = VsockHandle::new(wake.try_clone().map_err(host("eventfd"))?);
        let vsock = Self {
            muxer,
            requests,
            wake,
            active: None,
            reset_due: false,
        };
        Ok((vsock, handle))
    }

    /// Takes the guest's packets, then sends what there is, with one interrupt
    /// for both.
    fn transmit(&mut self) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let Some(queue) = active.queues.get_mut(TX).filter(|queue| queue.ready()) else {
            return Ok(());
        };
        let muxer = &mut self.muxer;
        let memory = &active.memory;
        let drained = drain(queue, memory, |chain| {
            take(muxer, memory, chain);
            0
        })
        .map_err(|source| DeviceError::Queue { index: TX, source })?;
        if drained.more {
            // The guest does not notify of these.
            self.wake.request();
        }
        self.deliver(drained.notify)
    }

    /// Sends what there is to the guest, as long as it has buffers; interrupts if
    /// it wants to hear of that, or if `notify` says so already.
    fn deliver(&mut self, mut notify: bool) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        if let Some(queue) = active.queues.get_mut(RX).filter(|queue| queue.ready()) {
            let sent = send(&mut self.muxer, queue, &active.memory);
            let sent = sent.map_err(|source| DeviceError::Queue { index: RX, source })?;
            notify |= sent.notify;
            if sent.more {
                self.wake.request();
            }
        }
        if notify {
            active.interrupt.signal_used_queue();
        }
        Ok(())
    }

    /// Tells the guest of a restored machine that its connections are gone and its
    /// context id may be another (virtio 1.2, 5.10.6.7), as soon as it has a buffer
    /// for that.
    fn tell_reset(&mut self) -> Result<(), DeviceError> {
        let Some(active) = self.active.as_mut().filter(|_| self.reset_due) else {
            return Ok(());
        };
        let Some(queue) = active.queues.get_mut(EVENT).filter(|queue| queue.ready()) else {
            return Ok(());
        };
        let sent = event::transport_reset(queue, &active.memory);
        let sent = sent.map_err(|source| DeviceError::Queue {
            index: EVENT,
            source,
        })?;
        self.reset_due = !sent.done;
        if sent.notify {
            active.interrupt.signal_used_queue();
        }
        Ok(())
    }

    fn take_requests(&mut self) {
        if self.active.is_some() {
            for request in self.requests.try_iter() {
                self.muxer.connect(request.guest_port, request.stream);
            }
        }
    }
}

/// A chain of the transmit queue. One that holds no proper packet is dropped:
/// nobody can tell whose it was.
fn take(muxer: &mut Muxer, memory: &GuestMemoryMmap, mut chain: DescriptorChain<&GuestMemoryMmap>) {
    match VsockPacket::from_tx_virtq_chain(memory, &mut chain, PAYLOAD_MAX) {
        Ok(packet) => muxer.receive(&Header::of(&packet), packet.data_slice()),
        Err(error) => log::debug!("vsock: packet dropped: {error}"),
    }
}

/// How [`send`] ended.
struct Sent {
    notify: bool,
    more: bool,
}

/// Fills buffers of the receive queue until there are no more packets, no more
/// buffers, or the turn is over.
fn send(
    muxer: &mut Muxer,
    queue: &mut virtio_queue::Queue,
    memory: &GuestMemoryMmap,
) -> Result<Sent, virtio_queue::Error> {
    let mut used = false;
    let mut left = CHAINS_PER_TURN;
    while left > 0 && muxer.has_packets() {
        left -= 1;
        let Some(mut chain) = queue.iter(memory)?.next() else {
            // Out of buffers: only now does it matter when new ones come.
            if queue.enable_notification(memory)? {
                continue;
            }
            break;
        };
        let head = chain.head_index();
        let written = match VsockPacket::from_rx_virtq_chain(memory, &mut chain, u32::MAX) {
            Ok(mut packet) if packet.data_slice().is_some_and(|data| !data.is_empty()) => {
                match muxer.fill(&mut packet) {
                    Some(len) => HEADER_LEN + len,
                    None => {
                        // Nothing to send after all: the buffer waits for the next.
                        queue.go_to_previous_position();
                        break;
                    }
                }
            }
            // Without room for a packet with data it is of no use.
            _ => 0,
        };
        queue.add_used(memory, head, written)?;
        used = true;
    }
    if left > 0 && !muxer.has_packets() {
        queue.disable_notification(memory)?;
    }
    Ok(Sent {
        notify: used && queue.needs_notification(memory)?,
        more: left == 0,
    })
}

impl Device for Vsock {
    fn id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn name(&self) -> &'static str {
        "vsock"
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        // struct virtio_vsock_config: le64 guest_cid.
        let config = self.muxer.guest_cid().to_le_bytes();
        let there = config.get(offset..).unwrap_or_default();
        for (byte, value) in data.iter_mut().zip(there) {
            *byte = *value;
        }
    }

    fn activate(&mut self, active: Active) -> Result<(), DeviceError> {
        self.active = Some(active);
        // The host may have asked for connections already.
        self.wake.request();
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.reset_due = false;
        self.muxer.clear();
    }

    fn active(&self) -> Option<&Active> {
        self.active.as_ref()
    }

    fn freeze(&self) -> Result<DeviceState, &'static str> {
        Ok(DeviceState::Vsock)
    }

    fn thaw(&mut self, state: DeviceState) -> Result<(), DeviceError> {
        match state {
            DeviceState::Vsock => {
                self.reset_due = true;
                Ok(())
            }
            _ => Err(DeviceError::State),
        }
    }

    fn queue_event(&mut self, index: usize) -> Result<(), DeviceError> {
        match index {
            TX => self.transmit(),
            RX => self.deliver(false),
            EVENT => self.tell_reset(),
            _ => Ok(()),
        }
    }

    fn register(&mut self, ops: &mut EventOps) -> Result<(), DeviceError> {
        register(ops, self.muxer.epoll(), STREAMS)?;
        self.wake.register(ops, WAKE)
    }

    fn own_event(&mut self, events: Events, _ops: &mut EventOps) -> Result<(), DeviceError> {
        match events.data() {
            WAKE => {
                self.wake.clear();
                self.tell_reset()?;
                self.take_requests();
                self.transmit()
            }
            _ => {
                self.muxer.poll().map_err(|source| DeviceError::Host {
                    what: "epoll",
                    source,
                })?;
                self.deliver(false)
            }
        }
    }
}
