//! What is told while something takes long: a line that lives on a terminal, a
//! plain one elsewhere.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use vmrun_runtime::template::{Notices, Ongoing};

/// How often the line on a terminal is drawn anew.
const REDRAW: Duration = Duration::from_millis(100);

/// One write, so that lines of several processes do not mix. There is nowhere to
/// tell that it failed.
fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("vmrun: {line}\n").as_bytes());
}

/// Tells it on stderr.
pub struct Stderr;

impl Notices for Stderr {
    fn warn(&self, line: &str) {
        log::warn!("{line}");
        say(&format!("warning: {line}"));
    }

    fn begin(&self, line: &str) -> Ongoing {
        if !std::io::stderr().is_terminal() {
            say(line);
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

/// Tells it in the log only: stderr is the container's.
pub struct Log;

impl Notices for Log {
    fn warn(&self, line: &str) {
        log::warn!("{line}");
    }

    fn begin(&self, line: &str) -> Ongoing {
        log::debug!("{line}");
        Ongoing::silent()
    }
}
