//! Taking what a driver has made available, in bounded portions.

use std::io;
use std::os::fd::AsRawFd;

use event_manager::{EventOps, EventSet, Events};
use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::DeviceError;

/// Chains served in one go; then other devices on the same loop have their turn,
/// so that a driver that never stops adding cannot hold the loop.
pub(super) const CHAINS_PER_TURN: usize = 256;

/// Descriptors looked at in one chain where the device sets no smaller limit.
/// Longer chains are legal but nobody sends them.
pub(super) const SEGMENTS_MAX: usize = 128;

/// How [`drain`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Drained {
    /// The driver wants an interrupt.
    pub notify: bool,
    /// The turn is over before the queue was empty: call again, the driver will
    /// not notify.
    pub more: bool,
}

/// Hands each available chain to `serve`, which returns how many bytes it has
/// written to it, and puts it into the used ring. Ends when the queue is empty
/// and the driver will notify of the next chain, or after [`CHAINS_PER_TURN`].
pub(super) fn drain(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    mut serve: impl FnMut(DescriptorChain<&GuestMemoryMmap>) -> u32,
) -> Result<Drained, Error> {
    let mut served = 0;
    let mut left = CHAINS_PER_TURN;
    let more = loop {
        queue.disable_notification(memory)?;
        while left > 0 {
            let Some(chain) = queue.iter(memory)?.next() else {
                break;
            };
            let head = chain.head_index();
            let written = serve(chain);
            queue.add_used(memory, head, written)?;
            served += 1;
            left -= 1;
        }
        if left == 0 {
            break true;
        }
        if !queue.enable_notification(memory)? {
            break false;
        }
        // A look that finds nothing counts too, so that this ends in any case.
        left -= 1;
    };
    let notify = served > 0 && queue.needs_notification(memory)?;
    Ok(Drained { notify, more })
}

/// Wakes a device's own event loop, from any thread or from itself.
#[derive(Debug)]
pub(super) struct Wake(EventFd);

impl Wake {
    pub fn new() -> Result<Self, DeviceError> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
            .map(Self)
            .map_err(|source| DeviceError::Host {
                what: "eventfd",
                source,
            })
    }

    /// Another handle on the same eventfd.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// The device's own event comes.
    pub fn request(&self) {
        // Fails only when the counter is full: then it is pending anyway.
        let _ = self.0.write(1);
    }

    /// The event has come.
    pub fn clear(&self) {
        let _ = self.0.read();
    }

    /// Has the event come as `data`.
    pub fn register(&self, ops: &mut EventOps, data: u32) -> Result<(), DeviceError> {
        register(ops, &self.0, data)
    }
}

/// Watches a device's own descriptor for input.
pub(super) fn register(
    ops: &mut EventOps,
    source: &impl AsRawFd,
    data: u32,
) -> Result<(), DeviceError> {
    ops.add(Events::with_data(source, data, EventSet::IN))
        .map_err(|error| DeviceError::Host {
            what: "epoll",
            source: io::Error::other(error),
        })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{GuestQueue, memory};
    use super::*;

    fn served(queue: &mut Queue, memory: &GuestMemoryMmap) -> (usize, Result<Drained, Error>) {
        let mut count = 0;
        let result = drain(queue, memory, |_| {
            count += 1;
            7
        });
        (count, result)
    }

    #[test]
    fn an_empty_queue_asks_for_no_interrupt() {
        for event_idx in [false, true] {
            let memory = memory(0x10000);
            let guest = GuestQueue::new(&memory, 0x1000, 16);
            let mut queue = guest.device_queue(event_idx);
            let nothing = Drained {
                notify: false,
                more: false,
            };
            let (count, drained) = served(&mut queue, &memory);
            assert_eq!((count, drained.unwrap()), (0, nothing));
        }
    }

    #[test]
    fn a_batch_is_served_and_announced_once() {
        for event_idx in [false, true] {
            let memory = memory(0x10000);
            let mut guest = GuestQueue::new(&memory, 0x1000, 16);
            let mut queue = guest.device_queue(event_idx);
            for _ in 0..10 {
                guest.add(&[(0x8000, 1, 0)]);
            }
            let all = Drained {
                notify: true,
                more: false,
            };
            let (count, drained) = served(&mut queue, &memory);
            assert_eq!((count, drained.unwrap()), (10, all));
            assert_eq!(guest.drain_used().len(), 10);
        }
    }

    #[test]
    fn event_idx_keeps_the_device_quiet() {
        let memory = memory(0x10000);
        let mut guest = GuestQueue::new(&memory, 0x1000, 16);
        let mut queue = guest.device_queue(true);
        guest.set_used_event(5);
        guest.add(&[(0x8000, 1, 0)]);
        let (_, drained) = served(&mut queue, &memory);
        assert!(!drained.unwrap().notify);
    }

    #[test]
    fn the_driver_need_not_notify_while_it_is_served() {
        let memory = memory(0x10000);
        let mut guest = GuestQueue::new(&memory, 0x1000, 16);
        let mut queue = guest.device_queue(false);
        guest.add(&[(0x8000, 1, 0)]);
        drain(&mut queue, &memory, |_| {
            assert!(!guest.wants_kicks());
            0
        })
        .unwrap();
        assert!(guest.wants_kicks());
    }

    #[test]
    fn a_turn_ends_while_the_driver_goes_on_adding() {
        let memory = memory(0x10000);
        let mut guest = GuestQueue::new(&memory, 0x1000, 16);
        let mut queue = guest.device_queue(true);
        guest.add(&[(0x8000, 1, 0)]);
        let mut count = 0;
        let drained = drain(&mut queue, &memory, |_| {
            count += 1;
            guest.add(&[(0x8000, 1, 0)]);
            0
        });
        assert_eq!(count, CHAINS_PER_TURN);
        assert!(drained.unwrap().more);
    }

    #[test]
    fn an_index_that_jumps_is_an_error() {
        for jump in [17, 1000, u16::MAX] {
            let memory = memory(0x10000);
            let mut guest = GuestQueue::new(&memory, 0x1000, 16);
            let mut queue = guest.device_queue(true);
            guest.set_avail_idx(jump);
            assert!(served(&mut queue, &memory).1.is_err(), "{jump}");
        }
    }

    #[test]
    fn a_head_outside_of_the_table_is_an_error() {
        let memory = memory(0x10000);
        let mut guest = GuestQueue::new(&memory, 0x1000, 16);
        let mut queue = guest.device_queue(true);
        guest.add_head(16);
        assert!(served(&mut queue, &memory).1.is_err());
    }
}
