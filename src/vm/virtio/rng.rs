//! virtio-rng, the entropy device (virtio 1.2, 5.4): fills buffers from the
//! host's random number generator.

use event_manager::{EventOps, Events};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::DescriptorChain;
use vm_memory::{Address, Bytes, GuestMemoryMmap};

use super::device::{Active, Device, DeviceError, OWN_DATA_FIRST};
use super::drain::{SEGMENTS_MAX, Wake, drain};
use super::state::DeviceState;

/// Linux keeps one request in flight.
const QUEUE_SIZES: [u16; 1] = [8];

/// Bytes given for one request; the rest of its buffers stays as it is. Linux
/// asks for 64 at a time.
const REQUEST_MAX: usize = 64 * 1024;

/// Bytes fetched from the host at a time. getrandom(2) never returns less for up
/// to 256 bytes, and for more only on a signal.
const CHUNK: usize = 256;

/// The device.
pub struct Rng {
    active: Option<Active>,
    again: Wake,
}

impl Rng {
    /// A device that is not yet active.
    pub fn new() -> Result<Self, DeviceError> {
        Ok(Self {
            active: None,
            again: Wake::new()?,
        })
    }

    fn serve(&mut self) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let Some(queue) = active.queues.first_mut() else {
            return Ok(());
        };
        let memory = &active.memory;
        let mut host_error = None;
        let drained = drain(queue, memory, |chain| {
            fill(memory, chain).unwrap_or_else(|error| {
                host_error = Some(error);
                0
            })
        })
        .map_err(|source| DeviceError::Queue { index: 0, source })?;
        if drained.notify {
            active.interrupt.signal_used_queue();
        }
        if drained.more {
            self.again.request();
        }
        match host_error {
            Some(error) => Err(DeviceError::Host {
                what: "getrandom",
                source: error.into(),
            }),
            None => Ok(()),
        }
    }
}

/// Fills a chain's buffers; returns how many bytes. Stops at a buffer that is not
/// in RAM.
fn fill(
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
) -> rustix::io::Result<u32> {
    let mut written = 0;
    let mut chunk = [0; CHUNK];
    for descriptor in chain.take(SEGMENTS_MAX).filter(|d| d.is_write_only()) {
        let len = (descriptor.len() as usize).min(REQUEST_MAX - written);
        let mut done = 0;
        while done < len {
            let want = (len - done).min(CHUNK);
            let got = random(&mut chunk[..want])?;
            let target = descriptor.addr().checked_add(done as u64);
            let put = target.map(|target| memory.write_slice(&chunk[..got], target));
            if !matches!(put, Some(Ok(()))) {
                return Ok(written as u32);
            }
            done += got;
            written += got;
        }
    }
    Ok(written as u32)
}

fn random(buffer: &mut [u8]) -> rustix::io::Result<usize> {
    let flags = rustix::rand::GetRandomFlags::empty();
    rustix::io::retry_on_intr(|| rustix::rand::getrandom(&mut *buffer, flags))
}

impl Device for Rng {
    fn id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn name(&self) -> &'static str {
        "rng"
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

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
        Ok(DeviceState::Rng)
    }

    fn thaw(&mut self, state: DeviceState) -> Result<(), DeviceError> {
        match state {
            DeviceState::Rng => Ok(()),
            _ => Err(DeviceError::State),
        }
    }

    fn queue_event(&mut self, _index: usize) -> Result<(), DeviceError> {
        self.serve()
    }

    fn register(&mut self, ops: &mut EventOps) -> Result<(), DeviceError> {
        self.again.register(ops, OWN_DATA_FIRST)
    }

    fn own_event(&mut self, _events: Events, _ops: &mut EventOps) -> Result<(), DeviceError> {
        self.again.clear();
        self.serve()
    }
}

#[cfg(test)]
mod tests {
    use super::super::interrupt::Interrupt;
    use super::super::testing::{GuestQueue, WRITE, active, memory};
    use super::*;
    use std::sync::Arc;
    use vm_memory::GuestAddress;

