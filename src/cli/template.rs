//! `vmrun template`.

use std::fmt::Write;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use vmrun_runtime::template::upkeep::{self, Removal, Row};
use vmrun_runtime::template::{self, CreateRequest};

use super::args::ListFormat;
use super::progress::Stderr;
use super::{FAILED, tell};

/// Makes the templates that were asked for; prints their keys.
pub fn create(request: &CreateRequest) -> ExitCode {
    match template::create(request, &Stderr) {
        Ok(names) => {
            let mut text = String::new();
            for (name, made) in names {
                let what = if made { "made" } else { "there already" };
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{name} {what}");
            }
            print(&text)
        }
        Err(error) => {
            tell(&error);
            match error {
                template::Unavailable::Start(error) => ExitCode::from(error.exit_code()),
                _ => ExitCode::from(FAILED),
            }
        }
    }
}

/// Prints all templates.
pub fn list(folder: &Path, format: ListFormat) -> ExitCode {
    let rows = match upkeep::list(folder) {
        Ok(rows) => rows,
        Err(error) => {
            tell(&error);
            return ExitCode::from(FAILED);
        }
    };
    match format {
        ListFormat::Table => print(&table(&rows, SystemTime::now())),
        ListFormat::Json => {
            let rows: Vec<_> = rows.iter().map(as_json).collect();
            print(&format!("{:#}\n", Value::Array(rows)))
        }
    }
}

/// Removes the templates with these keys; fails if one of them stays.
pub fn remove(folder: &Path, keys: &[String]) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for key in keys {
        let shown: String = key.chars().take(80).collect();
        let problem = match upkeep::remove(folder, key) {
            Ok(Removal::Removed) => continue,
            Ok(Removal::Unknown) => format!("no template {shown:?} in {folder:?}"),
            Ok(Removal::Busy) => format!("template {shown} is being made"),
            Err(error) => vmrun_runtime::error::chain(&error),
        };
        log::error!("{problem}");
        eprintln!("vmrun: {problem}");
        code = ExitCode::from(FAILED);
    }
    code
}

/// Removes what is of no use, or everything; prints what and why.
pub fn prune(folder: &Path, all: bool) -> ExitCode {
    match upkeep::prune(folder, all) {
        Ok(rows) => {
            let mut text = String::new();
            for row in rows {
                let why = row.stale.as_deref().unwrap_or("--all");
                let _ = writeln!(text, "{} removed: {why}", row.name);
            }
            print(&text)
        }
        Err(error) => {
            tell(&error);
            ExitCode::from(FAILED)
        }
    }
}

fn print(text: &str) -> ExitCode {
    // Whoever closed stdout does not want to know.
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

const WIDTH_KEY: usize = 35;

fn table(rows: &[Row], now: SystemTime) -> String {
    let mut text = format!(
        "{:<WIDTH_KEY$} {:>9} {:>5} {:>9} {:>9} {:>9}  STATE\n",
        "KEY", "MEMORY", "VCPUS", "STORED", "MADE", "USED"
    );
    for row in rows {
        let inputs = row.inputs.as_ref();
        let memory = inputs.map_or("?".to_owned(), |i| format!("{} MiB", i.mem_size_mib));
        let vcpus = inputs.map_or("?".to_owned(), |i| i.vcpu_count.to_string());
        let stored = format!("{:.1} MiB", row.stored_bytes as f64 / f64::from(1 << 20));
        let _ = writeln!(
            text,
            "{:<WIDTH_KEY$} {memory:>9} {vcpus:>5} {stored:>9} {:>9} {:>9}  {}",
            row.name,
            age(row.made, now),
            age(row.used, now),
            row.stale.as_deref().unwrap_or("fits")
        );
    }
    text
}

/// How long ago, in its largest unit: `5m`.
fn age(then: Option<SystemTime>, now: SystemTime) -> String {
    const UNITS: [(u64, &str); 3] = [(86_400, "d"), (3600, "h"), (60, "m")];
    let Some(then) = then else {
        return "?".to_owned();
    };
    // Clocks may have been set back.
    let s = now.duration_since(then).unwrap_or(Duration::ZERO).as_secs();
    let unit = UNITS.iter().find(|(length, _)| s >= *length);
    unit.map_or(format!("{s}s"), |(length, name)| {
        format!("{}{name}", s / length)
    })
}

fn as_json(row: &Row) -> Value {
    let seconds = |time: Option<SystemTime>| {
        time.and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok())
            .map(|since| since.as_secs())
    };
    json!({
        "key": row.name,
        "memoryMiB": row.inputs.as_ref().map(|i| i.mem_size_mib),
        "vcpus": row.inputs.as_ref().map(|i| i.vcpu_count),
        "storedBytes": row.stored_bytes,
        "made": seconds(row.made),
        "lastUsed": seconds(row.used),
        "stale": row.stale,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(stale: Option<&str>) -> Row {
        Row {
            name: "0123456789abcdef0123456789abcdef.1".to_owned(),
            inputs: None,
            made: Some(SystemTime::UNIX_EPOCH),
            used: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(7000)),
            stored_bytes: 3 << 19,
            stale: stale.map(str::to_owned),
        }
    }

    #[test]
    fn a_line_each() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(7200);
        let text = table(&[row(None), row(Some("a file has changed"))], now);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("KEY "), "{text}");
        assert!(
            lines[1].ends_with("  1.5 MiB        2h        3m  fits"),
            "{text}"
        );
        assert!(lines[2].ends_with("  a file has changed"), "{text}");
        let columns: Vec<_> = lines.iter().map(|l| l.find(['S', 'f', 'a'])).collect();
        assert!(columns.iter().all(Option::is_some));
    }

    #[test]
    fn ages() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let ago = |s| age(Some(now - Duration::from_secs(s)), now);
        assert_eq!(ago(0), "0s");
        assert_eq!(ago(59), "59s");
        assert_eq!(ago(61), "1m");
        assert_eq!(ago(7199), "1h");
        assert_eq!(ago(200_000), "2d");
        assert_eq!(age(Some(now + Duration::from_secs(9)), now), "0s");
        assert_eq!(age(None, now), "?");
    }

    #[test]
    fn json_has_what_scripts_ask_for() {
        let json = as_json(&row(Some("gone")));
        assert_eq!(json["stale"], "gone");
        assert_eq!(json["made"], 0);
        assert_eq!(json["lastUsed"], 7000);
        assert_eq!(json["storedBytes"], 3 << 19);
        assert_eq!(json["memoryMiB"], Value::Null);
    }
}
