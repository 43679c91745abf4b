//! `linux.resources` (config-linux.md, "Control groups") as files of the
//! container's cgroup v2 in the guest. Conversions are runc's.

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};
use vmrun_protocol::plan::Bytes;

use crate::host_limits::{self, HostLimits};
use crate::{Error, text, unified};

const MAX_CPUS: usize = 1024;

/// What `linux.resources` asks for, without the device rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resources {
    /// File of the container's cgroup and what to write, in order.
    pub cgroup_writes: Vec<(Bytes, Bytes)>,
    /// `memory.limit`, when there is one.
    pub memory_limit_bytes: Option<u64>,
    /// `cpu.cpus`: the CPUs of the host that the machine may run on.
    pub host_cpus: Option<Vec<usize>>,
    /// What the machine's cgroup on the host is asked for.
    pub host_limits: HostLimits,
}

impl Resources {
    fn write(&mut self, file: &str, value: impl ToString) {
        let value = value.to_string();
        self.cgroup_writes.push((file.into(), value.into_bytes()));
    }
}

/// Resolves all but the device rules. What a change of limits leaves out is as
/// `before` has it, so far as one limit depends on another.
pub fn resolve(from: &LinuxResources, before: Option<&HostLimits>) -> Result<Resources, Error> {
    let mut to = Resources {
        host_limits: host_limits::resolve(from)?,
        ..Resources::default()
    };
    if let Some(memory) = from.memory() {
        resolve_memory(memory, before, &mut to)?;
    }
    if let Some(cpu) = from.cpu() {
        resolve_cpu(cpu, before, &mut to)?;
    }
    if let Some(pids) = from.pids() {
        resolve_pids(pids, &mut to)?;
    }
    for (i, huge) in from.hugepage_limits().iter().flatten().enumerate() {
        if !is_page_size(huge.page_size()) {
            let path = format!("linux.resources.hugepageLimits[{i}].pageSize");
            return Err(Error::property(path, "must be a size (2MB, 1GB)"));
        }
    }
    if let Some(files) = from.unified() {
        unified::resolve(files, &mut to)?;
    }
    Ok(to)
}

/// As config-linux.md has it: a number and KB, MB or GB.
fn is_page_size(text: &str) -> bool {
    let number = ["KB", "MB", "GB"]
        .iter()
        .find_map(|unit| text.strip_suffix(unit));
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// As everywhere below: 0 leaves a limit alone and -1 lifts it. The guest has
/// no swap, so a limit of swap holds without being written.
fn resolve_memory(
    memory: &LinuxMemory,
    before: Option<&HostLimits>,
    to: &mut Resources,
) -> Result<(), Error> {
    let limit = limit("linux.resources.memory.limit", memory.limit())?;
    let swap = self::limit("linux.resources.memory.swap", memory.swap())?;
    if let Some(Limit::At(swap)) = swap {
        let path = "linux.resources.memory.swap";
        match limit.or(before.and_then(|b| b.memory)) {
            Some(Limit::At(limit)) if swap >= limit => {}
            Some(Limit::At(limit)) => {
                let problem = format!("counts memory in, so it must be at least its {limit}");
                return Err(Error::property(path, problem));
            }
            _ => return Err(Error::property(path, "needs a memory.limit")),
        }
    }
    if let Some(limit) = limit {
        to.write("memory.max", limit.text());
        to.memory_limit_bytes = limit.at();
    }
    if let Some(low) = self::limit("linux.resources.memory.reservation", memory.reservation())? {
        to.write("memory.low", low.text());
    }
    Ok(())
}

fn resolve_cpu(
    cpu: &LinuxCpu,
    before: Option<&HostLimits>,
    to: &mut Resources,
) -> Result<(), Error> {
    if let Some(shares) = cpu.shares().filter(|&s| s != 0) {
        to.write("cpu.weight", weight_of_shares(shares));
    }
    let quota = limit("linux.resources.cpu.quota", cpu.quota())?;
    let period = cpu.period().filter(|&p| p != 0);
    let written = match (quota, period, before) {
        (None, None, _) => None,
        // The file keeps the period if it is not written.
        (Some(quota), None, Some(_)) => Some(quota.text()),
        (quota, period, before) => {
            let quota = quota.or(before.and_then(|b| b.cpu_quota_us));
            let quota = quota.unwrap_or(Limit::None).text();
            let period_us = period.unwrap_or(DEFAULT_PERIOD_US);
            Some(format!("{quota} {period_us}"))
        }
    };
    if let Some(written) = written {
        to.write("cpu.max", written);
    }
    if let Some(burst) = cpu.burst().filter(|&b| b != 0) {
        to.write("cpu.max.burst", burst);
    }
    match cpu.idle() {
        None => {}
        Some(idle @ 0..=1) => to.write("cpu.idle", idle),
        Some(_) => {
            return Err(Error::property(
                "linux.resources.cpu.idle",
                "must be 0 or 1",
            ));
        }
    }
    if let Some(list) = cpu.cpus().as_deref().filter(|l| !l.is_empty()) {
        to.host_cpus = Some(cpu_list("linux.resources.cpu.cpus", list)?);
    }
    Ok(())
}

/// `cpu.cfs_period_us` of a new cgroup.
const DEFAULT_PERIOD_US: u64 = 100_000;

/// cgroup v1 shares (2..=262144, default 1024) as cgroup v2 weight (1..=10000,
/// default 100): a curve through the smallest, the default and the largest.
pub fn weight_of_shares(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10f64.powf(exponent).ceil() as u64
}

fn resolve_pids(pids: &LinuxPids, to: &mut Resources) -> Result<(), Error> {
    if let Some(limit) = limit("linux.resources.pids.limit", Some(pids.limit()))? {
        to.write("pids.max", limit.text());
    }
    Ok(())
}

/// A limit that is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// None: an earlier one is lifted.
    None,
    /// This much.
    At(u64),
}

