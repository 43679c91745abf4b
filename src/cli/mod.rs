//! The command line in two stages: [`args`] is what was typed, [`settings`] what
//! was decided; then one file for each verb.

mod args;
mod check;
mod log_file;
mod progress;
mod run;
mod settings;
mod size;
mod template;

use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Instant;

use vmrun_runtime::error::chain;

use settings::{Action, Settings, UsageError};

/// Exit code of a wrong command line.
const USAGE: u8 = 2;
/// Exit code of any other error.
const FAILED: u8 = 1;

/// Runs the command `argv`; `started` is when the process did.
pub fn run(argv: Vec<OsString>, started: Instant) -> ExitCode {
    let settings = match args::parse(argv, std::path::Path::is_dir) {
        Ok(args) => Settings::decide(args),
        Err(error) if !error.use_stderr() => {
            // --help and --version. Nobody may be reading them.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => Err(UsageError::new(args::one_line(&error))),
    };
    let settings = match settings {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("vmrun: {error} (see vmrun --help)");
            return ExitCode::from(USAGE);
        }
    };
    if let Err(error) = log_file::open(&settings.log) {
        tell(&error);
        return ExitCode::from(FAILED);
    }
    match settings.action {
        Action::Check { json, guest_dir } => check::check(json, &guest_dir),
        Action::Run { request, trace } => run::run(&request, trace.as_deref(), started),
        Action::CreateTemplate(request) => template::create(&request),
        Action::ListTemplates { folder, format } => template::list(&folder, format),
        Action::RemoveTemplates { folder, keys } => template::remove(&folder, &keys),
        Action::PruneTemplates { folder, all } => template::prune(&folder, all),
    }
}

/// The whole chain of an error as one line on stderr, and in the log.
fn tell(error: &dyn Error) {
    let line = chain(error);
    log::error!("{line}");
    eprintln!("vmrun: {line}");
}
