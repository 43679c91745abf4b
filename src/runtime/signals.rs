//! Signals to vmrun, as events of a descriptor.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd};

use libc::{c_int, signalfd_siginfo, sigset_t};

/// Passed on to the container's init, as runc does: all that ask a process for
/// something, without those that tell of an error of ours (SIGSEGV, SIGPIPE, ...).
const FORWARDED: [c_int; 16] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGSTKFLT,
    libc::SIGCONT,
    libc::SIGTSTP,
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
];

/// Blocked so that they stop nobody: reading from the terminal in the background
/// fails instead, which is taken as the end of stdin, and setting it back is allowed.
const DROPPED: [c_int; 2] = [libc::SIGTTIN, libc::SIGTTOU];

/// What a signal asks of vmrun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Forward it to the container; before there is one: end.
    Forward(u8),
    /// The terminal has another size.
    Resize,
}

impl Signal {
    fn from_number(number: u32) -> Option<Self> {
        let signal = c_int::try_from(number).ok()?;
        if signal == libc::SIGWINCH {
            return Some(Self::Resize);
        }
        let forwarded = FORWARDED.contains(&signal);
        forwarded.then(|| u8::try_from(number).map(Self::Forward).ok())?
    }

    /// The number, if this signal ends a start: those by which people and
    /// supervisors end a process.
    pub fn ends_start(self) -> Option<u8> {
        const ENDING: [c_int; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];
        match self {
            Self::Forward(n) if ENDING.contains(&c_int::from(n)) => Some(n),
            _ => None,
        }
    }
}

/// The signals of this process from now on. Threads that are started later do
/// not get them either. They stay blocked until the process ends: one that comes
/// while it cleans up must not stop that.
#[derive(Debug)]
pub struct Signals {
    events: File,
}

impl Signals {
    /// To be called before any other thread is there.
    pub fn block() -> io::Result<Self> {
        let mut set = MaybeUninit::<sigset_t>::uninit();
        // SAFETY: sigemptyset initialises `set`, sigaddset gets valid numbers, and
        // pthread_sigmask may be given no place for the old set.
        let set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in FORWARDED.iter().chain(&DROPPED).chain(&[libc::SIGWINCH]) {
                libc::sigaddset(set.as_mut_ptr(), *signal);
            }
            let set = set.assume_init();
            let failed = libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            if failed != 0 {
                return Err(io::Error::from_raw_os_error(failed));
            }
            set
        };
        // SAFETY: -1 asks for a new descriptor; `set` is initialised.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: `fd` was just opened and belongs to nobody else.
            events: unsafe { File::from_raw_fd(fd) },
        })
    }

    /// Readable when a signal waits.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// The next signal that asks for something, if one waits.
    pub fn take(&self) -> Option<Signal> {
        loop {
            let mut info = [0u8; size_of::<signalfd_siginfo>()];
            let read = (&self.events).read(&mut info).ok()?;
            if read != info.len() {
                return None;
            }
            // `ssi_signo` is the first field.
            let number = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
            if let Some(signal) = Signal::from_number(number) {
                return Some(signal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raise(signal: c_int) {
        // SAFETY: no memory is involved; the signal is blocked in this thread.
        assert_eq!(unsafe { libc::raise(signal) }, 0);
    }

    #[test]
    fn signals_become_events() {
        let signals = Signals::block().unwrap();
        assert_eq!(signals.take(), None);
        raise(libc::SIGTTOU);
        assert_eq!(signals.take(), None);
        for signal in FORWARDED {
            raise(signal);
            let expected = Signal::Forward(u8::try_from(signal).unwrap());
            assert_eq!(signals.take(), Some(expected));
        }
        raise(libc::SIGWINCH);
        assert_eq!(signals.take(), Some(Signal::Resize));
        assert_eq!(signals.take(), None);
    }

    #[test]
    fn what_ends_a_start() {
        assert_eq!(Signal::Forward(15).ends_start(), Some(15));
        assert_eq!(Signal::Forward(2).ends_start(), Some(2));
        assert_eq!(Signal::Forward(10).ends_start(), None);
        assert_eq!(Signal::Resize.ends_start(), None);
    }

    #[test]
    fn errors_of_ours_are_not_forwarded() {
        for signal in [libc::SIGSEGV, libc::SIGPIPE, libc::SIGCHLD, libc::SIGKILL] {
            assert_eq!(Signal::from_number(signal as u32), None);
        }
    }
}
