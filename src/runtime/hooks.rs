//! Hooks on the host (config.md, "POSIX-platform Hooks").
//!
//! A hook runs in the namespaces and the cgroup of whoever calls [`run`], with the
//! container's state as standard input, exactly the environment that config.json
//! gives it (the caller's where it gives none, as in runc), and in a process group of
//! its own, which is killed when the hook's time is up.
//!
//! As in runc, hooks run one after the other and the first that fails ends the
//! series. What that means is the caller's business: a failed `prestart` or
//! `createRuntime` fails `create`; a failed `poststart` is an error and stops the
//! container (runtime-spec 1.3, runc 1.1 and later); `poststop` hooks go through
//! [`run_each`], which only warns.
#![allow(unsafe_code)]

use std::fmt;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use vmrun_oci::hooks::HostHook;

use crate::error::chain;

/// How much of a failed hook's standard error is told, in bytes: the last.
const TAIL_MAX_BYTES: usize = 2048;

/// When in a container's life a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the list of config.json that it names")]
pub enum Point {
    Prestart,
    CreateRuntime,
    Poststart,
    Poststop,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        })
    }
}

/// A hook that failed.
#[derive(Debug, thiserror::Error)]
#[error("error running {point} hook #{index} {path:?}{}", tail(.stderr))]
pub struct HookError {
    point: Point,
    index: usize,
    path: PathBuf,
    /// The last it wrote to standard error, on one line.
    stderr: String,
    source: Reason,
}

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("cannot be executed")]
    Start(#[source] io::Error),
    #[error("cannot be waited for")]
    Wait(#[source] io::Error),
    #[error("ran past its timeout of {0} s")]
    Timeout(u32),
    #[error("{}", ending(.0))]
    Ended(ExitStatus),
}

fn ending(status: &ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, signal) => format!("ended by signal {}", signal.unwrap_or_default()),
    }
}

fn tail(stderr: &str) -> String {
    if stderr.is_empty() {
        String::new()
    } else {
        format!(" (stderr: {stderr})")
    }
}

/// Runs `hooks` in order with `state_json` as standard input of each, and stops at
/// the first that fails.
pub fn run(point: Point, hooks: &[HostHook], state_json: &[u8]) -> Result<(), HookError> {
    for (index, hook) in hooks.iter().enumerate() {
        run_one(point, index, hook, state_json)?;
    }
    Ok(())
}

/// Runs all of `hooks` in order; one that fails is worth a warning in the log.
pub fn run_each(point: Point, hooks: &[HostHook], state_json: &[u8]) {
    for (index, hook) in hooks.iter().enumerate() {
        if let Err(error) = run_one(point, index, hook, state_json) {
            log::warn!("{}", chain(&error));
        }
    }
}

fn run_one(point: Point, index: usize, hook: &HostHook, state: &[u8]) -> Result<(), HookError> {
    let mut stderr = Vec::new();
    attend(hook, state, &mut stderr).map_err(|source| HookError {
        point,
        index,
        path: hook.path.clone(),
        stderr: one_line(&stderr),
        source,
    })
}

/// Runs `hook` to its end, and leaves the last of its standard error in `stderr`.
fn attend(hook: &HostHook, state: &[u8], stderr: &mut Vec<u8>) -> Result<(), Reason> {
    let started = Instant::now();
    let mut child = spawn(hook).map_err(Reason::Start)?;
    let timeout = hook.timeout_s.map(|s| Duration::from_secs(s.into()));
    let attended = Attendance::of(&mut child)
        .and_then(|mut attendance| attendance.until(started, timeout, state, stderr));
    if !matches!(attended, Ok(true)) {
        kill_group(&child);
    }
    let status = child.wait().map_err(Reason::Wait)?;
    if !attended.map_err(Reason::Wait)? {
        return Err(Reason::Timeout(hook.timeout_s.unwrap_or_default()));
    }
    if status.success() {
        Ok(())
    } else {
        Err(Reason::Ended(status))
    }
}

