//! `vmrun pause` and `vmrun resume`: all processes of the container stop where they
//! are. The machine goes on, and so does whoever asks about it.

use crate::Error;
use crate::monitor::client::ClientError;
use crate::monitor::messages::Call;
use crate::state::Container;

/// Stops all processes; returns once they stand.
pub fn pause(container: &Container) -> Result<(), Error> {
    order(container, &Call::Pause)
}

/// Lets them go on.
pub fn resume(container: &Container) -> Result<(), Error> {
    match order(container, &Call::Resume) {
        // As runc says of one that has ended.
        Err(Error::Monitor(ClientError::NotRunning)) => Err(Error::NotPaused),
        other => other,
    }
}

fn order(container: &Container, call: &Call) -> Result<(), Error> {
    if !container.is_alive() {
        return Err(ClientError::NotRunning.into());
    }
    Ok(container.connect()?.order(call)?)
}
