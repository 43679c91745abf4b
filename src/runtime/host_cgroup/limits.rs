//! Limits as files of cgroup v1 and v2.
//!
//! The guest's own cgroup enforces the container's memory, CPU and pids as well, so
//! a controller that the host has not is worth a warning only.

use std::path::PathBuf;

use vmrun_oci::host_limits::HostLimits;
use vmrun_oci::resources::{Limit, weight_of_shares};

use super::CgroupError;
use super::folder::{self, Folder};
use super::layout::is_missing;

/// Added to the container's memory limit: the guest kernel and its agent (48 MiB,
/// see [`crate::plan::MEM_OVERHEAD_MIB`]), and the monitor with its buffers and page
/// tables.
pub const MEMORY_OVERHEAD_MIB: u64 = 128;

/// Bytes of a MiB.
pub const MIB_BYTES: u64 = 1 << 20;

/// Added to the container's limit of processes: the monitor's threads. Those of the
/// container are in the guest.
pub const PIDS_OVERHEAD: u64 = 256;

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    path: PathBuf,
    value: String,
}

impl Write {
    /// Does it. What undoes it, if the host has such a setting.
    pub fn apply(&self) -> Result<Option<Self>, CgroupError> {
        let before = match folder::read(&self.path) {
            Ok(before) => before,
            Err(error) if is_missing(&error) => {
                log::warn!("the host has no {:?}: left out", self.path);
                return Ok(None);
            }
            Err(source) => return Err(self.failed(source)),
        };
        folder::write(&self.path, &self.value).map_err(|source| self.failed(source))?;
        // Nothing at all would not be written.
        let before = before.trim_end().to_owned() + "\n";
        Ok(Some(Self {
            path: self.path.clone(),
            value: before,
        }))
    }

    fn failed(&self, source: std::io::Error) -> CgroupError {
        CgroupError::Limit {
            value: self.value.clone(),
            path: self.path.clone(),
            source,
        }
    }
}

/// The settings, in an order in which the kernel takes them.
pub fn writes(folders: &[Folder], limits: &HostLimits, overhead_mib: u64) -> Vec<Write> {
    let mut list = List {
        folders,
        overhead_bytes: overhead_mib.saturating_mul(MIB_BYTES),
        writes: Vec::new(),
    };
    list.memory(limits);
    list.cpu(limits);
    list.pids(limits);
    list.weight(limits);
    list.writes
}

struct List<'a> {
    folders: &'a [Folder],
    overhead_bytes: u64,
    writes: Vec<Write>,
}