fn spawn(hook: &HostHook) -> io::Result<Child> {
    if !hook.path.is_absolute() {
        let problem = "the path of a hook must be absolute";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    }
    let mut command = Command::new(&hook.path);
    if let Some((name, args)) = hook.args.split_first() {
        command.arg0(name).args(args);
    }
    if let Some(env) = &hook.env {
        command
            .env_clear()
            .envs(env.iter().map(|e| e.split_once('=').unwrap_or((e, ""))));
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0);
    // SAFETY: the closure makes one async-signal-safe system call and allocates
    // nothing.
    unsafe { command.pre_exec(unblock_signals) };
    command.spawn()
}

/// A verb may have blocked signals for itself; a hook starts with none blocked.
fn unblock_signals() -> io::Result<()> {
    // SAFETY: an all-zero set is a valid one, and the call only reads it.
    let result = unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn kill_group(child: &Child) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(group) = group {
        // Gone already is as good.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// A hook that runs, and its pipes.
struct Attendance {
    ended: OwnedFd,
    stdin: Option<ChildStdin>,
    stderr: Option<PipeReader>,
}

impl Attendance {
    fn of(child: &mut Child) -> io::Result<Self> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
        let stdin = child.stdin.take();
        let stderr = child.stderr.take().map(OwnedFd::from);
        if let Some(stdin) = &stdin {
            rustix::io::ioctl_fionbio(stdin, true)?;
        }
        if let Some(stderr) = &stderr {
            rustix::io::ioctl_fionbio(stderr, true)?;
        }
        Ok(Self {
            ended: pidfd_open(pid, PidfdFlags::empty())?,
            stdin,
            stderr: stderr.map(PipeReader::from),
        })
    }

    /// Feeds it and listens until it has ended; says whether it did in time. What
    /// it leaves behind in the background is not waited for.
    fn until(
        &mut self,
        started: Instant,
        timeout: Option<Duration>,
        mut state: &[u8],
        stderr: &mut Vec<u8>,
    ) -> io::Result<bool> {
        loop {
            let left = timeout.map(|t| t.saturating_sub(started.elapsed()));
            if left == Some(Duration::ZERO) {
                self.listen(stderr)?;
                return Ok(false);
            }
            let [ended, readable, writable] = self.wait(left)?;
            if writable {
                self.feed(&mut state)?;
            }
            if readable || ended {
                self.listen(stderr)?;
            }
            if ended {
                return Ok(true);
            }
        }
    }

    fn wait(&self, timeout: Option<Duration>) -> io::Result<[bool; 3]> {
        let timeout = timeout.map(|t| Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(t.subsec_nanos()),
        });
        let mut fds = vec![PollFd::new(&self.ended, PollFlags::IN)];
        fds.extend(self.stderr.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        fds.extend(self.stdin.iter().map(|fd| PollFd::new(fd, PollFlags::OUT)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok([false; 3]),
            Err(error) => return Err(error.into()),
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = |there: bool| there && ready.next().unwrap_or_default();
        Ok([
            next(true),
            next(self.stderr.is_some()),
            next(self.stdin.is_some()),
        ])
    }

    /// A hook need not read its state.
    fn feed(&mut self, state: &mut &[u8]) -> io::Result<()> {
        let Some(stdin) = &mut self.stdin else {
            return Ok(());
        };
        match stdin.write(state) {
            Ok(written) => *state = &state[written..],
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => *state = &[],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        if state.is_empty() {
            self.stdin = None;
        }
        Ok(())
    }

    /// Reads what is there, at most a pipe full.
    fn listen(&mut self, tail: &mut Vec<u8>) -> io::Result<()> {
        const PIECES: usize = 16;
        let mut piece = [0; 4096];
        for _ in 0..PIECES {
            let Some(stderr) = &mut self.stderr else {
                break;
            };
            match stderr.read(&mut piece) {
                Ok(0) => self.stderr = None,
                Ok(n) => {
                    tail.extend_from_slice(&piece[..n]);
                    let over = tail.len().saturating_sub(TAIL_MAX_BYTES);
                    tail.drain(..over);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

fn one_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let text: String = text.trim().chars().map(plain).collect();
    text
}

#[cfg(test)]
#[path = "hooks_tests.rs"]
mod tests;
