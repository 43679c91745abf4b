//! The command line in two stages: [`args`] is what was typed, [`settings`] what
//! was decided; then one file for each verb.

mod args;
mod check;
mod containers;
mod events;
mod exec;
mod explain;
mod features;
mod log_file;
mod pause;
mod progress;
mod ps;
mod run;
mod settings;
mod size;
mod spec;
mod template;
mod update;

use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Instant;

use vmrun_runtime::error::chain;
use vmrun_runtime::state::{Container, Id};
use vmrun_runtime::verbs;

use settings::{Action, Of, Settings, UsageError};

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
        Action::Exec { args, root } => exec::run(*args, root),
        Action::Ps { of, format } => on(&of, |container| ps::run(container, format)),
        Action::Pause(of) => on(&of, pause::pause),
        Action::Resume(of) => on(&of, pause::resume),
        Action::Update { of, limits } => on(&of, |container| update::run(container, &limits)),
        Action::Events { of, every } => on(&of, |container| events::run(container, every)),
        Action::Create(request) => run::create(&request),
        Action::Start(of) => containers::start(of),
        Action::State(of) => containers::state(of),
        Action::Kill { of, signal, all } => containers::kill(of, &signal, all),
        Action::Delete { of, force } => containers::delete(of, force),
        Action::List {
            root,
            format,
            quiet,
        } => containers::list(&root, &format, quiet),
        Action::Unsupported(verb) => containers::unsupported(verb),
        Action::Features => features::features(),
        Action::Spec { bundle, rootless } => spec::spec(&bundle, rootless),
        Action::Explain { bundle } => explain::explain(&bundle),
        Action::CreateTemplate(request) => template::create(&request),
        Action::ListTemplates { folder, format } => template::list(&folder, format),
        Action::RemoveTemplates { folder, keys } => template::remove(&folder, &keys),
        Action::PruneTemplates { folder, all } => template::prune(&folder, all),
    }
}

/// Does something with a container that exists.
fn on(of: &Of, verb: impl FnOnce(&Container) -> ExitCode) -> ExitCode {
    let id = Id::new(of.id.as_str()).map_err(vmrun_runtime::Error::from);
    match id.and_then(|id| verbs::find(&of.root, &id)) {
        Ok(container) => verb(&container),
        Err(error) => {
            tell(&error);
            ExitCode::from(FAILED)
        }
    }
}

/// The whole chain of an error as one line on stderr, and in the log.
fn tell(error: &dyn Error) {
    tell_line(&chain(error));
}

fn tell_line(line: &str) {
    log::error!("{line}");
    eprintln!("vmrun: {line}");
}
