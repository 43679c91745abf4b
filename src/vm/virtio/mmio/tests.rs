//! The transport through the eyes of a driver, honest or not.

use super::super::testing::{GuestQueue, memory};
use super::*;
use event_manager::{EventManager, SubscriberOps};
use proptest::prelude::*;
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
    fn reset(&mut self) {
        self.seen.resets.fetch_add(1, Ordering::Relaxed);
        self.active = None;
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

    fn good_queue(&self) -> QueueRegisters {
        let queue = GuestQueue::new(&self.memory, 0x1000, 16);
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

#[test]
fn a_driver_finds_negotiates_and_starts_the_device() {
    let bench = Bench::new();
    assert_eq!(
        bench.get(reg::VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(),
        *b"virt"
    );
    assert_eq!(bench.get(reg::VIRTIO_MMIO_VERSION), 2);
    assert_eq!(bench.get(reg::VIRTIO_MMIO_DEVICE_ID), 42);
    let mut offered = 0;
    for half in [1, 0] {
        bench.set(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, half);
        offered = offered << 32 | u64::from(bench.get(reg::VIRTIO_MMIO_DEVICE_FEATURES));
    }
    assert_eq!(offered, VERSION_1 | EVENT_IDX | 1);
    bench.negotiate(offered);
    assert_eq!(bench.status(), CONFIGURING);
    for (index, max) in [(0, 16), (1, 64)] {
        bench.set(reg::VIRTIO_MMIO_QUEUE_SEL, index);
        assert_eq!(bench.get(reg::VIRTIO_MMIO_QUEUE_NUM_MAX), max);
        assert_eq!(bench.get(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    }
    bench.set_queue(0, &bench.good_queue());
    assert_eq!(bench.get(reg::VIRTIO_MMIO_QUEUE_READY), 1);
    bench.set_status(CONFIGURING | DRIVER_OK);
    assert_eq!(bench.status(), CONFIGURING | DRIVER_OK);
    assert_eq!(count(&bench.seen.activations), 1);
}

#[test]
fn notifications_reach_the_device_from_the_register_and_from_kvm() {
    let bench = Bench::new();
    let mut manager = bench.event_manager();
    bench.start(&bench.good_queue());
    manager.run().unwrap();
    assert_eq!(
        count(&bench.seen.queue_events),
        1,
        "the look after activation"
    );
    bench.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    manager.run().unwrap();
    bench.transport.notify_eventfds()[1].write(1).unwrap();
    manager.run().unwrap();
    assert_eq!(count(&bench.seen.queue_events), 3);
    for unknown in [2, 63, 64, 0xffff, u32::MAX] {
        bench.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, unknown);
    }
    assert_eq!(manager.run_with_timeout(0).unwrap(), 0);
}

#[test]
fn notifications_before_driver_ok_are_drained_and_ignored() {
    let bench = Bench::new();
    let mut manager = bench.event_manager();
    bench.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    manager.run().unwrap();
    assert_eq!(manager.run_with_timeout(0).unwrap(), 0);
    assert_eq!(count(&bench.seen.queue_events), 0);
}

#[test]
fn status_takes_no_step_out_of_order() {
    for status in 1..=0xff {
        let bench = Bench::new();
        bench.set_status(status);
        let expected = match status & !NEEDS_RESET {
            ACKNOWLEDGE => ACKNOWLEDGE,
            FAILED => FAILED,
            _ => 0,
        };
        assert_eq!(bench.status(), expected, "{status:#x}");
    }
    let bench = Bench::new();
    bench.set_status(ACKNOWLEDGE);
    bench.set_status(ACKNOWLEDGE | DRIVER | DRIVER_OK);
    assert_eq!(bench.status(), ACKNOWLEDGE);
    bench.set_status(NEGOTIATING);
    bench.set_status(NEGOTIATING | DRIVER_OK);
    assert_eq!(bench.status(), NEGOTIATING);
    bench.set_status(ACKNOWLEDGE);
    assert_eq!(bench.status(), NEGOTIATING, "no way back");
    bench.set_status(0);
    assert_eq!(bench.status(), 0);
    assert_eq!(count(&bench.seen.activations), 0);
}

#[test]
fn after_failed_only_a_reset_helps() {
    let bench = Bench::new();
    bench.negotiate(VERSION_1);
    bench.set_status(CONFIGURING | FAILED);
    bench.set_status(CONFIGURING | FAILED | DRIVER_OK);
    assert_eq!(bench.status(), CONFIGURING | FAILED);
    bench.set_status(0);
    bench.start(&bench.good_queue());
    assert_eq!(bench.status(), CONFIGURING | DRIVER_OK);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let version_1_missing = EVENT_IDX;
    for features in [
        version_1_missing,
        0,
        VERSION_1 | 2,
        u64::MAX,
        VERSION_1 | 1 << 63,
    ] {
        let bench = Bench::new();
        bench.negotiate(features);
        assert_eq!(bench.status(), NEGOTIATING, "{features:#x}");
        bench.ack_features(VERSION_1);
        bench.set_status(CONFIGURING);
        assert_eq!(bench.status(), CONFIGURING, "a second try is fine");
    }
    let bench = Bench::new();
    bench.set_status(ACKNOWLEDGE);
    bench.set_status(NEGOTIATING);
    bench.ack_features(VERSION_1);
    bench.set(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 2);
    bench.set(reg::VIRTIO_MMIO_DRIVER_FEATURES, 1);
    bench.set_status(CONFIGURING);
    assert_eq!(bench.status(), NEGOTIATING, "feature 64");
}

#[test]
fn queues_that_do_not_exist_have_no_registers() {
    let bench = Bench::new();
    bench.negotiate(VERSION_1);
    for index in [2, 0xffff, u32::MAX] {
        bench.set_queue(index, &bench.good_queue());
        assert_eq!(bench.get(reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        assert_eq!(bench.get(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    }
}

/// The bench refuses `queue` with DEVICE_NEEDS_RESET and a config interrupt.
fn assert_refused(bench: &Bench, queue: &QueueRegisters, why: &str) {
    bench.start(queue);
    assert_ne!(bench.status() & NEEDS_RESET, 0, "{why}");
    assert_eq!(bench.get(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 2, "{why}");
    assert_eq!(count(&bench.seen.activations), 0, "{why}");
}

#[test]
fn impossible_queue_sizes_need_a_reset() {
    for size in [0, 3, 32, 32768, 32769, 65536 + 16, u32::MAX] {
        let bench = Bench::new();
        let mut queue = bench.good_queue();
        queue.size = size;
        assert_refused(&bench, &queue, &format!("size {size}"));
    }
}

#[test]
fn rings_outside_of_ram_or_unaligned_need_a_reset() {
    let end = RAM_LEN as u64;
    for address in [end, end - 16, 1 << 40, u64::MAX - 15, 0xd000_0000, 8 + 1, 0] {
        for ring in 0..3 {
            let bench = Bench::new();
            let mut queue = bench.good_queue();
            *[&mut queue.desc, &mut queue.driver, &mut queue.device][ring] = address;
            assert_refused(&bench, &queue, &format!("ring {ring} at {address:#x}"));
        }
    }
}

#[test]
fn a_ring_across_a_hole_in_ram_needs_a_reset() {
    let ranges = [(GuestAddress(0), 0x3000), (GuestAddress(0x3080), 0x1000)];
    let bench = Bench::with_memory(GuestMemoryMmap::from_ranges(&ranges).unwrap(), |_| {});
    let mut queue = bench.good_queue();
    queue.desc = 0x2fe0;
    assert_refused(
        &bench,
        &queue,
        "first and last byte are RAM, the middle is not",
    );
}

#[test]
fn a_ring_may_end_where_ram_ends() {
    let bench = Bench::new();
    let mut queue = bench.good_queue();
    queue.desc = RAM_LEN as u64 - 16 * 16;
    bench.start(&queue);
    assert_eq!(bench.status(), CONFIGURING | DRIVER_OK);
}

#[test]
fn nothing_changes_after_ready_and_after_driver_ok() {
    let bench = Bench::new();
    bench.negotiate(VERSION_1);
    let good = bench.good_queue();
    bench.set_queue(0, &good);
    let bad = QueueRegisters {
        size: 3,
        ready: true,
        desc: u64::MAX,
        driver: u64::MAX,
        device: u64::MAX,
    };
    bench.set_queue(0, &bad);
    assert_eq!(lock(&bench.transport.registers).queues[0].size, 16);
    bench.set_status(CONFIGURING | DRIVER_OK);
    bench.set(reg::VIRTIO_MMIO_QUEUE_READY, 0);
    bench.set_queue(0, &bad);
    bench.set_queue(1, &bad);
    bench.ack_features(u64::MAX);
    let registers = lock(&bench.transport.registers);
    assert!(registers.queues[0].ready);
    assert_eq!(registers.queues[0].size, 16);
    assert_eq!(registers.queues[0].desc, good.desc);
    assert!(!registers.queues[1].ready);
    assert_eq!(registers.driver_features, VERSION_1);
}

#[test]
fn queues_are_closed_before_features_ok() {
    let bench = Bench::new();
    bench.set_status(ACKNOWLEDGE);
    bench.set_status(NEGOTIATING);
    bench.set_queue(0, &bench.good_queue());
    assert_eq!(bench.get(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    assert_eq!(lock(&bench.transport.registers).queues[0].size, 0);
}

#[test]
fn a_queue_can_be_taken_back_before_driver_ok() {
    let bench = Bench::new();
    bench.negotiate(VERSION_1);
    bench.set_queue(0, &bench.good_queue());
    bench.set(reg::VIRTIO_MMIO_QUEUE_READY, 0);
    bench.set(reg::VIRTIO_MMIO_QUEUE_NUM, 8);
    assert_eq!(bench.get(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    assert_eq!(lock(&bench.transport.registers).queues[0].size, 8);
}

#[test]
fn a_device_that_fails_later_needs_a_reset_and_is_left_alone() {
    let bench = Bench::with(|probe| probe.fail_queue = Some(0));
    let mut manager = bench.event_manager();
    bench.start(&bench.good_queue());
    manager.run().unwrap();
    assert_ne!(bench.status() & NEEDS_RESET, 0);
    assert_eq!(bench.get(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    bench.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    manager.run().unwrap();
    assert_eq!(count(&bench.seen.queue_events), 1);
    bench.set_status(0);
    assert_eq!(bench.status(), 0);
    assert_eq!(bench.get(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn a_failed_activation_needs_a_reset() {
    let bench = Bench::with(|probe| probe.fail_activation = true);
    bench.start(&bench.good_queue());
    assert_ne!(bench.status() & NEEDS_RESET, 0);
}

#[test]
fn a_reset_storm_with_traffic_on_another_thread_ends_in_order() {
    let bench = Bench::new();
    let mut manager = bench.event_manager();
    let stop = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while stop.load(Ordering::Acquire) == 0 {
                manager.run().unwrap();
            }
        });
        let queue = bench.good_queue();
        for _ in 0..10_000 {
            bench.start(&queue);
            bench.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
            bench.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 1);
            bench.set_status(0);
        }
        stop.store(1, Ordering::Release);
        bench.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    });
    assert_eq!(count(&bench.seen.activations), 10_000);
    assert_eq!(count(&bench.seen.resets), 10_000);
    assert_eq!(bench.status(), 0);
}

#[test]
fn interrupt_status_shows_and_acknowledges_causes() {
    let bench = Bench::new();
    bench.transport.interrupt.signal_used_queue();
    assert_eq!(bench.get(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    bench.set(reg::VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(bench.get(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    bench.transport.interrupt.signal_config_change();
    assert_eq!(bench.get(reg::VIRTIO_MMIO_CONFIG_GENERATION), 1);
    assert_eq!(bench.transport.interrupt_eventfd().read().unwrap(), 2);
}

#[test]
fn there_is_no_shared_memory() {
    let bench = Bench::new();
    for id in [0, 1, u32::MAX] {
        bench.set(reg::VIRTIO_MMIO_SHM_SEL, id);
        assert_eq!(bench.get(reg::VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
        assert_eq!(bench.get(reg::VIRTIO_MMIO_SHM_LEN_HIGH), u32::MAX);
    }
}

#[test]
fn config_space_is_read_in_every_width_and_written_by_drivers_only() {
    let bench = Bench::new();
    for width in [1, 2, 4, 8] {
        let mut data = [0xaa; 8];
        bench.transport.read(CONFIG_OFFSET, &mut data[..width]);
        assert_eq!(data[..width], [1, 2, 3, 4, 5, 6, 7, 8][..width]);
    }
    let mut data = [0xaa; 4];
    bench.transport.read(CONFIG_OFFSET + 6, &mut data);
    assert_eq!(data, [7, 8, 0, 0]);
    bench.transport.write(CONFIG_OFFSET, &[1]);
    assert_eq!(count(&bench.seen.config_writes), 0);
    bench.set_status(ACKNOWLEDGE);
    bench.set_status(NEGOTIATING);
    bench.transport.write(CONFIG_OFFSET, &[1]);
    assert_eq!(count(&bench.seen.config_writes), 1);
}

#[test]
fn registers_of_a_wrong_width_read_zeros_and_take_nothing() {
    let bench = Bench::new();
    for width in [1, 2, 8] {
        let mut data = [0xaa; 8];
        bench.transport.read(0, &mut data[..width]);
        assert_eq!(data[..width], [0; 8][..width]);
        let value = u64::from(ACKNOWLEDGE).to_le_bytes();
        bench
            .transport
            .write(reg::VIRTIO_MMIO_STATUS.into(), &value[..width]);
        assert_eq!(bench.status(), 0);
    }
}

#[test]
fn impossible_queues_of_a_device_are_refused_when_it_is_built() {
    struct Odd(&'static [u16]);
    impl Device for Odd {
        fn id(&self) -> u32 {
            1
        }
        fn name(&self) -> &'static str {
            "odd"
        }
        fn features(&self) -> u64 {
            0
        }
        fn queue_max_sizes(&self) -> &[u16] {
            self.0
        }
        fn read_config(&self, _offset: usize, _data: &mut [u8]) {}
        fn activate(&mut self, _active: Active) -> Result<(), DeviceError> {
            Ok(())
        }
        fn reset(&mut self) {}
        fn queue_event(&mut self, _index: usize) -> Result<(), DeviceError> {
            Ok(())
        }
    }
    for sizes in [&[0_u16][..], &[3], &[16; 65]] {
        assert!(MmioTransport::new(Box::new(Odd(sizes)), memory(RAM_LEN)).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Any accesses, in any order, in any width: no panic, a status that a driver
    /// could have reached, and a frozen set of queues while active.
    #[test]
    fn any_access_is_survived(
        accesses in prop::collection::vec(
            (any::<bool>(), 0_u64..0x120, 0_usize..9, any::<u64>(), any::<bool>()),
            0..400,
        ),
        started in any::<bool>(),
    ) {
        let bench = Bench::new();
        if started {
            bench.start(&bench.good_queue());
        }
        for (write, offset, width, value, aligned) in accesses {
            let offset = if aligned { offset & !3 } else { offset };
            let width = if aligned { 4 } else { width };
            let mut data = value.to_le_bytes();
            if write {
                bench.transport.write(offset, &data[..width]);
            } else {
                bench.transport.read(offset, &mut data[..width]);
            }
            let status = bench.status() & !NEEDS_RESET & !FAILED;
            prop_assert!([0, 1, 3, CONFIGURING, CONFIGURING | DRIVER_OK].contains(&status));
        }
    }
}

#[test]
fn every_offset_and_width_is_survived() {
    for started in [false, true] {
        let bench = Bench::new();
        if started {
            bench.start(&bench.good_queue());
        }
        let offsets = (0..0x1100).chain([u64::MAX, u64::MAX - 7, 1 << 32, 1 << 63]);
        for offset in offsets {
            for width in [1, 2, 4, 8] {
                for value in [0_u8, 1, 0xff] {
                    let mut data = [value; 8];
                    bench.transport.write(offset, &data[..width]);
                    bench.transport.read(offset, &mut data[..width]);
                }
            }
        }
    }
}
