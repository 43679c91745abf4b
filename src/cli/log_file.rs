//! The log: lines as runc writes them, because engines read them.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use log::{Level, LevelFilter, Log, Metadata, Record};
use serde_json::json;

use super::args::LogFormat;
use super::settings::LogSettings;

/// The log cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("log {path:?}")]
pub struct LogError {
    path: PathBuf,
    source: io::Error,
}

/// The file system server logs what a guest sends it, as often and as long as the
/// guest likes: its answer to the guest says enough.
const GUEST_DRIVEN: &str = "fuse_backend_rs";

struct Logger {
    /// `None` is stderr.
    file: Option<File>,
    format: LogFormat,
}

/// Opens the log and makes it that of the process. Nothing that is worth a line
/// goes to stderr: that is the container's.
pub fn open(settings: &LogSettings) -> Result<(), LogError> {
    let level = match (&settings.file, settings.debug) {
        (_, true) => LevelFilter::Debug,
        (Some(_), false) => LevelFilter::Warn,
        (None, false) => return Ok(()),
    };
    let file = settings.file.as_ref().map(|path| {
        let opened = OpenOptions::new().append(true).create(true).open(path);
        opened.map_err(|source| LogError {
            path: path.clone(),
            source,
        })
    });
    let logger = Logger {
        file: file.transpose()?,
        format: settings.format,
    };
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(level);
    }
    Ok(())
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        if metadata.target().starts_with(GUEST_DRIVEN) {
            return false;
        }
        // On stderr the edge tells errors itself.
        self.file.is_some() || metadata.level() > Level::Error
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = record.args().to_string();
        let line = line(self.format, record.level(), &text, SystemTime::now());
        // One write, so that lines of several processes do not mix. There is
        // nowhere to tell that it failed.
        let _ = match &self.file {
            Some(file) => Write::write_all(&mut &*file, line.as_bytes()),
            None => io::stderr().write_all(line.as_bytes()),
        };
    }

    fn flush(&self) {}
}

fn line(format: LogFormat, level: Level, text: &str, now: SystemTime) -> String {
    let time = humantime::format_rfc3339_seconds(now).to_string();
    let level = match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    match format {
        LogFormat::Json => format!("{}\n", json!({"level": level, "msg": text, "time": time})),
        LogFormat::Text => format!("time={} level={level} msg={}\n", json!(time), json!(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn lines_are_runcs() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        assert_eq!(
            line(LogFormat::Json, Level::Error, "a \"b\"\n", now),
            "{\"level\":\"error\",\"msg\":\"a \\\"b\\\"\\n\",\"time\":\"2023-11-14T22:13:20Z\"}\n"
        );
        assert_eq!(
            line(LogFormat::Text, Level::Warn, "a", now),
            "time=\"2023-11-14T22:13:20Z\" level=warning msg=\"a\"\n"
        );
    }

    #[test]
    fn guests_do_not_fill_the_log() {
        let logger = Logger {
            file: tempfile::tempfile().ok(),
            format: LogFormat::Text,
        };
        let target = |target| {
            Metadata::builder()
                .target(target)
                .level(Level::Error)
                .build()
        };
        assert!(!logger.enabled(&target("fuse_backend_rs::api::server")));
        assert!(logger.enabled(&target("vmrun_vm::machine")));
    }

    #[test]
    fn a_log_that_cannot_be_opened() {
        let settings = LogSettings {
            file: Some("/nonexistent/log".into()),
            format: LogFormat::Text,
            debug: false,
        };
        let error = open(&settings).unwrap_err();
        assert_eq!(error.to_string(), "log \"/nonexistent/log\"");
    }
}
