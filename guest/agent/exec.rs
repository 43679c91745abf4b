//! A further process of the container, as the agent sees it.
//!
//! ```text
//!  begin        told that it is set up      all streams        end of the handshake
//!  ─────▶ SettingUp ─────────────▶ SetUp ───────────▶ Starting ───────────▶ Running
//! ```
//!
//! From each of them it may fail, or end. The agent never waits for it: the container
//! can hold it up, by freezing its own cgroup say.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use vmrun_protocol::message::{ExitStatus, Failure, ProcessId, Report, Stream};
use vmrun_protocol::plan::{ProcessPlan, WindowSize};

use crate::container::pipes;
use crate::failure::{Named, setup};
use crate::handshake::{self, Heard};
use crate::joining::{self, Place};
use crate::streams::Streams;
use crate::sys::{self, Cloned};
use crate::terminal;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    SettingUp,
    SetUp,
    Starting,
    Running,
    Ended(ExitStatus),
}

/// A process, from its plan to its exit.
pub struct Exec {
    /// Its number with the host.
    pub process: ProcessId,
    /// The one that joins the container for it, until it has ended.
    helper: Option<u32>,
    /// Its own number, once told.
    pid: Option<u32>,
    stage: Stage,
    /// Until both processes have closed their end.
    handshake: Option<OwnedFd>,
    /// Both sides, as of the container's own terminal.
    terminal: Option<(OwnedFd, OwnedFd)>,
    /// It is to be killed as soon as its number is known.
    kill_wanted: bool,
}

impl Exec {
    /// Begins to set a process up. Its pipes are expected by `streams` from now on.
    pub fn begin(
        process: ProcessId,
        plan: &ProcessPlan,
        place: &Place<'_>,
        streams: &mut Streams,
    ) -> Result<Self, Failure> {
        if plan.args.is_empty() {
            return Err(setup("args", Errno::INVAL));
        }
        let (ours, theirs) = match plan.terminal {
            Some(_) => Default::default(),
            None => pipes()?,
        };
        let (agent_end, child_end) = handshake::pair().named(|| "handshake")?;
        let cgroup = place.cgroup.as_ref().map(|group| group.as_fd());
        let helper = match sys::clone3(0, cgroup).named(|| "new process")? {
            Cloned::Child => joining::run(plan, place, child_end.as_fd(), &theirs),
            Cloned::Parent(pid) => pid,
        };
        for (stream, local) in ours {
            streams.expect(process, stream, local);
        }
        Ok(Self {
            process,
            helper: Some(helper),
            pid: None,
            stage: Stage::SettingUp,
            handshake: Some(agent_end),
            terminal: None,
            kill_wanted: false,
        })
    }

    /// Its number, once known and while it is its own.
    pub fn pid(&self) -> Option<u32> {
        match self.stage {
            Stage::Ended(_) => None,
            _ => self.pid,
        }
    }

    /// The processes that are still to be waited for.
    pub fn unreaped(&self) -> impl Iterator<Item = u32> {
        self.helper.into_iter().chain(self.pid())
    }

    /// Whether its number is still to be told.
    pub fn is_unknown(&self) -> bool {
        self.pid.is_none()
    }

