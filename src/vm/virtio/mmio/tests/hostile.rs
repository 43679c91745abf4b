//! What a driver must not do, and gets nowhere with.

use super::*;
use proptest::prelude::*;

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
