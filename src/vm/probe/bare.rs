//! A vCPU in 64-bit mode at ring 0 with a few pages of memory and nothing
//! else: no firmware, no devices. For the probe and for tests.

#![allow(unsafe_code)]

use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{Address, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};

use super::ProbeError;

/// Bytes in a page.
pub(crate) const PAGE: u64 = 4096;

/// A page-table entry without its address: present, writable, accessed, dirty
/// (SDM vol. 3, 4.5).
pub(crate) const TABLE_ENTRY: u64 = 0x63;

const CR0_PE_MP_ET_NE_WP_PG: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
/// Bit 1 of RFLAGS is always set.
const RFLAGS: u64 = 1 << 1;

/// A machine of one vCPU and a little memory. Fields are dropped in this order,
/// so that the memory outlives the VM, which ends with its last descriptor.
pub(crate) struct BareGuest {
    pub(crate) vcpu: VcpuFd,
    _vm: VmFd,
    _memory: GuestMemoryMmap,
}

impl BareGuest {
    /// Takes `memory`, in which a PML4 lies at `cr3`, and makes a vCPU in
    /// 64-bit mode at ring 0.
    pub(crate) fn new(kvm: &Kvm, memory: GuestMemoryMmap, cr3: u64) -> Result<Self, ProbeError> {
        let vm = kvm.create_vm().map_err(refused("create a VM"))?;
        for (slot, region) in memory.iter().enumerate() {
            let host = region.get_host_address(MemoryRegionAddress(0))?;
            let slot = kvm_userspace_memory_region {
                slot: slot as u32,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: host as u64,
                flags: 0,
            };
            // SAFETY: the range is one whole mapping of `memory`, which is
            // dropped after the VM.
            unsafe { vm.set_user_memory_region(slot) }.map_err(refused("register memory"))?;
        }
        let vcpu = vm.create_vcpu(0).map_err(refused("create a vCPU"))?;
        let mut sregs = vcpu.get_sregs().map_err(refused("read registers"))?;
        let data = kvm_segment {
            limit: u32::MAX,
            selector: 0x10,
            type_: 3,
            present: 1,
            s: 1,
            db: 1,
            g: 1,
            ..Default::default()
        };
        sregs.cs = kvm_segment {
            selector: 8,
            type_: 11,
            l: 1,
            db: 0,
            ..data
        };
        sregs.ds = data;
        sregs.es = data;
        sregs.fs = data;
        sregs.gs = data;
        sregs.ss = data;
        sregs.cr0 = CR0_PE_MP_ET_NE_WP_PG;
        sregs.cr3 = cr3;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LME_LMA;
        vcpu.set_sregs(&sregs).map_err(refused("set registers"))?;
        Ok(Self {
            vcpu,
            _vm: vm,
            _memory: memory,
        })
    }

    /// Lets the next run begin at `rip` with the stack below `rsp`.
    pub(crate) fn start(&self, rip: u64, rsp: u64) -> Result<(), ProbeError> {
        let regs = kvm_regs {
            rip,
            rsp,
            rflags: RFLAGS,
            ..Default::default()
        };
        self.vcpu.set_regs(&regs).map_err(refused("set registers"))
    }
}

fn refused(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> ProbeError {
    move |source| ProbeError::Kvm { what, source }
}