    /// What is readable when [`Self::listen`] has something to hear.
    pub fn handshake(&self) -> Option<BorrowedFd<'_>> {
        self.handshake.as_ref().map(|socket| socket.as_fd())
    }

    /// Hears all that its processes have told, and adds what the host is to know to
    /// `reports`. After a failure it does not exist any more.
    pub fn listen(
        &mut self,
        streams: &mut Streams,
        reports: &mut Vec<Report>,
    ) -> Result<(), Failure> {
        while let Some(handshake) = &self.handshake {
            match handshake::hear_now(handshake.as_fd()) {
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(lost(errno)),
                Ok(Heard::Pid(pid)) if self.pid.is_none() => self.know(pid, reports),
                Ok(Heard::Report(Report::Failed(failure), _)) => return Err(failure),
                Ok(Heard::Report(Report::Created, handles)) if self.stage == Stage::SettingUp => {
                    self.set_up(handles, streams)?;
                    self.report_created(reports);
                }
                Ok(Heard::Gone) => {
                    self.handshake = None;
                    self.hung_up(reports)?;
                }
                Ok(_) => return Err(lost(Errno::PROTO)),
            }
        }
        Ok(())
    }

    fn know(&mut self, pid: u32, reports: &mut Vec<Report>) {
        self.pid = Some(pid);
        if self.kill_wanted {
            self.kill();
        }
        self.report_created(reports);
    }

    fn set_up(&mut self, handles: Vec<OwnedFd>, streams: &mut Streams) -> Result<(), Failure> {
        let mut handles = handles.into_iter();
        if let (Some(master), Some(slave)) = (handles.next(), handles.next()) {
            let relayed = master.try_clone();
            let relayed = relayed.map_err(|_| setup("terminal", Errno::MFILE))?;
            streams.expect(self.process, Stream::Terminal, relayed);
            self.terminal = Some((master, slave));
        }
        self.stage = Stage::SetUp;
        Ok(())
    }

    /// Either of the two processes may be the first to tell.
    fn report_created(&self, reports: &mut Vec<Report>) {
        let process = self.process;
        if self.stage == Stage::SetUp && self.pid.is_some() {
            reports.push(Report::ExecCreated { process });
        }
    }

    fn hung_up(&mut self, reports: &mut Vec<Report>) -> Result<(), Failure> {
        match self.stage {
            Stage::SettingUp if self.pid.is_none() => return Err(lost(Errno::CHILD)),
            // It ends, or does what it is not made for. Its end is waited for.
            Stage::SettingUp | Stage::SetUp => self.kill(),
            Stage::Starting => self.started(reports),
            Stage::Running | Stage::Ended(_) => {}
        }
        Ok(())
    }

    fn started(&mut self, reports: &mut Vec<Report>) {
        self.stage = Stage::Running;
        let process = self.process;
        reports.push(Report::ExecStarted { process });
    }

    /// Lets it run its program, if that is what it waits for, and its streams are
    /// connected.
    pub fn start(&mut self, streams: &Streams) -> Result<(), Failure> {
        if self.stage == Stage::SetUp
            && self.pid.is_some()
            && streams.complete(self.process)
            && let Some(handshake) = &self.handshake
        {
            self.stage = Stage::Starting;
            match handshake::go(handshake.as_fd()) {
                // Killed: its end is going to be waited for.
                Err(Errno::PIPE | Errno::CONNRESET) => {}
                sent => sent.named(|| "process")?,
            }
        }
        Ok(())
    }

    /// Process `pid` has ended, and been waited for. False where it has to do with
    /// another one. A failure as in [`Self::listen`].
    pub fn reaped(
        &mut self,
        pid: u32,
        status: ExitStatus,
        streams: &mut Streams,
        reports: &mut Vec<Report>,
    ) -> Result<bool, Failure> {
        if self.helper == Some(pid) {
            self.helper = None;
            // It tells before it ends, or never.
            self.listen(streams, reports)?;
            return match self.pid {
                Some(_) => Ok(true),
                None => Err(lost(Errno::CHILD)),
            };
        }
        if self.pid() != Some(pid) {
            return Ok(false);
        }
        if let Err(failure) = self.listen(streams, reports) {
            self.stage = Stage::Ended(status);
            return Err(failure);
        }
        match self.stage {
            Stage::SettingUp => {
                self.stage = Stage::Ended(status);
                return Err(lost(Errno::CHILD));
            }
            // The helper may still have the other end.
            Stage::Starting => self.started(reports),
            _ => {}
        }
        self.handshake = None;
        self.stage = Stage::Ended(status);
        Ok(true)
    }

    /// How it ended, if it has.
    pub fn status(&self) -> Option<ExitStatus> {
        match self.stage {
            Stage::Ended(status) => Some(status),
            _ => None,
        }
    }

    /// Sends it a signal.
    pub fn signal(&mut self, signal: u8) {
        if i32::from(signal) == libc::SIGKILL {
            self.kill();
        } else if let Some(pid) = self.pid() {
            // A process that is gone is no error, and neither is a number unknown.
            let _ = sys::kill(pid, signal);
        }
    }

    /// Ends it and its helper, which the container may have stopped. A sibling that
    /// there is already, and not told of, is killed when it is, or ends with the
    /// agent's end of the handshake.
    fn kill(&mut self) {
        self.kill_wanted = true;
        for pid in self.unreaped() {
            let _ = sys::kill(pid, libc::SIGKILL as u8);
        }
    }

    /// Resizes its terminal, if there is one.
    pub fn resize(&self, size: WindowSize) {
        if let Some((master, _)) = &self.terminal {
            let _ = terminal::resize(master.as_fd(), size);
        }
    }
}

/// It is gone, or has said what makes no sense.
fn lost(errno: Errno) -> Failure {
    setup("process", errno)
}
