//! The monitor's process: a fork of the verb, without an exec, so that everything
//! the verb has checked and opened is there.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, setsid, waitpid,
};

use super::progress::{self, Parent, Progress};
use crate::Error;

/// A monitor, seen by the verb that has made it.
#[derive(Debug)]
pub struct Spawned {
    pid: Pid,
    pidfd: OwnedFd,
    /// What it says.
    pub progress: Progress,
}

/// Starts `monitor` in a process of its own, which ends with the code it returns:
/// leader of a session, and told by SIGTERM if this one, `own`, dies. This process has
/// one thread.
pub fn spawn(own: Pid, monitor: impl FnOnce(Parent) -> u8) -> Result<Spawned, Error> {
    let failed = "start the container's monitor";
    let (parent, progress) = progress::pair().map_err(Error::host(failed))?;
    // SAFETY: there is one thread, so that no lock is held by one that the child does
    // not have.
    let pid = unsafe { libc::fork() };
    match Pid::from_raw(pid) {
        None => {
            drop(progress);
            let code = match settle(own) {
                Ok(()) => monitor(parent),
                Err(_) => 1,
            };
            std::process::exit(i32::from(code));
        }
        _ if pid < 0 => Err(Error::host(failed)(io::Error::last_os_error())),
        Some(pid) => {
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(Error::host(failed))?;
            Ok(Spawned {
                pid,
                pidfd,
                progress,
            })
        }
    }
}

fn settle(parent: Pid) -> io::Result<()> {
    set_death_signal(Some(Signal::TERM), parent)?;
    setsid()?;
    Ok(())
}

/// Which signal this process gets when its `parent` dies. If it has, the result is an
/// error.
pub fn set_death_signal(signal: Option<Signal>, parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(signal)?;
    if signal.is_some() && rustix::process::getppid() != Some(parent) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    Ok(())
}

impl Spawned {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Readable once it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.pidfd)
    }

    /// Sends it a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        // Nothing else can go wrong: it is our child.
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Waits for its end: its exit code, or 128+n.
    pub fn wait(&self) -> Result<u8, Error> {
        let ended = rustix::io::retry_on_intr(|| waitpid(Some(self.pid), WaitOptions::empty()));
        let ended = ended.map_err(Error::host("wait for the container's monitor"))?;
        let Some((_, status)) = ended else {
            return Ok(1);
        };
        let code = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => code,
            (None, signal) => 128 + signal.unwrap_or_default(),
        };
        Ok(u8::try_from(code).unwrap_or(u8::MAX))
    }
}

/// Closes what our caller has left open for us: it may wait for its end, and nobody
/// here uses it. What is ours closes on exec.
pub fn close_inherited() -> io::Result<()> {
    let mut inherited = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let fd: Option<RawFd> = name.to_str().and_then(|name| name.parse().ok());
        inherited.extend(fd.filter(|fd| *fd > 2 && !closes_on_exec(*fd)));
    }
    for fd in inherited {
        // SAFETY: everything of ours closes on exec, so no value owns this one.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    Ok(())
}

fn closes_on_exec(fd: RawFd) -> bool {
    // SAFETY: no memory is involved; a descriptor that is gone is an error.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    flags < 0 || flags & libc::FD_CLOEXEC != 0
}

/// Puts /dev/null in the place of the standard streams, so that they end with the
/// container's own.
pub fn forget_standard_streams() -> io::Result<()> {
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    for standard in 0..=2 {
        // SAFETY: the standard streams belong to the process as a whole, and stay
        // open.
        if unsafe { libc::dup2(null.as_raw_fd(), standard) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
