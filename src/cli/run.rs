//! `vmrun run`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use vmrun_runtime::{RunRequest, Timeline};

use super::progress::Stderr;
use super::tell;

/// Runs a container to its end; the exit code is the container's, or says what
/// kept it from running.
pub fn run(request: &RunRequest, trace: Option<&Path>, started: Instant) -> ExitCode {
    let timeline = match trace {
        Some(_) => Timeline::new(started),
        None => Timeline::disabled(),
    };
    let result = vmrun_runtime::run(request, &Stderr, &timeline);
    // A start that failed is worth a timeline most of all.
    if let Some(path) = trace
        && let Err(error) = timeline.write(path)
    {
        eprintln!("vmrun: trace {path:?}: {error}");
    }
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tell(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
