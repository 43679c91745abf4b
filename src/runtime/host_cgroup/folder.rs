//! A container's folder in one hierarchy.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, mkdir};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::CgroupError;
use super::layout::{Hierarchy, is_missing};

/// How long killed processes may take to end: they may be in a system call that
/// waits for a disk.
const KILL_DEADLINE: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// Rounds of killing: each finds only what was forked during the one before.
const KILL_ROUNDS: usize = 16;

/// Most of a cgroup's file that is read, in bytes.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// A folder of a hierarchy, made or to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folder {
    path: PathBuf,
    /// How many of the last parts of `path` were not there before.
    made: usize,
    /// The hierarchy's top.
    top: PathBuf,
    controllers: Vec<String>,
    unified: bool,
}

impl Folder {
    /// The folder `inner` of `hierarchy`; sees what of it is missing.
    pub fn plan(hierarchy: &Hierarchy, inner: &Path) -> Self {
        let path = hierarchy.mount_point.join(inner);
        let parts = inner.components().count();
        let missing = path.ancestors().take(parts).take_while(|p| !p.exists());
        Self {
            made: missing.count(),
            path,
            top: hierarchy.mount_point.clone(),
            controllers: hierarchy.controllers.clone(),
            unified: hierarchy.unified,
        }
    }

    /// Nothing above it is ever removed.
    pub fn alone(self) -> Self {
        Self {
            made: self.made.min(1),
            ..self
        }
    }

    /// Whether it is of cgroup v2.
    pub fn is_unified(&self) -> bool {
        self.unified
    }

    /// Whether `controller` can be used in it.
    pub fn has(&self, controller: &str) -> bool {
        if self.unified {
            let enabled = self.read("cgroup.controllers").unwrap_or_default();
            enabled.split_whitespace().any(|name| name == controller)
        } else {
            self.controllers.iter().any(|name| name == controller)
        }
    }

    /// Its names in the container's state.
    pub fn named(&self) -> impl Iterator<Item = (&str, &Path)> {
        let unified = self.unified.then_some("");
        let names = self.controllers.iter().map(String::as_str).chain(unified);
        names.map(|name| (name, self.path.as_path()))
    }

    /// The file `name` in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// What the file `name` says.
    pub fn read(&self, name: &str) -> io::Result<String> {
        read(&self.file(name))
    }

    /// Makes it and what is missing above it.
    pub fn make(&self) -> Result<(), CgroupError> {
        let parts: Vec<&Path> = self
            .path
            .ancestors()
            .take_while(|p| p.starts_with(&self.top))
            .collect();
        for pair in parts.windows(2).rev() {
            let [below, above] = pair else { continue };
            if self.unified {
                enable_all(above);
            }
            match mkdir(*below, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(self.failed("make", error)),
            }
            if self.controllers.iter().any(|name| name == "cpuset") {
                inherit_cpuset(below, above).map_err(|e| self.failed("prepare", e))?;
            }
        }
        Ok(())
    }

    /// Moves this process into it.
    pub fn join(&self) -> Result<(), CgroupError> {
        write(&self.file("cgroup.procs"), "0").map_err(|e| self.failed("join", e))
    }

    /// Moves this process out of it again, if it is in a folder that was made for it.
    pub fn leave(&self) -> Result<(), CgroupError> {
        let own = rustix::process::getpid().as_raw_pid();
        if !self.is_made() || !self.pids().contains(&own) {
            return Ok(());
        }
        let above = self.path.ancestors().nth(self.made).unwrap_or(&self.top);
        write(&above.join("cgroup.procs"), "0").map_err(|e| self.failed("leave", e))
    }

    /// Kills all processes in it and waits for their end, unless it was there
    /// before.
    pub fn kill(&self) -> Result<(), CgroupError> {
        if !self.is_made() {
            return Ok(());
        }
        // Kills those that are just being forked, too (Linux 5.14).
        let at_once = self.unified && write(&self.file("cgroup.kill"), "1").is_ok();
        for _ in 0..KILL_ROUNDS {
            let pids = self.pids();
            if pids.is_empty() {
                return Ok(());
            }
            for pidfd in pids.iter().filter_map(|&pid| self.open(pid)) {
                if !at_once {
                    // Gone already is as good.
                    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
                }
                self.wait_for_end(&pidfd)?;
            }
        }
        Err(CgroupError::Busy {
            path: self.path.clone(),
        })
    }

    /// A descriptor of process `pid`, if it still is in here once it is open: from
    /// then on nobody else can have its number.
    fn open(&self, pid: i32) -> Option<OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        self.pids().contains(&pid).then_some(pidfd)
    }

    fn wait_for_end(&self, pidfd: &OwnedFd) -> Result<(), CgroupError> {
        let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
        loop {
            match poll(&mut fds, Some(&KILL_DEADLINE)) {
                Err(Errno::INTR) => {}
                Ok(0) => {
                    return Err(CgroupError::Busy {
                        path: self.path.clone(),
                    });
                }
                _ => return Ok(()),
            }
        }
    }

    /// Removes it and those above it that were made for it and are empty.
    pub fn remove(&self) -> Result<(), CgroupError> {
        for (i, path) in self.path.ancestors().take(self.made).enumerate() {
            match rustix::fs::rmdir(path) {
                Ok(()) | Err(Errno::NOENT) => {}
                // Other containers may have come to be beside this one.
                Err(Errno::BUSY | Errno::NOTEMPTY) if i > 0 => break,
                Err(error) => return Err(self.failed("remove", error)),
            }
        }
        Ok(())
    }

    fn is_made(&self) -> bool {
        self.made > 0
    }

    fn pids(&self) -> Vec<i32> {
        let text = self.read("cgroup.procs").unwrap_or_default();
        // 0 is a process of another pid namespace: not ours to kill.
        text.lines()
            .filter_map(|line| line.parse().ok())
            .filter(|&pid| pid > 0)
            .collect()
    }

    fn failed(&self, doing: &'static str, source: impl Into<io::Error>) -> CgroupError {
        CgroupError::Folder {
            doing,
            path: self.path.clone(),
            source: source.into(),
        }
    }
}

/// Lets the children of `folder` use the controllers that it can use itself. What
/// cannot be had shows when a limit needs it.
fn enable_all(folder: &Path) {
    let Ok(controllers) = read(&folder.join("cgroup.controllers")) else {
        return;
    };
    let enabled = read(&folder.join("cgroup.subtree_control")).unwrap_or_default();
    for name in controllers.split_whitespace() {
        if enabled.split_whitespace().any(|other| other == name) {
            continue;
        }
        if let Err(error) = write(&folder.join("cgroup.subtree_control"), &format!("+{name}")) {
            log::debug!("cgroup {folder:?}: {name} cannot be enabled: {error}");
        }
    }
}

/// A new cgroup of v1's cpuset is empty, and nothing can join it.
fn inherit_cpuset(folder: &Path, parent: &Path) -> io::Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        match read(&folder.join(name)) {
            Ok(text) if text.trim().is_empty() => {
                write(&folder.join(name), read(&parent.join(name))?.trim())?;
            }
            Ok(_) => {}
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads a file of a cgroup.
pub fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(FILE_MAX_BYTES)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// Writes a file of a cgroup: one write is one setting.
pub fn write(path: &Path, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
    file.write_all(value.as_bytes())
}

/// Whether `path` is there.
pub fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}
