//! CPUID as the guest sees it: what KVM supports, with this vCPU's identity and
//! one socket of `count` cores (Intel SDM vol. 2A, CPUID; AMD APM vol. 3, app. E).

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

const FEATURES: u32 = 0x1;
const CACHE: u32 = 0x4;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const AMD_CORES: u32 = 0x8000_0008;
const AMD_EXTENDED_APIC: u32 = 0x8000_001e;

const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;

/// The table for vCPU `id` of `count`.
pub fn for_vcpu(supported: &CpuId, id: u8, count: u8) -> CpuId {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        adjust(entry, id, count);
    }
    cpuid
}

/// Leaves that say what the processor and KVM can: features, XSAVE and its layout,
/// AMD's features, invariant TSC, KVM's features (Linux, virt/kvm/x86/cpuid.rst).
const FEATURE_LEAVES: [u32; 8] = [
    0x0,
    FEATURES,
    0x7,
    XSAVE,
    0x4000_0001,
    0x8000_0001,
    0x8000_0007,
    AMD_CORES,
];
const XSAVE: u32 = 0xd;

/// The part of `supported` that is the same on each CPU of a host, and that a guest
/// relies on once it has read it.
pub fn features(supported: &CpuId) -> Vec<kvm_cpuid_entry2> {
    let leaves = supported.as_slice().iter();
    let mut features: Vec<_> = leaves
        .filter(|entry| FEATURE_LEAVES.contains(&entry.function))
        .copied()
        .collect();
    for entry in &mut features {
        match (entry.function, entry.index) {
            // The number of the CPU that answered.
            (FEATURES, _) => entry.ebx = 0,
            // The size of what this very thread has enabled.
            (XSAVE, 0 | 1) => entry.ebx = 0,
            _ => {}
        }
    }
    features
}

fn adjust(entry: &mut kvm_cpuid_entry2, id: u8, count: u8) {
    let (id, count) = (u32::from(id), u32::from(count));
    match entry.function {
        FEATURES => {
            // APIC id, logical processors, CLFLUSH size as it was.
            entry.ebx = id << 24 | count << 16 | (entry.ebx & 0xffff);
            entry.ecx |= ECX_HYPERVISOR | ECX_TSC_DEADLINE;
            set(&mut entry.edx, EDX_HTT, count > 1);
        }
        CACHE => {
            // Cores in the package, minus one.
            entry.eax = (entry.eax & 0x03ff_ffff) | (count - 1) << 26;
        }
        TOPOLOGY | TOPOLOGY_V2 => topology_level(entry, id, count),
        AMD_CORES => entry.ecx = (entry.ecx & !0xf0ff) | (count - 1),
        AMD_EXTENDED_APIC => {
            entry.eax = id;
            // One thread a core, one node.
            entry.ebx = id;
            entry.ecx = 0;
        }
        _ => {}
    }
}

/// Level 0: threads of a core (one); level 1: cores of the package.
fn topology_level(entry: &mut kvm_cpuid_entry2, id: u32, count: u32) {
    const SMT: u32 = 1;
    const CORE: u32 = 2;
    let (shift, processors, kind) = match entry.index {
        0 => (0, 1, SMT),
        1 => (count.next_power_of_two().trailing_zeros(), count, CORE),
        _ => (0, 0, 0),
    };
    entry.eax = shift;
    entry.ebx = processors;
    entry.ecx = kind << 8 | entry.index;
    entry.edx = id;
}

fn set(register: &mut u32, bit: u32, on: bool) {
    if on {
        *register |= bit;
    } else {
        *register &= !bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adjusted(function: u32, index: u32, id: u8, count: u8) -> kvm_cpuid_entry2 {
        let mut entry = kvm_cpuid_entry2 {
            function,
            index,
            ebx: 0x0008_0800,
            ..Default::default()
        };
        adjust(&mut entry, id, count);
        entry
    }

    #[test]
    fn leaf_1_names_the_vcpu() {
        let entry = adjusted(FEATURES, 0, 3, 4);
        assert_eq!(entry.ebx, 3 << 24 | 4 << 16 | 0x0800);
        assert_ne!(entry.edx & EDX_HTT, 0);
        assert_eq!(adjusted(FEATURES, 0, 0, 1).edx & EDX_HTT, 0);
    }

    #[test]
    fn features_are_those_of_the_host_and_not_of_a_cpu() {
        let of = |cpu: u32, ecx| {
            let entry = |function, ebx| kvm_cpuid_entry2 {
                function,
                ebx,
                ecx,
                ..Default::default()
            };
            let entries = [entry(FEATURES, cpu << 24), entry(TOPOLOGY, cpu)];
            features(&CpuId::from_entries(&entries).unwrap())
        };
        assert_eq!(of(0, 5), of(1, 5));
        assert_ne!(of(0, 5), of(0, 4));
    }

    #[test]
    fn topology_is_one_socket() {
        let cores = adjusted(TOPOLOGY, 1, 2, 3);
        assert_eq!(
            (cores.eax, cores.ebx, cores.ecx, cores.edx),
            (2, 3, 0x201, 2)
        );
        let threads = adjusted(TOPOLOGY, 0, 2, 3);
        assert_eq!((threads.eax, threads.ebx, threads.ecx), (0, 1, 0x100));
    }
}
