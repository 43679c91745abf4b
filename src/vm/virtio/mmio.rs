//! The virtio-mmio transport, version 2 (virtio 1.2, 4.2).
//!
//! The registers belong to the vCPU threads and have a lock of their own; the
//! device and its queues belong to the [`Worker`]. Locks are taken in that
//! order, and the worker never asks for the registers.
//!
//! ```text
//! status    0 -> ACKNOWLEDGE -> +DRIVER -> +FEATURES_OK -> +DRIVER_OK
//! writable       features: DRIVER ..... FEATURES_OK
//!                queues:                FEATURES_OK ...... DRIVER_OK
//! ```
//! A write of 0 goes back to the start from anywhere. Every other step, and each
//! write outside of its window, is ignored.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::{Active, Device, DeviceError, OWN_DATA_FIRST};
use super::interrupt::Interrupt;
use super::worker::Worker;
use crate::bus::BusDevice;
use crate::event_loop::Subscriber;

/// Offset of the QueueNotify register: there KVM watches for 32-bit writes of a
/// queue's index, one ioeventfd for each of [`MmioTransport::notify_eventfds`].
pub const QUEUE_NOTIFY_OFFSET: u64 = reg::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// Length of a device's window: registers, and config space from 0x100 on.
pub const WINDOW_LEN: u64 = 0x1000;

/// "virt" as a little-endian number.
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// Which implementation of the device this is; drivers do not look at it.
const VENDOR_ID: u32 = 0;
const CONFIG_OFFSET: u64 = reg::VIRTIO_MMIO_CONFIG as u64;

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// Why a transport cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No more descriptors.
    #[error("{device}: eventfd")]
    EventFd {
        /// The device's name.
        device: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The device asks for queues that cannot be.
    #[error("{device}: {count} queues of sizes {sizes:?}")]
    Queues {
        /// The device's name.
        device: &'static str,
        /// How many.
        count: usize,
        /// Maximal sizes.
        sizes: Vec<u16>,
    },
}

/// A virtio device on the bus. See the module's text.
pub struct MmioTransport {
    device_id: u32,
    offered: u64,
    queue_max_sizes: Vec<u16>,
    memory: GuestMemoryMmap,
    interrupt: Arc<Interrupt>,
    notify: Arc<[EventFd]>,
    registers: Mutex<Registers>,
    worker: Arc<Mutex<Worker>>,
}

/// What the driver has written.
#[derive(Default)]
struct Registers {
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<QueueRegisters>,
}

#[derive(Default, Clone)]
struct QueueRegisters {
    size: u32,
    ready: bool,
    desc: u64,
    driver: u64,
    device: u64,
}

