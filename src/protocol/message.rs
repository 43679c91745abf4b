//! The messages of the control connection and the header of a stream.
//!
//! Order: the agent sends [`Hello`], the host answers with [`Welcome`]; then the
//! host sends [`Request`]s and the agent [`Report`]s. Enums are append-only.
//!
//! A machine that is to become a template is welcomed with [`Task::Freeze`]: the
//! agent prepares what every container needs, sends [`Report::Frozen`] and nothing
//! more. In each machine made from the template the connection is gone; the agent
//! opens a new one, on which the order begins anew.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use crate::plan::{Bytes, ContainerPlan, ProcessPlan, WindowSize};

/// First frame, from the agent: it is up and its stream port is listening.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::VERSION`] of the agent.
    pub version: u32,
    /// `uname -r` of the guest, for the log.
    pub kernel_release: String,
}

/// Second frame, from the host: versions agree, and this is what to do.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`crate::VERSION`] of the host.
    pub version: u32,
    /// What the agent is to do.
    pub task: Task,
}

/// What the host wants of a machine.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Run containers.
    Start(Renewal),
    /// Become a template.
    Freeze,
}

/// What sets a machine apart from all others of its template. Applied, whole,
/// before the first request is served; else the machine ends.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// Wall clock of the host in nanoseconds since 1970, UTC.
    pub realtime_ns: u64,
    /// Fresh randomness for the guest kernel's generator.
    pub seed: Seed,
}

/// Random bytes that nobody else may learn: never printed, and wiped from memory
/// when dropped.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed([[u8; 32]; 2]);

impl Seed {
    /// How many random bytes there are.
    pub const BYTES: usize = 64;

    /// A seed of these bytes, which the caller must wipe where it has another copy.
    pub fn new(bytes: [u8; Self::BYTES]) -> Self {
        let mut halves = [[0; 32]; 2];
        halves.as_flattened_mut().copy_from_slice(&bytes);
        Self(halves)
    }

    /// The [`Seed::BYTES`] bytes.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_flattened()
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        self.0.zeroize();
    }
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
    /// Set up a further process in the running container, up to the point just
    /// before its program runs. Answered by [`Report::ExecCreated`] or
    /// [`Report::ExecFailed`]. The program runs once all its streams are connected:
    /// [`Report::ExecStarted`] or [`Report::ExecFailed`]. One that is killed between
    /// the two is [`Report::Exited`]. Reports of several processes, and answers, may
    /// come in between.
    Exec {
        /// Its number: not [`INIT`], and never used before.
        process: ProcessId,
        /// What to run.
        plan: Box<ProcessPlan>,
    },
    /// Send a signal (Linux x86-64 number) to every process of the container.
    /// Never answered.
    SignalAll {
        /// 1..=64.
        signal: u8,
    },
    /// Answered by [`Report::Answer`] with the same tag.
    Ask {
        /// Chosen by the host, to tell answers apart.
        tag: u32,
        /// What to do or to tell.
        question: Question,
    },
}

/// What the host asks about the container that exists, or asks of it as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// Stop all processes of the running container where they are (cgroup v2
    /// `cgroup.freeze`). Answered by [`Answer::Done`] once they stand; a
    /// [`Question::Resume`], or the container's end, before that makes it fail.
    Pause,
    /// Let them go on. Answered by [`Answer::Done`].
    Resume,
    /// Write these files of its cgroup, as [`ContainerPlan::cgroup_writes`]. At the
    /// first that fails those before are set back. Answered by [`Answer::Done`].
    Update(Vec<(Bytes, Bytes)>),
    /// Answered by [`Answer::Processes`].
    Processes,
    /// Answered by [`Answer::Statistics`].
    Statistics,
}

/// The answer to a [`Question`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It is done.
    Done,
    /// Processes of the container, by ascending pid, at most
    /// [`Process::MAX_COUNT`].
    Processes(Vec<Process>),
    /// Files of the container's cgroup (`memory.current`) and their contents, those
    /// of a fixed list that exist.
    Statistics(Vec<(String, Bytes)>),
}

