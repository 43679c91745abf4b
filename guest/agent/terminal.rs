//! The container's pseudo-terminal, from its own devpts.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{OFlags, fstat, fstatfs, major, minor};
use rustix::io::{Errno, Result};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use vmrun_protocol::message::Failure;
use vmrun_protocol::plan::WindowSize;

use crate::failure::{Named, setup};
use crate::inside::{Root, Symlinks, Target};
use crate::mounts;

/// `DEVPTS_SUPER_MAGIC` of linux/magic.h.
const DEVPTS_MAGIC: u64 = 0x1cd1;
/// Device number of ptmx in every devpts.
const PTMX: (u32, u32) = (5, 2);

/// Both sides of a pseudo-terminal.
pub struct Terminal {
    /// The agent's side, non-blocking.
    pub master: OwnedFd,
    /// The container's side.
    pub slave: OwnedFd,
}

impl Terminal {
    /// Opens a terminal of `size` in the devpts on /dev/pts. What is opened is
    /// verified by what it is, not by its name (CVE-2025-52565).
    pub fn open(root: &Root, size: WindowSize) -> std::result::Result<Self, Failure> {
        let what = || "terminal in \"/dev/pts\"";
        let flags = OFlags::RDWR | OFlags::NONBLOCK;
        let master = root.open(b"/dev/pts/ptmx", flags, Symlinks::Refused);
        let master = master.named(what)?;
        if !is_ptmx(master.as_fd()).named(what)? {
            return Err(setup(what(), Errno::NODEV));
        }
        unlockpt(&master).named(what)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(&master, flags).named(what)?;
        resize(master.as_fd(), size).named(what)?;
        Ok(Self { master, slave })
    }

    /// Binds the container's side on /dev/console.
    pub fn bind_console(&self, root: &Root) -> std::result::Result<(), Failure> {
        let bind = || {
            let target = root.find_or_create(b"/dev/console", Target::File, Symlinks::Refused)?;
            let tree = mounts::clone_tree(self.slave.as_fd(), b"", false)?;
            mounts::attach(tree.as_fd(), target.as_fd())
        };
        bind().named(|| "device \"/dev/console\"")
    }
}

fn is_ptmx(file: BorrowedFd<'_>) -> Result<bool> {
    let number = fstat(file)?.st_rdev;
    let devpts = fstatfs(file)?.f_type as u64 == DEVPTS_MAGIC;
    Ok(devpts && (major(number), minor(number)) == PTMX)
}

/// Sets the size of a terminal by its master side.
pub fn resize(master: BorrowedFd<'_>, size: WindowSize) -> Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(master, size)
}
