//! The agent's loop: one request, one exit or some bytes at a time.
//!
//! ```text
//!            Create            Start + all streams       last output handed over
//!  (none) ──────────▶ created ─────────────────▶ running ──▶ ended ──▶ (none)
//!     ▲                  │  failed                  │  first process exits ▲
//!     └──────────────────┴──────────────────────────┴──────────────────────┘
//! ```

use std::fs::File;
use std::io::BufReader;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus, wait};
use vmrun_protocol::frame::{self, FrameError, MAX_TO_GUEST_BYTES, MAX_TO_HOST_BYTES};
use vmrun_protocol::message::{ExitStatus, Failure, INIT, Report, Request};
use vmrun_protocol::plan::ContainerPlan;

use crate::container::{Container, Guest};
use crate::failure::state;
use crate::prepared::Prepared;
use crate::streams::Streams;
use crate::sys;

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
    Running,
    Ended(ExitStatus),
}

struct Agent {
    channels: Channels,
    guest: Guest,
    prepared: Option<Prepared>,
    container: Option<(Container, Stage)>,
    streams: Streams,
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
        streams: Streams::default(),
    };
    loop {
        let (requested, connected, ended) = agent.wait().map_err(ServeError::Events)?;
        if ended {
            agent.reap();
        }
        if connected {
            agent.streams.accept(agent.channels.listener.as_fd());
        }
        let mut unread = requested;
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
    /// Waits for events; relays what is there. Tells whether there is a request,
    /// a connection, an ended child.
    fn wait(&mut self) -> rustix::io::Result<(bool, bool, bool)> {
        let channels = &self.channels;
        let mut polled = vec![
            PollFd::new(channels.control.get_ref(), PollFlags::IN),
            PollFd::new(&channels.listener, PollFlags::IN),
            PollFd::new(&channels.signals, PollFlags::IN),
        ];
        let own = polled.len();
        let streams = self.streams.interests();
        polled.extend(streams.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        match poll(&mut polled, None) {
            Err(Errno::INTR) => return Ok((false, false, false)),
            polled => polled?,
        };
        let events: Vec<_> = polled.iter().map(PollFd::revents).collect();
        drop(polled);
        let (own, streams) = events.split_at(own);
        if streams.iter().any(|events| !events.is_empty()) {
            self.streams.handle(streams);
        }
        let happened = |index: usize| own.get(index).is_some_and(|events| !events.is_empty());
        Ok((happened(0), happened(1), happened(2)))
    }

    fn report(&mut self, report: &Report) -> Result<(), ServeError> {
        frame::write(self.channels.control.get_mut(), report, MAX_TO_HOST_BYTES)
            .map_err(ServeError::Control)
    }

    fn answer(&mut self, request: Request) -> Result<(), ServeError> {
        match request {
            Request::Create(plan) => {
                let report = match self.create(&plan) {
                    Ok(()) => Report::Created,
                    Err(failure) => Report::Failed(failure),
                };
                self.report(&report)
            }
            Request::Start => match &mut self.container {
                Some((_, stage @ Stage::Created)) => {
                    *stage = Stage::StartWanted;
                    Ok(())
                }
                _ => self.report(&Report::Failed(state("start: no created container"))),
            },
            Request::Signal { process, signal } => {
                if let Some((container, stage)) = &self.container
                    && process == INIT
                    && !matches!(stage, Stage::Ended(_))
                {
                    container.signal(signal);
                }
                Ok(())
            }
            Request::ResizeTerminal { process, size } => {
                if let Some((container, _)) = &self.container
                    && process == INIT
                {
                    container.resize(size);
                }
                Ok(())
            }
            Request::Exec { process, .. } => self.report(&Report::ExecFailed {
                process,
                failure: state("exec: not yet"),
            }),
            Request::SignalAll { signal: _ } => Ok(()),
            Request::Ask { tag, .. } => self.report(&Report::Answer {
                tag,
                answer: Err(state("not yet")),
            }),
            // Handled by the loop.
            Request::PowerOff => Ok(()),
        }
    }

    fn create(&mut self, plan: &ContainerPlan) -> Result<(), Failure> {
        if self.container.is_some() {
            return Err(state("create: the container exists"));
        }
        let created = Container::create(plan, self.guest, self.prepared.take());
        // Even one that failed may have changed it, and one without a network
        // namespace of its own is in it.
        self.guest.network_unused = false;
        let (container, ends) = match created {
            Ok(created) => created,
            Err(failure) => {
                self.streams.close(INIT);
                return Err(failure);
            }
        };
        for (stream, local) in ends {
            self.streams.expect(INIT, stream, local);
        }
        self.container = Some((container, Stage::Created));
        Ok(())
    }

    /// Takes the steps that have become possible.
    fn advance(&mut self) -> Result<(), ServeError> {
        match &self.container {
            Some((_, Stage::StartWanted)) if self.streams.complete(INIT) => self.start(),
            Some((_, Stage::Ended(status))) => {
                let status = *status;
                self.finish(status)
            }
            _ => Ok(()),
        }
    }

    fn start(&mut self) -> Result<(), ServeError> {
        let Some((container, _)) = self.container.take() else {
            return Ok(());
        };
        match container.start() {
            Ok(()) => {
                self.container = Some((container, Stage::Running));
                self.report(&Report::Started)
            }
            Err(failure) => {
                container.discard();
                self.streams.close(INIT);
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
        if !container.is_empty() || self.streams.drain(INIT) {
            self.container = Some((container, stage));
            return Ok(());
        }
        self.streams.close(INIT);
        self.report(&Report::Exited {
            process: INIT,
            status,
        })?;
        // Most hosts have ended the machine by now.
        container.remove();
        Ok(())
    }

    /// Waits for every child that has ended: the container's first process, and
    /// orphans that came to PID 1.
    fn reap(&mut self) {
        // What the descriptor says is only that there is something to wait for.
        sys::take_signal(self.channels.signals.as_fd());
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get() as u32;
            if let Some((container, stage)) = &mut self.container
                && container.pid == pid
                && let Some(status) = exit_status(status)
            {
                container.kill_rest();
                *stage = Stage::Ended(status);
            }
        }
    }
}

fn exit_status(status: WaitStatus) -> Option<ExitStatus> {
    let code = status
        .exit_status()
        .map(|code| ExitStatus::Code(code as u8));
    let signal = || status.terminating_signal();
    code.or_else(|| signal().map(|signal| ExitStatus::Signal(signal as u8)))
}
