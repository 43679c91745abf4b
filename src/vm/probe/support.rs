//! What `vmrun check` needs to know of KVM.

use std::ffi::CStr;
use std::io;

use kvm_ioctls::{Cap, Kvm};

/// The only API version there has been since Linux 2.6.22.
pub const API_VERSION: i32 = 12;

const DEVICE: &CStr = c"/dev/kvm";

/// Whether /dev/kvm can be used.
#[derive(Debug)]
pub enum KvmAccess {
    /// Open.
    Usable(Kvm),
    /// There is no such file: KVM is not built in, its module is not loaded,
    /// or this is a container without the device.
    Missing,
    /// The file is there, and this user may not open it for reading and writing.
    NoPermission,
    /// The file is there and no driver is behind it (ENODEV, ENXIO).
    NoDriver,
    /// Another hypervisor holds the processor's virtualization (EBUSY).
    Busy,
    /// Anything else.
    Failed(io::Error),
}

/// Tries to open /dev/kvm. Whether another hypervisor holds the processor
/// shows when a VM is created, so that is tried, too.
pub fn kvm_access() -> KvmAccess {
    open(DEVICE)
}

fn open(path: &CStr) -> KvmAccess {
    let tried = Kvm::new_with_path(path).and_then(|kvm| kvm.create_vm().map(|_| kvm));
    match tried {
        Ok(kvm) => KvmAccess::Usable(kvm),
        Err(error) => match error.errno() {
            libc::ENOENT | libc::ENOTDIR => KvmAccess::Missing,
            libc::EACCES | libc::EPERM => KvmAccess::NoPermission,
            libc::ENODEV | libc::ENXIO => KvmAccess::NoDriver,
            libc::EBUSY => KvmAccess::Busy,
            errno => KvmAccess::Failed(io::Error::from_raw_os_error(errno)),
        },
    }
}

/// The version of KVM's API, or a negative number if `kvm` is another device.
pub fn api_version(kvm: &Kvm) -> i32 {
    kvm.get_api_version()
}

/// How badly a capability is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// No machine without it.
    Always,
    /// Works without it, less well.
    Helpful,
}

/// A capability of KVM and whether it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// Its name in linux/kvm.h.
    pub name: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// How badly it is needed.
    pub need: Need,
    /// Whether this host has it.
    pub found: bool,
}

macro_rules! wanted {
    ($($need:ident $cap:ident $name:literal $purpose:literal;)*) => {
        &[$((Cap::$cap, $name, $purpose, Need::$need)),*]
    };
}

type Wanted = (Cap, &'static str, &'static str, Need);

const WANTED: &[Wanted] = wanted! {
    Always UserMemory "KVM_CAP_USER_MEMORY" "guest memory";
    Always Irqchip "KVM_CAP_IRQCHIP" "interrupt controllers";
    Always SetTssAddr "KVM_CAP_SET_TSS_ADDR" "start of a guest on Intel";
    Always Pit2 "KVM_CAP_PIT2" "interval timer";
    Always ExtCpuid "KVM_CAP_EXT_CPUID" "processor features";
    Always MpState "KVM_CAP_MP_STATE" "several vCPUs";
    Always Irqfd "KVM_CAP_IRQFD" "interrupts of devices";
    Always Ioeventfd "KVM_CAP_IOEVENTFD" "notifications to devices";
    Always VcpuEvents "KVM_CAP_VCPU_EVENTS" "exceptions";
    Always Xsave "KVM_CAP_XSAVE" "vector registers";
    Always Xcrs "KVM_CAP_XCRS" "vector registers";
    Always ImmediateExit "KVM_CAP_IMMEDIATE_EXIT" "stopping a vCPU";
    Helpful Xsave2 "KVM_CAP_XSAVE2" "vector registers beyond 4 KiB";
    Helpful GetTscKhz "KVM_CAP_GET_TSC_KHZ" "clock frequency without calibration";
    Helpful TscDeadlineTimer "KVM_CAP_TSC_DEADLINE_TIMER" "precise timer";
    Helpful AdjustClock "KVM_CAP_ADJUST_CLOCK" "clock after a restore";
    Helpful SyncRegs "KVM_CAP_SYNC_REGS" "registers without a system call";
};

/// All capabilities that this program looks for.
pub fn capabilities(kvm: &Kvm) -> Vec<Capability> {
    WANTED
        .iter()
        .map(|&(cap, name, purpose, need)| Capability {
            name,
            purpose,
            need,
            found: kvm.check_extension(cap),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_all_that_is_needed() {
        let KvmAccess::Usable(kvm) = kvm_access() else {
            panic!("/dev/kvm: {:?}", kvm_access());
        };
        assert_eq!(api_version(&kvm), API_VERSION);
        let missing: Vec<_> = capabilities(&kvm)
            .into_iter()
            .filter(|capability| capability.need == Need::Always && !capability.found)
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn a_missing_device_is_told_from_a_wrong_one() {
        assert!(matches!(open(c"/nonexistent/kvm"), KvmAccess::Missing));
        // A device that knows none of KVM's requests.
        assert!(matches!(open(c"/dev/null"), KvmAccess::Failed(_)));
    }
}
