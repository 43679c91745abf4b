//! The signal that brings a vCPU's thread out of KVM_RUN, and a timer that sends it
//! (timer_create(2), `SIGEV_THREAD_ID`).

#![allow(unsafe_code)]

use std::io;
use std::time::Duration;

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// Its number.
pub fn signal() -> libc::c_int {
    SIGRTMIN()
}

/// Lets the signal interrupt KVM_RUN instead of ending the process. Once per
/// process; a second call changes nothing.
pub fn install_handler() -> io::Result<()> {
    extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(signal(), ignore).map_err(|e| io::Error::from_raw_os_error(e.errno()))
}

/// What a [`KickTimer`] counts.
#[derive(Debug, Clone, Copy)]
pub enum Clock {
    /// Time that passes.
    Monotonic,
    /// Time that the thread runs.
    ThreadCpu,
}

/// See the module's text. Not running at first.
#[derive(Debug)]
pub struct KickTimer(libc::timer_t);

// SAFETY: a timer id is a number of the process, whoever holds it.
unsafe impl Send for KickTimer {}

impl KickTimer {
    /// For `signal` to the calling thread.
    pub fn new(clock: Clock, signal: libc::c_int) -> io::Result<Self> {
        // SAFETY: all-zero bytes are a valid sigevent.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal;
        event.sigev_notify_thread_id = rustix::thread::gettid().as_raw_nonzero().get();
        let mut timer = std::ptr::null_mut();
        let clock = match clock {
            Clock::Monotonic => libc::CLOCK_MONOTONIC,
            Clock::ThreadCpu => libc::CLOCK_THREAD_CPUTIME_ID,
        };
        // SAFETY: both pointers are to locals that outlive the call.
        if unsafe { libc::timer_create(clock, &mut event, &mut timer) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(timer))
    }

    /// Signals every `interval` from now on; never where it is zero.
    pub fn every(&self, interval: Duration) -> io::Result<()> {
        let interval = libc::timespec {
            tv_sec: libc::time_t::try_from(interval.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(interval.subsec_nanos()),
        };
        let setting = libc::itimerspec {
            it_interval: interval,
            it_value: interval,
        };
        // SAFETY: the timer exists until `drop`; the old setting is not asked for.
        if unsafe { libc::timer_settime(self.0, 0, &setting, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl Drop for KickTimer {
    fn drop(&mut self) {
        // SAFETY: the timer was created by `new` and is deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}
