//! vmrun in namespaces of its own with empty folders for temporary files, so that
//! everything it leaves behind can be seen, whatever else this machine does.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;

use super::{Bundle, Finished, Launch, guest_dir, template_dir, vmrun};

/// A place to run vmrun in.
#[derive(Debug)]
pub struct Sandbox {
    stage: TempDir,
    prelude: String,
    user: Option<u32>,
}

/// What happened in a sandbox.
#[derive(Debug)]
pub struct Sandboxed {
    pub run: Finished,
    /// Processes, mounts, sockets and files that were not there before, a line each.
    pub left: String,
    /// What vmrun wrote to `--log`.
    pub log: String,
}

impl Sandbox {
    /// With vmrun and its guest image inside.
    pub fn new() -> Self {
        let stage = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let at = |name: &str| stage.path().join(name);
        fs::set_permissions(stage.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for folder in ["bin", "bundle", "empty", "lib/vmrun", "report", "templates"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        fs::copy(vmrun(), at("bin/vmrun")).unwrap();
        for file in ["vmlinux", "vmlinux-smp", "initramfs.cpio"] {
            fs::copy(guest_dir().join(file), at("lib/vmrun").join(file)).unwrap();
        }
        Self {
            stage,
            prelude: "true".to_owned(),
            user: None,
        }
    }

    /// Runs the shell command `prelude` before.
    pub fn after(mut self, prelude: &str) -> Self {
        self.prelude = prelude.to_owned();
        self
    }

    /// Runs vmrun as this user.
    pub fn with_user(mut self, uid: u32) -> Self {
        self.user = Some(uid);
        self
    }

    /// Runs vmrun with `words`, `times` times in a row; `bundle` is at
    /// `/mnt/bundle`, which also is the working folder.
    pub fn run(&self, bundle: Option<&Bundle>, words: &[&str], times: u32) -> Sandboxed {
        let report = self.stage.path().join("report");
        let bundle = bundle.map_or_else(|| self.stage.path().join("bundle"), |b| b.path().into());
        let uid = self.user.map_or(String::new(), |uid| uid.to_string());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/harness/sandbox.sh");
        let mut launch = Launch::new("unshare")
            .args(["--mount", "--propagation", "private", "--pid", "--fork"])
            .args(["--mount-proc", "--net", "--ipc", "--kill-child", "bash"])
            .args([script, self.stage.path().to_owned()])
            .args([bundle, template_dir().to_owned()])
            .args([&times.to_string(), &self.prelude, &uid])
            .args(words)
            .limit(times);
        launch.machines = 1;
        let run = launch.finish();
        let read = |name: &str| fs::read_to_string(report.join(name)).unwrap_or_default();
        let sandboxed = Sandboxed {
            left: read("left"),
            log: read("log"),
            run,
        };
        assert!(report.join("done").exists(), "{sandboxed:?}");
        fs::remove_dir_all(&report).unwrap();
        fs::create_dir(&report).unwrap();
        sandboxed
    }
}
