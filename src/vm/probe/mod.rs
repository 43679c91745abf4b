//! What this host's KVM is and offers.
//!
//! [`host_kind`] finds out whether ring 0 runs on the processor, by a guest of a
//! few bytes where need be; [`kernel_params`] says what the guest kernel must be told in
//! consequence; [`kvm_access`] and [`capabilities`] are what `vmrun check`
//! shows. Plain data, nothing is printed.

pub(crate) mod bare;
mod kernel_params;
mod support;

use std::arch::x86_64::__cpuid;

use kvm_ioctls::{Kvm, VcpuExit};
use rustix::time::{ClockId, clock_gettime};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use bare::{BareGuest, PAGE, TABLE_ENTRY};
pub use kernel_params::kernel_params;
pub use support::{
    API_VERSION, Capability, KvmAccess, Need, api_version, capabilities, kvm_access,
};

/// How this host runs the guest's ring 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum HostKind {
    /// On the processor (VMX or SVM).
    Hardware,
    /// By KVM's instruction emulator, about a thousand times slower and with
    /// instructions missing; see [`crate::emulate`].
    Software,
}

/// The host could not be probed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// /dev/kvm could not be opened.
    #[error("cannot open /dev/kvm")]
    Open(#[source] kvm_ioctls::Error),
    /// /dev/kvm is another device.
    #[error("/dev/kvm is not Linux KVM: its API version is {0}, not {API_VERSION}")]
    Version(i32),
    /// KVM refused something that any KVM can do.
    #[error("KVM cannot {what}")]
    Kvm {
        /// What was asked of it.
        what: &'static str,
        /// Why not.
        source: kvm_ioctls::Error,
    },
    /// The probe's page of memory.
    #[error("no memory for the probe")]
    Memory(#[from] vm_memory::mmap::FromRangesError),
    /// The probe's page of memory.
    #[error("cannot write the probe's memory")]
    Write(#[from] GuestMemoryError),
    /// The probe neither halted nor failed to be emulated.
    #[error("the probe ended with an exit that it cannot cause: {0}")]
    UnexpectedExit(String),
}

/// Where the code lies in the probe's only page: behind the page-table entry.
const CODE: u64 = 0x100;

/// `popcnt rax, rbx; hlt`. KVM's emulator knows the second and, as far as is
/// known, on no host the first.
const PROBE: &[u8] = &[0xf3, 0x48, 0x0f, 0xb8, 0xc3, 0xf4];

/// Finds out how this host runs ring 0.
pub fn host_kind() -> Result<HostKind, ProbeError> {
    if has_virtualization() {
        return try_ring0();
    }
    // Nothing can run it on the processor. Trying costs a millisecond and more.
    let kvm = Kvm::new().map_err(ProbeError::Open)?;
    match api_version(&kvm) {
        API_VERSION => Ok(HostKind::Software),
        other => Err(ProbeError::Version(other)),
    }
}

/// Whether the processor offers VMX (Intel SDM vol. 2A, CPUID leaf 1) or SVM (AMD
/// APM vol. 3, leaf 8000_0001).
fn has_virtualization() -> bool {
    const VMX: u32 = 1 << 5;
    const SVM: u32 = 1 << 2;
    const EXTENDED: u32 = 0x8000_0000;
    let svm = __cpuid(EXTENDED).eax > EXTENDED && __cpuid(EXTENDED + 1).ecx & SVM != 0;
    svm || __cpuid(1).ecx & VMX != 0
}

/// Finds out within a few milliseconds: a guest of one page executes an
/// instruction that the emulator lacks.
fn try_ring0() -> Result<HostKind, ProbeError> {
    let mut guest = probe_guest(PROBE)?;
    match guest.vcpu.run() {
        Ok(VcpuExit::Hlt) => Ok(HostKind::Hardware),
        Ok(VcpuExit::InternalError) => Ok(HostKind::Software),
        Ok(other) => Err(ProbeError::UnexpectedExit(format!("{other:?}"))),
        Err(source) => Err(ProbeError::Kvm {
            what: "run the probe",
            source,
        }),
    }
}

/// Iterations of the loop that [`ring0_instructions_per_s`] runs: some 15 ms
/// where ring 0 is emulated.
const LOOP_ITERATIONS: u32 = 10_000;

/// How fast this host runs ring 0: instructions of register arithmetic and
/// jumps per second of CPU time. What a start costs in ring-0 time, divided by
/// this, compares between machines.
pub fn ring0_instructions_per_s() -> Result<f64, ProbeError> {
    const INSTRUCTIONS_PER_ITERATION: f64 = 2.0;
    // `mov ecx, LOOP_ITERATIONS; 1: dec ecx; jnz 1b; hlt`
    let mut code = vec![0xb9];
    code.extend(LOOP_ITERATIONS.to_le_bytes());
    code.extend([0xff, 0xc9, 0x75, 0xfc, 0xf4]);
    let mut guest = probe_guest(&code)?;
    let before = clock_gettime(ClockId::ThreadCPUTime);
    match guest.vcpu.run() {
        Ok(VcpuExit::Hlt) => {}
        Ok(other) => return Err(ProbeError::UnexpectedExit(format!("{other:?}"))),
        Err(source) => {
            return Err(ProbeError::Kvm {
                what: "run the probe",
                source,
            });
        }
    }
    let after = clock_gettime(ClockId::ThreadCPUTime);
    let elapsed_s =
        (after.tv_sec - before.tv_sec) as f64 + (after.tv_nsec - before.tv_nsec) as f64 / 1e9;
    Ok(f64::from(LOOP_ITERATIONS) * INSTRUCTIONS_PER_ITERATION / elapsed_s)
}

/// A guest of one page that will run `code`.
fn probe_guest(code: &[u8]) -> Result<BareGuest, ProbeError> {
    let kvm = Kvm::new().map_err(ProbeError::Open)?;
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), PAGE as usize)])?;
    // The page is its own PML4, PDPT, PD and PT: entry 0 of each level leads
    // back to it, so that linear address 0 is the page itself.
    memory.write_obj(TABLE_ENTRY, GuestAddress(0))?;
    memory.write_slice(code, GuestAddress(CODE))?;
    let guest = BareGuest::new(&kvm, memory, 0)?;
    guest.start(CODE, PAGE)?;
    Ok(guest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time that this thread spent on a processor, host kernel included, in
    /// microseconds: what the neighbours do does not count.
    fn cpu_time_us() -> i64 {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec * 1_000_000 + time.tv_nsec / 1000
    }

    #[test]
    fn probe_tells_the_kind_in_little_time() {
        let first = host_kind().expect("probe /dev/kvm");
        let mut best = i64::MAX;
        for _ in 0..10 {
            let start = cpu_time_us();
            assert_eq!(try_ring0().expect("probe /dev/kvm"), first);
            best = best.min(cpu_time_us() - start);
        }
        assert!(best < 5000, "best of 10: {best} us");
    }

    #[test]
    fn the_rate_tells_emulation_from_hardware() {
        let rate = ring0_instructions_per_s().expect("run the loop");
        let emulated = host_kind().expect("probe /dev/kvm") == HostKind::Software;
        assert_eq!(rate < 3e7, emulated, "{rate} instructions/s");
    }
}
