//! What procfs says about a process. Its name and arguments are its own choice:
//! nothing is found by their look.

use rustix::io::{Errno, Result};
use rustix::time::{ClockId, clock_gettime};
use vmrun_protocol::message::Process;

use crate::procfs::Procfs;

/// Longest beginning of `status` that is read: the ids come before anything that
/// has no fixed length.
const STATUS_BYTES: usize = 1024;
/// Longest `stat`: a name of 16 bytes and 51 numbers.
const STAT_BYTES: usize = 1280;
/// `USER_HZ`, in which times are told on x86-64.
const NS_PER_TICK: u64 = 10_000_000;
const NS_PER_S: u64 = 1_000_000_000;

/// The moment at which the machine's clock since boot began, in nanoseconds since
/// 1970.
pub fn booted_ns() -> u64 {
    let ns = |clock| {
        let now = clock_gettime(clock);
        now.tv_sec as u64 * NS_PER_S + now.tv_nsec as u64
    };
    ns(ClockId::Realtime).saturating_sub(ns(ClockId::Boottime))
}

/// Describes process `pid`; fails where it is gone.
pub fn describe(proc: &Procfs, pid: u32, booted_ns: u64) -> Result<Process> {
    let mut stat = [0; STAT_BYTES];
    let stat = proc.read(pid, "stat", &mut stat)?;
    let (name, times) = parse_stat(stat).ok_or(Errno::BADMSG)?;
    let mut status = [0; STATUS_BYTES];
    let status = proc.read(pid, "status", &mut status)?;
    let uid = effective_uid(status).ok_or(Errno::BADMSG)?;
    let mut command = [0; Process::MAX_COMMAND_BYTES];
    let command = proc.read(pid, "cmdline", &mut command).unwrap_or_default();
    Ok(Process {
        pid,
        parent: times.parent,
        uid,
        started_ns: booted_ns.saturating_add(times.started.saturating_mul(NS_PER_TICK)),
        cpu_ns: times.cpu.saturating_mul(NS_PER_TICK),
        command: command_line(command, name),
        process: None,
    })
}

/// Numbers of `stat`, times in ticks.
#[derive(Debug, PartialEq, Eq)]
struct Numbers {
    parent: u32,
    cpu: u64,
    started: u64,
}

/// Name and numbers in a `stat` (proc_pid_stat(5)): the name is in parentheses, and
/// may have any in it.
fn parse_stat(stat: &[u8]) -> Option<(&[u8], Numbers)> {
    let start = stat.iter().position(|b| *b == b'(')?;
    let end = stat.iter().rposition(|b| *b == b')')?;
    let name = stat.get(start + 1..end)?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    // The first is the third field.
    let fields: Vec<_> = rest.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let numbers = Numbers {
        parent: field(4)?.try_into().ok()?,
        cpu: field(14)?.saturating_add(field(15)?),
        started: field(22)?,
    };
    Some((name, numbers))
}

/// The second number of `Uid:` in a `status`.
fn effective_uid(status: &[u8]) -> Option<u32> {
    let mut lines = status.split(|b| *b == b'\n');
    let ids = lines.find_map(|line| line.strip_prefix(b"Uid:"))?;
    let ids = std::str::from_utf8(ids).ok()?;
    ids.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Arguments, each ended by NUL, separated by spaces; else the name in brackets.
fn command_line(arguments: &[u8], name: &[u8]) -> Vec<u8> {
    let end = arguments.iter().rposition(|b| *b != 0);
    match end.and_then(|end| arguments.get(..=end)) {
        Some(told) => {
            let spaced = told.iter().map(|b| if *b == 0 { b' ' } else { *b });
            spaced.collect()
        }
        None => [b"[", name, b"]"].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_may_look_like_the_rest() {
        let stat = b"7 (a) R 1 ) S 3 7 7 0 -1 4194560 1 0 0 0 20 30 5 6 20 0 1 0 400 9 9\n";
        let (name, numbers) = parse_stat(stat).unwrap();
        assert_eq!(name, b"a) R 1 ");
        let expected = Numbers {
            parent: 3,
            cpu: 50,
            started: 400,
        };
        assert_eq!(numbers, expected);
        assert_eq!(parse_stat(b"7 (a) S 3"), None);
        assert_eq!(parse_stat(b")("), None);
    }

    #[test]
    fn the_effective_user_counts() {
        let status = b"Name:\tUid:\nPid:\t7\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n";
        assert_eq!(effective_uid(status), Some(2));
        assert_eq!(effective_uid(b"Uid:\t1\n"), None);
    }

    #[test]
    fn commands_are_one_line_without_an_end() {
        assert_eq!(command_line(b"sh\0-c\0a b\0", b"sh"), b"sh -c a b");
        assert_eq!(command_line(b"sh\0-c", b"sh"), b"sh -c");
        assert_eq!(command_line(b"\0\0", b"x"), b"[x]");
        assert_eq!(command_line(b"", b"kworker"), b"[kworker]");
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_stat(&text);
            let _ = effective_uid(&text);
        }
    }
}
