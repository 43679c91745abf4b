//! Why a container could not be run, and the exit code that says so.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use vmrun_protocol::frame::FrameError;
use vmrun_protocol::message::FailureKind;

use crate::monitor::client::ClientError;
use crate::monitor::messages::Reason;

/// Exit code of every error that is not the container's own, as runc has it.
const FAILED: u8 = 1;
/// Exit codes of a shell for a program that cannot be run.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Why a container could not be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bundle is not a folder that can be opened.
    #[error("bundle {path:?}")]
    Bundle {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file that was asked for on the command line cannot be written.
    #[error("output {path:?}")]
    Output {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// config.json is missing, malformed or asks for what cannot be.
    #[error(transparent)]
    Config(#[from] vmrun_oci::Error),
    /// A path that config.json names cannot be used.
    #[error("{property}: {path:?}")]
    Path {
        /// JSON path.
        property: String,
        /// What it says.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// `--memory` or `--cpus` cannot be.
    #[error("{0}")]
    Shape(String),
    /// A file of the guest image is missing.
    #[error(
        "no {what} at {path:?}: run scripts/quickstart, which builds it, or name its folder with --guest-dir"
    )]
    GuestImage {
        /// Which file.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A file of the guest image is there and cannot be used.
    #[error("{what} {path:?}")]
    GuestFile {
        /// Which file.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The machine cannot be built or started.
    #[error("cannot start the machine")]
    Machine(#[source] crate::machine::MachineError),
    /// This host's KVM cannot be used.
    #[error("cannot use KVM (`vmrun check` says more)")]
    Kvm(#[source] crate::machine::ProbeError),
    /// The machine ended when it should not have.
    #[error("{doing}: {ending}")]
    Ended {
        /// What the host waited for.
        doing: &'static str,
        /// How the machine ended.
        ending: String,
    },
    /// The guest took too long.
    #[error("{doing}: no answer within {} s", deadline.as_secs())]
    Deadline {
        /// What the host waited for.
        doing: &'static str,
        /// How long.
        deadline: Duration,
    },
    /// The agent's connection broke, or it sent something malformed.
    #[error("{doing}: agent")]
    Agent {
        /// What the host waited for.
        doing: &'static str,
        /// What came.
        source: FrameError,
    },
    /// Guest image and vmrun are not of the same build.
    #[error(
        "the agent in the guest image speaks version {theirs} of the protocol, vmrun {ours}: rebuild the image (scripts/quickstart)"
    )]
    AgentVersion {
        /// The agent's.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// The agent reported something that does not fit.
    #[error("{doing}: the agent reported {report}")]
    Unexpected {
        /// What the host waited for.
        doing: &'static str,
        /// What came.
        report: String,
    },
    /// The guest could not set the container up or run its program.
    #[error("{what}")]
    Container {
        /// What failed.
        what: String,
        /// Decides the exit code.
        kind: FailureKind,
        /// The guest's error number, if there is one.
        source: Option<io::Error>,
    },
    /// A signal came before the container existed.
    #[error("ended by signal {0} before the container existed")]
    Interrupted(u8),
    /// `process.terminal` is true, and stdin is none.
    #[error("process.terminal: standard input is not a terminal")]
    NoTerminal,
    /// `--console-socket` cannot be used.
    #[error(transparent)]
    ConsoleSocket(#[from] crate::console::SocketError),
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] crate::hooks::HookError),
    /// The host's cgroup is not as asked for.
    #[error(transparent)]
    Cgroup(#[from] crate::host_cgroup::CgroupError),
    /// The state of a container.
    #[error(transparent)]
    State(#[from] crate::state::StateError),
    /// The monitor of a container could not be asked, or says no.
    #[error(transparent)]
    Monitor(#[from] crate::monitor::client::ClientError),
    /// To be resumed, and was not paused.
    #[error("container not paused")]
    NotPaused,
    /// It is not in the state for what was asked.
    #[error(transparent)]
    Wrong(#[from] crate::monitor::Wrong),
    /// Not what `delete` is for.
    #[error("cannot delete container {id} that is not stopped: {}", status.as_str())]
    NotStopped {
        /// Whose.
        id: crate::state::Id,
        /// What it is doing.
        status: crate::state::Status,
    },
    /// What the monitor told of its end.
    #[error("{line}")]
    Reported {
        /// The whole chain.
        line: String,
        /// The exit code.
        code: u8,
    },
    /// Its monitor ended without a word.
    #[error("the container's monitor ended before the container was created")]
    MonitorEnded,
    /// A console socket without a terminal to send, as runc has it.
    #[error("cannot use console socket if vmrun will not detach or allocate tty")]
    ConsoleUnused,
    /// A terminal without a console socket, as runc has it.
    #[error("cannot allocate tty if vmrun will detach without setting console socket")]
    ConsoleMissing,
    /// `--pid-file` cannot be written.
    #[error(transparent)]
    PidFile(#[from] crate::pid_file::PidFileError),
    /// `--pidfd-socket` cannot be used.
    #[error("pidfd socket {path:?}")]
    PidfdSocket {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What was typed is no signal.
    #[error(transparent)]
    Signal(#[from] crate::signal_name::SignalError),
    /// The host refused something.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    /// The exit code that a shell would show.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Container {
                kind: FailureKind::NotFound,
                ..
            } => NOT_FOUND,
            Self::Container {
                kind: FailureKind::NotExecutable,
                ..
            } => NOT_EXECUTABLE,
            Self::Interrupted(signal) => 128u8.saturating_add(*signal),
            Self::Reported { code, .. } => *code,
            Self::Monitor(ClientError::Refused(refusal)) => match refusal.reason {
                Reason::NotFound => NOT_FOUND,
                Reason::NotExecutable => NOT_EXECUTABLE,
                Reason::State | Reason::Failed => FAILED,
            },
            _ => FAILED,
        }
    }

    /// For `map_err`: the host refused `what`.
    pub(crate) fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |e| Self::Host {
            what,
            source: e.into(),
        }
    }
}

/// The whole chain of an error as one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        line = format!("{line}: {inner}");
        source = inner.source();
    }
    line
}
