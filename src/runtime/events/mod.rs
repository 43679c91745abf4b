//! `vmrun events`: what the container uses, again and again, and whenever the guest's
//! kernel kills one of its processes for lack of memory. Lines of JSON with runc's
//! keys.

mod statistics;

use std::io;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use serde_json::{Value, json};

use crate::Error;
use crate::host_cgroup::HostStatistics;
use crate::monitor::client::{Client, ClientError};
use crate::monitor::messages::{Call, Reason, Reply};
use crate::session::wait_for;
use crate::state::Container;

/// Why there are no events.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// It has ended.
    #[error("container with id {0} is not running")]
    NotRunning(String),
    /// The monitor.
    #[error(transparent)]
    Monitor(#[from] ClientError),
    /// Somebody does not want to read them any more.
    #[error("cannot write events")]
    Write(#[source] io::Error),
    /// The host.
    #[error(transparent)]
    Host(#[from] Error),
}

/// Where lines go.
pub type Sink<'a> = &'a mut dyn FnMut(&str) -> io::Result<()>;

/// What the container uses now, as one line.
pub fn statistics(container: &Container, sink: Sink) -> Result<(), EventsError> {
    if !container.is_alive() {
        return Err(not_running(container));
    }
    match tell_statistics(container, sink) {
        Err(EventsError::Monitor(ClientError::NotRunning)) => Err(not_running(container)),
        other => other,
    }
}

/// The same each `interval`, and a line for each lack of memory, until the container
/// has ended.
pub fn stream(container: &Container, interval: Duration, sink: Sink) -> Result<(), EventsError> {
    if !container.is_alive() {
        return Err(not_running(container));
    }
    let mut watch = container.connect()?;
    watch.send(&Call::Watch)?;
    match follow(container, &mut watch, interval, sink) {
        Err(EventsError::Monitor(ClientError::NotRunning)) => Ok(()),
        other => other,
    }
}

fn follow(
    container: &Container,
    watch: &mut Client,
    interval: Duration,
    sink: Sink,
) -> Result<(), EventsError> {
    let mut next = Instant::now() + interval;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        if left.is_zero() {
            tell_statistics(container, sink)?;
            next = Instant::now() + interval;
            continue;
        }
        let [happened] = wait_for([(watch.fd(), PollFlags::IN)], Some(left))?;
        if happened {
            match watch.receive()? {
                Reply::OutOfMemory => {
                    let event = json!({"type": "oom", "id": container.id().as_str()});
                    sink(&event.to_string()).map_err(EventsError::Write)?;
                }
                _ => return Err(ClientError::Unexpected.into()),
            }
        }
    }
}

fn tell_statistics(container: &Container, sink: Sink) -> Result<(), EventsError> {
    let asked = container.connect()?.ask(&Call::Statistics);
    let files = match asked {
        Ok(Reply::Statistics(files)) => files,
        Ok(_) => return Err(ClientError::Unexpected.into()),
        // Its monitor is about to end.
        Err(ClientError::Refused(refusal)) if refusal.reason == Reason::State => {
            return Err(ClientError::NotRunning.into());
        }
        Err(error) => return Err(error.into()),
    };
    let record = container.record();
    let host = match &record.cgroup {
        Some(cgroup) => cgroup.statistics(),
        None => HostStatistics::of_process(record.monitor.pid),
    };
    let event = event(container.id().as_str(), statistics::data(&files, &host));
    sink(&event.to_string()).map_err(EventsError::Write)
}

fn event(id: &str, data: Value) -> Value {
    json!({"type": "stats", "id": id, "data": data})
}

fn not_running(container: &Container) -> EventsError {
    EventsError::NotRunning(container.id().to_string())
}
