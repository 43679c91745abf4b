//! Bundles around Debian's static busybox.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::host;

/// What engines give to a container's root.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// A bundle in a folder of its own, gone when dropped.
#[derive(Debug)]
pub struct Bundle {
    folder: TempDir,
    config: Value,
}

impl Bundle {
    /// Runs `script` by busybox's shell.
    pub fn shell(script: &str) -> Self {
        Self::program(&["/bin/sh", "-c", script])
    }

    /// Runs `args`.
    pub fn program(args: &[&str]) -> Self {
        let bundle = Self::with_rootfs(args, |rootfs| {
            for folder in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
                fs::create_dir(rootfs.join(folder)).unwrap();
            }
            fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
            for applet in applets() {
                symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
            }
            fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
            fs::write(rootfs.join("etc/group"), "root:x:0:\n").unwrap();
        });
        // Only root sees the folders that tempfile makes.
        fs::set_permissions(bundle.path(), fs::Permissions::from_mode(0o755)).unwrap();
        bundle
    }

    /// Runs `args` in a root file system made by `fill`.
    pub fn with_rootfs(args: &[&str], fill: impl FnOnce(&Path)) -> Self {
        host::require();
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::create_dir(folder.path().join("rootfs")).unwrap();
        fill(&folder.path().join("rootfs"));
        let bundle = Self {
            folder,
            config: config(args),
        };
        bundle.write();
        bundle
    }

    /// Sets the value at `pointer` (RFC 6901); what is missing on the way is made.
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        let mut at = &mut self.config;
        for key in pointer.split('/').skip(1) {
            at = match key.parse::<usize>() {
                Ok(index) => &mut at[index],
                Err(_) => &mut at[key],
            };
        }
        *at = value;
        self.write();
        self
    }

    /// Adds a mount.
    pub fn mount(mut self, mount: Value) -> Self {
        let mounts = self.config["mounts"].as_array_mut().unwrap();
        mounts.push(mount);
        self.write();
        self
    }

    /// Adds an executable file to the root file system.
    pub fn executable(self, name: &str, program: &Path) -> Self {
        fs::copy(program, self.rootfs().join(name)).unwrap();
        self
    }

    /// The bundle's folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The container's root.
    pub fn rootfs(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    fn write(&self) {
        let text = format!("{:#}", self.config);
        fs::write(self.path().join("config.json"), text).unwrap();
    }
}

fn applets() -> &'static [String] {
    static APPLETS: OnceLock<Vec<String>> = OnceLock::new();
    APPLETS.get_or_init(|| {
        let list = Command::new("/bin/busybox").arg("--list").output().unwrap();
        let list = String::from_utf8(list.stdout).unwrap();
        let names = list.lines().filter(|name| *name != "busybox");
        names.map(str::to_owned).collect()
    })
}

/// What `runc spec` makes, without a terminal and with engines' capabilities.
fn config(args: &[&str]) -> Value {
    let nosuid = ["nosuid", "noexec", "nodev"];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": DEFAULT_CAPABILITIES,
                "effective": DEFAULT_CAPABILITIES,
                "permitted": DEFAULT_CAPABILITIES
            },
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": nosuid},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]}
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"},
                           {"type": "uts"}, {"type": "mount"}]
        }
    })
}