impl MmioTransport {
    /// Puts `device` behind a transport, in the state after a reset.
    pub fn new(device: Box<dyn Device>, memory: GuestMemoryMmap) -> Result<Self, TransportError> {
        let name = device.name();
        let sizes = device.queue_max_sizes().to_vec();
        if sizes.len() > OWN_DATA_FIRST as usize
            || sizes.iter().any(|&size| Queue::new(size).is_err())
        {
            return Err(TransportError::Queues {
                device: name,
                count: sizes.len(),
                sizes,
            });
        }
        let eventfd = |source| TransportError::EventFd {
            device: name,
            source,
        };
        let interrupt = Arc::new(Interrupt::new().map_err(eventfd)?);
        let notify = sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC))
            .collect::<io::Result<Arc<[EventFd]>>>()
            .map_err(eventfd)?;
        let transport = Self {
            device_id: device.id(),
            offered: device.features() | VERSION_1,
            memory,
            interrupt: Arc::clone(&interrupt),
            notify: Arc::clone(&notify),
            registers: Mutex::new(Registers::after_reset(sizes.len())),
            worker: Arc::new(Mutex::new(Worker::new(device, notify, interrupt))),
            queue_max_sizes: sizes,
        };
        Ok(transport)
    }

    /// To be registered with KVM as irqfd, without resampling.
    pub fn interrupt_eventfd(&self) -> &EventFd {
        self.interrupt.eventfd()
    }

    /// To be registered with KVM as ioeventfds at [`QUEUE_NOTIFY_OFFSET`], four
    /// bytes wide, the position in this slice as datamatch.
    pub fn notify_eventfds(&self) -> &[EventFd] {
        &self.notify
    }

    /// To be served by an event loop.
    pub fn subscriber(&self) -> Subscriber {
        Arc::clone(&self.worker) as Subscriber
    }

    fn read_register(&self, offset: u32) -> u32 {
        // Read in every interrupt: no lock.
        if offset == reg::VIRTIO_MMIO_INTERRUPT_STATUS {
            return self.interrupt.status();
        }
        let registers = lock(&self.registers);
        match offset {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => self.device_id,
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR_ID,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => match registers.device_features_sel {
                0 => self.offered as u32,
                1 => (self.offered >> 32) as u32,
                _ => 0,
            },
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => self
                .queue_max_sizes
                .get(registers.queue_sel as usize)
                .map_or(0, |&size| size.into()),
            reg::VIRTIO_MMIO_QUEUE_READY => registers
                .queues
                .get(registers.queue_sel as usize)
                .map_or(0, |queue| queue.ready.into()),
            reg::VIRTIO_MMIO_STATUS => self.status(&registers),
            // No shared memory region: all ones for whatever SHMSel says.
            reg::VIRTIO_MMIO_SHM_LEN_LOW
            | reg::VIRTIO_MMIO_SHM_LEN_HIGH
            | reg::VIRTIO_MMIO_SHM_BASE_LOW
            | reg::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            reg::VIRTIO_MMIO_CONFIG_GENERATION => self.interrupt.generation(),
            _ => 0,
        }
    }

    fn write_register(&self, offset: u32, value: u32) {
        // Written all the time: no lock.
        match offset {
            reg::VIRTIO_MMIO_INTERRUPT_ACK => return self.interrupt.acknowledge(value),
            // Only where KVM has no ioeventfd for it.
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Some(eventfd) = self.notify.get(value as usize) {
                    let _ = eventfd.write(1);
                }
                return;
            }
            _ => {}
        }
        let mut registers = lock(&self.registers);
        match offset {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => registers.device_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => registers.driver_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES => registers.write_driver_features(value),
            reg::VIRTIO_MMIO_QUEUE_SEL => registers.queue_sel = value,
            reg::VIRTIO_MMIO_STATUS => self.write_status(&mut registers, value),
            _ => registers.write_queue(offset, value),
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        if let Ok(offset) = usize::try_from(offset) {
            lock(&self.worker).read_config(offset, data);
        }
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let status = lock(&self.registers).status;
        let driven = status & DRIVER != 0 && status & FAILED == 0;
        if let (true, Ok(offset)) = (driven, usize::try_from(offset)) {
            lock(&self.worker).write_config(offset, data);
        }
    }

    fn status(&self, registers: &Registers) -> u32 {
        let broken = self.interrupt.needs_reset();
        registers.status | if broken { NEEDS_RESET } else { 0 }
    }

    fn write_status(&self, registers: &mut Registers, value: u32) {
        if value == 0 {
            return self.reset(registers);
        }
        let value = value & !NEEDS_RESET;
        let added = value & !registers.status;
        if registers.status & !value != 0 {
            log::debug!("virtio-mmio: status {:#x} -> {value:#x}", registers.status);
            return;
        }
        match (registers.status, added) {
            (status, FAILED) if status & FAILED == 0 => registers.status |= FAILED,
            (0, ACKNOWLEDGE) => registers.status |= ACKNOWLEDGE,
            (ACKNOWLEDGE, DRIVER) => registers.status |= DRIVER,
            (NEGOTIATING, FEATURES_OK) => {
                // Refused features are seen by the driver as a bit that stays clear.
                let acked = registers.driver_features;
                if acked & !self.offered == 0 && acked & VERSION_1 != 0 {
                    registers.status |= FEATURES_OK;
                }
            }
            (CONFIGURING, DRIVER_OK) => {
                registers.status |= DRIVER_OK;
                self.activate(registers);
            }
            (status, _) => log::debug!("virtio-mmio: status {status:#x} -> {value:#x}"),
        }
    }

    /// Returns once the device no longer touches what the driver gave it.
    fn reset(&self, registers: &mut Registers) {
        lock(&self.worker).reset();
        self.interrupt.reset();
        *registers = Registers::after_reset(self.queue_max_sizes.len());
    }

    fn activate(&self, registers: &Registers) {
        let queues = self.build_queues(registers);
        let mut worker = lock(&self.worker);
        match queues {
            Ok(queues) => worker.activate(Active {
                features: registers.driver_features,
                memory: self.memory.clone(),
                queues,
                interrupt: Arc::clone(&self.interrupt),
            }),
            Err(error) => worker.fail(&error),
        }
    }

    fn build_queues(&self, registers: &Registers) -> Result<Vec<Queue>, DeviceError> {
        let event_idx = registers.driver_features & EVENT_IDX != 0;
        let build = |(index, (queue, &max)): (usize, (&QueueRegisters, &u16))| {
            queue
                .build(max, event_idx, &self.memory)
                .map_err(|source| DeviceError::Queue { index, source })
        };
        let with_max = registers.queues.iter().zip(&self.queue_max_sizes);
        with_max.enumerate().map(build).collect()
    }
}

