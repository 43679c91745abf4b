//! A procfs of the agent's own pid namespace, mounted nowhere: what containers put
//! on their /proc has no part in it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::{Result, retry_on_intr, write};

use crate::{cgroup_files, mounts};

/// The file system's root.
pub struct Procfs(OwnedFd);

impl Procfs {
    /// Makes one.
    pub fn mount() -> Result<Self> {
        mounts::new_file_system("proc", b"proc", b"", 0).map(Self)
    }

    /// The beginning of a file of process `pid`, at most as long as `text`.
    pub fn read<'t>(&self, pid: u32, name: &str, text: &'t mut [u8]) -> Result<&'t [u8]> {
        let file = self.open(pid, name, OFlags::RDONLY)?;
        let len = cgroup_files::read_from(&file, text)?;
        Ok(text.get(..len).unwrap_or_default())
    }

    /// Writes a file of process `pid`.
    pub fn write(&self, pid: u32, name: &str, value: &[u8]) -> Result<()> {
        let file = self.open(pid, name, OFlags::WRONLY)?;
        retry_on_intr(|| write(&file, value)).map(drop)
    }

    fn open(&self, pid: u32, name: &str, flags: OFlags) -> Result<OwnedFd> {
        let path = format!("{pid}/{name}");
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
