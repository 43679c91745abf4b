//! What the kernel tells about a cgroup by POLLPRI on one of its files: after each
//! time it has to be read again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, Result};

use crate::cgroup_files::{self, FILE_MAX_BYTES};

/// A file with events of a cgroup.
struct Events(OwnedFd);

impl Events {
    fn open(folder: BorrowedFd<'_>, name: &[u8]) -> Result<Self> {
        cgroup_files::open(folder, name).map(Self)
    }

    /// The number behind `key`, 0 where it is not there.
    fn number(&self, key: &[u8]) -> Result<u64> {
        let mut text = [0; FILE_MAX_BYTES];
        seek(&self.0, SeekFrom::Start(0))?;
        let len = cgroup_files::read_from(&self.0, &mut text)?;
        let text = text.get(..len).unwrap_or_default();
        Ok(cgroup_files::number(text, key).unwrap_or(0))
    }
}

/// How many processes of a cgroup have been killed for lack of memory.
pub struct OomKills {
    events: Events,
    seen: u64,
}

impl OomKills {
    /// Watches the group `folder`. None where its memory is not controlled.
    pub fn watch(folder: BorrowedFd<'_>) -> Result<Option<Self>> {
        let events = match Events::open(folder, b"memory.events") {
            Err(Errno::NOENT) => return Ok(None),
            events => events?,
        };
        let seen = events.number(b"oom_kill")?;
        Ok(Some(Self { events, seen }))
    }

    /// Whether there are more than before.
    pub fn have_grown(&mut self) -> bool {
        // A group that is gone tells nothing.
        let now = self.events.number(b"oom_kill").unwrap_or(self.seen);
        std::mem::replace(&mut self.seen, now) < now
    }
}

impl AsFd for OomKills {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.0.as_fd()
    }
}

/// Whether the processes of a cgroup stand.
pub struct Frozen(Events);

impl Frozen {
    /// Watches the group `folder`.
    pub fn watch(folder: BorrowedFd<'_>) -> Result<Self> {
        Events::open(folder, b"cgroup.events").map(Self)
    }

    /// Whether they do now.
    pub fn is(&self) -> Result<bool> {
        Ok(self.0.number(b"frozen")? == 1)
    }
}

impl AsFd for Frozen {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn growth_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let folder = crate::inside::own_folder(dir.path().to_str().unwrap()).unwrap();
        assert!(OomKills::watch(folder.as_fd()).unwrap().is_none());
        let write = |text: &str| fs::write(dir.path().join("memory.events"), text).unwrap();
        write("oom 5\noom_kill 2\n");
        let mut kills = OomKills::watch(folder.as_fd()).unwrap().unwrap();
        assert!(!kills.have_grown());
        write("oom 6\noom_kill 3\n");
        assert!(kills.have_grown() && !kills.have_grown());
        write("");
        assert!(!kills.have_grown());
    }
}
