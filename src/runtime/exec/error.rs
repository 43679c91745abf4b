//! Why a further process could not be run.

use std::io;
use std::path::PathBuf;

use crate::console::SocketError;
use crate::monitor::client::ClientError;
use crate::monitor::messages::{Reason, Refusal};
use crate::pid_file::PidFileError;
use crate::state::StateError;

/// Why a further process could not be run. Callers of OCI runtimes look for some of
/// these texts, which are runc's.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The container's state.
    #[error(transparent)]
    State(#[from] StateError),
    /// It has ended.
    #[error("cannot exec in a stopped container")]
    Stopped,
    /// Nothing to run.
    #[error("process args cannot be empty")]
    NoArgs,
    /// `--process` cannot be read.
    #[error("open {path:?}")]
    ProcessFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What is to be run cannot be.
    #[error(transparent)]
    Process(#[from] vmrun_oci::Error),
    /// A terminal that nobody would have.
    #[error("cannot allocate tty if vmrun will detach without setting console socket")]
    NeedsConsoleSocket,
    /// A console socket that nothing would be sent to.
    #[error("cannot use console socket if vmrun will not detach or allocate tty")]
    UnusedConsoleSocket,
    /// The monitor says no.
    #[error("{}", refusal(.0))]
    Refused(Refusal),
    /// The monitor.
    #[error(transparent)]
    Client(ClientError),
    /// `--pid-file` cannot be written.
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    /// `--console-socket` cannot be used.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A step on the host.
    #[error(transparent)]
    Host(#[from] crate::Error),
    /// The proxy could not; the text is its whole chain.
    #[error("{0}")]
    Proxy(String),
}

impl ExecError {
    /// Of a process that could not be run, whatever the reason, as runc has it.
    pub const EXIT_CODE: u8 = 255;
}

impl From<ClientError> for ExecError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(refusal) => Self::Refused(refusal),
            other => Self::Client(other),
        }
    }
}

/// Engines sort failures by runc's words for them.
fn refusal(refusal: &Refusal) -> String {
    let line = &refusal.line;
    match refusal.reason {
        Reason::State => line.clone(),
        Reason::NotFound => {
            format!("unable to start container process: executable file not found: {line}")
        }
        Reason::NotExecutable | Reason::Failed => {
            format!("unable to start container process: {line}")
        }
    }
}
