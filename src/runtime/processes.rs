//! `vmrun ps`: what runs in the container, as the guest knows it and as the host does.

use std::time::{Duration, SystemTime};

use vmrun_protocol::message::Process;

use crate::Error;
use crate::monitor::client::ClientError;
use crate::monitor::messages::{Call, Reason, Reply};
use crate::state::Container;

/// Who is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Processes {
    /// Processes of the container, with their numbers in the guest.
    pub guest: Vec<Process>,
    /// Those of the host that stand for them: the monitor, which is the container's
    /// init, and a proxy for each `exec`.
    pub host_pids: Vec<u32>,
}

/// Asks. A container that has ended has none, as in runc.
pub fn processes(container: &Container) -> Result<Processes, Error> {
    let none = Processes {
        guest: Vec::new(),
        host_pids: Vec::new(),
    };
    if !container.is_alive() {
        return Ok(none);
    }
    match container.connect()?.ask(&Call::Processes) {
        Ok(Reply::Processes { guest, host_pids }) => Ok(Processes { guest, host_pids }),
        Ok(_) => Err(ClientError::Unexpected.into()),
        Err(ClientError::NotRunning) => Ok(none),
        // Its monitor is about to end.
        Err(ClientError::Refused(refusal)) if refusal.reason == Reason::State => Ok(none),
        Err(error) => Err(error.into()),
    }
}

/// A table with the columns of `ps -ef`. Users are the guest's, whose names the host
/// does not know, but for root; times are in UTC.
pub fn table(processes: &[Process], now: SystemTime) -> String {
    let now_ns = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    let mut text = String::from("UID          PID    PPID  C STIME TTY          TIME CMD\n");
    for process in processes {
        text += &line(process, u64::try_from(now_ns).unwrap_or(u64::MAX));
    }
    text
}

fn line(process: &Process, now_ns: u64) -> String {
    let user = match process.uid {
        0 => "root".to_owned(),
        uid => uid.to_string(),
    };
    let age_ns = now_ns.saturating_sub(process.started_ns).max(1);
    let share = u128::from(process.cpu_ns) * 100 / u128::from(age_ns);
    let seconds = process.cpu_ns / 1_000_000_000;
    format!(
        "{user:<8} {:>7} {:>7} {:>2} {} ?        {:02}:{:02}:{:02} {}\n",
        process.pid,
        process.parent,
        share.min(99),
        started(process.started_ns, age_ns),
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        shown(&process.command),
    )
}

const DAY: Duration = Duration::from_secs(86_400);

/// The time of day, or the day where that was longer ago.
fn started(started_ns: u64, age_ns: u64) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let seconds = started_ns / 1_000_000_000;
    if Duration::from_nanos(age_ns) < DAY {
        return format!("{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60);
    }
    let (month, day) = month_and_day(seconds / DAY.as_secs());
    format!("{}{day:02}", MONTHS[month])
}

/// Month from 0 and day from 1 of a day since 1970 (Gregorian calendar). Years that
/// begin in March end with the day that leap years have more.
fn month_and_day(days: u64) -> (usize, u64) {
    const DAYS_TO_1970: u64 = 719_468;
    const DAYS_OF_400_YEARS: u64 = 146_097;
    let day = (days + DAYS_TO_1970) % DAYS_OF_400_YEARS;
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let of_month = day - (153 * month + 2) / 5 + 1;
    ((month as usize + 2) % 12, of_month)
}

/// Text of the guest as it may be shown on a terminal.
fn shown(command: &[u8]) -> String {
    let plain = |c: char| if c.is_control() { '?' } else { c };
    String::from_utf8_lossy(command)
        .chars()
        .map(plain)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(command: &str) -> Process {
        Process {
            pid: 7,
            parent: 1,
            uid: 0,
            // 2023-11-14 22:13:20.
            started_ns: 1_700_000_000_000_000_000,
            cpu_ns: 3_723_000_000_000,
            command: command.into(),
            process: None,
        }
    }

    fn after(s: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + s)
    }

    #[test]
    fn columns_are_those_of_ps() {
        let other = Process {
            uid: 1000,
            pid: 123_456,
            cpu_ns: 0,
            ..process("a\x1b[2Jb\n")
        };
        let text = table(&[process("sleep 1"), other], after(7446));
        assert_eq!(
            text,
            "UID          PID    PPID  C STIME TTY          TIME CMD\n\
             root           7       1 50 22:13 ?        01:02:03 sleep 1\n\
             1000      123456       1  0 22:13 ?        00:00:00 a?[2Jb?\n"
        );
    }

    #[test]
    fn days() {
        let text = table(&[process("x")], after(200_000));
        assert!(text.contains(" Nov14 "), "{text}");
        // From the future: the guest's clock may say anything.
        let text = table(&[process("x")], SystemTime::UNIX_EPOCH);
        assert!(text.contains(" 99 22:13 "), "{text}");
        for (days, expected) in [
            (0, (0, 1)),
            (58, (1, 28)),
            (59, (2, 1)),
            (364, (11, 31)),
            (11_016, (1, 29)),
            (11_017, (2, 1)),
            (19_782, (1, 29)),
            (20_088, (11, 31)),
        ] {
            assert_eq!(month_and_day(days), expected, "{days}");
        }
    }
}
