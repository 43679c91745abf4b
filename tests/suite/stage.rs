//! Namespaces and folders of a suite's own. Whatever ends the suite, a kill too, ends
//! everything in its pid namespace, daemons and containers; what is left at its end
//! can be seen; and a daemon's fixed paths in /run are no other's.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use rustix::mount::{MountFlags, mount};
use tempfile::TempDir;

use crate::harness;

/// Set inside.
const INSIDE: &str = "VMRUN_TEST_STAGE";

/// Where cgroups are on hosts with version 1; there each controller has a folder.
const CGROUPS: &str = "/sys/fs/cgroup";

/// crun refuses hosts that have some controllers in version 2 while others are in
/// version 1. It does not look further than this mount.
const CRUN: &str = "#!/bin/sh
exec unshare --mount --propagation private sh -c '
	[ ! -d /sys/fs/cgroup/unified ] || umount /sys/fs/cgroup/unified
	exec /usr/bin/crun \"$@\"' sh \"$@\"
";

/// A suite's own place.
#[derive(Debug)]
pub struct Stage {
    folder: TempDir,
    tag: String,
}

impl Stage {
    /// Starts this program again in namespaces of its own, with a process 1 that
    /// reaps; returns there.
    pub fn enter() -> Self {
        if env::var_os(INSIDE).is_none() {
            let program = env::current_exe().expect("this program has a path");
            let mut command = Command::new("unshare");
            command.args(["--mount", "--propagation", "private", "--pid", "--fork"]);
            command.args(["--kill-child", "--mount-proc", "--net", "--ipc"]);
            command
                .args(["tini", "--"])
                .arg(program)
                .args(env::args_os().skip(1));
            let error = command.env(INSIDE, "1").exec();
            panic!("unshare: {error}");
        }
        for folder in ["/run", "/dev/shm"] {
            mount("tmpfs", folder, "tmpfs", MountFlags::empty(), None).expect("a tmpfs");
        }
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let name = folder.path().file_name().expect("a name").to_string_lossy();
        let tag = format!("vmrun-test-{}", name.trim_start_matches('.'));
        let stage = Self { tag, folder };
        fs::set_permissions(stage.path(), fs::Permissions::from_mode(0o755)).unwrap();
        stage.make_programs();
        stage
    }

    /// The runtimes that need something around them here. Callers pass on no
    /// environment, so vmrun gets its own.
    fn make_programs(&self) {
        let vmrun = harness::vmrun().display();
        let templates = harness::template_dir().display();
        let variable = harness::TEMPLATE_DIR;
        let text = format!("#!/bin/sh\nexport {variable}={templates}\nexec {vmrun} \"$@\"\n");
        for (name, text) in [("vmrun", text.as_str()), ("crun", CRUN)] {
            let path = self.program(name);
            fs::create_dir_all(path.parent().expect("a folder")).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    /// Where a program that this stage wraps is.
    pub fn program(&self, name: &str) -> PathBuf {
        self.path().join("bin").join(name)
    }

    /// Files of the suite.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Part of the name of everything that the suite makes outside of its folder.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The cgroups within those that are named by the suite's tag, deepest first.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = self.all_cgroups();
        found.retain(|path| path.file_name().is_none_or(|name| name != &*self.tag));
        found
    }

    fn all_cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        collect(Path::new(CGROUPS), &self.tag, &mut found);
        found.sort();
        found.reverse();
        found
    }

    /// Removes what is left of them, and tells what that was.
    pub fn remove_cgroups(&self) -> Vec<PathBuf> {
        let left = self.cgroups();
        for cgroup in self.all_cgroups() {
            // One with processes in it is reported all the same.
            let _ = fs::remove_dir(cgroup);
        }
        left
    }
}

fn collect(folder: &Path, tag: &str, found: &mut Vec<PathBuf>) {
    // Cgroups of others come and go meanwhile.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        if path.to_string_lossy().contains(tag) {
            found.push(path.clone());
        }
        collect(&path, tag, found);
    }
}