    const RAM_LEN: usize = 0x4_0000;
    const BUFFER: u64 = 0x1_0000;

    fn bench() -> (Rng, GuestMemoryMmap, GuestQueue, Arc<Interrupt>) {
        let memory = memory(RAM_LEN);
        let queue = GuestQueue::new(&memory, 0x1000, 8);
        let mut rng = Rng::new().unwrap();
        let (active, interrupt) = active(&memory, &[&queue]);
        rng.activate(active).unwrap();
        (rng, memory, queue, interrupt)
    }

    fn bytes(memory: &GuestMemoryMmap, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    #[test]
    fn each_writable_buffer_is_filled() {
        let (mut rng, memory, mut queue, interrupt) = bench();
        queue.add(&[(BUFFER, 64, WRITE), (BUFFER + 0x1000, 1000, WRITE)]);
        rng.queue_event(0).unwrap();
        assert_eq!(queue.drain_used(), [(0, 1064)]);
        assert_ne!(bytes(&memory, BUFFER, 64), [0; 64]);
        assert_ne!(bytes(&memory, BUFFER + 0x1000 + 936, 64), [0; 64]);
        assert_eq!(
            bytes(&memory, BUFFER + 64, 64),
            [0; 64],
            "behind the buffer"
        );
        assert_eq!(interrupt.status(), 1);
    }

    #[test]
    fn buffers_that_are_for_reading_stay_as_they_are() {
        let (mut rng, memory, mut queue, _) = bench();
        queue.add(&[(BUFFER, 64, 0), (BUFFER + 0x1000, 8, WRITE)]);
        rng.queue_event(0).unwrap();
        assert_eq!(queue.drain_used(), [(0, 8)]);
        assert_eq!(bytes(&memory, BUFFER, 64), [0; 64]);
    }

    #[test]
    fn a_request_is_capped() {
        let (mut rng, memory, mut queue, _) = bench();
        queue.add(&[(BUFFER, 0x2_0000, WRITE), (BUFFER + 0x2_0000, 64, WRITE)]);
        rng.queue_event(0).unwrap();
        assert_eq!(queue.drain_used(), [(0, REQUEST_MAX as u32)]);
        assert_eq!(bytes(&memory, BUFFER + 0x1_0000, 64), [0; 64]);
    }

    #[test]
    fn buffers_outside_of_ram_get_nothing() {
        let (mut rng, _, mut queue, _) = bench();
        let end = RAM_LEN as u64;
        for (address, len, expected) in [
            (end, 64, 0),
            (u64::MAX, 64, 0),
            (u64::MAX - 300, u32::MAX, 0),
            (end - 16, 64, 0),
            (end - 256, u32::MAX, 256),
            (BUFFER, 0, 0),
        ] {
            queue.add(&[(address, len, WRITE)]);
            rng.queue_event(0).unwrap();
            assert_eq!(
                queue.next_used().map(|u| u.1),
                Some(expected),
                "{address:#x}"
            );
        }
    }

    #[test]
    fn a_broken_ring_is_an_error_and_a_reset_heals_it() {
        let (mut rng, memory, mut queue, _) = bench();
        queue.set_avail_idx(100);
        assert!(rng.queue_event(0).is_err());
        rng.reset();
        rng.queue_event(0).unwrap();
        let mut queue = GuestQueue::new(&memory, 0x1000, 8);
        rng.activate(active(&memory, &[&queue]).0).unwrap();
        queue.add(&[(BUFFER, 64, WRITE)]);
        rng.queue_event(0).unwrap();
        assert_eq!(queue.drain_used(), [(0, 64)]);
    }

    #[test]
    fn a_loop_of_descriptors_ends() {
        let (mut rng, _, mut queue, _) = bench();
        let looping = virtio_queue::desc::split::Descriptor::new(BUFFER, 4, WRITE | 1, 0);
        queue.write_descriptor(0, looping);
        queue.add_head(0);
        rng.queue_event(0).unwrap();
        assert_eq!(queue.drain_used(), [(0, 32)]);
    }
}
