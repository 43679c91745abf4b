//! What is saved of a transport and the device behind it.

use serde::{Deserialize, Serialize};

use super::{
    ACKNOWLEDGE, Active, CONFIGURING, DRIVER_OK, DeviceError, FAILED, FEATURES_OK, MmioTransport,
    NEGOTIATING, QueueRegisters, Registers, VERSION_1, lock,
};
use crate::virtio::state::DeviceState;
use crate::virtio::worker::Position;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_queue::QueueT;

/// A state that cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// No such transport makes it.
    #[error("{device}: {what}")]
    Invalid {
        /// The device's name.
        device: &'static str,
        /// What cannot be.
        what: &'static str,
    },
    /// The device refuses.
    #[error("{device}")]
    Device {
        /// The device's name.
        device: &'static str,
        /// Why.
        source: DeviceError,
    },
}

impl StateError {
    /// Whether the host refused something, and the state may be sound.
    pub fn is_of_the_host(&self) -> bool {
        let Self::Device { source, .. } = self else {
            return false;
        };
        matches!(source, DeviceError::Host { .. })
    }
}

/// Registers, queues and interrupt of one transport, and its device's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    pub(super) device_id: u32,
    pub(super) status: u32,
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    pub(super) driver_features: u64,
    pub(super) queue_sel: u32,
    pub(super) queues: Vec<QueueState>,
    pub(super) interrupt_status: u32,
    pub(super) config_generation: u32,
    pub(super) device: DeviceState,
}

/// Registers of a queue, and how far the device is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QueueState {
    pub(super) size: u32,
    pub(super) ready: bool,
    pub(super) desc: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
    pub(super) position: Position,
}

impl MmioTransport {
    /// The device's name.
    pub fn device_name(&self) -> &'static str {
        lock(&self.worker).name()
    }

    /// The state to save. To be called when neither vCPUs nor the event loop run:
    /// then nothing is in flight, for a device serves what it takes from a queue
    /// before it lets go of it. Notifications that it has not seen need not be
    /// saved: a device looks at its queues when it is activated.
    ///
    /// Fails with what cannot be saved.
    pub fn freeze(&self) -> Result<TransportState, &'static str> {
        let registers = lock(&self.registers);
        let worker = lock(&self.worker);
        if self.interrupt.needs_reset() {
            return Err("it failed and waits for a reset");
        }
        let (device, positions) = worker.freeze()?;
        let (interrupt_status, config_generation) = self.interrupt.freeze();
        let positions = positions
            .into_iter()
            .chain(std::iter::repeat(Position::default()));
        let queues = registers.queues.iter().zip(positions);
        Ok(TransportState {
            device_id: self.device_id,
            status: registers.status,
            device_features_sel: registers.device_features_sel,
            driver_features_sel: registers.driver_features_sel,
            driver_features: registers.driver_features,
            queue_sel: registers.queue_sel,
            queues: queues.map(QueueState::of).collect(),
            interrupt_status,
            config_generation,
            device,
        })
    }

    /// Goes on from a saved state, in a machine that has not run yet. Guest RAM and
    /// the interrupt controllers must have been restored before. Queues are checked
    /// as on activation by a driver, which happens if the device was active.
    pub fn thaw(&self, state: TransportState) -> Result<(), StateError> {
        let mut registers = lock(&self.registers);
        let device = lock(&self.worker).name();
        let invalid = |what| StateError::Invalid { device, what };
        self.check(&state).map_err(invalid)?;
        let positions: Vec<_> = state.queues.iter().map(|queue| queue.position).collect();
        *registers = Registers {
            status: state.status,
            device_features_sel: state.device_features_sel,
            driver_features_sel: state.driver_features_sel,
            driver_features: state.driver_features,
            queue_sel: state.queue_sel,
            queues: state.queues.iter().map(QueueState::registers).collect(),
        };
        let refused = |source| StateError::Device { device, source };
        lock(&self.worker).thaw(state.device).map_err(refused)?;
        if registers.status & DRIVER_OK != 0 {
            self.reactivate(&registers, &positions).map_err(refused)?;
        }
        // Behind the activation, so that the guest looks when all is as it was.
        self.interrupt
            .thaw((state.interrupt_status, state.config_generation));
        Ok(())
    }

    /// What a driver can bring a transport to, and nothing else.
    fn check(&self, state: &TransportState) -> Result<(), &'static str> {
        let TransportState { status, queues, .. } = state;
        if state.device_id != self.device_id {
            return Err("it is another device");
        }
        const STEPS: [u32; 5] = [
            0,
            ACKNOWLEDGE,
            NEGOTIATING,
            CONFIGURING,
            CONFIGURING | DRIVER_OK,
        ];
        if !STEPS.contains(&(status & !FAILED)) {
            return Err("no driver sets this status");
        }
        let features = state.driver_features;
        let refused = features & !self.offered != 0 || features & VERSION_1 == 0;
        if status & FEATURES_OK != 0 && refused {
            return Err("these features were never offered");
        }
        if queues.len() != self.queue_max_sizes.len() {
            return Err("it has another number of queues");
        }
        if state.interrupt_status & !(VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG) != 0 {
            return Err("there is no such interrupt");
        }
        Ok(())
    }

    fn reactivate(&self, registers: &Registers, positions: &[Position]) -> Result<(), DeviceError> {
        let mut queues = self.build_queues(registers)?;
        for (queue, position) in queues.iter_mut().zip(positions) {
            queue.set_next_avail(position.next_avail);
            queue.set_next_used(position.next_used);
        }
        let mut worker = lock(&self.worker);
        worker.activate(Active {
            features: registers.driver_features,
            memory: self.memory.clone(),
            queues,
            interrupt: self.interrupt.clone(),
        });
        // The reason is in the log.
        let active = worker.is_active();
        active.then_some(()).ok_or(DeviceError::State)
    }
}

impl QueueState {
    fn of((registers, position): (&QueueRegisters, Position)) -> Self {
        let QueueRegisters {
            size,
            ready,
            desc,
            driver,
            device,
        } = *registers;
        Self {
            size,
            ready,
            desc,
            driver,
            device,
            position,
        }
    }

    fn registers(&self) -> QueueRegisters {
        QueueRegisters {
            size: self.size,
            ready: self.ready,
            desc: self.desc,
            driver: self.driver,
            device: self.device,
        }
    }
}
