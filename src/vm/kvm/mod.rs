//! The VM as KVM sees it: memory slots and interrupt controllers.

#![allow(unsafe_code)]

mod chips;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{IoEventAddress, Kvm, VmFd};
use vm_memory::{Address, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::layout::KVM_TSS;

pub use chips::ChipsState;

/// KVM refused.
#[derive(Debug, thiserror::Error)]
#[error("KVM: cannot {what}")]
pub struct KvmError {
    /// What was asked of it.
    pub what: &'static str,
    /// Why not.
    pub source: kvm_ioctls::Error,
}

/// Names what failed.
pub(crate) fn failed(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError { what, source }
}

/// A VM with memory, PIC, IOAPIC and PIT, and no vCPU yet.
pub struct Vm {
    /// /dev/kvm.
    pub kvm: Kvm,
    /// The VM.
    pub fd: VmFd,
}

impl Vm {
    /// Makes a VM whose guest-physical memory is `memory`. The caller keeps
    /// `memory` mapped as long as the VM lives.
    pub fn new(memory: &GuestMemoryMmap) -> Result<Self, KvmError> {
        let kvm = Kvm::new().map_err(failed("open /dev/kvm"))?;
        let fd = kvm.create_vm().map_err(failed("create a VM"))?;
        let vm = Self { kvm, fd };
        vm.add_memory(memory)?;
        vm.fd
            .set_tss_address(KVM_TSS as usize)
            .map_err(failed("set the TSS address"))?;
        vm.fd
            .create_irq_chip()
            .map_err(failed("create interrupt controllers"))?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.fd
            .create_pit2(pit)
            .map_err(failed("create the interval timer"))?;
        Ok(vm)
    }

    fn add_memory(&self, memory: &GuestMemoryMmap) -> Result<(), KvmError> {
        for (slot, region) in memory.iter().enumerate() {
            let host = region
                .get_host_address(MemoryRegionAddress(0))
                .map_err(|_| KvmError {
                    what: "find guest memory",
                    source: kvm_ioctls::Error::new(libc::EFAULT),
                })?;
            let slot = kvm_userspace_memory_region {
                slot: slot as u32,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: host as u64,
                flags: 0,
            };
            // SAFETY: the range is one whole mapping of `memory`, which the caller
            // keeps mapped as long as the VM lives.
            unsafe { self.fd.set_user_memory_region(slot) }
                .map_err(failed("register guest memory"))?;
        }
        Ok(())
    }

    /// The VM stays until the process ends, whatever becomes of `self`.
    ///
    /// Closed before, KVM removes its own memory slots one by one and waits for all
    /// processors each time, 15 ms in all; a process that ends has no memory left.
    pub fn stay_until_exit(&self) -> io::Result<()> {
        // SAFETY: the descriptor is open as long as `self.fd` lives.
        let fd = unsafe { BorrowedFd::borrow_raw(self.fd.as_raw_fd()) };
        let stays = rustix::io::fcntl_dupfd_cloexec(fd, 0)?;
        std::mem::forget(stays);
        Ok(())
    }

    /// `event` raises interrupt line `gsi`.
    pub fn connect_interrupt(&self, event: &EventFd, gsi: u32) -> Result<(), KvmError> {
        self.fd
            .register_irqfd(event, gsi)
            .map_err(failed("connect an interrupt"))
    }

    /// A 32-bit store of `value` to guest-physical `address` signals `event`
    /// without an exit to this process.
    pub fn connect_doorbell(
        &self,
        event: &EventFd,
        address: u64,
        value: u32,
    ) -> Result<(), KvmError> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(failed("connect a doorbell"))
    }
}
