//! `vmrun ps`.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use std::time::SystemTime;

use serde_json::json;
use vmrun_runtime::processes::{processes, table};
use vmrun_runtime::state::Container;

use super::args::ListFormat;
use super::{FAILED, tell};

/// As runc has them.
#[derive(Debug, clap::Args)]
pub struct PsArgs {
    /// json has pids of the host, table those of the guest
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub format: ListFormat,
    /// The container; options of ps(1) behind it are accepted, and the columns stay
    #[arg(value_name = "ID", trailing_var_arg = true, required = true)]
    pub words: Vec<OsString>,
}

impl PsArgs {
    /// The container.
    pub fn id(&self) -> String {
        // What is no text is no id either.
        let id = self.words.first().map(|id| id.to_string_lossy());
        id.unwrap_or_default().into_owned()
    }
}

/// Prints who runs in the container.
pub fn run(container: &Container, format: ListFormat) -> ExitCode {
    let processes = match processes(container) {
        Ok(processes) => processes,
        Err(error) => {
            tell(&error);
            return ExitCode::from(FAILED);
        }
    };
    let text = match format {
        ListFormat::Json => format!("{}\n", json!(processes.host_pids)),
        ListFormat::Table => table(&processes.guest, SystemTime::now()),
    };
    // Whoever closed stdout does not want to know.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}
