//! Guest kernel parameters that follow from the kind of host.

use super::HostKind;

/// What a Linux 6.1 guest must be told on a software host. Its ring 0 sees the
/// host's CPUID whatever KVM_SET_CPUID2 says, so that features which the
/// emulator lacks can only be cleared by the kernel itself.
const SOFTWARE: &[&str] = &[
    // Numbers are word * 32 + bit of 6.1's asm/cpufeatures.h. No emulation:
    // 141 CX16 (SLUB), 151 POPCNT (bitmaps), 288 FSGSBASE (entry), 158 RDRAND,
    // 306 RDSEED (random), 298 INVPCID, 145 PCID (TLB), 308 SMAP (user copies).
    // Emulated a byte at a time: 297 ERMS, 580 FSRM (memcpy, memset).
    // Formats that `emulate` does not complete, or without gain there:
    // 320 XSAVEOPT, 321 XSAVEC, 323 XSAVES.
    "clearcpuid=141,151,288,158,306,298,145,308,297,580,320,321,323",
    // Write-protecting the kernel's text splits large pages: 2 s.
    "rodata=off",
    // Patching lock prefixes out for the one vCPU: 4 s with other patching.
    "noreplace-smp",
    // Side channels are the business of the host's processor; the guest's
    // barriers would be emulated one by one.
    "mitigations=off",
    // Ring 3 reads the host's own counter, which no offset can make continue after a
    // template is restored. KVM's clock does, for ring 3 too (vDSO).
    "clocksource=kvm-clock",
    // Of our kernel's patches: pieces of memory are copied by the VMM (`emulate`),
    "vmm_copy",
    // a scheduler tick every 40 ms instead of 10, each some 700 instructions,
    "tick_stride=4",
    // and messages below warnings are not even formatted until init runs.
    "boot_loglevel=5",
];

/// The guest kernel parameters needed on this kind of host, one each.
pub fn kernel_params(kind: HostKind) -> &'static [&'static str] {
    match kind {
        HostKind::Hardware => &[],
        HostKind::Software => SOFTWARE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_added_on_hardware() {
        assert!(kernel_params(HostKind::Hardware).is_empty());
    }

    #[test]
    fn software_hosts_keep_xsave_and_lose_its_compact_forms() {
        let params = kernel_params(HostKind::Software);
        let cleared = params
            .iter()
            .find_map(|param| param.strip_prefix("clearcpuid="))
            .expect("clearcpuid");
        let cleared: Vec<u32> = cleared.split(',').map(|n| n.parse().unwrap()).collect();
        // XSAVE is 4 * 32 + 26; without it the kernel loses AVX state.
        assert!(!cleared.contains(&(4 * 32 + 26)));
        assert!(cleared.contains(&(10 * 32 + 1)), "XSAVEC");
        assert!(cleared.contains(&(10 * 32 + 3)), "XSAVES");
        assert!(params.iter().all(|param| !param.contains([' ', '"'])));
    }
}
