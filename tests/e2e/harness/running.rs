//! A runtime that runs, and what is left of it after.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use super::Launch;
use super::capture::Capture;
use super::host::MachinePermit;

/// A started command; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<Capture>,
    stderr: Option<Capture>,
    from: Instant,
    until: Instant,
    runc_id: Option<String>,
    _permit: MachinePermit,
}

impl Running {
    pub(super) fn spawn(mut launch: Launch, permit: MachinePermit) -> Self {
        let mut child = launch.command.spawn().expect("start the command");
        // Closes the harness's copies of descriptors that the command was given.
        drop(launch.command);
        let mut stdin = child.stdin.take();
        if let Some(bytes) = launch.stdin {
            let mut pipe = stdin.take().expect("stdin is a pipe");
            // Whoever ends without reading it all closes the pipe: no error here.
            thread::spawn(move || pipe.write_all(&bytes));
        }
        Self {
            stdout: child.stdout.take().map(Capture::of),
            stderr: child.stderr.take().map(Capture::of),
            stdin,
            child,
            from: Instant::now(),
            until: Instant::now() + launch.limit,
            runc_id: launch.runc_id,
            _permit: permit,
        }
    }

    /// The command's process id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The process id of vmrun's only child, which holds the machine.
    pub fn monitor(&self) -> Option<u32> {
        let pid = self.pid().as_raw_nonzero();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        children.ok()?.trim().parse().ok()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the process is there");
    }

    /// Writes to its stdin.
    pub fn write(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        stdin.write_all(bytes).expect("stdin is read");
    }

    /// Closes its stdin.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits for `text` on its stdout.
    pub fn wait_for(&self, text: &str) {
        let stdout = self.stdout.as_ref().expect("stdout is captured");
        let found = stdout.wait_until(self.until, |bytes| contains(bytes, text));
        assert!(
            found,
            "{text:?} never came; stdout: {:?}, stderr: {:?}",
            String::from_utf8_lossy(&stdout.so_far()),
            self.stderr
                .as_ref()
                .map(|e| String::from_utf8_lossy(&e.so_far()).into_owned()),
        );
    }

    /// Whether it ends within `time`.
    pub fn ends_within(&mut self, time: Duration) -> bool {
        if self.child.try_wait().expect("wait").is_some() {
            return true;
        }
        let pidfd = pidfd_open(self.pid(), PidfdFlags::empty()).expect("pidfd_open");
        let timeout = Timespec::try_from(time).expect("a short time");
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        poll(&mut fds, Some(&timeout)).expect("poll") > 0
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Finished {
        self.stdin = None;
        let left = self.until.saturating_duration_since(Instant::now());
        let in_time = self.ends_within(left);
        if !in_time {
            self.kill();
        }
        let status = self.child.wait().expect("wait");
        let text = |capture: Option<Capture>| capture.map(Capture::into_bytes).unwrap_or_default();
        let finished = Finished {
            status,
            took: self.from.elapsed(),
            stdout: text(self.stdout.take()),
            stderr: text(self.stderr.take()),
        };
        assert!(in_time, "took too long: {finished:?}");
        finished
    }

    fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        if let Some(id) = &self.runc_id {
            let _ = Command::new("runc").args(["delete", "-f", id]).output();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
            let _ = self.child.wait();
        }
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|w| w == text.as_bytes())
}

/// Named parts of what a script printed: a line `== NAME`, then the part.
pub type Sections = BTreeMap<String, String>;

/// A command that has ended.
#[derive(Clone)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// From start to end.
    pub took: Duration,
}

impl Finished {
    /// Its exit code; a signal that ended the runtime itself is negative.
    pub fn code(&self) -> i32 {
        let signal = || -self.status.signal().unwrap_or(0);
        self.status.code().unwrap_or_else(signal)
    }

    /// Fails unless it succeeded.
    pub fn success(self) -> Self {
        assert_eq!(self.code(), 0, "{self:?}");
        self
    }

    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// The parts of stdout.
    pub fn sections(&self) -> Sections {
        let mut sections = Sections::new();
        let mut name = String::new();
        for line in self.out().lines() {
            if let Some(next) = line.strip_prefix("== ") {
                name = next.to_owned();
                sections.entry(name.clone()).or_default();
            } else if let Some(part) = sections.get_mut(&name) {
                part.push_str(line);
                part.push('\n');
            }
        }
        sections
    }
}

impl std::fmt::Debug for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let head = |text: String| text.chars().take(4000).collect::<String>();
        write!(
            f,
            "exit code {}\n-- stdout\n{}\n-- stderr\n{}",
            self.code(),
            head(self.out()),
            head(self.err())
        )
    }
}