/// Status while features are negotiated.
const NEGOTIATING: u32 = ACKNOWLEDGE | DRIVER;
/// Status while queues are set up.
const CONFIGURING: u32 = NEGOTIATING | FEATURES_OK;

impl Registers {
    fn after_reset(queue_count: usize) -> Self {
        Self {
            queues: vec![QueueRegisters::default(); queue_count],
            ..Self::default()
        }
    }

    fn write_driver_features(&mut self, value: u32) {
        if self.status != NEGOTIATING {
            return;
        }
        match self.driver_features_sel {
            0 => set_low(&mut self.driver_features, value),
            1 => set_high(&mut self.driver_features, value),
            // No feature above 63 exists: asking for one is asking for what was
            // not offered, which FEATURES_OK must refuse.
            _ if value != 0 => self.driver_features = u64::MAX,
            _ => {}
        }
    }

    /// Queue registers of the selected queue; any other offset is ignored.
    fn write_queue(&mut self, offset: u32, value: u32) {
        if self.status != CONFIGURING {
            return;
        }
        let Some(queue) = self.queues.get_mut(self.queue_sel as usize) else {
            return;
        };
        if offset == reg::VIRTIO_MMIO_QUEUE_READY {
            queue.ready = value & 1 != 0;
        }
        if queue.ready {
            return;
        }
        match offset {
            reg::VIRTIO_MMIO_QUEUE_NUM => queue.size = value,
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut queue.desc, value),
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut queue.desc, value),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut queue.driver, value),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut queue.driver, value),
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut queue.device, value),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut queue.device, value),
            _ => {}
        }
    }
}

impl QueueRegisters {
    /// The queue that the driver described, if all of it lies in guest RAM.
    fn build(
        &self,
        max_size: u16,
        event_idx: bool,
        memory: &GuestMemoryMmap,
    ) -> Result<Queue, virtio_queue::Error> {
        let mut queue = Queue::new(max_size)?;
        if !self.ready {
            return Ok(queue);
        }
        let size = u16::try_from(self.size).map_err(|_| virtio_queue::Error::InvalidSize)?;
        queue.try_set_size(size)?;
        queue.try_set_desc_table_address(GuestAddress(self.desc))?;
        queue.try_set_avail_ring_address(GuestAddress(self.driver))?;
        queue.try_set_used_ring_address(GuestAddress(self.device))?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        // Sizes of virtio 1.2, 2.7, with the event fields. `Queue::is_valid` looks
        // at a ring's first and last address only and would take one that spans a
        // hole in RAM.
        let size = usize::from(size);
        let rings = [
            (self.desc, 16 * size),
            (self.driver, 6 + 2 * size),
            (self.device, 6 + 8 * size),
        ];
        for (address, len) in rings {
            // The queue takes an available ring at 0 for one that was never set.
            if address == 0 || !memory.check_range(GuestAddress(address), len) {
                return Err(virtio_queue::Error::FindMemoryRegion);
            }
        }
        Ok(queue)
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG_OFFSET) {
            self.read_config(offset, data);
            return;
        }
        if let Ok(register) = <&mut [u8; 4]>::try_from(data) {
            *register = self.read_register(offset as u32).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG_OFFSET) {
            self.write_config(offset, data);
            return;
        }
        if let Ok(value) = <[u8; 4]>::try_from(data) {
            self.write_register(offset as u32, u32::from_le_bytes(value));
        }
    }
}

fn set_low(value: &mut u64, low: u32) {
    *value = *value & !u64::from(u32::MAX) | u64::from(low);
}

fn set_high(value: &mut u64, high: u32) {
    *value = *value & u64::from(u32::MAX) | u64::from(high) << 32;
}

/// A panic on another thread already ends the machine; do not add one here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

mod state;
#[cfg(test)]
mod tests;

pub use state::{StateError, TransportState};
