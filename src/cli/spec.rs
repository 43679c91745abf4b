//! `vmrun spec`.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};

use super::{FAILED, tell};

/// Why no config.json was written.
#[derive(Debug, thiserror::Error)]
enum SpecError {
    #[error("file {0:?} exists: remove it first")]
    Exists(PathBuf),
    #[error("file {0:?}")]
    Write(PathBuf, #[source] io::Error),
    #[error("the caller's ids")]
    Ids(#[source] io::Error),
}

/// Writes a config.json to start from into the folder `bundle`.
pub fn spec(bundle: &Path, rootless: bool) -> ExitCode {
    let path = bundle.join("config.json");
    let ids = rootless.then(|| own_ids().map_err(SpecError::Ids));
    let written = ids.transpose().and_then(|ids| write(&path, &config(ids)));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error);
            ExitCode::from(FAILED)
        }
    }
}

/// The caller's effective user and group.
fn own_ids() -> io::Result<(u32, u32)> {
    let process = std::fs::metadata("/proc/self")?;
    Ok((process.uid(), process.gid()))
}

fn write(path: &Path, config: &Value) -> Result<(), SpecError> {
    let failed = |source: io::Error| match source.kind() {
        ErrorKind::AlreadyExists => SpecError::Exists(path.to_owned()),
        _ => SpecError::Write(path.to_owned(), source),
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(failed)?;
    let written = file.write_all(format!("{config:#}\n").as_bytes());
    written.map_err(|source| {
        // Half a file would only be in the way of the next try.
        let _ = std::fs::remove_file(path);
        SpecError::Write(path.to_owned(), source)
    })
}

/// A shell in `rootfs`, with the rights that runc gives it. For a caller without root
/// its root is the caller, whose files those in `rootfs` are, and there are no limits
/// of the host's cgroup.
fn config(rootless: Option<(u32, u32)>) -> Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=xterm"
            ],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "vmrun",
        "mounts": mounts(rootless.is_some()),
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"},
                {"type": "network"},
                {"type": "ipc"},
                {"type": "uts"},
                {"type": "mount"},
                {"type": "cgroup"}
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi",
                "/sys/firmware"
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"
            ]
        }
    });
    if let Some((uid, gid)) = rootless {
        let mapping = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 1}]);
        let linux = &mut config["linux"];
        linux["uidMappings"] = mapping(uid);
        linux["gidMappings"] = mapping(gid);
        if let Some(namespaces) = linux["namespaces"].as_array_mut() {
            namespaces.push(json!({"type": "user"}));
        }
        if let Some(linux) = linux.as_object_mut() {
            linux.remove("resources");
        }
    }
    config
}

fn mounts(rootless: bool) -> Value {
    let mount = |destination: &str, fs_type: &str, source: &str, options: &[&str]| {
        json!({
            "destination": destination, "type": fs_type, "source": source, "options": options
        })
    };
    const STRICT: [&str; 3] = ["nosuid", "noexec", "nodev"];
    let and = |more: &[&'static str]| [&STRICT[..], more].concat();
    let mut pts = vec!["nosuid", "noexec", "newinstance"];
    pts.extend(["ptmxmode=0666", "mode=0620"]);
    if !rootless {
        // The group tty, which has no id where only one is mapped.
        pts.push("gid=5");
    }
    let dev = ["nosuid", "strictatime", "mode=755", "size=65536k"];
    json!([
        mount("/proc", "proc", "proc", &[]),
        mount("/dev", "tmpfs", "tmpfs", &dev),
        mount("/dev/pts", "devpts", "devpts", &pts),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &and(&["mode=1777", "size=65536k"])
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &STRICT),
        mount("/sys", "sysfs", "sysfs", &and(&["ro"])),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &and(&["relatime", "ro"])
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmrun_runtime::oci::load;

    #[test]
    fn what_is_written_is_taken_without_a_warning() {
        for rootless in [None, Some((1000, 1001))] {
            let container = load::parse(config(rootless).to_string().as_bytes()).unwrap();
            assert_eq!(container.warnings, [""; 0]);
            let outside = container.plan.gid_mappings.first().map(|m| m.outside);
            assert_eq!(outside, rootless.map(|(_, gid)| gid));
        }
    }

    #[test]
    fn nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        write(&path, &json!({"a": 1})).unwrap();
        let message = write(&path, &json!({})).unwrap_err().to_string();
        assert!(message.ends_with("exists: remove it first"), "{message}");
        assert!(std::fs::read_to_string(&path).unwrap().contains("\"a\": 1"));
        let missing = folder.path().join("x/config.json");
        assert!(matches!(
            write(&missing, &json!({})),
            Err(SpecError::Write(..))
        ));
    }
}
