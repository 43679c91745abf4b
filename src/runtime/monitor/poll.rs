//! What the monitor waits for.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::door::Key;
use super::serve::Monitor;
use super::state::State;
use crate::Error;
use crate::machine::Guest;

/// What has happened.
#[derive(Debug, Default)]
pub struct Ready {
    pub(super) signals: bool,
    pub(super) ended: bool,
    pub(super) agent: bool,
    pub(super) listener: bool,
    pub(super) outputs: bool,
    pub(super) other: bool,
    pub(super) visitors: Vec<Key>,
}

impl<G: Guest> Monitor<'_, G> {
    /// Waits for something, or until the next time limit.
    pub(super) fn poll(&self, other: Option<BorrowedFd>) -> Result<Ready, Error> {
        const SIGNALS: usize = 0;
        const LISTENER: usize = 1;
        const FIXED: usize = 2;
        let (listener, open) = self.door.listener();
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.signals.fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(listener, open),
        ];
        let agent = self
            .agent
            .as_ref()
            .map(|agent| (agent.fd(), agent.interest()));
        let relays = self
            .relays
            .as_ref()
            .filter(|_| self.state == State::Stopped);
        let outputs = relays.map(|relays| (relays.outputs_fd(), PollFlags::IN));
        let other = other.map(|fd| (fd, PollFlags::IN));
        let guest = self.guest.as_ref();
        let ended = guest.map(|guest| (guest.ended_fd(), PollFlags::IN));
        let optional = [ended, agent, outputs, other];
        fds.extend(
            optional
                .iter()
                .flatten()
                .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)),
        );
        let mut keys = Vec::new();
        for (key, fd, flags) in self.door.visitors() {
            keys.push(key);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        let timeout = self
            .time_left()
            .map(Timespec::try_from)
            .and_then(Result::ok);
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(Error::host("wait for events")(error)),
        }
        let is_ready = |fd: &PollFd| !fd.revents().is_empty();
        let mut rest = fds[FIXED..].iter().map(is_ready);
        let [ended, agent, outputs, other] =
            optional.map(|o| o.is_some() && rest.next() == Some(true));
        Ok(Ready {
            signals: is_ready(&fds[SIGNALS]),
            ended,
            listener: is_ready(&fds[LISTENER]),
            agent,
            outputs,
            other,
            visitors: keys
                .into_iter()
                .zip(rest)
                .filter(|(_, r)| *r)
                .map(|(k, _)| k)
                .collect(),
        })
    }

    fn time_left(&self) -> Option<Duration> {
        let next = self.start_by.into_iter().chain(self.kill_by).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }
}
