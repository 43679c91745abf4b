//! The conversation with the agent up to a container that is set up, or a machine
//! that can become a template. Everything the guest says is hostile; nothing here
//! blocks on it for longer than a deadline, and a signal ends each wait. What
//! follows is [`crate::monitor`]'s.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use vmrun_protocol::VERSION;
use vmrun_protocol::frame::FrameError;
use vmrun_protocol::message::{Failure, Hello, Renewal, Report, Request, Seed, Task, Welcome};
use vmrun_protocol::plan::ContainerPlan;
use zeroize::Zeroizing;

use crate::Error;
use crate::control::Control;
use crate::machine::{Guest, HostKind};
use crate::signals::{Signal, Signals};

/// How long each step of a start may take.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// From the machine's first instruction to the agent's greeting.
    pub agent_ready: Duration,
    /// To set the container up.
    pub create: Duration,
    /// To execute its program.
    pub start: Duration,
}

impl Deadlines {
    /// A boot takes tens of milliseconds on hardware, and some seconds where ring
    /// 0 is emulated: there the guest kernel's hundred instructions for each page of
    /// memory take a second for 40 MiB. Both may have to share their processor.
    pub fn of(host: HostKind, mem_size_mib: u32) -> Self {
        const SMALL_MIB: u32 = 128;
        const FOR_EACH_MORE: Duration = Duration::from_millis(50);
        let (each, memory) = match host {
            HostKind::Hardware => (Duration::from_secs(10), Duration::ZERO),
            HostKind::Software => (
                Duration::from_secs(60),
                FOR_EACH_MORE.saturating_mul(mem_size_mib.saturating_sub(SMALL_MIB)),
            ),
        };
        Self {
            agent_ready: each + memory,
            create: each,
            start: each,
        }
    }
}

/// The agent closing its connection often is the first that is seen of a machine
/// that ends; its own reason is the better one and follows within this time.
const ENDING_AFTER_CLOSE: Duration = Duration::from_secs(5);

/// Longest piece of the guest's own text that is shown.
const SHOWN_MAX_CHARS: usize = 512;

/// A conversation with the agent of `guest`.
pub struct Session<'a, G: Guest> {
    control: Control,
    guest: &'a G,
    signals: &'a Signals,
    deadlines: Deadlines,
}

/// One thing that the host waits for.
#[derive(Clone, Copy)]
struct Step {
    doing: &'static str,
    deadline: Duration,
}

impl<'a, G: Guest> Session<'a, G> {
    /// The agent is still to connect to the other end of `control`.
    pub fn new(control: Control, guest: &'a G, signals: &'a Signals, deadlines: Deadlines) -> Self {
        Self {
            control,
            guest,
            signals,
            deadlines,
        }
    }

    /// Waits for the agent, checks that it is of this build, and gives its machine
    /// randomness and time of its own.
    pub fn greet(&mut self) -> Result<(), Error> {
        let step = self.greeting();
        self.hear_hello(step)?;
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let realtime_ns = since_1970.unwrap_or_default().as_nanos();
        let renewal = Renewal {
            realtime_ns: u64::try_from(realtime_ns).unwrap_or(u64::MAX),
            seed: fresh_seed()?,
        };
        self.welcome(step, Task::Start(renewal))
    }

    /// Waits for the agent and lets it prepare for all that its machine will be
    /// copied to. The connection must stay open until the machine stands still.
    pub fn freeze(mut self) -> Result<Control, Error> {
        let step = self.greeting();
        self.hear_hello(step)?;
        self.welcome(step, Task::Freeze)?;
        let step = Step {
            doing: "preparing the machine for its template",
            ..step
        };
        match self.receive(step)? {
            Report::Frozen => Ok(self.control),
            other => Err(self.refused(step, other)),
        }
    }

    fn greeting(&self) -> Step {
        Step {
            doing: "waiting for the agent in the guest",
            deadline: self.deadlines.agent_ready,
        }
    }

    fn hear_hello(&mut self, step: Step) -> Result<(), Error> {
        let hello: Hello = self.receive(step)?;
        if hello.version != VERSION {
            return Err(Error::AgentVersion {
                theirs: hello.version,
                ours: VERSION,
            });
        }
        log::debug!("guest kernel {}", shown(&hello.kernel_release));
        Ok(())
    }

    fn welcome(&mut self, step: Step, task: Task) -> Result<(), Error> {
        let version = VERSION;
        self.send(step, &Welcome { version, task })
    }

    /// Sets the container up to the point just before its program runs.
    pub fn create(mut self, plan: ContainerPlan) -> Result<Control, Error> {
        let step = Step {
            doing: "creating the container",
            deadline: self.deadlines.create,
        };
        self.send(step, &Request::Create(Box::new(plan)))?;
        match self.receive(step)? {
            Report::Created => Ok(self.control),
            other => Err(self.refused(step, other)),
        }
    }

    fn send<T: serde::Serialize>(&mut self, step: Step, message: &T) -> Result<(), Error> {
        let sent = self.control.queue(message);
        sent.map_err(|e| agent_error(step.doing, e))
    }

