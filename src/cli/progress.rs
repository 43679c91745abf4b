//! What is told while something takes long: a line that lives on a terminal, a
//! plain one elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use vmrun_runtime::template::{Notices, Ongoing};

/// How often the line on a terminal is drawn anew.
const REDRAW: Duration = Duration::from_millis(100);

/// Tells it on stderr.
pub struct Stderr;

impl Notices for Stderr {
    fn warn(&self, line: &str) {
        log::warn!("{line}");
        eprintln!("vmrun: warning: {line}");
    }

    fn begin(&self, line: &str) -> Ongoing {
        if !std::io::stderr().is_terminal() {
            eprintln!("vmrun: {line}");
            return Ongoing::silent();
        }
        let bar = ProgressBar::new_spinner().with_message(line.to_owned());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(REDRAW);
        Ongoing::new(move || bar.finish_and_clear())
    }
}
