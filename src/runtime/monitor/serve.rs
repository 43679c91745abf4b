//! The event loop: the agent, the machine's end, signals and visitors, whichever
//! comes first. Nothing that the guest sends blocks it or makes it grow, and an
//! answer that nobody asked for ends the machine.

use std::time::{Duration, Instant};

use vmrun_protocol::frame::FrameError;
use vmrun_protocol::message::{ExitStatus, Failure, FailureKind, INIT, ProcessId, Report, Request};

use super::asks::Asks;
use super::door::{Door, Key, Visit};
use super::execs::Execs;
use super::messages::{Call, Reason, Refusal, Reply};
use super::poll::Ready;
use super::state::{Event, State, Wrong};
use vmrun_vm::trace::Timeline;

use crate::control::Control;
use crate::error::chain;
use crate::machine::Guest;
use crate::session::{agent_error, broken, container_error, ended, unexpected};
use crate::signals::{Signal, Signals};
use crate::stdio::{HostStreams, Relays};
use crate::{Error, terminal};

/// How long a guest may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// To run the container's program.
    pub start: Duration,
    /// To end a container that was sent SIGKILL. After that its machine is ended.
    pub kill: Duration,
}

/// See [`Limits::kill`].
pub const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// What a container whose machine was ended reports.
pub(super) const KILLED: ExitStatus = ExitStatus::Signal(9);

/// The streams of the container's init on the host.
#[derive(Debug)]
pub struct Stdio {
    /// Until the program is started.
    pub streams: Option<HostStreams>,
    /// Its terminal, if it has one.
    pub terminal: Option<std::os::fd::OwnedFd>,
}

/// A container that is served.
pub struct Monitor<'a, G: Guest> {
    /// Its machine, until that is ended.
    pub(super) guest: Option<G>,
    pub(super) door: Door,
    pub(super) state: State,
    pub(super) asks: Asks,
    pub(super) execs: Execs,
    pub(super) signals: &'a Signals,
    timeline: &'a Timeline,
    /// Once the container is set up.
    pub(super) agent: Option<Control>,
    stdio: Stdio,
    pub(super) relays: Option<Relays>,
    /// Who wants it started.
    pub(super) starter: Option<Key>,
    limits: Limits,
    pub(super) start_by: Option<Instant>,
    pub(super) kill_by: Option<Instant>,
    pub(super) exit: Option<ExitStatus>,
    /// The guest has not answered: it is not waited for any more.
    pub(super) given_up: bool,
}

impl<'a, G: Guest> Monitor<'a, G> {
    /// A container that is being created.
    pub fn new(
        guest: G,
        signals: &'a Signals,
        door: Door,
        stdio: Stdio,
        limits: Limits,
        timeline: &'a Timeline,
    ) -> Self {
        Self {
            guest: Some(guest),
            door,
            state: State::Creating,
            asks: Asks::default(),
            execs: Execs::default(),
            signals,
            timeline,
            agent: None,
            stdio,
            relays: None,
            starter: None,
            limits,
            start_by: None,
            kill_by: None,
            exit: None,
            given_up: false,
        }
    }

    /// Serves visitors until `fd` is readable. The agent is not listened to: there
    /// is no container yet.
    pub fn serve_until(&mut self, fd: impl std::os::fd::AsFd) -> Result<(), Error> {
        const DOING: &str = "waiting for the hooks";
        loop {
            let ready = self.poll(Some(fd.as_fd()))?;
            if ready.signals {
                let signals = std::iter::from_fn(|| self.signals.take());
                if let Some(number) = { signals }.find_map(Signal::ends_start) {
                    return Err(Error::Interrupted(number));
                }
            }
            if ready.ended {
                return Err(self.ended(DOING));
            }
            if ready.other {
                return Ok(());
            }
            self.serve_visitors(&ready)?;
        }
    }

    /// The container is set up; `agent` is the connection that did it.
    pub fn created(&mut self, agent: Control) -> Result<(), Error> {
        self.agent = Some(agent);
        self.go_on(Event::Created, &Report::Created)
    }

    /// Serves until the container has ended.
    pub fn serve(&mut self) -> Result<ExitStatus, Error> {
        loop {
            if let Some(status) = self.exit {
                return Ok(status);
            }
            let ready = self.poll(None)?;
            if ready.signals {
                self.on_signals()?;
            }
            if ready.agent || ready.ended {
                self.hear_agent()?;
            }
            if ready.ended && self.exit.is_none() {
                return Err(self.ended(self.doing()));
            }
            self.serve_visitors(&ready)?;
            self.on_time()?;
        }
    }

