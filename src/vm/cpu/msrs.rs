//! Model-specific registers at the first instruction.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::CpuError;
use crate::kvm::failed;

/// Intel SDM vol. 4: MSR_IA32_MISC_ENABLE, with fast string operations.
const MISC_ENABLE: u32 = 0x1a0;
const FAST_STRING: u64 = 1;
/// IA32_MTRR_DEF_TYPE: MTRRs on, everything write-back.
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;
/// IA32_TIME_STAMP_COUNTER: every machine starts at zero.
const TSC: u32 = 0x10;

pub fn set(vcpu: &VcpuFd) -> Result<(), CpuError> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let entries = [
        entry(TSC, 0),
        entry(MISC_ENABLE, FAST_STRING),
        entry(MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    ];
    let msrs = Msrs::from_entries(&entries).map_err(|_| CpuError::Msr { index: TSC })?;
    let taken = vcpu
        .set_msrs(&msrs)
        .map_err(failed("set model-specific registers"))?;
    match entries.get(taken) {
        Some(refused) => Err(CpuError::Msr {
            index: refused.index,
        }),
        None => Ok(()),
    }
}
