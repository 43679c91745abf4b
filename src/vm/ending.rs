//! How a machine ended, told once.

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// This side stopped it.
    Stopped,
    /// The guest asked for a reset: it powered off or rebooted.
    Reset,
    /// The guest kernel panicked.
    Panicked,
    /// The guest halted its last CPU with interrupts off.
    Halted,
    /// The CPU could not deliver an exception (Intel SDM vol. 3A, 6.15).
    TripleFault,
    /// KVM could not emulate an instruction and neither could vmrun.
    Emulation(String),
    /// KVM or a device failed.
    Failed(String),
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("the machine was stopped"),
            Self::Reset => f.write_str("the guest powered off or rebooted"),
            Self::Panicked => f.write_str("the guest kernel panicked"),
            Self::Halted => f.write_str("the guest halted"),
            Self::TripleFault => f.write_str("the guest triple-faulted"),
            Self::Emulation(why) => write!(
                f,
                "the guest ran into an instruction that cannot be emulated: {why}"
            ),
            Self::Failed(why) => write!(f, "the machine failed: {why}"),
        }
    }
}

/// Where every thread of a machine reports its end. The first report counts.
#[derive(Debug)]
pub struct Outcome {
    ending: OnceLock<Ending>,
    stop: AtomicBool,
    event: EventFd,
}

impl Outcome {
    /// Nothing has ended yet.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            ending: OnceLock::new(),
            stop: AtomicBool::new(false),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// The machine ended like this; all vCPUs are to stop.
    pub fn end(&self, ending: Ending) {
        if self.ending.set(ending).is_ok() {
            self.stop.store(true, Ordering::SeqCst);
            // An eventfd write of 1 fails only if the counter is full: then it is readable.
            let _ = self.event.write(1);
        }
    }

    /// The first report, if any.
    pub fn ending(&self) -> Option<&Ending> {
        self.ending.get()
    }

    /// Whether vCPUs are to leave their loop.
    pub fn is_over(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Readable once [`Self::ending`] is there. Only to be polled.
    #[allow(unsafe_code)]
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as `self`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_report_counts() {
        let outcome = Outcome::new().unwrap();
        assert!(!outcome.is_over());
        outcome.end(Ending::TripleFault);
        outcome.end(Ending::Stopped);
        assert_eq!(outcome.ending(), Some(&Ending::TripleFault));
        assert!(outcome.is_over());
        assert_eq!(outcome.event.read().unwrap(), 1);
    }
}
