//! Sets the terminal back when the process dies without running destructors: by
//! a panic (which aborts in release builds) or by a fatal signal.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

use libc::{c_int, c_void, sigaction, siginfo_t, termios};

/// Signals that kill a process for an error of its own.
const FATAL: [c_int; 5] = [
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGSEGV,
];

/// What to set back, or null. Never freed: a handler may be reading it.
static BEFORE: AtomicPtr<termios> = AtomicPtr::new(ptr::null_mut());
static TERMINAL: AtomicI32 = AtomicI32::new(-1);

/// What the signals did before, by place in [`FATAL`]; written once.
static OLD: [AtomicPtr<sigaction>; FATAL.len()] =
    [const { AtomicPtr::new(ptr::null_mut()) }; FATAL.len()];
static INSTALLED: Once = Once::new();

/// Remembers how `terminal` is set now, to be set back should the process die.
/// The descriptor must stay open until [`leave_terminal_alone`].
pub fn restore_terminal_on_death(terminal: BorrowedFd) -> io::Result<()> {
    let mut before = MaybeUninit::<termios>::uninit();
    // SAFETY: tcgetattr initialises `before` when it returns 0.
    let before = unsafe {
        if libc::tcgetattr(terminal.as_raw_fd(), before.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        before.assume_init()
    };
    INSTALLED.call_once(install);
    TERMINAL.store(terminal.as_raw_fd(), Ordering::SeqCst);
    BEFORE.store(Box::into_raw(Box::new(before)), Ordering::SeqCst);
    Ok(())
}

/// The terminal is as it was.
pub fn leave_terminal_alone() {
    BEFORE.store(ptr::null_mut(), Ordering::SeqCst);
}

fn install() {
    for (signal, old) in FATAL.iter().zip(&OLD) {
        // SAFETY: an all-zero sigaction is valid; `handler` does only what a
        // signal handler may; `before` is initialised by sigaction.
        unsafe {
            let mut action: sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = handler as *const () as usize;
            // The stack may be what overflowed.
            action.sa_flags = libc::SA_ONSTACK | libc::SA_SIGINFO;
            let mut before: sigaction = MaybeUninit::zeroed().assume_init();
            if libc::sigaction(*signal, &action, &mut before) == 0 {
                old.store(Box::into_raw(Box::new(before)), Ordering::SeqCst);
            }
        }
    }
}

/// Sets the terminal back, then lets the signal do what it did before: a fault
/// happens again when this returns, a signal that was sent is sent again.
extern "C" fn handler(signal: c_int, info: *const siginfo_t, _context: *const c_void) {
    let before = BEFORE.load(Ordering::SeqCst);
    let terminal: RawFd = TERMINAL.load(Ordering::SeqCst);
    let old = FATAL
        .iter()
        .zip(&OLD)
        .find(|(s, _)| **s == signal)
        .map_or(ptr::null_mut(), |(_, old)| old.load(Ordering::SeqCst));
    // SAFETY: tcsetattr, sigaction, signal and raise are async-signal-safe; `info`
    // is the kernel's; the other pointers are null or lead to values that are
    // never freed. What is raised is blocked until the handler returns.
    unsafe {
        if !before.is_null() {
            libc::tcsetattr(terminal, libc::TCSANOW, before);
        }
        let faulted = (*info).si_code > 0;
        if faulted && !old.is_null() {
            libc::sigaction(signal, old, ptr::null_mut());
        } else {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn raise(signal: c_int) {
        // SAFETY: no memory is involved.
        unsafe { libc::raise(signal) };
    }

    pub(crate) fn fault() {
        // SAFETY: the child that runs this is meant to die of it.
        unsafe { ptr::dangling::<u8>().read_volatile() };
    }

    /// Runs `body` in a forked child, which dies of it or exits, and waits.
    pub(crate) fn in_child(body: impl FnOnce()) {
        // SAFETY: the child has only this thread; `body` takes no lock that
        // another thread of the test may have held, and `_exit` ends it.
        unsafe {
            match libc::fork() {
                0 => {
                    let no_core = libc::rlimit {
                        rlim_cur: 0,
                        rlim_max: 0,
                    };
                    libc::setrlimit(libc::RLIMIT_CORE, &no_core);
                    body();
                    libc::_exit(0);
                }
                child => {
                    assert!(child > 0, "fork");
                    let mut status = 0;
                    assert_eq!(libc::waitpid(child, &mut status, 0), child);
                    assert!(libc::WIFSIGNALED(status), "status {status:#x}");
                }
            }
        }
    }
}
