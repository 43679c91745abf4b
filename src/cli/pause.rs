//! `vmrun pause` and `vmrun resume`.

use std::process::ExitCode;

use vmrun_runtime::pausing;
use vmrun_runtime::state::Container;

use super::{FAILED, tell};

/// Stops all processes of the container.
pub fn pause(container: &Container) -> ExitCode {
    done(pausing::pause(container))
}

/// Lets them go on.
pub fn resume(container: &Container) -> ExitCode {
    done(pausing::resume(container))
}

fn done(result: Result<(), vmrun_runtime::Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error);
            ExitCode::from(FAILED)
        }
    }
}
