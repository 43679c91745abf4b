//! Model-specific registers: at the first instruction, and saved.

use std::ops::RangeInclusive;

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::CpuError;
use crate::kvm::{KvmError, failed};

/// Intel SDM vol. 4: MSR_IA32_MISC_ENABLE, with fast string operations.
const MISC_ENABLE: u32 = 0x1a0;
const FAST_STRING: u64 = 1;
/// IA32_MTRR_DEF_TYPE: MTRRs on, everything write-back.
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;
/// IA32_TIME_STAMP_COUNTER: every machine starts at zero.
const TSC: u32 = 0x10;

/// IA32_TSC_DEADLINE: in ticks of the time stamp counter, so it comes behind it.
const TSC_DEADLINE: u32 = 0x6e0;
/// Memory types by range, fixed and variable: the guest wrote them, and KVM does
/// not list them.
const MTRRS: &[RangeInclusive<u32>] = &[
    MTRR_DEF_TYPE..=MTRR_DEF_TYPE,
    0x200..=0x20f,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
];

/// The registers to save, in the order in which they are to be set, of those that
/// KVM lists.
pub fn saved_indexes(listed: &[u32]) -> Vec<u32> {
    let mut indexes: Vec<u32> = listed.to_vec();
    indexes.extend(MTRRS.iter().cloned().flatten());
    let place = |index: u32| match index {
        TSC => 0,
        TSC_DEADLINE => 2,
        _ => 1,
    };
    indexes.sort_unstable_by_key(|&index| (place(index), index));
    indexes.dedup();
    indexes
}

/// Reads those of `indexes` that can be read and set again.
pub fn read(vcpu: &VcpuFd, indexes: &[u32]) -> Result<Vec<kvm_msr_entry>, CpuError> {
    let mut entries: Vec<_> = indexes.iter().map(|&index| entry(index, 0)).collect();
    keep(&mut entries, |msrs| {
        vcpu.get_msrs(msrs)
            .map_err(failed("read model-specific registers"))
    })?;
    // What KVM shows but does not take back is its own business.
    keep(&mut entries, |msrs| {
        vcpu.set_msrs(msrs)
            .map_err(failed("set model-specific registers"))
    })?;
    Ok(entries)
}

/// Does `attempt` for all entries, in portions, without those at which it stops.
fn keep(
    entries: &mut Vec<kvm_msr_entry>,
    mut attempt: impl FnMut(&mut Msrs) -> Result<usize, KvmError>,
) -> Result<(), CpuError> {
    let mut done = 0;
    while let Some(rest) = entries.get(done..).filter(|rest| !rest.is_empty()) {
        let portion = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let mut msrs = list(portion)?;
        let taken = attempt(&mut msrs)?.min(portion.len());
        let stopped = taken < portion.len();
        for (entry, new) in entries[done..].iter_mut().zip(&msrs.as_slice()[..taken]) {
            *entry = *new;
        }
        done += taken;
        if stopped {
            entries.remove(done);
        }
    }
    Ok(())
}

/// Sets saved registers, all of them.
pub fn write(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), CpuError> {
    for portion in entries.chunks(KVM_MAX_MSR_ENTRIES) {
        let taken = vcpu
            .set_msrs(&list(portion)?)
            .map_err(failed("set model-specific registers"))?;
        if let Some(refused) = portion.get(taken) {
            let index = refused.index;
            return Err(CpuError::Msr { index });
        }
    }
    Ok(())
}

fn list(entries: &[kvm_msr_entry]) -> Result<Msrs, CpuError> {
    Msrs::from_entries(entries).map_err(|_| CpuError::Msr { index: TSC })
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}

/// Sets what the first instruction finds.
pub fn set(vcpu: &VcpuFd) -> Result<(), CpuError> {
    write(
        vcpu,
        &[
            entry(TSC, 0),
            entry(MISC_ENABLE, FAST_STRING),
            entry(MTRR_DEF_TYPE, MTRR_WRITE_BACK),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_comes_first_and_its_deadline_last() {
        let indexes = saved_indexes(&[TSC_DEADLINE, 0x174, TSC, 0x2ff, 0x4b56_4d01]);
        assert_eq!(indexes.first(), Some(&TSC));
        assert_eq!(indexes.last(), Some(&TSC_DEADLINE));
        assert_eq!(indexes.iter().filter(|&&i| i == MTRR_DEF_TYPE).count(), 1);
        assert!(indexes.contains(&0x174));
    }

    #[test]
    fn what_is_refused_is_left_out() {
        let mut entries: Vec<_> = (0..600).map(|index| entry(index, 0)).collect();
        keep(&mut entries, |msrs| {
            let stop = |e: &kvm_msr_entry| e.index % 100 == 99;
            for entry in msrs.as_mut_slice() {
                entry.data = 7;
            }
            let entries = msrs.as_slice();
            Ok(entries.iter().position(stop).unwrap_or(entries.len()))
        })
        .unwrap();
        assert_eq!(entries.len(), 594);
        assert!(entries.iter().all(|e| e.index % 100 != 99 && e.data == 7));
    }
}
