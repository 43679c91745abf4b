//! The messages of the control connection and the header of a stream.
//!
//! Order: the agent sends [`Hello`], the host answers with [`Welcome`]; then the
//! host sends [`Request`]s and the agent [`Report`]s. Enums are append-only.

use serde::{Deserialize, Serialize};

use crate::plan::{ContainerPlan, WindowSize};

/// First frame, from the agent: it is up and its stream port is listening.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::VERSION`] of the agent.
    pub version: u32,
    /// `uname -r` of the guest, for the log.
    pub kernel_release: String,
}

/// Second frame, from the host: versions agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`crate::VERSION`] of the host.
    pub version: u32,
    /// Wall clock of the host in nanoseconds since 1970, UTC.
    pub realtime_ns: u64,
}

/// Number of a process that the host asked for: 0 is the container's init.
pub type ProcessId = u32;

/// The container's init, see [`ProcessId`].
pub const INIT: ProcessId = 0;

/// What the host asks of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Set the container up to the point just before its program runs.
    /// Answered by [`Report::Created`] or [`Report::Failed`].
    Create(Box<ContainerPlan>),
    /// Run the created container's program. Answered by [`Report::Started`] or
    /// [`Report::Failed`] (program not found, not executable, ...).
    Start,
    /// Send a signal (Linux x86-64 number) to a process. Never answered: a
    /// process that is gone is no error.
    Signal {
        /// Receiver.
        process: ProcessId,
        /// 1..=64.
        signal: u8,
    },
    /// New size of a process's terminal. Never answered.
    ResizeTerminal {
        /// Owner of the terminal.
        process: ProcessId,
        /// The size.
        size: WindowSize,
    },
    /// Sync file systems and power the machine off.
    PowerOff,
}

/// What the agent tells the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// The container is set up.
    Created,
    /// The container's program runs (its `execve` succeeded).
    Started,
    /// The request in progress failed; the container does not exist (any more).
    Failed(Failure),
    /// A process ended. All its output has been handed to its streams before.
    Exited {
        /// Which one.
        process: ProcessId,
        /// How.
        status: ExitStatus,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// By `exit`, with this code.
    Code(u8),
    /// By this signal (Linux x86-64 number).
    Signal(u8),
}

impl ExitStatus {
    /// The code a shell would show: the exit code, or 128+n for signal n.
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128u8.saturating_add(signal),
        }
    }
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What class of failure it is; decides the exit code.
    pub kind: FailureKind,
    /// One line that names the thing, at most 4 KiB, without the reason
    /// (`mount tmpfs on "/tmp"`).
    pub what: String,
    /// Linux errno of the step that failed, 0 where there is none.
    pub errno: i32,
}

/// Classes of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The program does not exist: exit code 127.
    NotFound,
    /// The program exists and cannot be executed: exit code 126.
    NotExecutable,
    /// The container could not be set up.
    Setup,
    /// The request does not fit the container's state.
    State,
}

/// First frame on every stream connection (host to guest), at most
/// [`StreamHeader::MAX_BYTES`]; raw bytes of the stream follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamHeader {
    /// Whose stream it is.
    pub process: ProcessId,
    /// Which one.
    pub stream: Stream,
}

impl StreamHeader {
    /// Cap of the header's frame, in bytes.
    pub const MAX_BYTES: usize = 16;
}

/// The streams of a process. Without a terminal: `Stdin`, `Stdout`, `Stderr`,
/// each one-way. With a terminal: only `Terminal`, both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// Host to guest; the host's half-close is end of file.
    Stdin,
    /// Guest to host; a close by the host gives the writer SIGPIPE/EPIPE.
    Stdout,
    /// Guest to host, as `Stdout`.
    Stderr,
    /// The master side of a pseudo-terminal.
    Terminal,
}