impl Limit {
    /// As files of cgroup v2 have it.
    pub fn text(self) -> String {
        match self {
            Self::None => "max".to_owned(),
            Self::At(n) => n.to_string(),
        }
    }

    fn at(self) -> Option<u64> {
        match self {
            Self::None => None,
            Self::At(n) => Some(n),
        }
    }
}

pub(crate) fn limit(path: &str, value: Option<i64>) -> Result<Option<Limit>, Error> {
    match value {
        None | Some(0) => Ok(None),
        Some(-1) => Ok(Some(Limit::None)),
        Some(n) => match u64::try_from(n) {
            Ok(n) => Ok(Some(Limit::At(n))),
            Err(_) => Err(Error::property(path, "must be -1 (no limit) or more")),
        },
    }
}

/// `0-3,7` as cpuset(7) writes lists.
pub(crate) fn cpu_list(path: &str, list: &str) -> Result<Vec<usize>, Error> {
    let refuse = || Error::property(path, "must be a list of CPUs (0-3,7)");
    let number = |text: &str| {
        let number: usize = text.trim().parse().map_err(|_| refuse())?;
        if number < MAX_CPUS {
            Ok(number)
        } else {
            Err(refuse())
        }
    };
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(refuse());
        }
        cpus.extend(first..=last);
        text::at_most(path, cpus.len(), MAX_CPUS)?;
    }
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn resolved(resources: Value) -> Result<Resources, String> {
        resolve(&serde_json::from_value(resources).unwrap(), None).map_err(|e| e.to_string())
    }

    fn writes(resources: Value) -> Vec<(String, String)> {
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        let writes = resolved(resources).unwrap().cgroup_writes;
        writes
            .into_iter()
            .map(|(f, v)| (text(f), text(v)))
            .collect()
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter()
            .map(|&(f, v)| (f.to_owned(), v.to_owned()))
            .collect()
    }

    #[test]
    fn memory() {
        let limited = json!({"memory": {"limit": 1048576, "reservation": 4096, "swap": 2097152}});
        assert_eq!(
            resolved(limited.clone()).unwrap().memory_limit_bytes,
            Some(1048576)
        );
        assert_eq!(
            writes(limited),
            pairs(&[("memory.max", "1048576"), ("memory.low", "4096")])
        );
        let lifted = json!({"memory": {"limit": -1, "swap": -1}});
        assert_eq!(resolved(lifted.clone()).unwrap().memory_limit_bytes, None);
        assert_eq!(writes(lifted), pairs(&[("memory.max", "max")]));
        assert!(writes(json!({"memory": {"limit": 0, "swap": 0}})).is_empty());
    }

    #[test]
    fn cpu() {
        for (cpu, expected) in [
            (json!({"quota": 50000, "period": 200000}), "50000 200000"),
            (json!({"quota": 50000}), "50000 100000"),
            (json!({"quota": -1}), "max 100000"),
            (json!({"period": 5000, "quota": 0}), "max 5000"),
        ] {
            assert_eq!(writes(json!({"cpu": cpu})), pairs(&[("cpu.max", expected)]));
        }
        let rest = json!({"cpu": {"burst": 7, "idle": 1, "cpus": "0-2,5", "shares": 0}});
        assert_eq!(
            writes(rest.clone()),
            pairs(&[("cpu.max.burst", "7"), ("cpu.idle", "1")])
        );
        assert_eq!(resolved(rest).unwrap().host_cpus, Some(vec![0, 1, 2, 5]));
    }

    #[test]
    fn shares_become_weight() {
        for (shares, weight) in [
            (1, 1),
            (2, 1),
            (1024, 100),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
        let weights: Vec<u64> = (2..=262_144).step_by(7).map(weight_of_shares).collect();
        assert!(weights.is_sorted());
        assert!(weights.iter().all(|w| (1..=10_000).contains(w)));
    }

    #[test]
    fn pids() {
        assert_eq!(
            writes(json!({"pids": {"limit": 7}})),
            pairs(&[("pids.max", "7")])
        );
        assert_eq!(
            writes(json!({"pids": {"limit": -1}})),
            pairs(&[("pids.max", "max")])
        );
        assert!(writes(json!({"pids": {"limit": 0}})).is_empty());
    }

    #[test]
    fn refusals() {
        for (resources, message) in [
            (
                json!({"memory": {"limit": -2}}),
                "linux.resources.memory.limit: must be -1 (no limit) or more",
            ),
            (
                json!({"memory": {"limit": 2, "swap": 1}}),
                "linux.resources.memory.swap: counts memory in, so it must be at least its 2",
            ),
            (
                json!({"memory": {"swap": 1}}),
                "linux.resources.memory.swap: needs a memory.limit",
            ),
            (
                json!({"hugepageLimits": [{"pageSize": "2M", "limit": 1}]}),
                "linux.resources.hugepageLimits[0].pageSize: must be a size (2MB, 1GB)",
            ),
            (
                json!({"cpu": {"idle": 2}}),
                "linux.resources.cpu.idle: must be 0 or 1",
            ),
            (
                json!({"cpu": {"cpus": "3-1"}}),
                "linux.resources.cpu.cpus: must be a list of CPUs (0-3,7)",
            ),
            (
                json!({"cpu": {"cpus": "0-99999999999"}}),
                "linux.resources.cpu.cpus: must be a list of CPUs (0-3,7)",
            ),
        ] {
            assert_eq!(resolved(resources).unwrap_err(), message);
        }
    }
}
