//! `process.capabilities` (config.md, "Linux process").

use oci_spec::runtime::{Capabilities as Names, Capability, LinuxCapabilities};
use serde::Deserialize;
use serde_json::Value;
use vmrun_protocol::plan::Capabilities;

/// Whether `name` is the name of a capability.
pub(crate) fn is_known(name: &Value) -> bool {
    Capability::deserialize(name).is_ok()
}

/// The capability of this name, as a bit; with or without `CAP_`, in any case.
pub fn named(name: &str) -> Option<u64> {
    let known = Capability::deserialize(Value::from(name)).ok()?;
    Some(bit(known))
}

/// The five sets as bits. What the kernel cannot grant is left out with a
/// warning rather than refused, as the specification asks: an effective
/// capability that is not permitted, an ambient one that is not both permitted
/// and inheritable (capabilities(7)).
pub fn resolve(from: &LinuxCapabilities, warnings: &mut Vec<String>) -> Capabilities {
    let mut sets = Capabilities {
        bounding: bits(from.bounding()),
        effective: bits(from.effective()),
        inheritable: bits(from.inheritable()),
        permitted: bits(from.permitted()),
        ambient: bits(from.ambient()),
    };
    let ambient_allowed = sets.permitted & sets.inheritable;
    leave_out(&mut sets.effective, sets.permitted, "effective", warnings);
    leave_out(&mut sets.ambient, ambient_allowed, "ambient", warnings);
    sets
}

fn leave_out(set: &mut u64, allowed: u64, name: &str, warnings: &mut Vec<String>) {
    if *set & !allowed != 0 {
        warnings.push(format!(
            "process.capabilities.{name}: capabilities that cannot be granted are left out"
        ));
        *set &= allowed;
    }
}

fn bits(names: &Option<Names>) -> u64 {
    names
        .iter()
        .flatten()
        .fold(0, |bits, &name| bits | bit(name))
}

/// All of them, by their numbers in linux/capability.h.
const BY_NUMBER: [Capability; 41] = {
    use Capability::*;
    [
        Chown,
        DacOverride,
        DacReadSearch,
        Fowner,
        Fsetid,
        Kill,
        Setgid,
        Setuid,
        Setpcap,
        LinuxImmutable,
        NetBindService,
        NetBroadcast,
        NetAdmin,
        NetRaw,
        IpcLock,
        IpcOwner,
        SysModule,
        SysRawio,
        SysChroot,
        SysPtrace,
        SysPacct,
        SysAdmin,
        SysBoot,
        SysNice,
        SysResource,
        SysTime,
        SysTtyConfig,
        Mknod,
        Lease,
        AuditWrite,
        AuditControl,
        Setfcap,
        MacOverride,
        MacAdmin,
        Syslog,
        WakeAlarm,
        BlockSuspend,
        AuditRead,
        Perfmon,
        Bpf,
        CheckpointRestore,
    ]
};

/// The names of all, by their numbers.
pub fn names() -> Vec<String> {
    BY_NUMBER.iter().map(|name| format!("CAP_{name}")).collect()
}

fn number(name: Capability) -> usize {
    let found = BY_NUMBER.iter().position(|&known| known == name);
    // A later version of oci-spec may know more; the guest's kernel does not.
    found.unwrap_or(BY_NUMBER.len())
}

/// The capability as a bit, of those that the guest's kernel has.
fn bit(name: Capability) -> u64 {
    (1 << number(name)) & ((1 << BY_NUMBER.len()) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(json: &str) -> (Capabilities, Vec<String>) {
        let mut warnings = Vec::new();
        let from = serde_json::from_str(json).unwrap();
        (resolve(&from, &mut warnings), warnings)
    }

    #[test]
    fn numbers_are_the_kernels() {
        // Spot checks against rustix, which has the kernel's header as bits.
        use rustix::thread::CapabilitySet as Kernel;
        for (name, bit) in [
            (Capability::Chown, Kernel::CHOWN),
            (Capability::Kill, Kernel::KILL),
            (Capability::NetBindService, Kernel::NET_BIND_SERVICE),
            (Capability::SysAdmin, Kernel::SYS_ADMIN),
            (Capability::AuditWrite, Kernel::AUDIT_WRITE),
            (Capability::Bpf, Kernel::BPF),
            (Capability::CheckpointRestore, Kernel::CHECKPOINT_RESTORE),
        ] {
            assert_eq!(super::bit(name), bit.bits(), "{name:?}");
        }
    }

    #[test]
    fn missing_sets_are_empty() {
        let (sets, warnings) = sets(r#"{"bounding": ["CAP_KILL", "CAP_CHOWN"]}"#);
        assert_eq!(sets.bounding, 1 << 5 | 1);
        assert_eq!(sets.permitted | sets.effective | sets.ambient, 0);
        assert!(warnings.is_empty());
    }

    #[test]
    fn what_cannot_be_granted_is_left_out() {
        let (sets, warnings) = sets(
            r#"{"permitted": ["CAP_KILL"], "effective": ["CAP_KILL", "CAP_CHOWN"],
                "ambient": ["CAP_KILL"]}"#,
        );
        assert_eq!(sets.effective, 1 << 5);
        assert_eq!(sets.ambient, 0);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }
}
