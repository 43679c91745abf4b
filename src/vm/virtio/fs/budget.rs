//! How many of the host's file descriptors a guest may hold.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, getrlimit};

use super::errno;

/// Descriptors left for the rest of the process: queues, sockets, files of other
/// devices, and those that serving one request opens for a moment.
const RESERVED: u64 = 512;

/// Above this the guest's own memory ends first: an inode takes about 1 KiB of it.
const LIMIT_MAX: u64 = 1 << 20;

/// Counts descriptors that exist because the guest has looked a file up (one for
/// each inode that it has not forgotten) or has opened it. Beyond the limit the
/// guest gets ENFILE, and nothing else in the process runs short.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    used: AtomicUsize,
}

impl Budget {
    /// Room for `limit` descriptors.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            used: AtomicUsize::new(0),
        }
    }

    /// What the process may have open (RLIMIT_NOFILE, soft) less a reserve, which
    /// is half of it when there is little.
    pub fn of_process() -> Self {
        let soft = getrlimit(Resource::Nofile).current.unwrap_or(LIMIT_MAX);
        let limit = (soft.min(LIMIT_MAX))
            .saturating_sub(RESERVED)
            .max(soft.min(RESERVED) / 2);
        Self::new(limit as usize)
    }

    /// Whether `count` more fit; asked before something is made that would then
    /// have to be taken back.
    pub fn room(&self, count: usize) -> io::Result<()> {
        match self.limit.checked_sub(self.used()) {
            Some(free) if free >= count => Ok(()),
            _ => Err(errno(libc::ENFILE)),
        }
    }

    /// Counts one more.
    pub fn take(&self) -> io::Result<()> {
        self.room(1)?;
        self.used.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// `count` are closed.
    pub fn give_back(&self, count: usize) {
        self.used.fetch_sub(count, Ordering::Relaxed);
    }

    /// Descriptors counted now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_up_to_the_limit() {
        let budget = Budget::new(2);
        budget.room(2).unwrap();
        assert!(budget.room(3).is_err());
        budget.take().unwrap();
        budget.take().unwrap();
        let error = budget.take().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENFILE));
        budget.give_back(1);
        budget.take().unwrap();
        assert_eq!(budget.used(), 2);
    }

    #[test]
    fn leaves_a_reserve() {
        let soft = getrlimit(Resource::Nofile).current.unwrap();
        let limit = Budget::of_process().limit as u64;
        assert!(limit > 0 && limit < soft);
    }
}
