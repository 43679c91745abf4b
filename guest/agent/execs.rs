//! All further processes of the container.

use std::os::fd::BorrowedFd;

use rustix::event::PollFlags;
use vmrun_protocol::message::{ExitStatus, Failure, INIT, ProcessId, Report};
use vmrun_protocol::plan::{ProcessPlan, WindowSize};

use crate::exec::Exec;
use crate::failure::state;
use crate::joining::Place;
use crate::streams::Streams;
use crate::sys;

/// How many there may be at once. Each takes at most 7 of the agent's descriptors,
/// of which there are 1024.
pub const PROCESSES_MAX: usize = 64;
/// Most ends that are remembered because they may be those of a process whose number
/// is still to be told.
const STRAYS_MAX: usize = 4096;

/// The processes.
#[derive(Default)]
pub struct Execs {
    all: Vec<Exec>,
    strays: Vec<(u32, ExitStatus)>,
    /// What is left of those that exist no longer for the host, until it has ended.
    leaving: Vec<u32>,
}

impl Execs {
    /// Whether there are none, and nothing is left of any.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty() && self.leaving.is_empty()
    }

    /// Whether the host may ask for another one with this number.
    pub fn check(&self, process: ProcessId) -> Result<(), Failure> {
        if process == INIT || self.find(process).is_some() {
            return Err(state(format!("exec: process {process} exists")));
        }
        if self.all.len() >= PROCESSES_MAX {
            let what = format!("exec: there are {PROCESSES_MAX} further processes");
            return Err(state(what));
        }
        Ok(())
    }

    /// Begins one, whose number has been [checked](Self::check).
    pub fn begin(
        &mut self,
        process: ProcessId,
        plan: &ProcessPlan,
        place: &Place<'_>,
        streams: &mut Streams,
    ) -> Result<(), Failure> {
        self.all.push(Exec::begin(process, plan, place, streams)?);
        Ok(())
    }

    /// Descriptors to poll, in the order in which [`Self::listen`] takes what
    /// happened on them.
    pub fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let handshakes = self.all.iter().filter_map(Exec::handshake);
        handshakes.map(|socket| (socket, PollFlags::IN))
    }

    /// Acts on what happened to the descriptors of [`Self::interests`].
    pub fn listen(
        &mut self,
        events: &[PollFlags],
        streams: &mut Streams,
        reports: &mut Vec<Report>,
    ) {
        if events.iter().all(|events| events.is_empty()) {
            return;
        }
        self.each(streams, reports, |exec, streams, reports| {
            exec.listen(streams, reports)
        });
        self.take_strays(streams, reports);
    }

    /// Process `pid`, a child of the agent's, has ended.
    pub fn reaped(
        &mut self,
        pid: u32,
        status: ExitStatus,
        streams: &mut Streams,
        reports: &mut Vec<Report>,
    ) {
        let left = self.leaving.len();
        self.leaving.retain(|leaving| *leaving != pid);
        let mut known = self.leaving.len() < left;
        self.each(streams, reports, |exec, streams, reports| {
            let ours = exec.reaped(pid, status, streams, reports);
            known |= ours != Ok(false);
            ours.map(drop)
        });
        if !known && self.strays.len() < STRAYS_MAX {
            self.strays.push((pid, status));
        }
        self.take_strays(streams, reports);
    }

    /// Ends that belong to a process by now; the others are forgotten once they
    /// cannot any more.
    fn take_strays(&mut self, streams: &mut Streams, reports: &mut Vec<Report>) {
        let ours = |exec: &Exec, pid| exec.pid() == Some(pid);
        while let Some(index) =
            (self.strays.iter()).position(|(pid, _)| self.all.iter().any(|exec| ours(exec, *pid)))
        {
            let (pid, status) = self.strays.swap_remove(index);
            self.each(streams, reports, |exec, streams, reports| {
                exec.reaped(pid, status, streams, reports).map(drop)
            });
        }
        if !self.all.iter().any(Exec::is_unknown) {
            self.strays.clear();
        }
    }

    /// Takes the steps that have become possible: runs programs, reports exits. What
    /// output the host has not taken is lost where `in_a_hurry`.
    pub fn advance(&mut self, streams: &mut Streams, in_a_hurry: bool, reports: &mut Vec<Report>) {
        self.each(streams, reports, |exec, streams, _| exec.start(streams));
        self.all.retain(|exec| {
            let process = exec.process;
            match exec.status() {
                Some(status) if !streams.drain(process) || in_a_hurry => {
                    streams.close(process);
                    reports.push(Report::Exited { process, status });
                    self.leaving.extend(exec.unreaped());
                    false
                }
                _ => true,
            }
        });
    }

    /// Does `act` for each; those for which it fails exist no longer.
    fn each(
        &mut self,
        streams: &mut Streams,
        reports: &mut Vec<Report>,
        mut act: impl FnMut(&mut Exec, &mut Streams, &mut Vec<Report>) -> Result<(), Failure>,
    ) {
        self.all.retain_mut(|exec| {
            let Err(failure) = act(exec, streams, reports) else {
                return true;
            };
            let process = exec.process;
            streams.close(process);
            reports.push(Report::ExecFailed { process, failure });
            self.leaving.extend(exec.unreaped());
            false
        });
    }

    /// Sends a signal to one.
    pub fn signal(&mut self, process: ProcessId, signal: u8) {
        let exec = self.all.iter_mut().find(|exec| exec.process == process);
        if let Some(exec) = exec {
            exec.signal(signal);
        }
    }

    /// Ends them all, and what is left of others.
    pub fn kill_all(&mut self) {
        let kill = libc::SIGKILL as u8;
        self.all.iter_mut().for_each(|exec| exec.signal(kill));
        for pid in &self.leaving {
            let _ = sys::kill(*pid, kill);
        }
    }

    /// Resizes the terminal of one.
    pub fn resize(&self, process: ProcessId, size: WindowSize) {
        if let Some(exec) = self.find(process) {
            exec.resize(size);
        }
    }

    /// Which of them has the number `pid`.
    pub fn with_pid(&self, pid: u32) -> Option<ProcessId> {
        let exec = self.all.iter().find(|exec| exec.pid() == Some(pid))?;
        Some(exec.process)
    }

    fn find(&self, process: ProcessId) -> Option<&Exec> {
        self.all.iter().find(|exec| exec.process == process)
    }
}
