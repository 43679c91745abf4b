//! What a suite could leave behind, a line each.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};

use super::Stage;

/// For what is on its way to its end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Waits for processes that end, and reaps those that have become ours. What stays is
/// in the next snapshot.
pub fn settle() {
    let until = Instant::now() + END_LIMIT;
    let own = std::process::id();
    for pid in pids().into_iter().filter(|pid| *pid != 1 && *pid != own) {
        let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            continue;
        };
        if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).expect("a short time");
            let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left));
        }
        // Not every one is a child.
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
    }
}

fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("processes").flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Processes, mounts, sockets, cgroups, files and descriptors at some time.
#[derive(Debug, Clone)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Of the suite's namespaces, of its cgroups, of /run and of `folders`.
    pub fn take(stage: &Stage, folders: &[&Path]) -> Self {
        let mut lines = BTreeSet::new();
        processes(&mut lines);
        for (what, list, skip) in [
            ("mount", "/proc/self/mounts", 0),
            ("socket", "/proc/net/unix", 1),
        ] {
            let text = fs::read_to_string(list).expect("a list");
            lines.extend(
                text.lines()
                    .skip(skip)
                    .map(|line| format!("{what} {}", named(what, line))),
            );
        }
        let cgroups = stage.cgroups();
        lines.extend(
            cgroups
                .iter()
                .map(|path| format!("cgroup {}", path.display())),
        );
        for folder in folders
            .iter()
            .copied()
            .chain([Path::new("/run"), Path::new("/dev/shm")])
        {
            files(folder, &mut lines);
        }
        for entry in fs::read_dir("/proc/self/fd")
            .expect("descriptors")
            .flatten()
        {
            // The one that lists them is among them.
            if let Ok(target) = fs::read_link(entry.path())
                && !target.ends_with("fd")
            {
                lines.insert(format!(
                    "descriptor {:?} {}",
                    entry.file_name(),
                    target.display()
                ));
            }
        }
        Self(lines)
    }

    /// What is there now and was not at the time of `before`.
    pub fn since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

fn processes(lines: &mut BTreeSet<String>) {
    for pid in pids() {
        let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let words = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let command = String::from_utf8_lossy(&read("comm")).trim().to_owned();
        lines.insert(format!("process {pid} ({command}) {words}"));
    }
}

/// Lines of /proc/net/unix begin with an address and counts.
fn named<'a>(what: &str, line: &'a str) -> &'a str {
    match what {
        "socket" => line.splitn(8, ' ').last().unwrap_or(line),
        _ => line,
    }
}

fn files(folder: &Path, lines: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        lines.insert(format!("file {}", path.display()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&path, lines);
        }
    }
}
