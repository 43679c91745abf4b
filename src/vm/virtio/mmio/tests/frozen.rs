//! Saved in one machine, taken over in another with the same memory.

use proptest::prelude::*;

use super::super::super::rng::Rng;
use super::super::super::state::DeviceState;
use super::super::super::testing::WRITE;
use super::*;

const ENTROPY: u64 = 0x8000;

/// A real device, and what its driver keeps in its own memory.
struct Entropy {
    transport: MmioTransport,
    manager: EventManager<Subscriber>,
    memory: GuestMemoryMmap,
}

impl Entropy {
    fn new(memory: &GuestMemoryMmap) -> Self {
        let device = Box::new(Rng::new().unwrap());
        let transport = MmioTransport::new(device, memory.clone()).unwrap();
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(transport.subscriber());
        Self {
            transport,
            manager,
            memory: memory.clone(),
        }
    }

    /// The machine goes away, another takes its place.
    fn replaced(self) -> Self {
        let state = self.transport.freeze().unwrap();
        let bytes = postcard::to_allocvec(&state).unwrap();
        let next = Self::new(&self.memory);
        next.transport
            .thaw(postcard::from_bytes(&bytes).unwrap())
            .unwrap();
        next
    }

    fn set(&self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    fn get(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn start(&self, queue: &GuestQueue) {
        for status in [ACKNOWLEDGE, NEGOTIATING] {
            self.set(reg::VIRTIO_MMIO_STATUS, status);
        }
        self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES, EVENT_IDX as u32);
        self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES, (VERSION_1 >> 32) as u32);
        self.set(reg::VIRTIO_MMIO_STATUS, CONFIGURING);
        self.set(reg::VIRTIO_MMIO_QUEUE_NUM, queue.size.into());
        self.set(reg::VIRTIO_MMIO_QUEUE_DESC_LOW, queue.desc_table() as u32);
        self.set(reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, queue.avail_ring() as u32);
        self.set(reg::VIRTIO_MMIO_QUEUE_USED_LOW, queue.used_ring() as u32);
        self.set(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        self.set(reg::VIRTIO_MMIO_STATUS, CONFIGURING | DRIVER_OK);
    }

    fn run(&mut self) {
        while self.manager.run_with_timeout(0).unwrap() > 0 {}
    }
}

#[test]
fn a_device_goes_on_in_the_middle_of_its_queue() {
    let memory = memory(RAM_LEN);
    let mut queue = GuestQueue::new(&memory, 0x1000, 8);
    let mut entropy = Entropy::new(&memory);
    entropy.start(&queue);
    // More than once around the rings, with a new machine in between each time.
    for round in 0..20_u32 {
        queue.set_used_event(3 * round as u16);
        for _ in 0..3 {
            queue.add(&[(ENTROPY, round + 1, WRITE)]);
        }
        if round % 2 == 0 {
            entropy.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
            entropy.run();
        }
        // In odd rounds nobody has seen the chains, and the notification is lost.
        entropy = entropy.replaced();
        entropy.run();
        let used: Vec<u32> = queue.drain_used().iter().map(|(_, len)| *len).collect();
        assert_eq!(used, [round + 1; 3], "round {round}");
        assert!(queue.wants_kick(), "round {round}");
        assert_eq!(entropy.get(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
        assert_eq!(
            entropy.get(reg::VIRTIO_MMIO_STATUS),
            CONFIGURING | DRIVER_OK
        );
        entropy.set(reg::VIRTIO_MMIO_INTERRUPT_ACK, 1);
    }
}

#[test]
fn an_interrupt_that_was_not_acknowledged_comes_again() {
    let memory = memory(RAM_LEN);
    let mut queue = GuestQueue::new(&memory, 0x1000, 8);
    let entropy = Entropy::new(&memory);
    entropy.start(&queue);
    let quiet = entropy.replaced();
    assert!(quiet.transport.interrupt_eventfd().read().is_err());
    let mut entropy = quiet;
    queue.add(&[(ENTROPY, 8, WRITE)]);
    entropy.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    entropy.run();
    let entropy = entropy.replaced();
    assert_eq!(entropy.get(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    assert_eq!(entropy.transport.interrupt_eventfd().read().unwrap(), 1);
}

#[test]
fn a_driver_goes_on_from_each_step_of_its_start() {
    let steps: [fn(&Bench); 5] = [
        |bench| bench.set_status(ACKNOWLEDGE),
        |bench| bench.set_status(NEGOTIATING),
        |bench| {
            bench.ack_features(VERSION_1 | EVENT_IDX);
            bench.set_status(CONFIGURING);
        },
        |bench| bench.set_queue(0, &bench.good_queue()),
        |bench| bench.set_status(CONFIGURING | DRIVER_OK),
    ];
    let mut bench = Bench::new();
    for step in steps {
        step(&bench);
        let state = bench.transport.freeze().unwrap();
        let next = Bench::with_memory(bench.memory.clone(), |_| {});
        next.transport.thaw(state.clone()).unwrap();
        assert_eq!(next.transport.freeze().unwrap(), state);
        assert_eq!(next.status(), bench.status());
        bench = next;
    }
    assert_eq!(count(&bench.seen.activations), 1);
    let mut manager = bench.event_manager();
    manager.run().unwrap();
    assert_eq!(count(&bench.seen.queue_events), 1);
}

#[test]
fn the_generation_of_the_config_space_goes_on_counting() {
    let bench = Bench::new();
    bench.transport.interrupt.signal_config_change();
    let next = Bench::new();
    next.transport
        .thaw(bench.transport.freeze().unwrap())
        .unwrap();
    next.transport.interrupt.signal_config_change();
    assert_eq!(next.get(reg::VIRTIO_MMIO_CONFIG_GENERATION), 2);
}

#[test]
fn a_device_that_failed_is_not_saved() {
    let bench = Bench::with(|probe| probe.fail_activation = true);
    bench.start(&bench.good_queue());
    assert!(bench.transport.freeze().is_err());
    bench.set_status(0);
    assert!(bench.transport.freeze().is_ok());
}

/// The state of a started device, with a change.
fn thawed(change: impl FnOnce(&mut TransportState)) -> Result<(), StateError> {
    let bench = Bench::new();
    bench.start(&bench.good_queue());
    let mut state = bench.transport.freeze().unwrap();
    change(&mut state);
    let next = Bench::with_memory(bench.memory.clone(), |_| {});
    let result = next.transport.thaw(state);
    let active = count(&next.seen.activations) - count(&next.seen.resets);
    assert_eq!(active == 1, result.is_ok());
    result
}

#[test]
fn a_state_that_no_driver_makes_is_refused() {
    assert!(thawed(|_| {}).is_ok());
    let changes: [fn(&mut TransportState); 16] = [
        |state| state.device_id = 43,
        |state| state.status = CONFIGURING | DRIVER_OK | NEEDS_RESET,
        |state| state.status = DRIVER_OK,
        |state| state.status |= 1 << 31,
        |state| state.driver_features |= 1 << 63,
        |state| state.driver_features &= !VERSION_1,
        |state| state.queues.truncate(1),
        |state| state.queues.push(state.queues[0].clone()),
        |state| state.interrupt_status = 4,
        |state| state.device = DeviceState::Console,
        |state| state.queues[0].size = 3,
        |state| state.queues[0].size = 0x1_0010,
        |state| state.queues[0].desc = 0x1001,
        |state| state.queues[0].desc = RAM_LEN as u64 - 16,
        |state| state.queues[0].driver = 0,
        |state| state.queues[0].device = u64::MAX - 3,
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let error = thawed(change).expect_err(&format!("change {index}"));
        assert!(!error.is_of_the_host(), "{error}");
    }
}

proptest! {
    /// Whatever the bytes say, it is taken over or refused; and what was taken over
    /// is survived by the device.
    #[test]
    fn mutated_states_are_survived(
        at in any::<prop::sample::Index>(),
        splice in prop::collection::vec(any::<u8>(), 0..12),
        cut in 0_usize..4,
    ) {
        let memory = memory(RAM_LEN);
        let mut queue = GuestQueue::new(&memory, 0x1000, 8);
        let mut entropy = Entropy::new(&memory);
        entropy.start(&queue);
        queue.add(&[(ENTROPY, 8, WRITE)]);
        entropy.run();
        let mut bytes = postcard::to_allocvec(&entropy.transport.freeze().unwrap()).unwrap();
        let at = at.index(bytes.len());
        let end = (at + cut).min(bytes.len());
        bytes.splice(at..end, splice);
        if let Ok(state) = postcard::from_bytes::<TransportState>(&bytes) {
            let mut next = Entropy::new(&memory);
            if next.transport.thaw(state).is_ok() {
                next.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
                next.run();
            }
        }
    }
}