impl<'a> List<'a> {
    fn folder(&self, controller: &'static str) -> Option<&'a Folder> {
        let folder = self.folders.iter().find(|f| f.has(controller));
        if folder.is_none() {
            log::warn!("the host's cgroups have no controller {controller:?}: left out");
        }
        folder
    }

    fn add(&mut self, folder: &Folder, file: &str, value: impl ToString) {
        self.writes.push(Write {
            path: folder.file(file),
            value: value.to_string(),
        });
    }

    fn with_overhead(&self, limit: Limit) -> Limit {
        match limit {
            Limit::None => Limit::None,
            Limit::At(bytes) => Limit::At(bytes.saturating_add(self.overhead_bytes)),
        }
    }

    fn memory(&mut self, limits: &HostLimits) {
        let asked = [
            limits.memory,
            limits.memory_and_swap,
            limits.memory_reservation,
        ];
        if asked.iter().all(Option::is_none) {
            return;
        }
        let Some(folder) = self.folder("memory") else {
            return;
        };
        let [memory, both, low] = asked.map(|limit| limit.map(|l| self.with_overhead(l)));
        if is_below_use(folder, memory) {
            // A machine does not give memory back: the kernel would kill it. The
            // container's limit holds in the guest.
            log::warn!("the machine uses more memory than its new limit, which is left as it is");
            return;
        }
        if folder.is_unified() {
            if let Some(memory) = memory {
                self.add(folder, "memory.max", memory.text());
            }
            if let Some(swap) = swap_alone(memory, both) {
                self.add(folder, "memory.swap.max", swap.text());
            }
            if let Some(low) = low {
                self.add(folder, "memory.low", low.text());
            }
            return;
        }
        let mut files = vec![
            ("memory.limit_in_bytes", memory),
            ("memory.memsw.limit_in_bytes", both),
        ];
        // Memory alone may never be over both together, at no moment.
        if grows(folder, "memory.memsw.limit_in_bytes", both) {
            files.reverse();
        }
        files.push(("memory.soft_limit_in_bytes", low));
        for (file, limit) in files {
            if let Some(limit) = limit {
                self.add(folder, file, v1(limit));
            }
        }
    }

    fn cpu(&mut self, limits: &HostLimits) {
        let (quota, period_us) = (limits.cpu_quota_us, limits.cpu_period_us);
        let in_cpu = limits.cpu_shares.is_some()
            || quota.is_some()
            || period_us.is_some()
            || limits.cpu_burst_us.is_some()
            || limits.cpu_idle.is_some();
        if in_cpu && let Some(folder) = self.folder("cpu") {
            let unified = folder.is_unified();
            if let Some(shares) = limits.cpu_shares {
                match unified {
                    true => self.add(folder, "cpu.weight", weight_of_shares(shares)),
                    false => self.add(folder, "cpu.shares", shares),
                }
            }
            match unified {
                true => self.bandwidth_v2(folder, quota, period_us),
                false => {
                    if let Some(period_us) = period_us {
                        self.add(folder, "cpu.cfs_period_us", period_us);
                    }
                    if let Some(quota) = quota {
                        self.add(folder, "cpu.cfs_quota_us", v1(quota));
                    }
                }
            }
            if let Some(burst_us) = limits.cpu_burst_us {
                let file = if unified {
                    "cpu.max.burst"
                } else {
                    "cpu.cfs_burst_us"
                };
                self.add(folder, file, burst_us);
            }
            if let Some(idle) = limits.cpu_idle {
                self.add(folder, "cpu.idle", u8::from(idle));
            }
        }
        for (file, list) in [("cpuset.cpus", &limits.cpus), ("cpuset.mems", &limits.mems)] {
            if let Some(list) = list
                && let Some(folder) = self.folder("cpuset")
            {
                self.add(folder, file, list);
            }
        }
    }

    /// One file holds both: what is not asked for stays.
    fn bandwidth_v2(&mut self, folder: &Folder, quota: Option<Limit>, period_us: Option<u64>) {
        if quota.is_none() && period_us.is_none() {
            return;
        }
        let now = folder.read("cpu.max").unwrap_or_default();
        let mut now = now.split_whitespace();
        let (quota_now, period_now) = (now.next().unwrap_or("max"), now.next());
        let quota = quota.map_or(quota_now.to_owned(), Limit::text);
        let period = period_us.map(|us| us.to_string());
        let period = period.as_deref().or(period_now).unwrap_or("100000");
        self.add(folder, "cpu.max", format!("{quota} {period}"));
    }

    fn pids(&mut self, limits: &HostLimits) {
        let Some(limit) = limits.pids else { return };
        let limit = match limit {
            Limit::None => Limit::None,
            Limit::At(count) => Limit::At(count.saturating_add(PIDS_OVERHEAD)),
        };
        if let Some(folder) = self.folder("pids") {
            self.add(folder, "pids.max", limit.text());
        }
    }

    fn weight(&mut self, limits: &HostLimits) {
        let Some(weight) = limits.blkio_weight else {
            return;
        };
        let v2 = self.folders.iter().find(|f| f.is_unified() && f.has("io"));
        let Some(folder) = v2.or_else(|| self.folder("blkio")) else {
            return;
        };
        let bfq = if folder.is_unified() {
            "io.bfq.weight"
        } else {
            "blkio.bfq.weight"
        };
        if folder::exists(&folder.file(bfq)) {
            self.add(folder, bfq, weight);
        } else if folder.is_unified() {
            // 10..=1000 to 1..=10000, as runc converts.
            let weight = 1 + (u64::from(weight) - 10) * 9999 / 990;
            self.add(folder, "io.weight", weight);
        } else {
            self.add(folder, "blkio.weight", weight);
        }
    }
}

/// cgroup v1's word for no limit is -1.
fn v1(limit: Limit) -> String {
    match limit {
        Limit::None => "-1".to_owned(),
        Limit::At(n) => n.to_string(),
    }
}

fn is_below_use(folder: &Folder, limit: Option<Limit>) -> bool {
    let file = match folder.is_unified() {
        true => "memory.current",
        false => "memory.usage_in_bytes",
    };
    let used: Option<u64> = folder.read(file).ok().and_then(|t| t.trim().parse().ok());
    matches!((limit, used), (Some(Limit::At(limit)), Some(used)) if used > limit)
}

/// Whether `to` is over what `file` says.
fn grows(folder: &Folder, file: &str, to: Option<Limit>) -> bool {
    let now: Option<u64> = folder.read(file).ok().and_then(|t| t.trim().parse().ok());
    match (to, now) {
        (Some(Limit::None), _) => true,
        (Some(Limit::At(to)), Some(now)) => to > now,
        _ => false,
    }
}

/// cgroup v2 counts swap by itself.
fn swap_alone(memory: Option<Limit>, both: Option<Limit>) -> Option<Limit> {
    match (memory, both?) {
        (_, Limit::None) => Some(Limit::None),
        (Some(Limit::At(memory)), Limit::At(both)) => Some(Limit::At(both.saturating_sub(memory))),
        (_, Limit::At(_)) => None,
    }
}
