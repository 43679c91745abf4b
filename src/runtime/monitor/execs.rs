//! Further processes in the container, each for a visitor that relays its streams.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use vmrun_protocol::message::{ExitStatus, Failure, INIT, ProcessId, Report, Request};
use vmrun_protocol::plan::{ProcessPlan, WindowSize};

use super::door::{Door, Key};
use super::messages::{Reason, Refusal, Reply};
use super::serve::{Answered, Monitor, failed, wrong};
use crate::Error;
use crate::machine::Guest;
use crate::session::unexpected;
use crate::stdio::GuestStreams;

const SIGKILL: u8 = 9;

/// How many may be open: those whose visitors left count until they have ended.
const MAX_OPEN: usize = 256;

/// Processes that the guest was asked for and that have not ended.
#[derive(Debug, Default)]
pub struct Execs {
    open: BTreeMap<ProcessId, Exec>,
    last: ProcessId,
}

#[derive(Debug)]
struct Exec {
    stage: Stage,
    has_terminal: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Asked,
    Created,
    Started,
}

impl Execs {
    /// Those who wait for a process that does not run yet; forgotten by this.
    pub fn unstarted(&mut self, door: &Door) -> Vec<Key> {
        let unstarted = self
            .open
            .extract_if(.., |_, exec| exec.stage != Stage::Started);
        unstarted.filter_map(|(id, _)| door.who_runs(id)).collect()
    }

    /// Those who wait for the end of a process; forgotten by this.
    pub fn take_all(&mut self, door: &Door) -> Vec<Key> {
        let open = std::mem::take(&mut self.open);
        open.into_keys()
            .filter_map(|id| door.who_runs(id))
            .collect()
    }
}

impl<G: Guest> Monitor<'_, G> {
    /// Asks the guest for a process.
    pub(super) fn exec(
        &mut self,
        key: Key,
        plan: Box<ProcessPlan>,
        ignore_paused: bool,
    ) -> Result<Answered, Error> {
        if let Err(error) = self.state.can_exec(ignore_paused) {
            return Ok(Err(wrong(error)));
        }
        let refused = |line: &str| {
            let line = line.to_owned();
            let reason = Reason::Failed;
            Ok(Err(Refusal { reason, line }))
        };
        if self.door.runs(key).is_some() {
            return refused("this connection has run a process already");
        }
        let process = self.execs.last.wrapping_add(1);
        if self.execs.open.len() >= MAX_OPEN || process == INIT {
            return refused("too many processes were run");
        }
        let has_terminal = plan.terminal.is_some();
        if !self.tell_agent(&Request::Exec { process, plan })? {
            return refused("the guest does not listen");
        }
        self.execs.last = process;
        let exec = Exec {
            stage: Stage::Asked,
            has_terminal,
        };
        self.execs.open.insert(process, exec);
        self.door.set_runs(key, Some(process));
        Ok(Ok(None))
    }

    /// Sends a signal to the process of `key`.
    pub(super) fn signal_exec(&mut self, key: Key, signal: u8) -> Result<(), Error> {
        match self.door.runs(key) {
            Some(process) if (1..=64).contains(&signal) => self.signal(process, signal),
            _ => Ok(()),
        }
    }

    /// Resizes the terminal of the process of `key`.
    pub(super) fn resize_exec(&mut self, key: Key, size: WindowSize) -> Result<(), Error> {
        let Some(process) = self.door.runs(key) else {
            return Ok(());
        };
        let request = Request::ResizeTerminal { process, size };
        self.tell_agent(&request).map(drop)
    }

    /// Its visitor has gone.
    pub(super) fn kill_exec(&mut self, process: Option<ProcessId>) -> Result<(), Error> {
        match process {
            Some(process) if self.execs.open.contains_key(&process) => {
                self.signal(process, SIGKILL)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn on_exec_created(&mut self, process: ProcessId) -> Result<(), Error> {
        let has_terminal = self.go_on_exec(
            process,
            (Stage::Asked, Stage::Created),
            &Report::ExecCreated { process },
        )?;
        let (Some(key), Some(guest)) = (self.door.who_runs(process), self.guest()) else {
            // It waits for streams that nobody will connect.
            return self.signal(process, SIGKILL);
        };
        let streams = GuestStreams::open(guest, process, has_terminal)?.into_descriptors();
        let fds: Vec<_> = streams.iter().map(AsFd::as_fd).collect();
        let lost = self.door.hand(key, &Reply::ExecCreated, &fds);
        self.kill_exec(lost)
    }

    pub(super) fn on_exec_started(&mut self, process: ProcessId) -> Result<(), Error> {
        let report = Report::ExecStarted { process };
        self.go_on_exec(process, (Stage::Created, Stage::Started), &report)?;
        match self.door.who_runs(process) {
            Some(key) => self.tell(key, &Reply::ExecStarted),
            None => Ok(()),
        }
    }

    pub(super) fn on_exec_failed(
        &mut self,
        process: ProcessId,
        failure: Failure,
    ) -> Result<(), Error> {
        match self.execs.open.remove(&process) {
            Some(exec) if exec.stage != Stage::Started => {
                self.tell_last(process, &Reply::Refused(failed(failure)))
            }
            _ => {
                let report = Report::ExecFailed { process, failure };
                Err(unexpected(self.doing(), &report))
            }
        }
    }

    pub(super) fn on_exec_exited(
        &mut self,
        process: ProcessId,
        status: ExitStatus,
    ) -> Result<(), Error> {
        match self.execs.open.remove(&process) {
            Some(exec) if exec.stage != Stage::Asked => {
                self.tell_last(process, &Reply::Exited(status))
            }
            _ => {
                let report = Report::Exited { process, status };
                Err(unexpected(self.doing(), &report))
            }
        }
    }

    /// The connection can serve for nothing more.
    fn tell_last(&mut self, process: ProcessId, reply: &Reply) -> Result<(), Error> {
        let Some(key) = self.door.who_runs(process) else {
            return Ok(());
        };
        self.tell(key, reply)
    }

    fn go_on_exec(
        &mut self,
        process: ProcessId,
        (from, to): (Stage, Stage),
        report: &Report,
    ) -> Result<bool, Error> {
        match self.execs.open.get_mut(&process) {
            Some(exec) if exec.stage == from => {
                exec.stage = to;
                Ok(exec.has_terminal)
            }
            _ => Err(unexpected(self.doing(), report)),
        }
    }
}
