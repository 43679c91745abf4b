//! What an honest driver does.

use super::*;

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
        fn active(&self) -> Option<&Active> {
            None
        }
        fn freeze(&self) -> Result<DeviceState, &'static str> {
            Err("it is odd")
        }
        fn thaw(&mut self, _state: DeviceState) -> Result<(), DeviceError> {
            Err(DeviceError::State)
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

#[test]
fn an_empty_queue_is_not_looked_at() {
    let bench = Bench::new();
    let mut manager = bench.event_manager();
    let queue = bench.good_queue();
    let emptied = GuestQueue::new(&bench.memory, 0x1000, 16);
    assert_eq!(emptied.desc_table(), queue.desc);
    bench.start(&queue);
    assert_eq!(manager.run_with_timeout(0).unwrap(), 0);
}

#[test]
fn a_device_that_cannot_register_later_needs_a_reset() {
    let bench = Bench::with(|probe| probe.fail_register = true);
    bench.start(&bench.good_queue());
    assert_eq!(bench.status(), CONFIGURING | DRIVER_OK);
    let _manager = bench.event_manager();
    assert_ne!(bench.status() & NEEDS_RESET, 0);
}

#[test]
fn a_device_that_could_not_register_is_never_activated() {
    let bench = Bench::with(|probe| probe.fail_register = true);
    let _manager = bench.event_manager();
    bench.start(&bench.good_queue());
    assert_ne!(bench.status() & NEEDS_RESET, 0);
    assert_eq!(count(&bench.seen.activations), 0);
}
