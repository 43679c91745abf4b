//! What the thread that serves a share needs before the first request.

use std::io;
use std::thread::ThreadId;

use rustix::fs::Mode;
use rustix::process::umask;

use super::owner::Owner;

/// Remembers which thread was made ready.
#[derive(Debug, Default)]
pub(super) struct Prepared(Option<ThreadId>);

impl Prepared {
    /// Makes the calling thread ready, once:
    ///
    /// - a umask of its own, 0: the guest has applied its umask already;
    /// - no supplementary groups: while acting for a user of the guest, those of
    ///   the monitor must not count (CVE-2022-0358).
    pub fn current(&mut self, owner: Owner) -> io::Result<()> {
        let thread = std::thread::current().id();
        if self.0 == Some(thread) {
            return Ok(());
        }
        unshare_umask()?;
        umask(Mode::empty());
        if owner == Owner::Same {
            rustix::thread::set_thread_groups(&[])?;
        }
        self.0 = Some(thread);
        Ok(())
    }
}

#[allow(unsafe_code)]
fn unshare_umask() -> io::Result<()> {
    // SAFETY: CLONE_FS gives the thread its own umask, root and working directory;
    // descriptors, which other code relies on being shared, stay shared.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS)? };
    Ok(())
}

/// Runs `work` and puts the umask back, which `fuse-backend-rs` sets to 0 for the
/// whole process whenever it opens the folder of an export.
pub(super) fn keeping_umask<T>(work: impl FnOnce() -> T) -> T {
    let before = umask(Mode::from_raw_mode(0o077));
    let result = work();
    umask(before);
    result
}
