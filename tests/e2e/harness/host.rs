//! What the tests need of this machine. Nothing is skipped: what is missing fails
//! the test and is named.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Condvar, Mutex, Once, OnceLock, PoisonError};

/// Variable that names the folder of templates.
pub const TEMPLATE_DIR: &str = "VMRUN_TEMPLATE_DIR";

/// How many machines run at a time: one keeps a processor busy while it starts, and
/// starts have deadlines. `VMRUN_TEST_MACHINES`, else 2.
fn machines_max() -> usize {
    let asked = std::env::var("VMRUN_TEST_MACHINES").ok();
    asked.map_or(2, |count| count.parse().expect("a number"))
}

/// The vmrun under test: `VMRUN_BIN`, else the one that cargo built.
pub fn vmrun() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let built = || env!("CARGO_BIN_EXE_vmrun").into();
        std::env::var_os("VMRUN_BIN").map_or_else(built, PathBuf::from)
    })
}

/// The folder of the guest image that belongs to it.
pub fn guest_dir() -> PathBuf {
    let prefix = vmrun().parent().and_then(Path::parent);
    prefix.expect("a folder above vmrun").join("lib/vmrun")
}

/// The folder of the machine templates that all tests share but those of templates.
pub fn template_dir() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("templates"))
}

/// Makes the template that most machines start from, so that no test sees it made.
fn make_template() {
    let mut command = Command::new(vmrun());
    command.env(TEMPLATE_DIR, template_dir());
    let stale = command.args(["template", "prune"]).output().unwrap();
    assert!(stale.status.success(), "{stale:?}");
    let mut command = Command::new("timeout");
    command.env(TEMPLATE_DIR, template_dir());
    command.args(["-s", "KILL", "240"]).arg(vmrun());
    let made = command.args(["template", "create"]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// Fails unless this machine can run the tests.
pub fn require() {
    static CHECKED: Once = Once::new();
    CHECKED.call_once(|| {
        assert!(
            rustix::process::geteuid().is_root(),
            "run as root: bundles have owners and devices, and runc is run beside vmrun"
        );
        let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        assert!(kvm.is_ok(), "/dev/kvm: {}", kvm.unwrap_err());
        for (file, package) in [
            ("/bin/busybox", "busybox-static"),
            ("/usr/sbin/runc", "runc"),
            ("/usr/bin/setsid", "util-linux"),
            ("/usr/bin/cc", "gcc"),
        ] {
            assert!(
                Path::new(file).exists(),
                "no {file}: apt-get install {package}"
            );
        }
        for file in ["vmlinux", "vmlinux-smp", "initramfs.cpio"] {
            let path = guest_dir().join(file);
            assert!(path.exists(), "no {path:?}: run scripts/test");
        }
        make_template();
    });
}

static MACHINES: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// The right to have machines running.
#[derive(Debug)]
pub struct MachinePermit(usize);

impl MachinePermit {
    /// Waits until `wanted` machines more may run, or until no other does.
    pub fn take(wanted: usize) -> Self {
        let max = machines_max();
        let wanted = wanted.min(max);
        let (count, freed) = &MACHINES;
        let count = count.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = freed
            .wait_while(count, |count| *count + wanted > max)
            .unwrap_or_else(PoisonError::into_inner);
        *count += wanted;
        Self(wanted)
    }
}

impl Drop for MachinePermit {
    fn drop(&mut self) {
        let (count, freed) = &MACHINES;
        *count.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        freed.notify_all();
    }
}
