//! The agent's loop: one request, one exit or some bytes at a time.
//!
//! ```text
//!            Create            Start + all streams       last output handed over
//!  (none) ──────────▶ created ─────────────────▶ running ──▶ ended ──▶ (none)
//!     ▲                  │  failed                  │  first process exits ▲
//!     └──────────────────┴──────────────────────────┴──────────────────────┘
//! ```
//!
//! Where it has hooks, a container is starting before it is running.

mod requests;

use std::fs::File;
use std::io::BufReader;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus, wait};
use vmrun_protocol::frame::{self, FrameError, MAX_TO_GUEST_BYTES, MAX_TO_HOST_BYTES};
use vmrun_protocol::message::{ExitStatus, Failure, INIT, Report, Request};

use crate::container::{Container, Guest};
use crate::execs::Execs;
use crate::prepared::Prepared;
use crate::procfs::Procfs;
use crate::streams::Streams;
use crate::sys;
use crate::watch::Watch;

/// How long the host may take for the output of further processes once the
/// container's first one has ended. A reader that stands still must not keep the
/// container's exit from whoever waits for that.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// How a process ends that the kernel kills for lack of memory, and others.
const KILLED: ExitStatus = ExitStatus::Signal(libc::SIGKILL as u8);

/// Why the agent's work is over.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The connection to the host is gone, and with it the reason to run.
    #[error("control connection")]
    Control(#[source] FrameError),
    /// poll(2) or its kin failed.
    #[error("event loop")]
    Events(#[source] Errno),
}

/// What the agent waits on.
pub struct Channels {
    /// The control connection, its requests read ahead.
    pub control: BufReader<File>,
    /// Listens for stream connections.
    pub listener: OwnedFd,
    /// SIGCHLD, see [`crate::sys::block_signals`].
    pub signals: OwnedFd,
}

/// How far the container is.
enum Stage {
    Created,
    /// The host wants it to run; not all streams are connected yet.
    StartWanted,
    /// Its hooks run.
    Starting,
    Running,
    /// With the time from which no output is waited for but its own.
    Ended(ExitStatus, Instant),
}

struct Agent {
    channels: Channels,
    guest: Guest,
    prepared: Option<Prepared>,
    container: Option<(Container, Stage)>,
    /// Whether the container has hooks.
    has_hooks: bool,
    execs: Execs,
    watch: Watch,
    streams: Streams,
    /// Made when something is first looked up in it.
    proc: Option<Procfs>,
}

/// What [`Agent::wait`] has found, beside what it has handled.
struct Found {
    request: bool,
    connection: bool,
    ended_child: bool,
}

/// Serves the host until it asks for power-off. The first container may get the
/// process `prepared`.
pub fn serve(
    channels: Channels,
    guest: Guest,
    prepared: Option<Prepared>,
) -> Result<(), ServeError> {
    let mut agent = Agent {
        channels,
        guest,
        prepared,
        container: None,
        has_hooks: false,
        execs: Execs::default(),
        watch: Watch::default(),
        streams: Streams::default(),
        proc: None,
    };
    loop {
        let found = agent.wait()?;
        if found.ended_child {
            agent.reap()?;
        }
        if found.connection {
            agent.streams.accept(agent.channels.listener.as_fd());
        }
        let mut unread = found.request;
        while unread {
            let request = frame::read(&mut agent.channels.control, MAX_TO_GUEST_BYTES);
            match request.map_err(ServeError::Control)? {
                Request::PowerOff => return Ok(()),
                request => agent.answer(request)?,
            }
            // Of what was read ahead poll(2) does not know.
            unread = !agent.channels.control.buffer().is_empty();
        }
        agent.advance()?;
    }
}

impl Agent {
    /// Waits for events; relays what is there, and hears what processes tell.
    fn wait(&mut self) -> Result<Found, ServeError> {
        let channels = &self.channels;
        let mut polled = vec![
            PollFd::new(channels.control.get_ref(), PollFlags::IN),
            PollFd::new(&channels.listener, PollFlags::IN),
            PollFd::new(&channels.signals, PollFlags::IN),
        ];
        let mut add = |interests: &mut dyn Iterator<Item = _>| {
            let before = polled.len();
            polled.extend(interests.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
            polled.len() - before
        };
        let watched = add(&mut self.watch.interests());
        let execs = add(&mut self.execs.interests());
        let streams = add(&mut self.streams.interests());
        // Last, as it only wakes: what it has told is heard by `advance`.
        if let Some((container, Stage::Starting)) = &self.container {
            add(&mut [(container.handshake(), PollFlags::IN)].into_iter());
        }
        let limit = self.patience();
        match poll(&mut polled, limit.as_ref()) {
            Err(Errno::INTR) => {}
            polled => drop(polled.map_err(ServeError::Events)?),
        }
        let events: Vec<_> = polled.iter().map(PollFd::revents).collect();
        drop(polled);
        let mut rest = events.as_slice();
        let mut next = |count| rest.split_off(..count).unwrap_or_default();
        let (own, watched, execs) = (next(3), next(watched), next(execs));
        let streams = next(streams);
        if streams.iter().any(|events| !events.is_empty()) {
            self.streams.handle(streams);
        }
        let mut reports = Vec::new();
        self.watch.handle(watched, &mut reports);
        self.execs.listen(execs, &mut self.streams, &mut reports);
        self.report_all(reports)?;
        let happened = |index: usize| own.get(index).is_some_and(|events| !events.is_empty());
        Ok(Found {
            request: happened(0),
            connection: happened(1),
            ended_child: happened(2),
        })
    }

    /// How long to wait for events: for ever, unless output is to be given up.
    fn patience(&self) -> Option<Timespec> {
        match &self.container {
            Some((_, Stage::Ended(_, until))) if !self.execs.is_empty() => {
                let left = until.checked_duration_since(Instant::now());
                Timespec::try_from(left.filter(|left| !left.is_zero())?).ok()
            }
            _ => None,
        }
    }

    fn report(&mut self, report: &Report) -> Result<(), ServeError> {
        if let Report::Exited { status, .. } = report {
            let mut kills = Vec::new();
            // The kernel may be late with the event.
            self.watch.look_for_kills(&mut kills);
            if self.guest.machine_is_ours && *status == KILLED {
                let mut count = || requests::procfs(&mut self.proc).ok()?.oom_kills().ok();
                self.watch
                    .look_for_machine_kills(|| count().unwrap_or(0), &mut kills);
            }
            self.report_all(kills)?;
        }
        frame::write(self.channels.control.get_mut(), report, MAX_TO_HOST_BYTES)
            .map_err(ServeError::Control)
    }

    fn report_all(&mut self, reports: Vec<Report>) -> Result<(), ServeError> {
        reports.iter().try_for_each(|report| self.report(report))
    }

    /// Takes the steps that have become possible.
    fn advance(&mut self) -> Result<(), ServeError> {
        if !self.execs.is_empty() {
            self.advance_execs()?;
        }
        match &self.container {
            Some((_, Stage::StartWanted)) if self.streams.complete(INIT) => self.start(),
            Some((container, Stage::Starting)) => match container.program_runs() {
                Some(started) => self.started(started),
                None => Ok(()),
            },
            Some((_, Stage::Ended(status, _))) => {
                let status = *status;
                self.finish(status)
            }
            _ => Ok(()),
        }
    }

    fn advance_execs(&mut self) -> Result<(), ServeError> {
        let in_a_hurry = match &self.container {
            Some((_, Stage::Ended(_, until))) => *until <= Instant::now(),
            _ => false,
        };
        let mut reports = Vec::new();
        self.execs
            .advance(&mut self.streams, in_a_hurry, &mut reports);
        self.report_all(reports)
    }

    fn start(&mut self) -> Result<(), ServeError> {
        let Some((container, stage)) = &mut self.container else {
            return Ok(());
        };
        if !self.has_hooks {
            // Nothing is on its way that could hold it up, and who waits does so
            // with fewer system calls.
            let started = container.go().and_then(|()| container.await_program());
            return self.started(started);
        }
        *stage = Stage::Starting;
        match container.go() {
            Ok(()) => Ok(()),
            failed => self.started(failed),
        }
    }

    fn started(&mut self, started: Result<(), Failure>) -> Result<(), ServeError> {
        match started {
            Ok(()) => {
                if let Some((_, stage)) = &mut self.container {
                    *stage = Stage::Running;
                }
                self.report(&Report::Started)
            }
            Err(failure) => {
                if let Some((container, _)) = self.container.take() {
                    container.discard();
                }
                self.streams.close(INIT);
                self.watch.reset();
                self.report(&Report::Failed(failure))
            }
        }
    }

    /// The first process has ended: reports it once the others are gone and all
    /// output is with the host.
    fn finish(&mut self, status: ExitStatus) -> Result<(), ServeError> {
        let Some((mut container, stage)) = self.container.take() else {
            return Ok(());
        };
        if !self.execs.is_empty() || !container.is_empty() || self.streams.drain(INIT) {
            self.container = Some((container, stage));
            return Ok(());
        }
        self.streams.close(INIT);
        self.report(&Report::Exited {
            process: INIT,
            status,
        })?;
        self.watch.reset();
        // Most hosts have ended the machine by now.
        container.remove();
        Ok(())
    }

    /// Waits for every child that has ended: processes that the host has asked for,
    /// and orphans that came to PID 1.
    fn reap(&mut self) -> Result<(), ServeError> {
        // What the descriptor says is only that there is something to wait for.
        sys::take_signal(self.channels.signals.as_fd());
        let mut reports = Vec::new();
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get() as u32;
            let Some(status) = exit_status(status) else {
                continue;
            };
            if self.is_init(pid) {
                self.ended(status, &mut reports)?;
            } else if !self.execs.is_empty() {
                self.execs
                    .reaped(pid, status, &mut self.streams, &mut reports);
            }
        }
        self.report_all(reports)
    }

    fn is_init(&self, pid: u32) -> bool {
        let init = self.container.as_ref();
        init.is_some_and(|(container, _)| container.pid == pid)
    }

    /// The container's first process has ended.
    fn ended(&mut self, status: ExitStatus, reports: &mut Vec<Report>) -> Result<(), ServeError> {
        if let Some((container, Stage::Starting)) = &self.container
            && let Some(started) = container.program_runs()
        {
            // What it had to say before.
            self.started(started)?;
        }
        if let Some((container, stage)) = &mut self.container {
            container.kill_rest();
            self.execs.kill_all();
            self.watch.end_pause(reports);
            *stage = Stage::Ended(status, Instant::now() + LAST_OUTPUT);
        }
        Ok(())
    }
}

fn exit_status(status: WaitStatus) -> Option<ExitStatus> {
    let code = status
        .exit_status()
        .map(|code| ExitStatus::Code(code as u8));
    let signal = || status.terminating_signal();
    code.or_else(|| signal().map(|signal| ExitStatus::Signal(signal as u8)))
}
