//! The container's cgroup (v2), a child of the root group, where the agent is.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, unlinkat,
};
use rustix::io::{Errno, Result, read};
use vmrun_protocol::message::Failure;
use vmrun_protocol::plan::{Bytes, ContainerPlan};

use crate::cgroup_files::{self, FILE_MAX_BYTES, write_file};
use crate::failure::Named;
use crate::procfs::Procfs;
use crate::{mounts, steps};

/// Name of the container's group.
const NAME: &str = "container";

/// What the host is told of the group's use of resources.
const STATISTICS: [&str; 15] = [
    "cgroup.stat",
    "cpu.stat",
    "cpu.max",
    "cpu.weight",
    "io.stat",
    "memory.current",
    "memory.events",
    "memory.max",
    "memory.peak",
    "memory.stat",
    "memory.swap.current",
    "memory.swap.max",
    "pids.current",
    "pids.events",
    "pids.max",
];

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
        cgroup_files::check(&plan.cgroup_writes)?;
        let wanted = if steps::manages_cgroups(plan) {
            available(&self.root).named(|| "cgroup.controllers")?
        } else {
            controllers(&plan.cgroup_writes)
        };
        self.enable(&wanted)?;
        cgroup_files::write_all(self.as_fd(), &plan.cgroup_writes)
    }

    /// Changes limits of a group with processes in it, all or none. What they have
    /// used of a resource that had no limit before is not counted.
    pub fn update(&self, writes: &[(Bytes, Bytes)]) -> std::result::Result<(), Failure> {
        cgroup_files::check(writes)?;
        self.enable(&controllers(writes))?;
        cgroup_files::update(self.as_fd(), writes)
    }

    fn enable(&self, controllers: &[String]) -> std::result::Result<(), Failure> {
        if controllers.is_empty() {
            return Ok(());
        }
        let request = controllers.join(" +");
        let file = b"cgroup.subtree_control";
        write_file(self.root.as_fd(), file, format!("+{request}").as_bytes())
            .named(|| format!("cgroup controllers {request}"))
    }

    /// Files of [`STATISTICS`] that there are, with what they say.
    pub fn statistics(&self) -> Vec<(String, Bytes)> {
        // Counts those there are, whenever it comes to know them.
        let _ = self.enable(&["pids".to_owned()]);
        let read = |name: &str| cgroup_files::read_file(self.as_fd(), name.as_bytes()).ok();
        let files = STATISTICS.iter();
        files
            .filter_map(|name| Some(((*name).to_owned(), read(name)?)))
            .collect()
    }

    /// Stops all processes of the group, or lets them go on.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let value: &[u8] = if frozen { b"1" } else { b"0" };
        write_file(self.as_fd(), b"cgroup.freeze", value)
    }

    /// Every process of the group and those inside, in no order.
    pub fn pids(&self) -> Vec<u32> {
        let mut tree = Tree::default();
        tree.collect(&self.folder, 0);
        tree.pids
    }

    /// The group for a further process of the container whose first one is `init`:
    /// its own, or, where it has handed its controllers on to groups inside and may
    /// have no process itself, that of its first process.
    pub fn for_more(&self, init: u32, proc: &Procfs) -> Result<OwnedFd> {
        let own = || self.folder.try_clone().map_err(|_| Errno::MFILE);
        if cgroup_files::read_file(self.as_fd(), b"cgroup.subtree_control")?.is_empty() {
            return own();
        }
        let mut text = [0; FILE_MAX_BYTES];
        let text = proc.read(init, "cgroup", &mut text)?;
        let mut lines = text.split(|b| *b == b'\n');
        let path = lines.find_map(|line| line.strip_prefix(b"0::/"));
        // From the root of the agent's cgroup namespace, which is the tree's.
        let inside = path.and_then(|path| path.strip_prefix(NAME.as_bytes()));
        let Some([b'/', inside @ ..]) = inside else {
            return own();
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        openat2(&self.folder, inside, flags, Mode::empty(), resolve)
    }

    /// Kills every process in the group.
    pub fn kill(&self) -> Result<()> {
        write_file(self.as_fd(), b"cgroup.kill", b"1")
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

/// Whether memory is among the controllers that [`Cgroup::limit`] enables.
pub fn controls_memory(plan: &ContainerPlan) -> bool {
    steps::manages_cgroups(plan)
        || plan
            .cgroup_writes
            .iter()
            .any(|w| w.0.starts_with(b"memory."))
}

/// Deepest group below the container's that is cleared away.
const DEPTH_MAX: u32 = 64;

/// Removes the group `name` in `parent`, those inside first where it has any.
fn remove(parent: &OwnedFd, name: &[u8], depth: u32) -> Result<()> {
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::BUSY) if depth < DEPTH_MAX => {}
        other => return other,
    }
    let folder = open_group(parent, name)?;
    for inside in groups_in(&folder)? {
        remove(&folder, inside?.file_name().to_bytes(), depth + 1)?;
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn open_group(parent: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

fn groups_in(folder: &OwnedFd) -> Result<impl Iterator<Item = Result<rustix::fs::DirEntry>>> {
    let entries = Dir::read_from(folder)?;
    Ok(entries.filter(|entry| {
        entry.as_ref().map_or(true, |entry| {
            let special = matches!(entry.file_name().to_bytes(), b"." | b"..");
            entry.file_type() == FileType::Directory && !special
        })
    }))
}

/// Most groups below the container's that are looked into: as many as it likes
/// to make would keep the agent busy.
const GROUPS_MAX: usize = 1024;
/// Most bytes of one group's `cgroup.procs` that are read: 8000 pids.
const PROCS_MAX_BYTES: usize = 64 << 10;

/// The processes of a group and those inside.
#[derive(Default)]
struct Tree {
    pids: Vec<u32>,
    groups: usize,
    text: Vec<u8>,
}

impl Tree {
    fn collect(&mut self, folder: &OwnedFd, depth: u32) {
        self.groups += 1;
        self.text.resize(PROCS_MAX_BYTES, 0);
        // The processes of a threaded group are those of the one that it is in.
        if let Ok(procs) = cgroup_files::open(folder.as_fd(), b"cgroup.procs")
            && let Ok(len) = cgroup_files::read_from(&procs, &mut self.text)
        {
            let text = self.text.get(..len).unwrap_or_default();
            self.pids.extend(pids_in(text));
        }
        let Ok(inside) = groups_in(folder) else {
            return;
        };
        for entry in inside.flatten() {
            if depth < DEPTH_MAX
                && self.groups < GROUPS_MAX
                && let Ok(group) = open_group(folder, entry.file_name().to_bytes())
            {
                self.collect(&group, depth + 1);
            }
        }
    }
}

/// The numbers of a `cgroup.procs`; one that was cut off is left out.
fn pids_in(text: &[u8]) -> impl Iterator<Item = u32> {
    let lines = text.split_inclusive(|b| *b == b'\n');
    let whole = lines.filter_map(|line| line.strip_suffix(b"\n"));
    whole.filter_map(|line| std::str::from_utf8(line).ok()?.parse().ok())
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
    fn a_number_that_was_cut_off_is_none() {
        assert_eq!(pids_in(b"1\n23\n4").collect::<Vec<_>>(), [1, 23]);
        assert_eq!(pids_in(b"").count(), 0);
    }

    #[test]
    fn controllers_are_those_of_the_files() {
        let write = |file: &str| (file.as_bytes().to_vec(), b"1".to_vec());
        let files = ["memory.max", "memory.swap.max", "pids.max", "cgroup.freeze"];
        assert_eq!(controllers(&files.map(write)), ["memory", "pids"]);
        assert!(controllers(&[]).is_empty());
    }
}
