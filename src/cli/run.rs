//! `vmrun run` and `vmrun create`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use vmrun_runtime::template::Notices;
use vmrun_runtime::{CreateRequest, Error, RunRequest, Telling, Timeline};

use super::progress::{Log, Stderr};
use super::tell;

/// Runs a container to its end; the exit code is the container's, or says what
/// kept it from running.
pub fn run(request: &RunRequest, trace: Option<&Path>, started: Instant) -> ExitCode {
    let timeline = match trace {
        Some(_) => Timeline::new(started),
        None => Timeline::disabled(),
    };
    // A start that failed is worth a timeline most of all.
    let at_end = |timeline: &Timeline| {
        if let Some(path) = trace
            && let Err(error) = timeline.write(path)
        {
            eprintln!("vmrun: trace {path:?}: {error}");
        }
    };
    let notices: &dyn Notices = if request.detach { &Log } else { &Stderr };
    let result = vmrun_runtime::run(
        request,
        Telling {
            notices,
            timeline: &timeline,
            at_end: &at_end,
        },
    );
    exit_code(result)
}

/// Creates a container.
pub fn create(request: &CreateRequest) -> ExitCode {
    let telling = Telling {
        notices: &Log,
        timeline: &Timeline::disabled(),
        at_end: &|_| {},
    };
    exit_code(vmrun_runtime::create(request, telling).map(|()| 0))
}

fn exit_code(result: Result<u8, Error>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tell(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
