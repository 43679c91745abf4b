//! The end of a container: its output, and who still waits for something.

use super::messages::Reply;
use super::poll::Ready;
use super::serve::{KILLED, Monitor, refusal, wrong};
use super::state::{NOT_RUNNING, State};
use crate::Error;
use crate::machine::Guest;

impl<G: Guest> Monitor<'_, G> {
    /// Serves until all output of the container has arrived, or the machine has
    /// ended, or somebody has had enough of a reader that does not read.
    pub fn drain(&mut self) -> Result<(), Error> {
        if self.given_up {
            return Ok(());
        }
        while let Some(ready) = self.undrained()? {
            if ready.ended {
                return Ok(());
            }
            if ready.agent {
                self.hear_agent()?;
            }
        }
        Ok(())
    }

    /// The machine, to be ended: nothing comes of it any more but what has left it.
    pub fn take_guest(&mut self) -> Option<G> {
        self.agent = None;
        self.guest.take()
    }

    /// The machine is gone: serves until what had left it has been written.
    pub fn flush(&mut self) -> Result<(), Error> {
        while self.undrained()?.is_some() {}
        Ok(())
    }

    /// A turn that waits for output; nothing if there is none to wait for any more.
    fn undrained(&mut self) -> Result<Option<Ready>, Error> {
        if self.relays.is_none() {
            return Ok(None);
        }
        let ready = self.poll(None)?;
        let signals = std::iter::from_fn(|| self.signals.take());
        if ready.outputs || { signals }.any(|s| s.ends_start().is_some()) {
            self.relays = None;
            return Ok(None);
        }
        self.serve_visitors(&ready)?;
        Ok(Some(ready))
    }

    /// The container is over: whoever still waits is told so. With an error that is
    /// why.
    pub fn part(&mut self, error: Option<&Error>) {
        self.state = State::Stopped;
        let refusal = match error {
            Some(error) => refusal(error),
            None => wrong(NOT_RUNNING),
        };
        let reply = Reply::Refused(refusal);
        let waiting = self.asks.take_all().into_iter().chain(self.starter.take());
        for key in waiting.chain(self.execs.unstarted(&self.door)) {
            let _ = self.door.tell(key, &reply);
        }
        for key in self.execs.take_all(&self.door) {
            let _ = self.door.tell(key, &Reply::Exited(KILLED));
        }
    }
}
