//! The host's side of a further process's streams.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags, open};
use vmrun_protocol::plan::{ProcessPlan, WindowSize};

use super::{ExecError, ExecRequest};
use crate::Error;
use crate::console::{ConsoleSocket, HostTerminal};
use crate::stdio::HostStreams;
use crate::terminal::{self, RawTerminal};

/// What the proxy reads and writes.
#[derive(Debug)]
pub enum HostSide {
    /// Its own standard streams.
    Streams,
    /// The terminal that it was started on.
    Own,
    /// One whose master was given to an engine.
    Sent(HostTerminal),
}

impl HostSide {
    /// Makes what `plan` needs, whose terminal gets the size of the host's.
    pub fn make(request: &ExecRequest, plan: &mut ProcessPlan) -> Result<Self, ExecError> {
        let Some(asked) = plan.terminal else {
            return Ok(Self::Streams);
        };
        let side = match &request.console_socket {
            None if terminal::is_terminal(rustix::stdio::stdin()) => Self::Own,
            None => return Err(Error::NoTerminal.into()),
            Some(path) => {
                let socket = ConsoleSocket::connect(path)?;
                let terminal = HostTerminal::open(&socket, Some(asked))?;
                terminal.make_controlling()?;
                Self::Sent(terminal)
            }
        };
        plan.terminal = Some(side.size().unwrap_or(asked));
        Ok(side)
    }

    /// Size of the terminal, if there is one and it has been set.
    pub fn size(&self) -> Option<WindowSize> {
        match self {
            Self::Streams => None,
            Self::Own => terminal::window_size(rustix::stdio::stdin()),
            Self::Sent(terminal) => terminal.size(),
        }
    }

    /// For the relays.
    pub fn streams(&self) -> Result<HostStreams, Error> {
        match self {
            Self::Streams | Self::Own => HostStreams::own(),
            Self::Sent(terminal) => terminal.streams(),
        }
    }

    /// Every key goes to the process until the result is dropped.
    pub fn raw(&self) -> Result<Option<RawTerminal>, Error> {
        match self {
            Self::Own => RawTerminal::enter(rustix::stdio::stdin()).map(Some),
            Self::Streams | Self::Sent(_) => Ok(None),
        }
    }
}

/// Closes the standard streams, that is points them nowhere. Whoever waits for the
/// end of them shall not wait for the process that only has copies of them, or none.
pub fn let_go_of_standard_streams() -> Result<(), Error> {
    let failed = || Error::host("close the standard streams");
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(failed())?;
    let null: BorrowedFd = null.as_fd();
    rustix::stdio::dup2_stdin(null).map_err(failed())?;
    rustix::stdio::dup2_stdout(null).map_err(failed())?;
    rustix::stdio::dup2_stderr(null).map_err(failed())
}
