//! cgroups made by systemd: a transient scope for each container, asked for over
//! systemd's own socket, without a bus in between.
//!
//! systemd writes the limits of its units again whenever it reloads, so it is told of
//! them; what it does not know is written to the files as with cgroupfs.

mod manager;
mod message;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vmrun_oci::host_limits::HostLimits;
use vmrun_oci::resources::{Limit, weight_of_shares};

use super::limits::{MIB_BYTES, PIDS_OVERHEAD};
use super::{Asked, CgroupError};
use manager::Manager;
use message::Value;

/// Where systemd says that it manages this host (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// Prefix of a container's scope where `linux.cgroupsPath` says nothing.
const PREFIX: &str = "vmrun";

/// A unit of systemd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// `docker-0123.scope`.
    name: String,
    /// `system.slice`.
    slice: String,
    /// systemd's socket.
    socket: PathBuf,
}

impl Unit {
    /// The unit that `asked` is about, and its path in the tree.
    pub fn plan(asked: &Asked) -> Result<(Self, PathBuf), CgroupError> {
        if !Path::new(BOOTED).exists() {
            return Err(CgroupError::NoSystemd);
        }
        let uid = rustix::process::geteuid();
        let runtime = std::env::var_os("XDG_RUNTIME_DIR");
        let (socket, above) = match (uid.is_root(), runtime) {
            (true, _) => (PathBuf::from("/run/systemd/private"), PathBuf::new()),
            (false, Some(folder)) => {
                let uid = uid.as_raw();
                let above = format!("user.slice/user-{uid}.slice/user@{uid}.service");
                (Path::new(&folder).join("systemd/private"), above.into())
            }
            (false, None) => return Err(CgroupError::NoSystemd),
        };
        let (slice, name) = named(asked, uid.is_root())?;
        let path = above.join(slice_path(&slice)?).join(&name);
        let unit = Self {
            name,
            slice,
            socket,
        };
        Ok((unit, path))
    }

    /// Makes the unit with this process in it.
    pub fn start(&self, limits: &HostLimits, overhead_mib: u64) -> Result<(), CgroupError> {
        let pid = rustix::process::getpid().as_raw_pid().unsigned_abs();
        let text = |text: &str| Value::Text(text.to_owned());
        let mut properties = vec![
            (
                "Description",
                Value::Text(format!("vmrun container {}", self.name)),
            ),
            ("Slice", text(&self.slice)),
            ("PIDs", Value::U32s(vec![pid])),
            ("Delegate", Value::Bool(true)),
            ("DefaultDependencies", Value::Bool(false)),
            ("CollectMode", text("inactive-or-failed")),
            ("MemoryAccounting", Value::Bool(true)),
            ("CPUAccounting", Value::Bool(true)),
            ("TasksAccounting", Value::Bool(true)),
        ];
        properties.extend(limit_properties(limits, overhead_mib));
        let mut manager = Manager::connect(&self.socket)?;
        manager.start_unit(&self.name, &properties)
    }

    /// Tells systemd of other limits.
    pub fn update(&self, limits: &HostLimits, overhead_mib: u64) -> Result<(), CgroupError> {
        let properties = limit_properties(limits, overhead_mib);
        if properties.is_empty() {
            return Ok(());
        }
        Manager::connect(&self.socket)?.set_properties(&self.name, &properties)
    }
}

