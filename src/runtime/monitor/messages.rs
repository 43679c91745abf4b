//! What the verbs of the command line say to the monitor of a container, on one
//! connection each. Enums are append-only within one
//! [`VERSION`](crate::state::VERSION).

use serde::{Deserialize, Serialize};
use vmrun_protocol::frame::MAX_TO_GUEST_BYTES;
use vmrun_protocol::message::{ExitStatus, Process};
use vmrun_protocol::plan::{Bytes, ProcessPlan, WindowSize};

/// Largest frame to the monitor, in bytes: a process to run.
pub const MAX_TO_MONITOR_BYTES: usize = MAX_TO_GUEST_BYTES;

/// Largest frame of the monitor, in bytes: what the guest answered, and some more.
pub const MAX_TO_CLIENT_BYTES: usize = 128 << 10;

/// Most descriptors that come with a [`Reply`].
pub const MAX_DESCRIPTORS: usize = 3;

/// What a verb wants. All but [`Call::Signal`] and [`Call::Resize`] are answered, by
/// what is named or by [`Reply::Refused`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// [`Reply::Status`], at once.
    Status,
    /// Run the created container's program: [`Reply::Done`] once it runs.
    Start,
    /// Send a signal (Linux x86-64 number, 0 to try) to the container's init or to
    /// all its processes: [`Reply::Done`]. After SIGKILL the container ends, if need
    /// be with its machine.
    Kill {
        /// 0..=64.
        signal: u8,
        /// To all processes.
        all: bool,
    },
    /// Stop all processes where they are: [`Reply::Done`] once they stand.
    Pause,
    /// Let them go on: [`Reply::Done`].
    Resume,
    /// Write files of the container's cgroup in the guest, all or none:
    /// [`Reply::Done`].
    Update(Vec<(Bytes, Bytes)>),
    /// [`Reply::Processes`].
    Processes,
    /// [`Reply::Statistics`].
    Statistics,
    /// [`Reply::OutOfMemory`] each time; the end of the connection is that of the
    /// container.
    Watch,
    /// Set a further process up: [`Reply::ExecCreated`] with its streams, then
    /// [`Reply::ExecStarted`], then [`Reply::Exited`]. Closing the connection before
    /// that kills it.
    Exec {
        /// What to run.
        plan: Box<ProcessPlan>,
        /// Even if the container is paused: it runs once that is over.
        ignore_paused: bool,
    },
    /// On the connection of an [`Call::Exec`]: to its process. Not answered.
    Signal(u8),
    /// On the connection of an [`Call::Exec`]: new size of its terminal. Not
    /// answered.
    Resize(WindowSize),
}

/// What the monitor says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// What the container is doing.
    Status(Status),
    /// It is done.
    Done,
    /// It is not done.
    Refused(Refusal),
    /// Who is there.
    Processes {
        /// In the guest.
        guest: Vec<Process>,
        /// On the host: the monitor, and the clients that have run an
        /// [`Call::Exec`].
        host_pids: Vec<u32>,
    },
    /// Files of the container's cgroup in the guest and their contents.
    Statistics(Vec<(String, Bytes)>),
    /// The guest's kernel has killed a process of the container for lack of memory.
    OutOfMemory,
    /// The process is set up. With this come the descriptors of its streams, as
    /// connected sockets: the terminal's, or those of stdin, stdout and stderr.
    ExecCreated,
    /// Its program runs.
    ExecStarted,
    /// It has ended; its output is on its streams.
    Exited(ExitStatus),
}

/// Why something is not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{line}")]
pub struct Refusal {
    /// What class of failure it is.
    pub reason: Reason,
    /// One line, without control characters.
    pub line: String,
}

/// Classes of failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// It does not fit what the container is doing.
    State,
    /// The program does not exist.
    NotFound,
    /// The program exists and cannot be executed.
    NotExecutable,
    /// Anything else.
    Failed,
}

/// What a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// It is being set up.
    Creating,
    /// It is set up, and its program does not run yet.
    Created,
    /// Its program runs.
    Running,
    /// All its processes stand still.
    Paused,
    /// It has ended.
    Stopped,
}

impl Status {
    /// As the `state` of the OCI runtime specification has it, and runc's `paused`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}
