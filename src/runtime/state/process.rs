//! Processes that are remembered: a number alone may be given to another one.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// A process of this host, that one and no other that gets its number later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessName {
    /// Its number in the pid namespace of who reads this.
    pub pid: u32,
    /// When it was started, in clock ticks since boot: field 22 of /proc/PID/stat.
    pub start_ticks: u64,
}

impl ProcessName {
    /// The process that has `pid` now.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = read_stat(pid)?;
        let (_, start_ticks) = parse(&stat).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { pid, start_ticks })
    }

    /// Whether it still runs: one that has ended and was not waited for does not.
    pub fn is_alive(self) -> bool {
        let found = read_stat(self.pid).ok().and_then(|stat| parse(&stat));
        found.is_some_and(|(state, start)| {
            start == self.start_ticks && !matches!(state, 'Z' | 'X' | 'x')
        })
    }

    /// A descriptor of it, unless it has ended.
    pub fn open(self) -> io::Result<Option<OwnedFd>> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
        match pidfd_open(pid, PidfdFlags::empty()) {
            // What was opened is the one that was meant only if that lives now.
            Ok(pidfd) => Ok(self.is_alive().then_some(pidfd)),
            Err(Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends it by SIGKILL and waits for that, at most for `timeout`.
    pub fn kill(self, timeout: Duration) -> io::Result<()> {
        let Some(pidfd) = self.open()? else {
            return Ok(());
        };
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) => {}
            Err(Errno::SRCH) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        if has_ended_within(&pidfd, timeout)? {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("process {} does not end", self.pid),
        ))
    }
}

/// Waits for the end of a process, at most for `timeout`; says whether it came.
pub fn has_ended_within(pidfd: &OwnedFd, timeout: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
    loop {
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// In one read: it is short, and of a size that nobody tells.
fn read_stat(pid: u32) -> io::Result<String> {
    const MAX_BYTES: usize = 1024;
    let mut file = std::fs::File::open(format!("/proc/{pid}/stat"))?;
    let mut text = vec![0; MAX_BYTES];
    let len = file.read(&mut text)?;
    text.truncate(len);
    // The name may be any bytes.
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// State and start of a process. Its name is in brackets and may hold anything.
fn parse(stat: &str) -> Option<(char, u64)> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // Field 3 was the state.
    let start = fields.nth(22 - 4)?.parse().ok()?;
    Some((state, start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn names_that_look_like_fields() {
        let stat = "7 (a) Z 1) R 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 1\n";
        assert_eq!(parse(stat), Some(('R', 987_654)));
        for broken in [
            "",
            "7 (a",
            "7 (a) R 1 2",
            "7 (a) R 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x",
        ] {
            assert_eq!(parse(broken), None, "{broken}");
        }
    }

    #[test]
    fn this_process_lives() {
        let own = ProcessName::of(std::process::id()).unwrap();
        assert!(own.is_alive());
        let other = ProcessName {
            start_ticks: own.start_ticks + 1,
            ..own
        };
        assert!(!other.is_alive());
        assert!(other.open().unwrap().is_none());
        // Not us.
        other.kill(Duration::ZERO).unwrap();
    }

    #[test]
    fn a_killed_one_is_dead_before_it_is_waited_for() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let name = ProcessName::of(child.id()).unwrap();
        assert!(name.is_alive());
        name.kill(Duration::from_secs(60)).unwrap();
        assert!(!name.is_alive());
        child.wait().unwrap();
        name.kill(Duration::ZERO).unwrap();
    }
}
