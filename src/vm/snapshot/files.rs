//! The files of a template, opened once and never looked up again.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, openat};

use super::{SnapshotError, host};

/// The name of guest RAM.
pub(super) const MEMORY: &str = "memory";
/// The name of everything else.
pub(super) const STATE: &str = "state";
/// The name of the pages that are needed first.
pub(super) const WORKING_SET: &str = "working-set";

/// Bytes of `state` or `working-set` that are read at most. A state has about
/// 10 KiB for each vCPU.
pub(super) const SMALL_FILE_MAX: u64 = 1 << 20;

/// Makes a file that nobody else may open, and that was not there before.
pub(super) fn create(folder: BorrowedFd, file: &'static str) -> Result<File, SnapshotError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(folder, file, flags, Mode::RUSR | Mode::WUSR)
        .map(File::from)
        .map_err(host("create a file of the template"))
}

/// Who must own a template: the effective user, asked for once.
pub fn owner() -> u32 {
    static OURS: OnceLock<u32> = OnceLock::new();
    *OURS.get_or_init(|| rustix::process::geteuid().as_raw())
}

/// Opens a file for reading: a plain one that is ours alone.
pub(super) fn open(folder: BorrowedFd, file: &'static str) -> Result<(File, Stat), SnapshotError> {
    // A FIFO that somebody put there must not block us.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = openat(folder, file, flags, Mode::empty()).map_err(|source| match source {
        rustix::io::Errno::NOENT => SnapshotError::Missing { file },
        rustix::io::Errno::LOOP => foreign(file, "a symbolic link"),
        source => host("open a file of the template")(source),
    })?;
    let stat = fstat(&opened).map_err(host("look at a file of the template"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(foreign(file, "not a regular file"));
    }
    if stat.st_uid != owner() {
        return Err(foreign(file, "it belongs to another user"));
    }
    if stat.st_mode & 0o077 != 0 {
        return Err(foreign(file, "others may open it"));
    }
    Ok((File::from(opened), stat))
}

/// Reads a small file whole.
pub(super) fn read(folder: BorrowedFd, file: &'static str) -> Result<Vec<u8>, SnapshotError> {
    let (opened, stat) = open(folder, file)?;
    let len = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if len > SMALL_FILE_MAX {
        return Err(super::damaged(file, "it is too long"));
    }
    let mut bytes = Vec::with_capacity(len as usize);
    // One that grows meanwhile is found out by its length.
    (&opened)
        .take(len)
        .read_to_end(&mut bytes)
        .map_err(host::<io::Error>("read a file of the template"))?;
    Ok(bytes)
}

fn foreign(file: &'static str, what: &str) -> SnapshotError {
    SnapshotError::Foreign {
        file,
        what: what.to_owned(),
    }
}
