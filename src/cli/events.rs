//! `vmrun events`.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use vmrun_runtime::events::{EventsError, statistics, stream};
use vmrun_runtime::state::Container;

use super::{FAILED, tell};

/// As runc has them.
#[derive(Debug, clap::Args)]
pub struct EventsArgs {
    /// How often statistics are printed
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = interval)]
    pub interval: Duration,
    /// Print statistics once
    #[arg(long)]
    pub stats: bool,
    /// The container
    #[arg(value_name = "ID")]
    pub id: String,
}

/// Durations as Go writes them (`1m30s`, `1.5s`, `500ms`).
fn interval(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, f64); 6] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
    ];
    let problem = || "must be a duration (5s, 1m30s, 500ms)".to_owned();
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, after) = rest.split_at(digits.ok_or_else(problem)?);
        let letters = after.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, after) = after.split_at(letters.unwrap_or(after.len()));
        let factor = match unit {
            "h" => 3600.0,
            unit => {
                UNITS
                    .iter()
                    .find(|(u, _)| *u == unit)
                    .ok_or_else(problem)?
                    .1
            }
        };
        seconds += number.parse::<f64>().map_err(|_| problem())? * factor;
        rest = after;
    }
    let interval = Duration::try_from_secs_f64(seconds).map_err(|_| problem())?;
    if interval.is_zero() {
        return Err("must be greater than 0".to_owned());
    }
    Ok(interval)
}

/// Prints what happens to the container until it has ended, or once.
pub fn run(container: &Container, every: Option<Duration>) -> ExitCode {
    let mut print = |line: &str| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}")?;
        out.flush()
    };
    let ended = match every {
        Some(interval) => stream(container, interval, &mut print),
        None => statistics(container, &mut print),
    };
    match ended {
        // Whoever closed stdout does not want to know.
        Ok(()) | Err(EventsError::Write(_)) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error);
            ExitCode::from(FAILED)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        for (text, ms) in [
            ("5s", 5000),
            ("1m30s", 90_000),
            ("500ms", 500),
            ("1.5s", 1500),
            ("1h", 3_600_000),
        ] {
            assert_eq!(interval(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "",
            "5",
            "s",
            "-1s",
            "0s",
            "1x",
            "1..2s",
            "1e9h",
            "99999999999999999999h",
        ] {
            assert!(interval(text).is_err(), "{text}");
        }
    }
}
