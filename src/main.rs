//! The command: parse, do, tell what went wrong once, exit code.

mod cli;

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let started = Instant::now();
    cli::run(std::env::args_os().collect(), started)
}
