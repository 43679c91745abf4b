//! The interrupt line of one virtio-mmio device (virtio 1.2, 4.2.2), shared by
//! the device, which raises it, and the transport, where the driver reads and
//! acknowledges why.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// One device's interrupt. KVM has the eventfd as irqfd without resampling: each
/// write is one edge on the line, as of an ISA device.
#[derive(Debug)]
pub struct Interrupt {
    irq: EventFd,
    /// InterruptStatus: bit 0 used buffers, bit 1 configuration change.
    status: AtomicU32,
    /// ConfigGeneration.
    generation: AtomicU32,
    needs_reset: AtomicBool,
}

impl Interrupt {
    /// An idle line.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            irq: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
        })
    }

    /// The eventfd to register with KVM as irqfd.
    pub fn eventfd(&self) -> &EventFd {
        &self.irq
    }

    /// The device has put buffers into a used ring that the driver should look
    /// at. Call it once for a batch, and only when
    /// [`needs_notification`](virtio_queue::QueueT::needs_notification) says so.
    pub fn signal_used_queue(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// The device's config space has changed.
    pub fn signal_config_change(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// The device cannot go on: the driver reads DEVICE_NEEDS_RESET from now on
    /// and gets a configuration change interrupt (virtio 1.2, 2.1.2).
    pub fn mark_needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.signal_config_change();
    }

    /// Whether DEVICE_NEEDS_RESET is set.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// Bits of the InterruptStatus register.
    pub(super) fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// A write to the InterruptACK register.
    pub(super) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::AcqRel);
    }

    /// The ConfigGeneration register.
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// The driver has reset the device. The generation goes on counting.
    pub(super) fn reset(&self) {
        self.needs_reset.store(false, Ordering::Release);
        self.status.store(0, Ordering::Release);
    }

    /// What is to be saved: causes that the driver has not acknowledged, and the
    /// generation.
    pub(super) fn freeze(&self) -> (u32, u32) {
        (self.status(), self.generation())
    }

    /// Takes over what [`Self::freeze`] gave. If causes are left, the line is
    /// raised for them again: the edge may have been lost on its way.
    pub(super) fn thaw(&self, (status, generation): (u32, u32)) {
        self.generation.store(generation, Ordering::Release);
        if status != 0 {
            self.raise(status);
        }
    }

    fn raise(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::AcqRel);
        // Fails only when the counter is full, and then an edge is pending anyway.
        let _ = self.irq.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_sets_its_bit_and_pulses_the_line() {
        let interrupt = Interrupt::new().unwrap();
        interrupt.signal_used_queue();
        assert_eq!(interrupt.status(), 1);
        assert_eq!(interrupt.generation(), 0);
        interrupt.signal_config_change();
        assert_eq!(interrupt.status(), 3);
        assert_eq!(interrupt.generation(), 1);
        assert_eq!(interrupt.eventfd().read().unwrap(), 2);
    }

    #[test]
    fn acknowledging_clears_only_the_bits_named() {
        let interrupt = Interrupt::new().unwrap();
        interrupt.signal_used_queue();
        interrupt.signal_config_change();
        interrupt.acknowledge(1);
        assert_eq!(interrupt.status(), 2);
        interrupt.acknowledge(u32::MAX);
        assert_eq!(interrupt.status(), 0);
    }

    #[test]
    fn needs_reset_lasts_until_reset() {
        let interrupt = Interrupt::new().unwrap();
        interrupt.mark_needs_reset();
        assert!(interrupt.needs_reset());
        assert_eq!(interrupt.status(), 2);
        interrupt.reset();
        assert!(!interrupt.needs_reset());
        assert_eq!(interrupt.status(), 0);
        assert_eq!(interrupt.generation(), 1);
    }

    #[test]
    fn a_full_counter_does_not_block() {
        let interrupt = Interrupt::new().unwrap();
        interrupt.eventfd().write(u64::MAX - 1).unwrap();
        interrupt.signal_used_queue();
        assert_eq!(interrupt.status(), 1);
    }
}