/// Slice and unit of `slice:prefix:name`.
fn named(asked: &Asked, is_root: bool) -> Result<(String, String), CgroupError> {
    let default_slice = if is_root {
        "system.slice"
    } else {
        "user.slice"
    };
    let Some(path) = asked.path else {
        let name = format!("{PREFIX}-{}.scope", asked.id);
        return Ok((default_slice.to_owned(), name));
    };
    let parts: Vec<&str> = path.split(':').collect();
    let [slice, prefix, name] = parts[..] else {
        return Err(CgroupError::Path(format!(
            "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, \
             got {path:?} instead"
        )));
    };
    let slice = if slice.is_empty() {
        default_slice
    } else {
        slice
    };
    let unit = match (prefix, name.ends_with(".slice")) {
        (_, true) => {
            let problem = format!("{name:?} is a slice, and processes are in scopes");
            return Err(CgroupError::Path(problem));
        }
        ("", _) => format!("{name}.scope"),
        _ => format!("{prefix}-{name}.scope"),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "@._-\\:".contains(c);
    if name.is_empty() || !unit.chars().all(plain) || unit.len() > 255 {
        return Err(CgroupError::Path(format!(
            "{unit:?} is not the name of a unit"
        )));
    }
    Ok((slice.to_owned(), unit))
}

/// `a-b.slice` is in `a.slice` (systemd.slice(5)).
fn slice_path(slice: &str) -> Result<PathBuf, CgroupError> {
    let refuse = || CgroupError::Path(format!("{slice:?} is not the name of a slice"));
    let name = slice.strip_suffix(".slice").ok_or_else(refuse)?;
    if name == "-" {
        return Ok(PathBuf::new());
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "@._\\:".contains(c);
    let parts: Vec<&str> = name.split('-').collect();
    if parts
        .iter()
        .any(|part| part.is_empty() || !part.chars().all(plain))
    {
        return Err(refuse());
    }
    let above = |n: usize| format!("{}.slice", parts[..n].join("-"));
    Ok((1..=parts.len()).map(above).collect())
}

/// What systemd knows of the limits.
fn limit_properties(limits: &HostLimits, overhead_mib: u64) -> Vec<(&'static str, Value)> {
    let plus = |limit: Limit, more: u64| match limit {
        Limit::None => u64::MAX,
        Limit::At(n) => n.saturating_add(more),
    };
    let overhead_bytes = overhead_mib.saturating_mul(MIB_BYTES);
    let mut properties = Vec::new();
    let mut add = |name, value: Option<u64>| {
        properties.extend(value.map(|value| (name, Value::U64(value))));
    };
    add("MemoryMax", limits.memory.map(|l| plus(l, overhead_bytes)));
    add(
        "MemoryLow",
        limits.memory_reservation.map(|l| plus(l, overhead_bytes)),
    );
    add("CPUWeight", limits.cpu_shares.map(weight_of_shares));
    add("CPUQuotaPeriodUSec", limits.cpu_period_us);
    add("CPUQuotaPerSecUSec", quota_per_s(limits));
    add("TasksMax", limits.pids.map(|l| plus(l, PIDS_OVERHEAD)));
    properties
}

/// Microseconds of each second. systemd wants full hundredths of a second.
fn quota_per_s(limits: &HostLimits) -> Option<u64> {
    const DEFAULT_PERIOD_US: u64 = 100_000;
    const STEP_US: u64 = 10_000;
    match limits.cpu_quota_us? {
        Limit::None => Some(u64::MAX),
        Limit::At(quota_us) => {
            let period_us = limits.cpu_period_us.unwrap_or(DEFAULT_PERIOD_US).max(1);
            let per_s = u128::from(quota_us) * 1_000_000 / u128::from(period_us);
            let per_s = u64::try_from(per_s).unwrap_or(u64::MAX - STEP_US);
            Some(per_s.div_ceil(STEP_US) * STEP_US)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_cgroup::Driver;

    fn names(path: Option<&str>) -> Result<(String, String), String> {
        let asked = Asked {
            id: "c1",
            path,
            driver: Driver::Systemd,
            overhead_mib: 0,
        };
        named(&asked, true).map_err(|e| e.to_string())
    }

    #[test]
    fn names_are_runcs() {
        let pair = |slice: &str, unit: &str| Ok((slice.to_owned(), unit.to_owned()));
        assert_eq!(names(None), pair("system.slice", "vmrun-c1.scope"));
        assert_eq!(
            names(Some("system.slice:docker:0123")),
            pair("system.slice", "docker-0123.scope")
        );
        assert_eq!(
            names(Some("kubepods-besteffort-podx.slice:cri-containerd:ab")),
            pair("kubepods-besteffort-podx.slice", "cri-containerd-ab.scope")
        );
        assert_eq!(names(Some("::x")), pair("system.slice", "x.scope"));
        for bad in [
            "/a/b",
            "a:b",
            "a:b:c:d",
            "a.slice:b:",
            "a.slice:b:c.slice",
            "a:b/:c",
        ] {
            assert!(names(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn slices_nest() {
        let path = |slice| slice_path(slice).map_err(|e| e.to_string());
        assert_eq!(
            path("a-b-c.slice"),
            Ok("a.slice/a-b.slice/a-b-c.slice".into())
        );
        assert_eq!(path("system.slice"), Ok("system.slice".into()));
        assert_eq!(path("-.slice"), Ok(PathBuf::new()));
        for bad in [
            "a",
            ".slice",
            "a--b.slice",
            "-a.slice",
            "a/b.slice",
            "..slice/../x.slice",
        ] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn properties_of_limits() {
        let limits = HostLimits {
            memory: Some(Limit::At(1)),
            cpu_shares: Some(1024),
            cpu_quota_us: Some(Limit::At(33_333)),
            pids: Some(Limit::None),
            ..HostLimits::default()
        };
        assert_eq!(
            limit_properties(&limits, 1),
            [
                ("MemoryMax", Value::U64((1 << 20) + 1)),
                ("CPUWeight", Value::U64(100)),
                ("CPUQuotaPerSecUSec", Value::U64(340_000)),
                ("TasksMax", Value::U64(u64::MAX)),
            ]
        );
        assert_eq!(limit_properties(&HostLimits::default(), 1), []);
    }
}
