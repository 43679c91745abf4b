//! `run`: create, start, and, unless it is to run in the background, wait and
//! delete.

use rustix::event::PollFlags;
use rustix::process::Signal as HostSignal;

use crate::Error;
use crate::create::{Born, CreateRequest, Telling, bring_up};
use crate::monitor::FromMonitor;
use crate::session::wait_for;
use crate::signals::{Signal, Signals};
use crate::state::Root;
use crate::terminal::RawTerminal;
use crate::verbs::start_created;

/// What was decided about a run.
#[derive(Debug, Clone)]
pub struct RunRequest {
    /// The container.
    pub create: CreateRequest,
    /// Leave it running.
    pub detach: bool,
    /// Keep its state after its end.
    pub keep: bool,
}

/// Runs the container. Its exit code, or 0 if it runs in the background.
pub fn run(request: &RunRequest, telling: Telling) -> Result<u8, Error> {
    let signals = Signals::block().map_err(Error::host("receive signals"))?;
    let mut born = bring_up(&request.create, telling, &signals, !request.detach)?;
    born.or_undo(born.hand_over(&request.create))?;
    if request.detach {
        born.or_undo(start(&born, request))?;
        return Ok(0);
    }
    let raw = (born.has_terminal).then(|| RawTerminal::enter(rustix::stdio::stdin()));
    let raw = born.or_undo(raw.transpose())?;
    let result = start(&born, request).and_then(|()| attend(&mut born, &signals));
    drop(raw);
    if result.is_err() {
        // It may be that the monitor has not noticed.
        born.monitor.signal(HostSignal::KILL);
        born.monitor.wait()?;
    }
    if !request.keep {
        born.forget();
    }
    result
}

fn start(born: &Born, request: &RunRequest) -> Result<(), Error> {
    let root = Root::make(&request.create.root)?;
    start_created(&root.container(&born.record.id)?)
}

/// Passes signals on until the monitor has ended; its exit code.
fn attend(born: &mut Born, signals: &Signals) -> Result<u8, Error> {
    let mut talks = true;
    let mut failure = None;
    loop {
        let signal = (signals.fd(), PollFlags::IN);
        let end = (born.monitor.pidfd(), PollFlags::IN);
        // One that has hung up says so again and again.
        let [signalled, ended, said] = if talks {
            let word = (born.monitor.progress.fd(), PollFlags::IN);
            wait_for([signal, end, word], None)?
        } else {
            let [signalled, ended] = wait_for([signal, end], None)?;
            [signalled, ended, false]
        };
        if signalled {
            forward(born, signals);
        }
        if said {
            match born.monitor.progress.hear() {
                Ok(FromMonitor::Failed { line, code }) => {
                    failure = Some(Error::Reported { line, code });
                }
                Ok(_) => {}
                Err(_) => talks = false,
            }
        } else if ended {
            let code = born.monitor.wait()?;
            return failure.map_or(Ok(code), Err);
        }
    }
}

fn forward(born: &Born, signals: &Signals) {
    while let Some(signal) = signals.take() {
        let number = match signal {
            Signal::Forward(number) => i32::from(number),
            Signal::Resize => libc::SIGWINCH,
        };
        if let Some(signal) = HostSignal::from_named_raw(number) {
            born.monitor.signal(signal);
        }
    }
}
