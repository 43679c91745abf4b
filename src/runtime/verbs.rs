//! The verbs on a container that exists: `start`, `kill`, `delete`, and what `state`
//! and `list` tell.

use std::path::Path;
use std::time::Duration;

use crate::error::chain;
use crate::hooks::{self, Point};
use crate::monitor::client::ClientError;
use crate::monitor::messages::Call;
use crate::monitor::{Event, State};
use crate::state::{Claim, Container, Id, Root, StateError, Status};
use crate::state_json::state_json;
use crate::{Error, signal_name, state};

const SIGKILL: u8 = 9;

/// How long a monitor may take to end once it was told to, or its container has ended
/// and only its output is still on its way.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// A container and what it is doing.
#[derive(Debug)]
pub struct Described {
    /// What is kept of it.
    pub record: state::Record,
    /// What it is doing.
    pub status: Status,
}

/// The container `id` below the folder `root`.
pub fn find(root: &Path, id: &Id) -> Result<Container, Error> {
    let root = Root::open(root)?.ok_or(StateError::Unknown)?;
    Ok(root.container(id)?)
}

/// `state`.
pub fn describe(root: &Path, id: &Id) -> Result<Described, Error> {
    let container = find(root, id)?;
    Ok(Described {
        status: container.status()?,
        record: container.record().clone(),
    })
}

/// `list`: all containers, in order of their ids. What cannot be read is passed over
/// with a warning, what is just being made or removed without.
pub fn list(root: &Path) -> Result<Vec<Described>, Error> {
    let mut list = Vec::new();
    let Some(root) = Root::open(root)? else {
        return Ok(list);
    };
    for id in root.ids()? {
        let container = match root.container(&id) {
            Ok(container) => container,
            Err(StateError::Unknown) => continue,
            Err(error) => {
                log::warn!("{}", chain(&error));
                continue;
            }
        };
        let status = container.status().unwrap_or_else(|error| {
            log::warn!("container {id}: {}", chain(&error));
            // Its monitor lives.
            Status::Running
        });
        list.push(Described {
            record: container.record().clone(),
            status,
        });
    }
    Ok(list)
}

/// `start`.
pub fn start(root: &Path, id: &Id) -> Result<(), Error> {
    start_created(&find(root, id)?)
}

/// Starts a created container, and runs its poststart hooks. If one fails the
/// container is ended.
pub fn start_created(container: &Container) -> Result<(), Error> {
    let stopped = || State::Stopped.after(Event::Start).err().map(Error::from);
    match order(container, &Call::Start) {
        Err(Error::Monitor(ClientError::NotRunning)) => return stopped().map_or(Ok(()), Err),
        Err(error) => {
            see_it_end(container)?;
            return Err(error);
        }
        Ok(()) => {}
    }
    let record = container.record();
    let state = state_json(record, Status::Running);
    hooks::run(Point::Poststart, &record.hooks.poststart, &state).map_err(|error| {
        let kill = Call::Kill {
            signal: SIGKILL,
            all: false,
        };
        if let Err(error) = order(container, &kill) {
            log::warn!("cannot end the container: {}", chain(&error));
        }
        error.into()
    })
}

/// Waits for the end of a container that could not be started. Its caller takes it for
/// created until its process has ended, and deletes nothing before.
fn see_it_end(container: &Container) -> Result<(), Error> {
    match container.status() {
        Ok(Status::Stopped) | Err(ClientError::NotRunning) => wait_for_end(container),
        _ => Ok(()),
    }
}

/// `kill`: sends a signal, named as [`signal_name::number`] has it, to the container's
/// init, or to all its processes; of those there may be none.
pub fn kill(root: &Path, id: &Id, signal: &str, all: bool) -> Result<(), Error> {
    let container = find(root, id)?;
    let signal = signal_name::number(signal)?;
    match order(&container, &Call::Kill { signal, all }) {
        Err(Error::Monitor(ClientError::NotRunning)) if all => Ok(()),
        Err(Error::Monitor(ClientError::Silent(_))) if signal == SIGKILL => end_monitor(&container),
        other => other,
    }
}

/// `delete`: forgets a container that has ended, or was never started, or, with
/// `force`, whatever it is doing.
pub fn delete(root: &Path, id: &Id, force: bool) -> Result<(), Error> {
    let unknown = || {
        if force {
            Ok(())
        } else {
            Err(StateError::Unknown.into())
        }
    };
    let Some(root) = Root::open(root)? else {
        return unknown();
    };
    let container = match root.container(id) {
        Ok(container) => container,
        // Of a `create` that was killed there may be a folder.
        Err(StateError::Unknown) => {
            return if root.remove_broken(id)? {
                Ok(())
            } else {
                unknown()
            };
        }
        Err(error) => return Err(error.into()),
    };
    if force {
        end_monitor(&container)?;
    } else {
        end(&container)?;
    }
    match root.claim(&container)? {
        Some(claim) => forget(&container, claim),
        // Somebody else was faster.
        None => unknown(),
    }
}

/// Waits for the end of a container that may be deleted.
fn end(container: &Container) -> Result<(), Error> {
    match container.status()? {
        // What is left of it is its output.
        Status::Stopped => wait_for_end(container),
        Status::Created => end_monitor(container),
        status => Err(Error::NotStopped {
            id: container.id().clone(),
            status,
        }),
    }
}

fn wait_for_end(container: &Container) -> Result<(), Error> {
    let failed = "wait for the container's monitor";
    let Some(pidfd) = container
        .record()
        .monitor
        .open()
        .map_err(Error::host(failed))?
    else {
        return Ok(());
    };
    if state::has_ended_within(&pidfd, END_DEADLINE).map_err(Error::host(failed))? {
        return Ok(());
    }
    log::warn!("nobody reads the container's output, the rest is lost");
    end_monitor(container)
}

/// Ends the monitor, and with it the machine.
fn end_monitor(container: &Container) -> Result<(), Error> {
    let ended = container.record().monitor.kill(END_DEADLINE);
    ended.map_err(Error::host("end the container's monitor"))
}

/// Removes what is left of a container whose monitor has ended.
fn forget(container: &Container, claim: Claim) -> Result<(), Error> {
    let record = container.record();
    if let Some(cgroup) = &record.cgroup {
        cgroup.remove()?;
    }
    claim.remove()?;
    let state = state_json(record, Status::Stopped);
    hooks::run_each(Point::Poststop, &record.hooks.poststop, &state);
    Ok(())
}

fn order(container: &Container, call: &Call) -> Result<(), Error> {
    if !container.is_alive() {
        return Err(ClientError::NotRunning.into());
    }
    let mut client = container.connect()?;
    Ok(client.order(call)?)
}
