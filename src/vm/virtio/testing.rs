//! A guest driver for tests: the other side of a split queue.
//!
//! virtio-queue's own mock cannot be used here: its rings do not wrap, and its
//! used ring overlaps the available ring.

use std::sync::Arc;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::device::Active;
use super::interrupt::Interrupt;

/// The buffer is for the device to write.
pub(crate) const WRITE: u16 = 2;
const NEXT: u16 = 1;

/// One buffer of a chain: address, length, flags ([`WRITE`] or 0).
pub(crate) type Buffer = (u64, u32, u16);

/// One queue, as its driver sees it.
pub(crate) struct GuestQueue {
    memory: GuestMemoryMmap,
    start: u64,
    pub size: u16,
    next_desc: u16,
    avail_idx: u16,
    used_seen: u16,
}

impl GuestQueue {
    /// Lays a queue out from `start` on; [`Self::len`] bytes.
    pub fn new(memory: &GuestMemoryMmap, start: u64, size: u16) -> Self {
        let queue = Self {
            memory: memory.clone(),
            start,
            size,
            next_desc: 0,
            avail_idx: 0,
            used_seen: 0,
        };
        let zeros = vec![0; queue.len() as usize];
        memory.write_slice(&zeros, GuestAddress(start)).unwrap();
        queue
    }

    /// Bytes that the queue takes.
    pub fn len(&self) -> u64 {
        self.used_ring() + 6 + 8 * u64::from(self.size) - self.start
    }

    pub fn desc_table(&self) -> u64 {
        self.start
    }

    pub fn avail_ring(&self) -> u64 {
        self.start + 16 * u64::from(self.size)
    }

    pub fn used_ring(&self) -> u64 {
        (self.avail_ring() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    /// The device's side, ready.
    pub fn device_queue(&self, event_idx: bool) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        queue
            .try_set_desc_table_address(GuestAddress(self.desc_table()))
            .unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(self.avail_ring()))
            .unwrap();
        queue
            .try_set_used_ring_address(GuestAddress(self.used_ring()))
            .unwrap();
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        queue
    }

    /// The head of the chain that comes next.
    pub fn next_head(&self) -> u16 {
        self.next_desc % self.size
    }

    /// Makes a chain available; returns its head.
    pub fn add(&mut self, chain: &[Buffer]) -> u16 {
        let head = self.next_desc % self.size;
        for (i, &(address, len, flags)) in chain.iter().enumerate() {
            let index = self.next_desc % self.size;
            self.next_desc = (index + 1) % self.size;
            let more = i + 1 < chain.len();
            let flags = flags | if more { NEXT } else { 0 };
            self.write_descriptor(index, Descriptor::new(address, len, flags, self.next_desc));
        }
        self.add_head(head);
        head
    }

    /// Writes one descriptor, whatever it says.
    pub fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        let address = self.desc_table() + 16 * u64::from(index);
        self.memory
            .write_obj(descriptor, GuestAddress(address))
            .unwrap();
    }

    /// Makes the chain that starts at descriptor `head` available.
    pub fn add_head(&mut self, head: u16) {
        let slot = self.avail_ring() + 4 + 2 * u64::from(self.avail_idx % self.size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.set_avail_idx(self.avail_idx.wrapping_add(1));
    }

    /// Moves the available index, whatever that means.
    pub fn set_avail_idx(&mut self, value: u16) {
        self.avail_idx = value;
        self.memory
            .write_obj(value, GuestAddress(self.avail_ring() + 2))
            .unwrap();
    }

    /// With event_idx: interrupt when the used index passes `value`.
    pub fn set_used_event(&self, value: u16) {
        let address = self.avail_ring() + 4 + 2 * u64::from(self.size);
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    /// With event_idx: whether the device wants to hear of the next chain.
    pub fn wants_kick(&self) -> bool {
        let address = self.used_ring() + 4 + 8 * u64::from(self.size);
        let event: u16 = self.memory.read_obj(GuestAddress(address)).unwrap();
        event == self.avail_idx
    }

    /// Without event_idx: whether the device wants to hear of chains at all.
    pub fn wants_kicks(&self) -> bool {
        let flags: u16 = self
            .memory
            .read_obj(GuestAddress(self.used_ring()))
            .unwrap();
        flags == 0
    }

    /// The oldest buffer that was used since the last call: head and length.
    pub fn next_used(&mut self) -> Option<(u16, u32)> {
        let idx: u16 = self
            .memory
            .read_obj(GuestAddress(self.used_ring() + 2))
            .unwrap();
        if idx == self.used_seen {
            return None;
        }
        let slot = self.used_ring() + 4 + 8 * u64::from(self.used_seen % self.size);
        let element: [u32; 2] = self.memory.read_obj(GuestAddress(slot)).unwrap();
        self.used_seen = self.used_seen.wrapping_add(1);
        Some((element[0] as u16, element[1]))
    }

    /// All buffers used since the last call.
    pub fn drain_used(&mut self) -> Vec<(u16, u32)> {
        std::iter::from_fn(|| self.next_used()).collect()
    }
}

/// RAM of `len` bytes at 0.
pub(crate) fn memory(len: usize) -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len)]).unwrap()
}

/// What a device gets from a driver with these queues and VIRTIO_F_EVENT_IDX, and
/// its interrupt.
pub(crate) fn active(memory: &GuestMemoryMmap, queues: &[&GuestQueue]) -> (Active, Arc<Interrupt>) {
    let interrupt = Arc::new(Interrupt::new().unwrap());
    let active = Active {
        features: 1 << 32 | 1 << 29,
        memory: memory.clone(),
        queues: queues
            .iter()
            .map(|queue| queue.device_queue(true))
            .collect(),
        interrupt: Arc::clone(&interrupt),
    };
    (active, interrupt)
}
