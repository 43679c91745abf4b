//! `startContainer` hooks (config.md, POSIX-platform Hooks): run by the container's
//! first process in the container, as its user and as confined as its program.

use std::ffi::CString;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Access, MemfdFlags, Mode, OFlags, SeekFrom, access, memfd_create, open, seek};
use rustix::io::{Errno, retry_on_intr, write};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, pidfd_open, waitpid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use vmrun_protocol::message::{Failure, FailureKind};
use vmrun_protocol::plan::{Hook, ProcessPlan};

use crate::failure::{Named, failure, quoted, setup};
use crate::program;
use crate::sys::{self, Arguments, Cloned};

/// Exit code of a hook that could not be confined or run, as of a shell.
const NOT_RUN: i32 = 127;

/// Runs one hook of the container whose program is `process`, and waits for it.
pub fn run(hook: &Hook, process: &ProcessPlan) -> Result<(), Failure> {
    let name = format!("startContainer hook {}", quoted(&hook.path));
    let path = CString::new(hook.path.as_slice()).ok();
    let strings = path
        .zip(program::c_strings(&hook.args))
        .zip(program::c_strings(&hook.env));
    let ((path, args), env) = strings.ok_or_else(|| setup(name.clone(), Errno::INVAL))?;
    let arguments = Arguments::new(&args, &env);
    access(path.as_c_str(), Access::EXEC_OK).named(|| name.clone())?;
    let pid = match sys::clone3(0, None).named(|| name.clone())? {
        Cloned::Child => {
            let run = || {
                put_streams(&hook.stdin).ok()?;
                program::seal(process).ok()?;
                Some(arguments.execute(&path))
            };
            run();
            sys::exit_now(NOT_RUN)
        }
        Cloned::Parent(pid) => Pid::from_raw(pid as i32),
    };
    let ended = pid.ok_or(Errno::CHILD).and_then(|pid| wait(pid, hook));
    let problem = match ended.named(|| name.clone())? {
        Ended::Late => "took too long".to_owned(),
        Ended::By(status) => match (status.exit_status(), status.terminating_signal()) {
            (Some(0), _) => return Ok(()),
            (Some(code), _) => format!("exit code {code}"),
            (None, signal) => format!("killed by signal {}", signal.unwrap_or(0)),
        },
    };
    Err(failure(FailureKind::Setup, format!("{name}: {problem}"), 0))
}

/// The state to read, and nobody who would read what it writes.
fn put_streams(state: &[u8]) -> rustix::io::Result<()> {
    let stdin = memfd_create("state", MemfdFlags::CLOEXEC)?;
    let mut rest = state;
    while !rest.is_empty() {
        let len = retry_on_intr(|| write(&stdin, rest))?;
        rest = rest.get(len..).unwrap_or_default();
    }
    seek(&stdin, SeekFrom::Start(0))?;
    dup2_stdin(&stdin)?;
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let null = open("/dev/null", flags, Mode::empty())?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)
}

enum Ended {
    By(WaitStatus),
    Late,
}

/// Waits for the hook's end, or until its time is over, and it is killed.
fn wait(pid: Pid, hook: &Hook) -> rustix::io::Result<Ended> {
    let mut late = false;
    if let Some(timeout_s) = hook.timeout_s {
        let handle = pidfd_open(pid, PidfdFlags::empty())?;
        let limit = Timespec::try_from(Duration::from_secs(timeout_s.into()));
        let limit = limit.map_err(|_| Errno::INVAL)?;
        let mut polled = [PollFd::new(&handle, PollFlags::IN)];
        // No signal is caught, so nothing interrupts this and starts it anew.
        if poll(&mut polled, Some(&limit))? == 0 {
            late = true;
            rustix::process::kill_process(pid, Signal::KILL)?;
        }
    }
    let ended = retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()))?;
    let (_, status) = ended.ok_or(Errno::CHILD)?;
    Ok(if late { Ended::Late } else { Ended::By(status) })
}
