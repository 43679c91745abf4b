//! `vmrun update`: other limits for a container that runs, in its cgroup in the guest
//! and in its machine's on the host. All of them, or none.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use vmrun_oci::host_limits::HostLimits;
use vmrun_oci::resources::Limit;
pub use vmrun_oci::update::UpdateFlags;
use vmrun_oci::update::{ResourceUpdate, load_update, update_from_flags};
use vmrun_protocol::plan::Bytes;

use crate::Error;
use crate::monitor::client::ClientError;
use crate::monitor::messages::{Call, Reply};
use crate::state::{Container, StateError};

/// What a container is taken to use whose guest does not count it, having had no
/// limit to keep: what the smallest process has.
const UNCOUNTED_BYTES: u64 = 256 << 10;

/// Where the new limits are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Limits {
    /// A file with `linux.resources` (config-linux.md) by itself; `-` is standard
    /// input.
    File(PathBuf),
    /// On the command line.
    Flags(Box<UpdateFlags>),
}

/// Why limits were not changed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The file.
    #[error("open {path:?}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What is asked for.
    #[error(transparent)]
    Limits(#[from] vmrun_oci::Error),
    /// Less memory than is in use, as runc refuses it.
    #[error("unable to set memory limit to {asked} (current usage: {used})")]
    Memory {
        /// The limit, in bytes.
        asked: u64,
        /// In use, in bytes.
        used: u64,
    },
    /// The state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The monitor.
    #[error(transparent)]
    Monitor(#[from] ClientError),
    /// The host's cgroup.
    #[error(transparent)]
    Cgroup(#[from] crate::host_cgroup::CgroupError),
    /// The host.
    #[error(transparent)]
    Host(#[from] Error),
}

/// Changes the limits. The host's come first: they can be set back.
pub fn update(container: &Container, limits: &Limits) -> Result<(), UpdateError> {
    if !container.is_alive() {
        return Err(ClientError::NotRunning.into());
    }
    let files = statistics(container)?;
    let mut config = vmrun_oci::load::parse(&container.config()?)?;
    limits_in_force(&files, &mut config.host_limits);
    let update = match limits {
        Limits::File(path) => load_update(&read(path)?, &config)?,
        Limits::Flags(flags) => update_from_flags(flags, &config)?,
    };
    for warning in &update.warnings {
        log::warn!("{warning}");
    }
    check_memory(&files, &update)?;
    let cgroup = container.record().cgroup.as_ref();
    let undo = cgroup.map(|c| c.update(&update.host_limits)).transpose()?;
    let moved = Moved::to(container.record().monitor.pid, update.host_cpus.as_deref());
    let told = moved.and_then(|moved| match tell(container, update.cgroup_writes) {
        Ok(()) => Ok(()),
        Err(error) => {
            moved.back();
            Err(error)
        }
    });
    if told.is_err()
        && let Some(undo) = undo
    {
        undo.run();
    }
    told
}

/// One byte more than may be is enough to be refused.
fn read(path: &Path) -> Result<Vec<u8>, UpdateError> {
    let failed = |source| UpdateError::File {
        path: path.to_owned(),
        source,
    };
    let mut text = Vec::new();
    let max_bytes = vmrun_oci::load::MAX_BYTES + 1;
    if path == Path::new("-") {
        io::stdin().take(max_bytes).read_to_end(&mut text)
    } else {
        File::open(path)
            .map_err(failed)?
            .take(max_bytes)
            .read_to_end(&mut text)
    }
    .map_err(failed)?;
    Ok(text)
}

fn tell(container: &Container, writes: Vec<(Bytes, Bytes)>) -> Result<(), UpdateError> {
    if writes.is_empty() {
        return Ok(());
    }
    Ok(container.connect()?.order(&Call::Update(writes))?)
}

/// The container's cgroup in the guest.
fn statistics(container: &Container) -> Result<Vec<(String, Bytes)>, UpdateError> {
    match container.connect()?.ask(&Call::Statistics)? {
        Reply::Statistics(files) => Ok(files),
        _ => Err(ClientError::Unexpected.into()),
    }
}

fn value<'a>(files: &'a [(String, Bytes)], name: &str) -> Option<&'a [u8]> {
    let file = files.iter().find(|(file, _)| file == name);
    file.map(|(_, value)| value.as_slice())
}

/// Earlier updates count for the limits that others depend on: a period is of the
/// quota, and swap is beside the memory, that there is now.
fn limits_in_force(files: &[(String, Bytes)], limits: &mut HostLimits) {
    let in_force = |name| match value(files, name)?.split(u8::is_ascii_whitespace).next()? {
        b"max" => Some(Limit::None),
        at => number(at).map(Limit::At),
    };
    limits.cpu_quota_us = in_force("cpu.max").or(limits.cpu_quota_us);
    limits.memory = in_force("memory.max").or(limits.memory);
}

/// Less than is in use would have the guest's kernel kill the container.
fn check_memory(files: &[(String, Bytes)], update: &ResourceUpdate) -> Result<(), UpdateError> {
    let mut writes = update.cgroup_writes.iter();
    let limit = writes.find(|(file, _)| file == b"memory.max");
    let Some(asked) = limit.and_then(|(_, value)| number(value)) else {
        return Ok(());
    };
    let used = value(files, "memory.current").and_then(number);
    let used = used.unwrap_or(UNCOUNTED_BYTES);
    if used > asked {
        return Err(UpdateError::Memory { asked, used });
    }
    Ok(())
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// Threads of the monitor that were moved to other CPUs, and where they were.
struct Moved(Vec<(Pid, CpuSet)>);

impl Moved {
    /// Moves all threads of process `pid`; where that fails, none.
    fn to(pid: u32, cpus: Option<&[usize]>) -> Result<Self, UpdateError> {
        let mut moved = Self(Vec::new());
        let Some(cpus) = cpus else {
            return Ok(moved);
        };
        let mut set = CpuSet::new();
        for &cpu in cpus {
            set.set(cpu);
        }
        match moved.all(pid, &set) {
            Ok(()) => Ok(moved),
            Err(error) => {
                moved.back();
                Err(Error::host("run on linux.resources.cpu.cpus")(error).into())
            }
        }
    }

    /// A thread that comes to be meanwhile has the CPUs of the one that made it: so
    /// again, until all were found.
    fn all(&mut self, pid: u32, set: &CpuSet) -> io::Result<()> {
        loop {
            let known = self.0.len();
            for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
                let name = entry?.file_name();
                let tid = name.to_str().and_then(|name| name.parse().ok());
                let Some(tid) = tid.and_then(Pid::from_raw) else {
                    continue;
                };
                if self.0.iter().any(|(other, _)| *other == tid) {
                    continue;
                }
                // It may have ended.
                if let Ok(before) = sched_getaffinity(Some(tid)) {
                    sched_setaffinity(Some(tid), set)?;
                    self.0.push((tid, before));
                }
            }
            if self.0.len() == known {
                return Ok(());
            }
        }
    }

    fn back(self) {
        for (tid, before) in self.0 {
            if let Err(error) = sched_setaffinity(Some(tid), &before) {
                log::warn!("cannot set back the CPUs of thread {tid:?}: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_moved_and_moved_back() {
        let own = std::process::id();
        let tid = rustix::thread::gettid();
        let before = sched_getaffinity(Some(tid)).unwrap();
        let cpu = (0..CpuSet::MAX_CPU).find(|&c| before.is_set(c)).unwrap();
        let moved = Moved::to(own, Some(&[cpu])).unwrap();
        assert_eq!(sched_getaffinity(Some(tid)).unwrap().count(), 1);
        moved.back();
        assert_eq!(sched_getaffinity(Some(tid)).unwrap(), before);
        assert!(Moved::to(own, Some(&[1023])).is_err());
        assert_eq!(sched_getaffinity(Some(tid)).unwrap(), before);
    }

    #[test]
    fn earlier_updates_count() {
        let created = HostLimits {
            cpu_quota_us: Some(Limit::At(1)),
            memory: Some(Limit::At(2)),
            ..HostLimits::default()
        };
        let of = |files: &[(&str, &str)]| {
            let file = |(name, value): &(&str, &str)| (name.to_string(), value.as_bytes().to_vec());
            let files: Vec<_> = files.iter().map(file).collect();
            let mut limits = created.clone();
            limits_in_force(&files, &mut limits);
            (limits.cpu_quota_us, limits.memory)
        };
        let (max, at) = (Some(Limit::None), |n| Some(Limit::At(n)));
        assert_eq!(of(&[]), (at(1), at(2)));
        assert_eq!(
            of(&[("cpu.max", "30000 100000\n"), ("memory.max", "max\n")]),
            (at(30_000), max)
        );
        assert_eq!(
            of(&[("cpu.max", "max 100000\n"), ("memory.max", "7\n")]),
            (max, at(7))
        );
        assert_eq!(of(&[("cpu.max", "?"), ("memory.max", "")]), (at(1), at(2)));
    }

    #[test]
    fn files() {
        let error = read(Path::new("/nonexistent")).unwrap_err();
        assert_eq!(error.to_string(), "open \"/nonexistent\"");
        assert_eq!(number(b"12\n"), Some(12));
        assert_eq!(number(b"max"), None);
    }
}
