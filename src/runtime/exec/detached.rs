//! `exec --detach`: the proxy is a child, which the verb leaves to whoever adopts
//! orphans here (containerd's shim, conmon).
#![allow(unsafe_code)]

use std::os::unix::net::UnixStream;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, setsid, waitpid};
use serde::{Deserialize, Serialize};
use vmrun_protocol::frame;
use vmrun_protocol::plan::ProcessPlan;

use super::proxy::Proxy;
use super::terminal::let_go_of_standard_streams;
use super::{ExecError, ExecRequest};
use crate::error::chain;
use crate::state::Container;
use crate::{Error, pid_file};

/// Largest report, in bytes: a chain of errors.
const REPORT_MAX_BYTES: usize = 64 << 10;

/// How far the proxy got.
#[derive(Debug, Serialize, Deserialize)]
enum Report {
    Started,
    /// The rendered chain.
    Failed(String),
}

/// Runs the process and returns once its program runs. If anything fails after
/// that, the process is killed.
pub fn run(
    request: &ExecRequest,
    container: &Container,
    plan: ProcessPlan,
) -> Result<(), ExecError> {
    let (mut ours, theirs) = UnixStream::pair().map_err(Error::host("make a socket"))?;
    // SAFETY: this process has one thread, so the child may do whatever it could.
    let pid = match unsafe { libc::fork() } {
        -1 => {
            let error = std::io::Error::last_os_error();
            return Err(Error::host("fork")(error).into());
        }
        0 => {
            drop(ours);
            let code = be_proxy(request, container, plan, theirs);
            // Of what the verb has on its stack, nothing is the child's to drop.
            std::process::exit(code.into())
        }
        pid => pid,
    };
    drop(theirs);
    let done = match frame::read(&mut ours, REPORT_MAX_BYTES) {
        Ok(Report::Started) => match &request.pid_file {
            Some(path) => pid_file::write(path, pid.unsigned_abs()).map_err(ExecError::from),
            None => Ok(()),
        },
        Ok(Report::Failed(line)) => Err(ExecError::Proxy(line)),
        Err(_) => Err(ExecError::Proxy("the process's proxy died".to_owned())),
    };
    if done.is_err()
        && let Some(pid) = Pid::from_raw(pid)
    {
        // Gone already is as good.
        let _ = kill_process(pid, Signal::KILL);
        let _ = waitpid(Some(pid), WaitOptions::empty());
    }
    done
}

/// The child's whole life; the result is its exit code.
fn be_proxy(
    request: &ExecRequest,
    container: &Container,
    plan: ProcessPlan,
    mut parent: UnixStream,
) -> u8 {
    let told = |parent: &mut UnixStream, report: &Report| {
        frame::write(parent, report, REPORT_MAX_BYTES)
            .map_err(|e| ExecError::Proxy(format!("exec's verb died: {e}")))
    };
    let ended = set_up(request, container, plan).and_then(|proxy| {
        proxy.run(|proxy| {
            proxy.give_pidfd(request.pidfd_socket.as_deref())?;
            if request.console_socket.is_some() {
                let_go_of_standard_streams()?;
            }
            told(&mut parent, &Report::Started)
        })
    });
    match ended {
        Ok(code) => code,
        Err(error) => {
            let line = chain(&error);
            log::error!("exec failed: {line}");
            // Once it has heard of the start, nobody listens.
            let _ = told(&mut parent, &Report::Failed(line));
            ExecError::EXIT_CODE
        }
    }
}

fn set_up(
    request: &ExecRequest,
    container: &Container,
    plan: ProcessPlan,
) -> Result<Proxy, ExecError> {
    setsid().map_err(Error::host("make a session"))?;
    Proxy::set_up(request, container, plan)
}