    /// The next message of the agent.
    fn receive<T: DeserializeOwned>(&mut self, step: Step) -> Result<T, Error> {
        let until = Instant::now() + step.deadline;
        loop {
            match self.control.take_message() {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                Err(error) => return Err(self.broken(step, error)),
            }
            let left = until.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return Err(Error::Deadline {
                    doing: step.doing,
                    deadline: step.deadline,
                });
            }
            let fds = [
                (self.control.fd(), self.control.interest()),
                (self.guest.ended_fd(), PollFlags::IN),
                (self.signals.fd(), PollFlags::IN),
            ];
            let [talk, ended, signalled] = wait_for(fds, Some(left))?;
            if signalled {
                self.on_signals()?;
            }
            if talk || ended {
                let advanced = self.control.advance();
                advanced.map_err(|e| agent_error(step.doing, e))?;
            }
            if ended {
                return self.last_message(step);
            }
        }
    }

    /// The machine has ended; what the agent said last counts nevertheless.
    fn last_message<T: DeserializeOwned>(&mut self, step: Step) -> Result<T, Error> {
        match self.control.take_message() {
            Ok(Some(message)) => Ok(message),
            _ => Err(self.ended(step)),
        }
    }

    /// There is no container yet that could get them.
    fn on_signals(&self) -> Result<(), Error> {
        let ending = std::iter::from_fn(|| self.signals.take()).find_map(Signal::ends_start);
        ending.map_or(Ok(()), |number| Err(Error::Interrupted(number)))
    }

    fn broken(&self, step: Step, error: FrameError) -> Error {
        broken(self.guest, step.doing, error)
    }

    fn ended(&self, step: Step) -> Error {
        ended(self.guest, step.doing)
    }

    fn refused(&self, step: Step, report: Report) -> Error {
        match report {
            Report::Failed(failure) => container_error(failure),
            other => unexpected(step.doing, &other),
        }
    }
}

/// The agent's connection is closed, or nonsense came over it.
pub(crate) fn broken(guest: &impl Guest, doing: &'static str, error: FrameError) -> Error {
    if matches!(error, FrameError::Closed) {
        let fds = [(guest.ended_fd(), PollFlags::IN)];
        if let Ok([true]) = wait_for(fds, Some(ENDING_AFTER_CLOSE)) {
            return ended(guest, doing);
        }
    }
    agent_error(doing, error)
}

/// The machine has ended.
pub(crate) fn ended(guest: &impl Guest, doing: &'static str) -> Error {
    let ending = guest.ending();
    Error::Ended {
        doing,
        ending: ending.unwrap_or_else(|| "the machine ended".to_owned()),
    }
}

/// The agent reported what it could not.
pub(crate) fn unexpected(doing: &'static str, report: &Report) -> Error {
    Error::Unexpected {
        doing,
        report: described(report),
    }
}

/// Fills at most 256 bytes: up to there the kernel never returns less.
pub(crate) fn draw_random(bytes: &mut [u8]) -> Result<(), Error> {
    let flags = rustix::rand::GetRandomFlags::empty();
    rustix::io::retry_on_intr(|| rustix::rand::getrandom(&mut *bytes, flags))
        .map_err(Error::host("draw randomness"))?;
    Ok(())
}

/// Randomness for one machine.
fn fresh_seed() -> Result<Seed, Error> {
    let mut bytes = Zeroizing::new([0; Seed::BYTES]);
    draw_random(&mut *bytes)?;
    Ok(Seed::new(*bytes))
}

pub(crate) fn agent_error(doing: &'static str, source: FrameError) -> Error {
    Error::Agent { doing, source }
}

/// What the agent could not do.
pub(crate) fn container_error(failure: Failure) -> Error {
    let errno = (1..4096).contains(&failure.errno).then_some(failure.errno);
    Error::Container {
        what: shown(&failure.what),
        kind: failure.kind,
        source: errno.map(in_runcs_words),
    }
}

/// The kernel's error with runc's words for it: engines take exit codes from "no such
/// file or directory" and "permission denied", written like that.
fn in_runcs_words(errno: i32) -> std::io::Error {
    let error = std::io::Error::from_raw_os_error(errno);
    let text = error.to_string();
    let words = text.split(" (os error").next().unwrap_or_default();
    std::io::Error::new(error.kind(), words.to_lowercase())
}

/// Text of the guest as it may be shown on a terminal.
fn shown(text: &str) -> String {
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(SHOWN_MAX_CHARS).map(plain).collect()
}

fn described(report: &Report) -> String {
    match report {
        Report::Created => "a created container".to_owned(),
        Report::Started => "a started container".to_owned(),
        Report::Failed(_) => "a failure".to_owned(),
        Report::Exited { process, .. } => format!("the end of process {process}"),
        Report::Frozen => "a template".to_owned(),
        Report::ExecCreated { process } | Report::ExecStarted { process } => {
            format!("a start of process {process}")
        }
        Report::ExecFailed { process, .. } => format!("a failure of process {process}"),
        Report::Answer { .. } => "an answer".to_owned(),
        Report::OutOfMemory => "a lack of memory".to_owned(),
    }
}

/// Waits for any of `fds`, at most for `timeout`; says which are ready.
pub(crate) fn wait_for<const N: usize>(
    fds: [(BorrowedFd, PollFlags); N],
    timeout: Option<Duration>,
) -> Result<[bool; N], Error> {
    let timeout = timeout.map(|t| Timespec {
        tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(t.subsec_nanos()),
    });
    let mut polled = fds.map(|(fd, events)| PollFd::from_borrowed_fd(fd, events));
    match poll(&mut polled, timeout.as_ref()) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok([false; N]),
        Err(error) => return Err(Error::host("wait for events")(error)),
    }
    Ok(polled.map(|fd| !fd.revents().is_empty()))
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
