//! All vCPUs of a machine, saved and restored.

use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::state::{VcpuState, XsaveSize};
use super::{CpuError, VcpuContext, cpuid, create_one, msrs, run, supported_cpuid};
use crate::ending::Ending;
use crate::kvm::{KvmError, Vm, failed};
use crate::probe::HostKind;

/// All vCPUs of a machine that has stopped.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VcpusState {
    vcpus: Vec<VcpuState>,
    /// What the guest was told that its processor can.
    features: Vec<kvm_cpuid_entry2>,
}

impl VcpusState {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.vcpus.len()
    }
}

/// Completes what the vCPUs have pending, and reads their state.
pub fn save(
    vm: &Vm,
    mut vcpus: Vec<VcpuFd>,
    context: &VcpuContext,
) -> Result<VcpusState, SaveError> {
    for vcpu in &mut vcpus {
        run::settle(vcpu, context).map_err(SaveError::Ended)?;
    }
    let listed = vm
        .kvm
        .get_msr_index_list()
        .map_err(failed("list model-specific registers"))
        .map_err(CpuError::from)?;
    let indexes = msrs::saved_indexes(listed.as_slice());
    let size = XsaveSize::of(&vm.fd);
    let states = vcpus
        .iter()
        .map(|vcpu| VcpuState::read(vcpu, size, &indexes));
    Ok(VcpusState {
        vcpus: states.collect::<Result<_, CpuError>>()?,
        features: cpuid::features(&supported_cpuid(vm).map_err(CpuError::from)?),
    })
}

/// Makes vCPUs in a saved state, but for what [`restore_events`] sets. Fails with
/// [`CpuError::Other`] on a host whose processor is another one.
pub fn restore(vm: &Vm, state: &VcpusState, host: HostKind) -> Result<Vec<VcpuFd>, CpuError> {
    let host_cpuid = supported_cpuid(vm)?;
    let size = XsaveSize::of(&vm.fd);
    let count = u8::try_from(state.vcpus.len()).map_err(|_| CpuError::Other)?;
    if cpuid::features(&host_cpuid) != state.features {
        return Err(CpuError::Other);
    }
    let mut vcpus = Vec::with_capacity(count.into());
    for (state, id) in state.vcpus.iter().zip(0..) {
        let vcpu = create_one(vm, &host_cpuid, id, count, host)?;
        if !state.fits(size) || !state.has_frequency_of(&vcpu)? {
            return Err(CpuError::Other);
        }
        state.write(&vcpu, size)?;
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

/// Completes [`restore`], once the interrupt controllers are as they were.
pub fn restore_events(vcpus: &[VcpuFd], state: &VcpusState) -> Result<(), KvmError> {
    let with_state = vcpus.iter().zip(&state.vcpus);
    with_state
        .into_iter()
        .try_for_each(|(vcpu, state)| state.write_events(vcpu))
}

/// The vCPUs could not be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// One ended while it completed what was pending.
    #[error("{0}")]
    Ended(Ending),
    /// KVM refused.
    #[error(transparent)]
    Cpu(#[from] CpuError),
}
