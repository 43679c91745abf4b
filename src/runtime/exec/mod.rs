//! `vmrun exec`: a further process in a container that runs.
//!
//! The process is in the guest. On the host a *proxy* stands for it: it relays the
//! streams, passes signals and window sizes on, and ends when the process ends, with
//! its status. In the foreground that is the verb itself, with `--detach` a child of
//! it ([`detached`]). Killing the proxy kills the process: the monitor sees its
//! connection end.

mod detached;
mod error;
mod proxy;
mod terminal;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

pub use vmrun_oci::exec::ExecFlags;
use vmrun_oci::exec::{load_process, process_from_flags};
use vmrun_protocol::plan::ProcessPlan;

use crate::state::{Container, Id};
use crate::{pid_file, verbs};
pub use error::ExecError;
use proxy::Proxy;

/// What was decided about a further process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// Folder of all containers.
    pub root: PathBuf,
    /// The container's id.
    pub id: String,
    /// What to run.
    pub process: Asked,
    /// Leave the proxy behind.
    pub detach: bool,
    /// Where the terminal goes.
    pub console_socket: Option<PathBuf>,
    /// Where a descriptor of the proxy goes.
    pub pidfd_socket: Option<PathBuf>,
    /// Where the proxy's pid is written.
    pub pid_file: Option<PathBuf>,
    /// Accept a container that is paused.
    pub ignore_paused: bool,
}

/// Where the process is described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// In a process.json.
    File(PathBuf),
    /// On the command line.
    Flags(ExecFlags),
}

/// Runs the process; the exit code is its own, or 0 if it was left running.
pub fn run(request: &ExecRequest) -> Result<u8, ExecError> {
    let container = verbs::find(&request.root, &Id::new(request.id.as_str())?)?;
    if !container.is_alive() {
        return Err(ExecError::Stopped);
    }
    let plan = plan(request, &container)?;
    check_terminal(request, plan.terminal.is_some())?;
    if request.detach {
        return detached::run(request, &container, plan).map(|()| 0);
    }
    let proxy = Proxy::set_up(request, &container, plan)?;
    proxy.run(|proxy| {
        if let Some(path) = &request.pid_file {
            pid_file::write(path, std::process::id())?;
        }
        proxy.give_pidfd(request.pidfd_socket.as_deref())
    })
}

fn plan(request: &ExecRequest, container: &Container) -> Result<ProcessPlan, ExecError> {
    let config = vmrun_oci::load::parse(&container.config()?)?;
    let further = match &request.process {
        Asked::File(path) => load_process(&read(path)?, &config)?,
        Asked::Flags(flags) if flags.args.is_empty() => return Err(ExecError::NoArgs),
        Asked::Flags(flags) => process_from_flags(flags, &config)?,
    };
    for warning in &further.warnings {
        log::warn!("{warning}");
    }
    Ok(further.plan)
}

/// One byte more than may be is enough to be refused.
fn read(path: &Path) -> Result<Vec<u8>, ExecError> {
    let failed = |source| ExecError::ProcessFile {
        path: path.to_owned(),
        source,
    };
    let mut text = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(vmrun_oci::load::MAX_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(failed)?;
    Ok(text)
}

fn check_terminal(request: &ExecRequest, has_terminal: bool) -> Result<(), ExecError> {
    match (request.detach, has_terminal, &request.console_socket) {
        (true, true, None) => Err(ExecError::NeedsConsoleSocket),
        (false, _, Some(_)) | (_, false, Some(_)) => Err(ExecError::UnusedConsoleSocket),
        _ => Ok(()),
    }
}
