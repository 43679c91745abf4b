//! The process of the host that stands for one in the guest.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::event::PollFlags;
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use vmrun_protocol::message::ExitStatus;
use vmrun_protocol::plan::{ProcessPlan, WindowSize};

use super::terminal::HostSide;
use super::{ExecError, ExecRequest};
use crate::Error;
use crate::handover;
use crate::monitor::client::{Client, ClientError};
use crate::monitor::messages::{Call, Reply};
use crate::session::wait_for;
use crate::signals::{Signal, Signals};
use crate::state::Container;
use crate::stdio::{GuestStreams, Relays};

/// What a process reports whose container has ended: its init's end kills all.
const KILLED: ExitStatus = ExitStatus::Signal(9);

/// A process that is set up in the guest and does not run before [`Proxy::run`].
pub struct Proxy {
    client: Client,
    signals: Signals,
    host: HostSide,
    /// Until they are relayed.
    guest: Option<GuestStreams>,
    /// What the guest was told last.
    size: Option<WindowSize>,
}

impl Proxy {
    /// Asks `container` for the process. Signals of this process are its own from
    /// now on; there is one thread.
    pub fn set_up(
        request: &ExecRequest,
        container: &Container,
        mut plan: ProcessPlan,
    ) -> Result<Self, ExecError> {
        let signals = Signals::block().map_err(Error::host("receive signals"))?;
        let host = HostSide::make(request, &mut plan)?;
        let client = container.connect()?;
        Self::ask(client, signals, host, plan, request.ignore_paused)
    }

    fn ask(
        mut client: Client,
        signals: Signals,
        host: HostSide,
        plan: ProcessPlan,
        ignore_paused: bool,
    ) -> Result<Self, ExecError> {
        let size = plan.terminal;
        let call = Call::Exec {
            plan: Box::new(plan),
            ignore_paused,
        };
        let (reply, descriptors) = client.ask_with_descriptors(&call)?;
        let streams = match reply {
            Reply::ExecCreated => GuestStreams::from_descriptors(descriptors),
            _ => None,
        };
        let guest = streams.filter(|s| s.is_terminal() == size.is_some());
        Ok(Self {
            guest: Some(guest.ok_or(ClientError::Unexpected)?),
            client,
            signals,
            host,
            size,
        })
    }

    /// Gives a descriptor of this process away.
    pub fn give_pidfd(&self, socket: Option<&Path>) -> Result<(), ExecError> {
        let Some(path) = socket else { return Ok(()) };
        let pidfd = pidfd_open(getpid(), PidfdFlags::empty());
        let pidfd = pidfd.map_err(Error::host("open a descriptor of itself"))?;
        Ok(handover::send_pidfd(path, pidfd.as_fd())?)
    }

    /// Runs the process to its end. `started` is called once its program runs; if
    /// that fails, the process is killed.
    pub fn run(
        mut self,
        started: impl FnOnce(&Self) -> Result<(), ExecError>,
    ) -> Result<u8, ExecError> {
        let raw = self.host.raw()?;
        let guest = self.guest.take().ok_or(ClientError::Unexpected)?;
        let relays = Relays::over(guest, self.host.streams()?)?;
        self.await_start()?;
        started(&self)?;
        self.resize()?;
        let status = self.await_end()?;
        // What it has written arrives, unless the reader does not read and somebody
        // has had enough of that.
        relays.finish(&self.signals)?;
        drop(raw);
        Ok(status.shell_code())
    }

    fn await_start(&mut self) -> Result<(), ExecError> {
        loop {
            let [talk, signalled] = self.wait()?;
            if signalled
                && let Some(number) =
                    std::iter::from_fn(|| self.signals.take()).find_map(Signal::ends_start)
            {
                return Err(Error::Interrupted(number).into());
            }
            if talk {
                return match self.client.receive()? {
                    Reply::ExecStarted => Ok(()),
                    _ => Err(ClientError::Unexpected.into()),
                };
            }
        }
    }

    fn await_end(&mut self) -> Result<ExitStatus, ExecError> {
        loop {
            let [talk, signalled] = self.wait()?;
            if signalled {
                self.pass_signals_on()?;
            }
            if talk {
                match self.client.receive() {
                    Ok(Reply::Exited(status)) => return Ok(status),
                    Ok(_) => return Err(ClientError::Unexpected.into()),
                    Err(ClientError::NotRunning) => return Ok(KILLED),
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }

    fn wait(&self) -> Result<[bool; 2], Error> {
        let fds = [
            (self.client.fd(), PollFlags::IN),
            (self.signals.fd(), PollFlags::IN),
        ];
        wait_for(fds, None)
    }

    fn pass_signals_on(&mut self) -> Result<(), ExecError> {
        while let Some(signal) = self.signals.take() {
            match signal {
                Signal::Forward(number) => self.say(&Call::Signal(number))?,
                Signal::Resize => self.resize()?,
            }
        }
        Ok(())
    }

    /// Tells the guest the size of the terminal, if that is another now.
    fn resize(&mut self) -> Result<(), ExecError> {
        let size = self.host.size();
        match size {
            Some(size) if self.size != Some(size) => {
                self.size = Some(size);
                self.say(&Call::Resize(size))
            }
            _ => Ok(()),
        }
    }

    /// A monitor that has ended says so when it is listened to.
    fn say(&mut self, call: &Call) -> Result<(), ExecError> {
        match self.client.send(call) {
            Err(ClientError::NotRunning) => Ok(()),
            other => Ok(other?),
        }
    }
}

#[cfg(test)]
#[path = "proxy_tests.rs"]
mod tests;