    /// The machine.
    pub fn guest(&self) -> Option<&G> {
        self.guest.as_ref()
    }

    fn ended(&self, doing: &'static str) -> Error {
        match &self.guest {
            Some(guest) => ended(guest, doing),
            None => Error::Ended {
                doing,
                ending: "the machine was ended".to_owned(),
            },
        }
    }

    fn on_time(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        if self.kill_by.is_some_and(|at| at <= now) {
            log::warn!("the guest does not end the container, its machine is ended");
            self.exit = Some(KILLED);
            self.given_up = true;
            self.state = State::Stopped;
            self.agent = None;
        } else if self.start_by.is_some_and(|at| at <= now) {
            return Err(Error::Deadline {
                doing: self.doing(),
                deadline: self.limits.start,
            });
        }
        Ok(())
    }

    pub(super) fn doing(&self) -> &'static str {
        match self.state {
            State::Creating => "creating the container",
            State::Created => "waiting for the container's start",
            State::Starting => "starting the container",
            _ => "running the container",
        }
    }

    /// Tells the agent; it is not told if it is far behind.
    pub(super) fn tell_agent(&mut self, request: &Request) -> Result<bool, Error> {
        let doing = self.doing();
        let Some(agent) = &mut self.agent else {
            return Ok(false);
        };
        let told = agent
            .try_queue(request)
            .map_err(|e| agent_error(doing, e))?;
        if !told {
            log::warn!("{doing}: the agent does not listen");
        }
        Ok(told)
    }

    fn on_signals(&mut self) -> Result<(), Error> {
        while let Some(signal) = self.signals.take() {
            match signal {
                Signal::Forward(signal) => self.signal(INIT, signal)?,
                Signal::Resize => self.resize()?,
            }
        }
        Ok(())
    }

    pub(super) fn signal(&mut self, process: ProcessId, signal: u8) -> Result<(), Error> {
        self.tell_agent(&Request::Signal { process, signal })
            .map(drop)
    }

    /// The container's terminal gets the size of the one outside.
    fn resize(&mut self) -> Result<(), Error> {
        let size = self.stdio.terminal.as_ref().and_then(terminal::window_size);
        let Some(size) = size else {
            return Ok(());
        };
        let process = INIT;
        self.tell_agent(&Request::ResizeTerminal { process, size })
            .map(drop)
    }

    pub(super) fn hear_agent(&mut self) -> Result<(), Error> {
        let doing = self.doing();
        if let Some(agent) = &mut self.agent {
            agent.advance().map_err(|e| agent_error(doing, e))?;
        }
        loop {
            let doing = self.doing();
            let Some(agent) = &mut self.agent else {
                return Ok(());
            };
            match agent.take_message() {
                Ok(Some(report)) => self.on_report(report)?,
                Ok(None) => return Ok(()),
                // It may hang up once the container has ended.
                Err(_) if self.exit.is_some() => self.agent = None,
                Err(error) => return Err(self.broken(doing, error)),
            }
        }
    }

    fn broken(&self, doing: &'static str, error: FrameError) -> Error {
        match &self.guest {
            Some(guest) => broken(guest, doing, error),
            None => agent_error(doing, error),
        }
    }

    fn on_report(&mut self, report: Report) -> Result<(), Error> {
        match report {
            Report::Started => {
                self.go_on(Event::Started, &report)?;
                self.timeline.mark("container started");
                self.start_by = None;
                self.tell_starter(&Reply::Done)
            }
            Report::Failed(failure) if self.state == State::Starting => {
                Err(container_error(failure))
            }
            Report::Exited {
                process: INIT,
                status,
            } => {
                self.go_on(Event::Ended, &report)?;
                self.start_by = None;
                self.kill_by = None;
                self.exit = Some(status);
                self.timeline.mark("container exited");
                let over = Reply::Refused(wrong(super::state::NOT_RUNNING));
                self.tell_starter(&over)
            }
            Report::OutOfMemory if self.state.exists().is_ok() => {
                for key in self.door.watchers() {
                    self.tell(key, &Reply::OutOfMemory)?;
                }
                Ok(())
            }
            Report::Answer { tag, answer } => self.on_answer(tag, answer),
            Report::ExecCreated { process } => self.on_exec_created(process),
            Report::ExecStarted { process } => self.on_exec_started(process),
            Report::ExecFailed { process, failure } => self.on_exec_failed(process, failure),
            Report::Exited { process, status } => self.on_exec_exited(process, status),
            other => Err(unexpected(self.doing(), &other)),
        }
    }

    /// What the guest reports has to fit.
    pub(super) fn go_on(&mut self, event: Event, report: &Report) -> Result<(), Error> {
        let next = self.state.after(event);
        self.state = next.map_err(|_| unexpected(self.doing(), report))?;
        Ok(())
    }

    pub(super) fn serve_visitors(&mut self, ready: &Ready) -> Result<(), Error> {
        if ready.listener {
            self.door.let_in();
        }
        for key in &ready.visitors {
            while let Some(visit) = self.door.listen_to(*key) {
                match visit {
                    Visit::Call(call) => self.on_call(*key, call)?,
                    Visit::Left(process) => self.kill_exec(process)?,
                }
            }
        }
        Ok(())
    }

    fn on_call(&mut self, key: Key, call: Call) -> Result<(), Error> {
        let done = match call {
            Call::Status => Ok(Some(Reply::Status(self.state.status()))),
            Call::Start => self.start(key)?,
            Call::Kill { signal, all } => self.kill(signal, all)?,
            Call::Watch => self.state.exists().map_err(wrong).map(|()| {
                self.door.watch(key);
                None
            }),
            Call::Exec {
                plan,
                ignore_paused,
            } => self.exec(key, plan, ignore_paused)?,
            Call::Signal(signal) => return self.signal_exec(key, signal),
            Call::Resize(size) => return self.resize_exec(key, size),
            question => self.ask(key, question)?,
        };
        match done {
            Ok(None) => Ok(()),
            Ok(Some(reply)) => self.tell(key, &reply),
            Err(refusal) => self.tell(key, &Reply::Refused(refusal)),
        }
    }

    /// Tells a visitor. If it does not read, what it ran is killed.
    pub(super) fn tell(&mut self, key: Key, reply: &Reply) -> Result<(), Error> {
        let lost = self.door.tell(key, reply);
        self.kill_exec(lost)
    }

    fn tell_starter(&mut self, reply: &Reply) -> Result<(), Error> {
        match self.starter.take() {
            Some(key) => self.tell(key, reply),
            None => Ok(()),
        }
    }

    fn start(&mut self, key: Key) -> Result<Answered, Error> {
        match self.state.after(Event::Start) {
            Ok(next) => self.state = next,
            Err(error) => return Ok(Err(wrong(error))),
        }
        // Set by who made the terminal, after that.
        self.resize()?;
        let has_terminal = self.stdio.terminal.is_some();
        if let (Some(guest), Some(streams)) = (&self.guest, self.stdio.streams.take()) {
            self.relays = Some(Relays::start(guest, INIT, has_terminal, streams)?);
        }
        if !self.tell_agent(&Request::Start)? {
            return Err(Error::Deadline {
                doing: self.doing(),
                deadline: Duration::ZERO,
            });
        }
        self.start_by = Some(Instant::now() + self.limits.start);
        self.starter = Some(key);
        Ok(Ok(None))
    }

    fn kill(&mut self, signal: u8, all: bool) -> Result<Answered, Error> {
        const MAX_SIGNAL: u8 = 64;
        if let Err(error) = self.state.exists() {
            return Ok(Err(wrong(error)));
        }
        if signal > MAX_SIGNAL {
            return Ok(Err(Refusal {
                reason: Reason::Failed,
                line: "unable to signal init: invalid argument".to_owned(),
            }));
        }
        match (signal, all) {
            (0, _) => {}
            (_, true) => drop(self.tell_agent(&Request::SignalAll { signal })?),
            (_, false) => self.signal(INIT, signal)?,
        }
        if signal == 9 {
            self.kill_by
                .get_or_insert(Instant::now() + self.limits.kill);
        }
        Ok(Ok(Some(Reply::Done)))
    }
}

/// What a visitor is told at once, if anything.
pub(super) type Answered = Result<Option<Reply>, Refusal>;

/// The container is not in the state for it.
pub(super) fn wrong(wrong: Wrong) -> Refusal {
    Refusal {
        reason: Reason::State,
        line: wrong.to_string(),
    }
}

/// What the guest could not do.
pub(super) fn failed(failure: Failure) -> Refusal {
    refusal(&container_error(failure))
}

pub(super) fn refusal(error: &Error) -> Refusal {
    let reason = match error {
        Error::Container { kind, .. } => match kind {
            FailureKind::NotFound => Reason::NotFound,
            FailureKind::NotExecutable => Reason::NotExecutable,
            FailureKind::State => Reason::State,
            FailureKind::Setup => Reason::Failed,
        },
        _ => Reason::Failed,
    };
    Refusal {
        reason,
        line: chain(error),
    }
}