/// A process of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number in the guest's own pid namespace.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// Its effective user in the guest.
    pub uid: u32,
    /// When it was started, in nanoseconds since 1970, UTC.
    pub started_ns: u64,
    /// Time on the processor, in nanoseconds.
    pub cpu_ns: u64,
    /// Arguments separated by spaces, or the name in brackets where there are none;
    /// at most [`Process::MAX_COMMAND_BYTES`].
    pub command: Bytes,
    /// Which process of the host's asking it is, if it is one.
    pub process: Option<ProcessId>,
}

impl Process {
    /// Of how many processes the host is told.
    pub const MAX_COUNT: usize = 256;

    /// Longest command that the host is told.
    pub const MAX_COMMAND_BYTES: usize = 128;
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
    /// A process ended. All its output has been handed to its streams before; of
    /// others than [`INIT`], of which none outlives it, as much as the host has taken
    /// within 2 s of its end.
    Exited {
        /// Which one.
        process: ProcessId,
        /// How.
        status: ExitStatus,
    },
    /// The agent is prepared and waits for its connection to end: nothing that it
    /// does from now on is in the template. Only in answer to [`Task::Freeze`].
    Frozen,
    /// A further process is set up; its streams are awaited.
    ExecCreated {
        /// Which one.
        process: ProcessId,
    },
    /// Its program runs (its `execve` succeeded).
    ExecStarted {
        /// Which one.
        process: ProcessId,
    },
    /// It could not be set up or run, and does not exist (any more).
    ExecFailed {
        /// Which one.
        process: ProcessId,
        /// Why.
        failure: Failure,
    },
    /// What came of a [`Request::Ask`].
    Answer {
        /// The request's.
        tag: u32,
        /// The answer, or why there is none.
        answer: Result<Answer, Failure>,
    },
    /// The kernel has killed a process of the container for lack of memory
    /// (`oom_kill` of `memory.events` has grown). Comes before the
    /// [`Report::Exited`] that it causes. Where the container has no limit, and so no
    /// `memory.events`, kills in the whole machine count, and are told with the next
    /// process that ends by SIGKILL.
    OutOfMemory,
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

    /// Shortest header, in bytes: one for each field.
    pub const MIN_BYTES: usize = 2;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{self, MAX_TO_GUEST_BYTES};

    fn welcome(task: Task) -> Welcome {
        Welcome {
            version: crate::VERSION,
            task,
        }
    }

    fn start() -> Task {
        Task::Start(Renewal {
            realtime_ns: u64::MAX,
            seed: Seed::new(std::array::from_fn(|i| i as u8)),
        })
    }

    #[test]
    fn both_tasks_come_back() {
        for task in [start, || Task::Freeze] {
            let mut wire = Vec::new();
            frame::write(&mut wire, &welcome(task()), MAX_TO_GUEST_BYTES).unwrap();
            let back: Welcome = frame::read(&mut wire.as_slice(), MAX_TO_GUEST_BYTES).unwrap();
            assert_eq!(back, welcome(task()));
        }
    }

    #[test]
    fn every_byte_of_the_seed_arrives_in_order() {
        let Task::Start(renewal) = start() else {
            panic!("not a start");
        };
        let expected: Vec<u8> = (0..Seed::BYTES as u8).collect();
        assert_eq!(renewal.seed.bytes(), expected);
    }

    #[test]
    fn a_seed_is_not_printed() {
        let printed = format!("{:?}", welcome(start()));
        assert!(printed.contains("seed: Seed(..)"), "{printed}");
        assert!(!printed.contains("63"), "{printed}");
    }

    #[test]
    fn reports_keep_their_numbers() {
        let number = |report: &Report| postcard::to_stdvec(report).unwrap()[0];
        assert_eq!(number(&Report::Created), 0);
        assert_eq!(number(&Report::Started), 1);
        assert_eq!(number(&Report::Frozen), 4);
        assert_eq!(number(&Report::OutOfMemory), 9);
    }
}
