//! `vmrun check`: what this host offers.

use std::fs::{self, OpenOptions};
use std::path::Path;

use serde::Serialize;
use vmrun_vm::probe::{self, HostKind, KvmAccess, Need};

use crate::guest_image;

/// How good a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Something will be missing or slow.
    Warn,
    /// No container can be run.
    Fail,
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// How good it is.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<&'static str>,
}

impl Finding {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Status::Ok, found, None)
    }

    fn warn(name: &'static str, found: impl Into<String>, advice: &'static str) -> Self {
        Self::new(name, Status::Warn, found, Some(advice))
    }

    fn fail(name: &'static str, found: impl Into<String>, advice: &'static str) -> Self {
        Self::new(name, Status::Fail, found, Some(advice))
    }

    fn new(
        name: &'static str,
        status: Status,
        found: impl Into<String>,
        advice: Option<&'static str>,
    ) -> Self {
        let found = found.into();
        Self {
            name,
            status,
            found,
            advice,
        }
    }
}

/// Looks at everything that a run needs or may use.
pub fn check(guest_dir: &Path) -> Vec<Finding> {
    let mut findings = kvm();
    findings.push(cgroup());
    findings.push(tun());
    findings.push(user_namespaces());
    findings.push(vhost());
    findings.extend(guest_files(guest_dir));
    findings
}

fn kvm() -> Vec<Finding> {
    const NAME: &str = "/dev/kvm";
    let kvm = match probe::kvm_access() {
        KvmAccess::Usable(kvm) => kvm,
        KvmAccess::Missing => {
            let advice = "load kvm_intel or kvm_amd, or pass the device into this container";
            return vec![Finding::fail(NAME, "missing", advice)];
        }
        KvmAccess::NoPermission => {
            let advice = "join the group that owns it (often kvm), or run as root";
            return vec![Finding::fail(NAME, "no permission", advice)];
        }
        KvmAccess::NoDriver => {
            let advice = "enable virtualization in the firmware, load kvm_intel or kvm_amd";
            return vec![Finding::fail(NAME, "no driver behind it", advice)];
        }
        KvmAccess::Busy => {
            let advice = "stop the other hypervisor that holds the processor";
            return vec![Finding::fail(NAME, "busy", advice)];
        }
        KvmAccess::Failed(error) => {
            return vec![Finding::fail(NAME, error.to_string(), "see dmesg")];
        }
    };
    let version = probe::api_version(&kvm);
    let mut findings = vec![Finding::ok(NAME, "usable"), api(version)];
    findings.extend(capabilities(&probe::capabilities(&kvm)));
    findings.push(host_kind());
    findings
}

fn api(version: i32) -> Finding {
    const NAME: &str = "KVM API";
    if version == probe::API_VERSION {
        Finding::ok(NAME, format!("version {version}"))
    } else {
        let advice = "/dev/kvm is something else than Linux KVM";
        Finding::fail(NAME, format!("version {version}"), advice)
    }
}

fn capabilities(all: &[probe::Capability]) -> [Finding; 2] {
    let missing = |need| {
        let missing = all.iter().filter(|c| c.need == need && !c.found);
        let names: Vec<_> = missing
            .map(|c| format!("{} ({})", c.name, c.purpose))
            .collect();
        names.join(", ")
    };
    let count = |need| all.iter().filter(|c| c.need == need).count();
    let needed = match missing(Need::Always) {
        none if none.is_empty() => {
            Finding::ok("KVM needed", format!("all {}", count(Need::Always)))
        }
        some => Finding::fail(
            "KVM needed",
            format!("without {some}"),
            "use a newer kernel",
        ),
    };
    let helpful = match missing(Need::Helpful) {
        none if none.is_empty() => {
            Finding::ok("KVM helpful", format!("all {}", count(Need::Helpful)))
        }
        some => {
            let advice = "nothing has to be done, some things are slower";
            Finding::warn("KVM helpful", format!("without {some}"), advice)
        }
    };
    [needed, helpful]
}

fn host_kind() -> Finding {
    const NAME: &str = "guest kernel mode";
    match probe::host_kind() {
        Ok(HostKind::Hardware) => Finding::ok(NAME, "runs on the processor"),
        Ok(HostKind::Software) => {
            let advice = "a start takes seconds; use a host with VMX or SVM for milliseconds";
            let rate = probe::ring0_instructions_per_s().map_or_else(
                |error| error.to_string(),
                |rate| format!("{:.2} M instructions/s", rate / 1e6),
            );
            Finding::warn(NAME, format!("emulated by KVM, {rate}"), advice)
        }
        Err(error) => Finding::fail(NAME, error.to_string(), "see dmesg"),
    }
}

