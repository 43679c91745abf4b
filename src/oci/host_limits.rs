//! `linux.resources` and `linux.cgroupsPath` (config-linux.md, "Control groups") as
//! far as they concern the machine's own cgroup on the host.

use std::path::Path;

use oci_spec::runtime::LinuxResources;

use crate::resources::{Limit, limit};
use crate::{Error, text};

/// Longest `linux.cgroupsPath`, in bytes: a path of Linux below the mount point.
const MAX_PATH_BYTES: usize = 3072;

/// Longest list of CPUs or memory nodes, in bytes.
const MAX_LIST_BYTES: usize = 1024;

/// The container's own figures: what the machine needs beside it is added where
/// they are written. `None` leaves a limit as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostLimits {
    /// `memory.limit`, in bytes.
    pub memory: Option<Limit>,
    /// `memory.swap`, in bytes: memory and swap together.
    pub memory_and_swap: Option<Limit>,
    /// `memory.reservation`, in bytes.
    pub memory_reservation: Option<Limit>,
    /// `cpu.shares`.
    pub cpu_shares: Option<u64>,
    /// `cpu.quota`, in microseconds of each period.
    pub cpu_quota_us: Option<Limit>,
    /// `cpu.period`, in microseconds.
    pub cpu_period_us: Option<u64>,
    /// `cpu.burst`, in microseconds.
    pub cpu_burst_us: Option<u64>,
    /// `cpu.idle`.
    pub cpu_idle: Option<bool>,
    /// `cpu.cpus` as cpuset(7) writes lists.
    pub cpus: Option<String>,
    /// `cpu.mems` as cpuset(7) writes lists.
    pub mems: Option<String>,
    /// `blockIO.weight`, 10 to 1000.
    pub blkio_weight: Option<u16>,
    /// `pids.limit`.
    pub pids: Option<Limit>,
}

/// Resolves what the host's cgroup can be asked for.
pub fn resolve(from: &LinuxResources) -> Result<HostLimits, Error> {
    let mut to = HostLimits::default();
    if let Some(memory) = from.memory() {
        to.memory = limit("linux.resources.memory.limit", memory.limit())?;
        to.memory_and_swap = limit("linux.resources.memory.swap", memory.swap())?;
        to.memory_reservation = limit("linux.resources.memory.reservation", memory.reservation())?;
    }
    if let Some(cpu) = from.cpu() {
        to.cpu_shares = cpu.shares().filter(|&n| n != 0);
        to.cpu_quota_us = limit("linux.resources.cpu.quota", cpu.quota())?;
        to.cpu_period_us = cpu.period().filter(|&n| n != 0);
        to.cpu_burst_us = cpu.burst().filter(|&n| n != 0);
        to.cpu_idle = cpu.idle().map(|n| n != 0);
        to.cpus = list("linux.resources.cpu.cpus", cpu.cpus().as_deref())?;
        to.mems = list("linux.resources.cpu.mems", cpu.mems().as_deref())?;
    }
    if let Some(pids) = from.pids() {
        to.pids = limit("linux.resources.pids.limit", Some(pids.limit()))?;
    }
    let weight = from.block_io().as_ref().and_then(|io| io.weight());
    to.blkio_weight = match weight {
        None | Some(0) => None,
        Some(weight @ 10..=1000) => Some(weight),
        Some(_) => {
            let path = "linux.resources.blockIO.weight";
            return Err(Error::property(path, "must be 10 to 1000"));
        }
    };
    Ok(to)
}

/// `0-3,7`; what it names is the kernel's business.
pub(crate) fn list(path: &str, list: Option<&str>) -> Result<Option<String>, Error> {
    let Some(list) = list.filter(|list| !list.is_empty()) else {
        return Ok(None);
    };
    let known = |b: u8| b.is_ascii_digit() || b"-, ".contains(&b);
    if list.len() > MAX_LIST_BYTES || !list.bytes().all(known) {
        return Err(Error::property(path, "must be a list of numbers (0-3,7)"));
    }
    Ok(Some(list.to_owned()))
}

/// `linux.cgroupsPath`: a path, or `slice:prefix:name` for systemd. An empty one is
/// none. It may not leave the tree it starts in.
pub fn cgroups_path(path: Option<&Path>) -> Result<Option<String>, Error> {
    const NAME: &str = "linux.cgroupsPath";
    let Some(path) = path.filter(|p| !p.as_os_str().is_empty()) else {
        return Ok(None);
    };
    let path = path.to_str().unwrap_or_default();
    text::bytes(NAME, path)?;
    if path.len() > MAX_PATH_BYTES {
        return Err(Error::property(
            NAME,
            format!("is longer than {MAX_PATH_BYTES} bytes"),
        ));
    }
    if path.chars().any(char::is_control) {
        return Err(Error::property(NAME, "must not contain control characters"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(Error::property(NAME, "must not contain \"..\""));
    }
    Ok(Some(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn resolved(resources: Value) -> Result<HostLimits, String> {
        let resources = serde_json::from_value(resources).unwrap();
        resolve(&resources).map_err(|e| e.to_string())
    }

    #[test]
    fn whole() {
        let limits = resolved(json!({
            "memory": {"limit": 5, "swap": -1, "reservation": 3},
            "cpu": {"shares": 2, "quota": 50_000, "period": 100_000, "burst": 7, "idle": 1,
                    "cpus": "0-1", "mems": "0"},
            "blockIO": {"weight": 10}, "pids": {"limit": 9}
        }));
        let expected = HostLimits {
            memory: Some(Limit::At(5)),
            memory_and_swap: Some(Limit::None),
            memory_reservation: Some(Limit::At(3)),
            cpu_shares: Some(2),
            cpu_quota_us: Some(Limit::At(50_000)),
            cpu_period_us: Some(100_000),
            cpu_burst_us: Some(7),
            cpu_idle: Some(true),
            cpus: Some("0-1".into()),
            mems: Some("0".into()),
            blkio_weight: Some(10),
            pids: Some(Limit::At(9)),
        };
        assert_eq!(limits, Ok(expected));
    }

    #[test]
    fn zeros_leave_it() {
        let limits = resolved(json!({
            "memory": {"limit": 0}, "cpu": {"shares": 0, "period": 0, "burst": 0, "cpus": ""},
            "blockIO": {"weight": 0}, "pids": {"limit": 0}
        }));
        assert_eq!(limits, Ok(HostLimits::default()));
    }

    #[test]
    fn refusals() {
        for (resources, message) in [
            (
                json!({"blockIO": {"weight": 9}}),
                "linux.resources.blockIO.weight: must be 10 to 1000",
            ),
            (
                json!({"cpu": {"mems": "0\n1"}}),
                "linux.resources.cpu.mems: must be a list of numbers (0-3,7)",
            ),
            (
                json!({"pids": {"limit": -2}}),
                "linux.resources.pids.limit: must be -1 (no limit) or more",
            ),
        ] {
            assert_eq!(resolved(resources).unwrap_err(), message);
        }
    }

    #[test]
    fn paths() {
        let path = |p: &str| cgroups_path(Some(Path::new(p))).map_err(|e| e.to_string());
        assert_eq!(path(""), Ok(None));
        assert_eq!(path("/a/b"), Ok(Some("/a/b".into())));
        assert_eq!(path("a.slice:b:c"), Ok(Some("a.slice:b:c".into())));
        assert_eq!(path("/a/..b"), Ok(Some("/a/..b".into())));
        for bad in ["/a/../b", "..", "a\n", &"x".repeat(4000)] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }
}
