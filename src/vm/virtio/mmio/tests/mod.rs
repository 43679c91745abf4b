//! The transport through the eyes of a driver.

mod driver;
mod frozen;
mod hostile;

use super::super::state::DeviceState;
use super::super::testing::{GuestQueue, memory};
use super::*;
use event_manager::{EventManager, SubscriberOps};
use std::sync::atomic::{AtomicUsize, Ordering};

const QUEUE_SIZES: [u16; 2] = [16, 64];
const RAM_LEN: usize = 0x10000;

#[derive(Default)]
struct Seen {
    activations: AtomicUsize,
    resets: AtomicUsize,
    queue_events: AtomicUsize,
    config_writes: AtomicUsize,
}

struct Probe {
    seen: Arc<Seen>,
    active: Option<Active>,
    fail_activation: bool,
    fail_queue: Option<usize>,
    fail_register: bool,
}

impl Device for Probe {
    fn id(&self) -> u32 {
        42
    }
    fn name(&self) -> &'static str {
        "probe"
    }
    fn features(&self) -> u64 {
        EVENT_IDX | 1
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            let at = offset.saturating_add(i);
            if at < 8 {
                *byte = at as u8 + 1;
            }
        }
    }
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {
        self.seen.config_writes.fetch_add(1, Ordering::Relaxed);
    }
    fn activate(&mut self, active: Active) -> Result<(), DeviceError> {
        self.seen.activations.fetch_add(1, Ordering::Relaxed);
        if self.fail_activation {
            return Err(DeviceError::Driver("no".to_owned()));
        }
        self.active = Some(active);
        Ok(())
    }
    fn active(&self) -> Option<&Active> {
        self.active.as_ref()
    }
    fn freeze(&self) -> Result<DeviceState, &'static str> {
        Ok(DeviceState::Rng)
    }
    fn thaw(&mut self, state: DeviceState) -> Result<(), DeviceError> {
        (state == DeviceState::Rng)
            .then_some(())
            .ok_or(DeviceError::State)
    }
    fn reset(&mut self) {
        self.seen.resets.fetch_add(1, Ordering::Relaxed);
        self.active = None;
    }
    fn register(&mut self, _ops: &mut event_manager::EventOps) -> Result<(), DeviceError> {
        match self.fail_register {
            true => Err(DeviceError::Driver("no".to_owned())),
            false => Ok(()),
        }
    }
    fn queue_event(&mut self, index: usize) -> Result<(), DeviceError> {
        self.seen.queue_events.fetch_add(1, Ordering::Relaxed);
        assert!(self.active.is_some(), "called while inactive");
        if self.fail_queue == Some(index) {
            let source = virtio_queue::Error::InvalidChain;
            return Err(DeviceError::Queue { index, source });
        }
        Ok(())
    }
}

/// A transport and a driver for it.
struct Bench {
    transport: MmioTransport,
    seen: Arc<Seen>,
    memory: GuestMemoryMmap,
}

impl Bench {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(adjust: impl FnOnce(&mut Probe)) -> Self {
        Self::with_memory(memory(RAM_LEN), adjust)
    }

    fn with_memory(memory: GuestMemoryMmap, adjust: impl FnOnce(&mut Probe)) -> Self {
        let seen = Arc::new(Seen::default());
        let mut probe = Probe {
            seen: Arc::clone(&seen),
            active: None,
            fail_activation: false,
            fail_queue: None,
            fail_register: false,
        };
        adjust(&mut probe);
        let transport = MmioTransport::new(Box::new(probe), memory.clone()).unwrap();
        Self {
            transport,
            seen,
            memory,
        }
    }

    fn get(&self, register: u32) -> u32 {
        let mut data = [0xaa; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn set(&self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    fn status(&self) -> u32 {
        self.get(reg::VIRTIO_MMIO_STATUS)
    }

    fn set_status(&self, status: u32) {
        self.set(reg::VIRTIO_MMIO_STATUS, status);
    }

    fn ack_features(&self, features: u64) {
        self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
        self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES, features as u32);
        self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES, (features >> 32) as u32);
    }

    fn negotiate(&self, features: u64) {
        self.set_status(ACKNOWLEDGE);
        self.set_status(NEGOTIATING);
        self.ack_features(features);
        self.set_status(CONFIGURING);
    }

    fn set_queue(&self, index: u32, queue: &QueueRegisters) {
        self.set(reg::VIRTIO_MMIO_QUEUE_SEL, index);
        self.set(reg::VIRTIO_MMIO_QUEUE_NUM, queue.size);
        self.set(reg::VIRTIO_MMIO_QUEUE_DESC_LOW, queue.desc as u32);
        self.set(reg::VIRTIO_MMIO_QUEUE_DESC_HIGH, (queue.desc >> 32) as u32);
        self.set(reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, queue.driver as u32);
        self.set(
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
            (queue.driver >> 32) as u32,
        );
        self.set(reg::VIRTIO_MMIO_QUEUE_USED_LOW, queue.device as u32);
        self.set(
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH,
            (queue.device >> 32) as u32,
        );
        self.set(reg::VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// Goes all the way with one queue.
    fn start(&self, queue: &QueueRegisters) {
        self.negotiate(VERSION_1 | EVENT_IDX);
        self.set_queue(0, queue);
        self.set_status(CONFIGURING | DRIVER_OK);
    }

    /// A queue with one chain, which nobody has taken.
    fn good_queue(&self) -> QueueRegisters {
        let mut queue = GuestQueue::new(&self.memory, 0x1000, 16);
        queue.add(&[(0x8000, 1, 0)]);
        QueueRegisters {
            size: 16,
            ready: true,
            desc: queue.desc_table(),
            driver: queue.avail_ring(),
            device: queue.used_ring(),
        }
    }

    fn event_manager(&self) -> EventManager<Subscriber> {
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(self.transport.subscriber());
        manager
    }
}

fn count(counter: &AtomicUsize) -> usize {
    counter.load(Ordering::Relaxed)
}