fn cgroup() -> Finding {
    const NAME: &str = "cgroup";
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        Finding::ok(NAME, "version 2")
    } else if root.join("unified/cgroup.controllers").exists() {
        Finding::ok(NAME, "version 1 and 2 (hybrid)")
    } else if root.join("memory").exists() {
        Finding::ok(NAME, "version 1")
    } else {
        let advice = "mount cgroup2 on /sys/fs/cgroup to limit machines from outside";
        Finding::warn(NAME, "none mounted", advice)
    }
}

fn tun() -> Finding {
    const NAME: &str = "/dev/net/tun";
    match OpenOptions::new().read(true).write(true).open(NAME) {
        Ok(_) => Finding::ok(NAME, "usable"),
        Err(error) => {
            let advice = "load tun, or pass the device: networks of containers need it";
            Finding::warn(NAME, error.to_string(), advice)
        }
    }
}

fn user_namespaces() -> Finding {
    const NAME: &str = "user namespaces";
    let number = |path| {
        let text = fs::read_to_string(path).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let most = number("/proc/sys/user/max_user_namespaces");
    // A switch of Debian's; where it is missing everybody may.
    let everybody = number("/proc/sys/kernel/unprivileged_userns_clone") != Some(0);
    let advice = "set sysctl user.max_user_namespaces and kernel.unprivileged_userns_clone";
    match (most, everybody) {
        (Some(1..), true) => Finding::ok(NAME, "for everybody"),
        (Some(1..), false) => Finding::warn(NAME, "for root only", advice),
        _ => Finding::warn(NAME, "none", advice),
    }
}

/// vmrun's devices are its own; this line only says what else there is.
fn vhost() -> Finding {
    let there: Vec<_> = ["net", "vsock"]
        .into_iter()
        .filter(|name| Path::new(&format!("/dev/vhost-{name}")).exists())
        .collect();
    let found = match there[..] {
        [] => "none (not needed)".to_owned(),
        _ => format!("{} (not needed)", there.join(", ")),
    };
    Finding::ok("vhost", found)
}

fn guest_files(folder: &Path) -> [Finding; 3] {
    const ADVICE: &str = "run scripts/quickstart, or name the folder with --guest-dir";
    const ADVICE_SMP: &str = "run scripts/quickstart, or do without --cpus";
    [
        ("guest kernel", guest_image::KERNEL, Status::Fail, ADVICE),
        (
            "guest kernel, SMP",
            guest_image::KERNEL_SMP,
            Status::Warn,
            ADVICE_SMP,
        ),
        (
            "guest initramfs",
            guest_image::INITRAMFS,
            Status::Fail,
            ADVICE,
        ),
    ]
    .map(|(name, file, status, advice)| {
        let path = folder.join(file);
        let shown = path.display();
        if path.is_file() {
            Finding::ok(name, shown.to_string())
        } else {
            Finding::new(name, status, format!("missing at {shown}"), Some(advice))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmrun_vm::probe::Capability;

    #[test]
    fn every_line_that_is_not_ok_says_what_to_do() {
        let nowhere = Path::new("/nonexistent");
        for finding in check(nowhere) {
            assert_eq!(
                finding.status == Status::Ok,
                finding.advice.is_none(),
                "{finding:?}"
            );
        }
    }

    #[test]
    fn missing_guest_files() {
        let folder = tempfile::tempdir().unwrap();
        let status = |f: &Path| guest_files(f).map(|f| f.status);
        assert_eq!(
            status(folder.path()),
            [Status::Fail, Status::Warn, Status::Fail]
        );
        for file in [guest_image::KERNEL, guest_image::INITRAMFS] {
            fs::write(folder.path().join(file), "").unwrap();
        }
        assert_eq!(
            status(folder.path()),
            [Status::Ok, Status::Warn, Status::Ok]
        );
    }

    #[test]
    fn missing_capabilities_are_named() {
        let capability = |need, found| Capability {
            name: "KVM_CAP_X",
            purpose: "x",
            need,
            found,
        };
        let [needed, helpful] = capabilities(&[
            capability(Need::Always, false),
            capability(Need::Helpful, false),
        ]);
        assert_eq!(needed.status, Status::Fail);
        assert_eq!(needed.found, "without KVM_CAP_X (x)");
        assert_eq!(helpful.status, Status::Warn);
        let [needed, helpful] = capabilities(&[capability(Need::Always, true)]);
        assert_eq!((needed.status, helpful.status), (Status::Ok, Status::Ok));
    }

    #[test]
    fn another_api_version_fails() {
        assert_eq!(api(12).status, Status::Ok);
        assert_eq!(api(11).status, Status::Fail);
    }
}
