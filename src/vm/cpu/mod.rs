//! vCPUs: their first state, and the loop that runs them.

mod cpuid;
mod lapic;
mod msrs;
mod registers;
mod run;
mod saved;
mod state;

use kvm_bindings::CpuId;
use kvm_ioctls::VcpuFd;

use crate::boot::Entry;
use crate::emulate;
use crate::kvm::{KvmError, Vm, failed};
use crate::probe::HostKind;

pub use run::{VcpuContext, VcpuThread, is_accelerated};
pub use saved::{SaveError, VcpusState, restore, restore_events, save};

/// Makes `count` vCPUs, the first at `entry`, the others waiting for a start-up
/// interrupt as the hardware does.
pub fn create(
    vm: &Vm,
    count: u8,
    entry: Entry,
    memory: &vm_memory::GuestMemoryMmap,
    host: HostKind,
) -> Result<Vec<VcpuFd>, CpuError> {
    let host_cpuid = supported_cpuid(vm)?;
    let mut vcpus = Vec::with_capacity(count.into());
    for id in 0..count {
        let vcpu = create_one(vm, &host_cpuid, id, count, host)?;
        msrs::set(&vcpu)?;
        lapic::set(&vcpu)?;
        if id == 0 {
            registers::set(&vcpu, entry, memory)?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

fn supported_cpuid(vm: &Vm) -> Result<CpuId, KvmError> {
    vm.kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(failed("read the supported CPUID"))
}

fn create_one(
    vm: &Vm,
    host_cpuid: &CpuId,
    id: u8,
    count: u8,
    host: HostKind,
) -> Result<VcpuFd, KvmError> {
    let mut vcpu = vm
        .fd
        .create_vcpu(id.into())
        .map_err(failed("create a vCPU"))?;
    if host == HostKind::Software {
        // Halves the cost of each instruction that is completed here.
        emulate::share_registers(&vm.kvm, &mut vcpu);
    }
    let cpuid = cpuid::for_vcpu(host_cpuid, id, count);
    vcpu.set_cpuid2(&cpuid).map_err(failed("set CPUID"))?;
    Ok(vcpu)
}

/// A vCPU could not be set up or run.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// KVM took only some of the model-specific registers.
    #[error("KVM refused model-specific register {index:#x}")]
    Msr {
        /// The first that it refused.
        index: u32,
    },
    /// A saved state is of a processor that can something else, or runs at another
    /// frequency.
    #[error("it was made on another processor")]
    Other,
    /// Tables for the entry could not be written.
    #[error("cannot write CPU tables to guest memory")]
    Tables(#[source] vm_memory::GuestMemoryError),
    /// No thread.
    #[error("cannot start a vCPU thread")]
    Thread(#[source] std::io::Error),
}
