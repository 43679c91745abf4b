//! What the monitor and the verb that makes it say to each other, until the
//! container is created; the verb's death ends that.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};
use vmrun_protocol::frame::{self, FrameError};

/// Largest frame, in bytes: a line that tells an error.
const MAX_BYTES: usize = 64 << 10;

/// What the monitor says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromMonitor {
    /// The machine and its namespaces are there: prestart and createRuntime hooks can
    /// run. It waits for a [`Go`].
    WantsHooks,
    /// The container is created.
    Created,
    /// It is not, or has ended otherwise than by its own doing.
    Failed {
        /// The whole chain.
        line: String,
        /// The exit code.
        code: u8,
    },
}

/// The monitor is to go on: at first, because its process is recorded, and after the
/// hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Go;

/// The monitor's end.
#[derive(Debug)]
pub struct Parent(UnixStream);

impl Parent {
    /// Says something. It is lost on a parent that is gone.
    pub fn say(&mut self, message: &FromMonitor) -> Result<(), FrameError> {
        frame::write(&mut self.0, message, MAX_BYTES)
    }

    /// Waits for the parent's word.
    pub fn wait_for_go(&mut self) -> Result<(), FrameError> {
        frame::read(&mut self.0, MAX_BYTES).map(|Go| ())
    }
}

impl AsFd for Parent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The verb's end.
#[derive(Debug)]
pub struct Progress(UnixStream);

impl Progress {
    /// Lets the monitor go on.
    pub fn go(&mut self) -> Result<(), FrameError> {
        frame::write(&mut self.0, &Go, MAX_BYTES)
    }

    /// What the monitor says next. It does not block once [`Self::fd`] is readable.
    pub fn hear(&mut self) -> Result<FromMonitor, FrameError> {
        frame::read(&mut self.0, MAX_BYTES)
    }

    /// Readable when the monitor has said something, and when it has ended.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Both ends.
pub fn pair() -> std::io::Result<(Parent, Progress)> {
    let (theirs, ours) = UnixStream::pair()?;
    Ok((Parent(theirs), Progress(ours)))
}
