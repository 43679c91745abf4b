//! A procfs of the agent's own pid namespace, mounted nowhere: what containers put
//! on their /proc has no part in it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::{Result, retry_on_intr, write};

use crate::{cgroup_files, mounts};

/// More than `vmstat` has: some 200 lines.
const VMSTAT_BYTES: usize = 16 << 10;

/// The file system's root.
pub struct Procfs(OwnedFd);

impl Procfs {
    /// Makes one.
    pub fn mount() -> Result<Self> {
        mounts::new_file_system("proc", b"proc", b"", 0).map(Self)
    }

    /// The beginning of a file of process `pid`, at most as long as `text`.
    pub fn read<'t>(&self, pid: u32, name: &str, text: &'t mut [u8]) -> Result<&'t [u8]> {
        self.read_path(&format!("{pid}/{name}"), text)
    }

    /// How many processes the kernel has killed for lack of memory, in any cgroup or
    /// none.
    pub fn oom_kills(&self) -> Result<u64> {
        let mut text = vec![0; VMSTAT_BYTES];
        let text = self.read_path("vmstat", &mut text)?;
        Ok(cgroup_files::number(text, b"oom_kill").unwrap_or(0))
    }

    fn read_path<'t>(&self, path: &str, text: &'t mut [u8]) -> Result<&'t [u8]> {
        let file = self.open(path, OFlags::RDONLY)?;
        let len = cgroup_files::read_from(&file, text)?;
        Ok(text.get(..len).unwrap_or_default())
    }

    /// Writes a file of process `pid`.
    pub fn write(&self, pid: u32, name: &str, value: &[u8]) -> Result<()> {
        let file = self.open(&format!("{pid}/{name}"), OFlags::WRONLY)?;
        retry_on_intr(|| write(&file, value)).map(drop)
    }

    fn open(&self, path: &str, flags: OFlags) -> Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        openat2(
            &self.0,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )
    }
}

impl AsFd for Procfs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_told_by_any_kernel() {
        // Root makes it, as the agent is.
        let proc = Procfs::mount().unwrap();
        let told = std::fs::read_to_string("/proc/vmstat").unwrap();
        let line = told.lines().find(|line| line.starts_with("oom_kill "));
        assert!(line.is_some() && told.len() < VMSTAT_BYTES);
        assert!(proc.oom_kills().is_ok());
    }
}
