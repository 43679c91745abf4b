//! The container's cgroup (v2), a child of the root group, where the agent is.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::{Errno, Result, read, write};
use vmrun_protocol::message::Failure;
use vmrun_protocol::plan::{Bytes, ContainerPlan};

use crate::failure::{Named, quoted, setup};
use crate::{mounts, steps};

/// Name of the container's group.
const NAME: &str = "container";

/// A cgroup, until it is removed.
pub struct Cgroup {
    root: OwnedFd,
    folder: OwnedFd,
}

impl Cgroup {
    /// Makes the group, without any limit.
    pub fn create() -> std::result::Result<Self, Failure> {
        let what = || "mount cgroup2";
        let root = mounts::new_file_system("cgroup2", b"", b"", 0).named(what)?;
        mkdirat(&root, NAME, Mode::from_raw_mode(0o755)).named(|| "make the cgroup")?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat(&root, NAME, flags, Mode::empty()).named(|| "open the cgroup")?;
        Ok(Self { root, folder })
    }

    /// Sets the plan's limits.
    ///
    /// Controllers cost time at every fork, page fault and allocation, so only those
    /// are enabled that a limit needs; all of them where the container may make
    /// groups of its own, and needs controllers to hand on.
    pub fn limit(&self, plan: &ContainerPlan) -> std::result::Result<(), Failure> {
        let wanted = if steps::manages_cgroups(plan) {
            available(&self.root).named(|| "cgroup.controllers")?
        } else {
            controllers(&plan.cgroup_writes)
        };
        if !wanted.is_empty() {
            let request = wanted.join(" +");
            write_file(
                &self.root,
                b"cgroup.subtree_control",
                format!("+{request}").as_bytes(),
            )
            .named(|| format!("cgroup controllers {request}"))?;
        }
        self.set(&plan.cgroup_writes)
    }

    fn set(&self, writes: &[(Bytes, Bytes)]) -> std::result::Result<(), Failure> {
        for (file, value) in writes {
            let what = || format!("cgroup {}", quoted(file));
            if file.contains(&b'/') || file.starts_with(b".") {
                return Err(setup(what(), Errno::INVAL));
            }
            write_file(&self.folder, file, value).named(what)?;
        }
        Ok(())
    }

    /// Kills every process in the group.
    pub fn kill(&self) -> Result<()> {
        write_file(&self.folder, b"cgroup.kill", b"1")
    }

    /// Removes the group, with groups that the container made in it. `EBUSY` while
    /// a process is left.
    pub fn try_remove(&self) -> Result<()> {
        remove(&self.root, NAME.as_bytes(), 0)
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

/// Deepest group below the container's that is cleared away.
const DEPTH_MAX: u32 = 64;

/// Removes the group `name` in `parent`, those inside first where it has any.
fn remove(parent: &OwnedFd, name: &[u8], depth: u32) -> Result<()> {
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::BUSY) if depth < DEPTH_MAX => {}
        other => return other,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = openat(parent, name, flags, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&folder)? {
        let entry = entry?;
        let inside = entry.file_name().to_bytes();
        if entry.file_type() == rustix::fs::FileType::Directory && !matches!(inside, b"." | b"..") {
            remove(&folder, inside, depth + 1)?;
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn write_file(folder: &OwnedFd, name: &[u8], value: &[u8]) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(folder, name, flags, Mode::empty())?;
    write(&file, value).map(drop)
}

fn available(root: &OwnedFd) -> Result<Vec<String>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = openat(root, "cgroup.controllers", flags, Mode::empty())?;
    let mut text = [0; 256];
    let len = read(&file, &mut text)?;
    let text = String::from_utf8_lossy(text.get(..len).unwrap_or_default());
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// Controllers whose files `writes` names: what stands before the first dot,
/// but not `cgroup`, whose files every group has.
fn controllers(writes: &[(Bytes, Bytes)]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for (file, _) in writes {
        let name = file.split(|b| *b == b'.').next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).into_owned();
        if name != "cgroup" && !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_those_of_the_files() {
        let write = |file: &str| (file.as_bytes().to_vec(), b"1".to_vec());
        let files = ["memory.max", "memory.swap.max", "pids.max", "cgroup.freeze"];
        assert_eq!(controllers(&files.map(write)), ["memory", "pids"]);
        assert!(controllers(&[]).is_empty());
    }
}
