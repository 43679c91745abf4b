//! Files of the guest's cgroup v2 as runc's `data` of a `stats` event. Processor,
//! memory and processes are the container's own, as its guest counts them; a guest
//! whose container has no limit of memory does not, then that of its whole machine is
//! told. Block devices are the host's, which read and write its files.

use serde_json::{Map, Value, json};
use vmrun_protocol::plan::Bytes;

use crate::host_cgroup::HostStatistics;

/// runc's number for no limit.
const NO_LIMIT: u64 = u64::MAX;

/// Most lines of a file of the guest.
const MAX_LINES: usize = 256;

/// The whole of it. What is missing counts as 0.
pub fn data(files: &[(String, Bytes)], host: &HostStatistics) -> Value {
    let files = Files(files);
    json!({
        "cpu": cpu(&files),
        "cpuset": {
            "cpus": list(files.text("cpuset.cpus.effective")),
            "mems": list(files.text("cpuset.mems.effective")),
        },
        "memory": memory(&files, host),
        "pids": pids(&files),
        "blkio": block(host),
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

struct Files<'a>(&'a [(String, Bytes)]);

impl<'a> Files<'a> {
    fn text(&self, name: &str) -> &'a str {
        let found = self.0.iter().find(|(file, _)| file == name);
        let text = found.map(|(_, text)| std::str::from_utf8(text).unwrap_or_default());
        text.unwrap_or_default().trim()
    }

    fn number(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or(0)
    }

    fn limit(&self, name: &str) -> u64 {
        self.text(name).parse().unwrap_or(NO_LIMIT)
    }

    /// `name value` lines.
    fn table(&self, name: &str) -> Map<String, Value> {
        let line = |line: &str| {
            let (key, value) = line.split_once(' ')?;
            let known = key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            let value: u64 = value.parse().ok()?;
            known.then(|| (key.to_owned(), Value::from(value)))
        };
        let lines = self.text(name).lines().take(MAX_LINES);
        lines.filter_map(line).collect()
    }
}

fn at(table: &Map<String, Value>, key: &str) -> u64 {
    table.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn cpu(files: &Files) -> Value {
    let stat = files.table("cpu.stat");
    let ns = |key| at(&stat, key).saturating_mul(1000);
    let mut throttling = Map::new();
    for (key, value) in [
        ("periods", at(&stat, "nr_periods")),
        ("throttledPeriods", at(&stat, "nr_throttled")),
        ("throttledTime", ns("throttled_usec")),
    ] {
        if value != 0 {
            throttling.insert(key.to_owned(), value.into());
        }
    }
    json!({
        "usage": {
            "total": ns("usage_usec"),
            "kernel": ns("system_usec"),
            "user": ns("user_usec"),
        },
        "throttling": throttling,
    })
}

fn memory(files: &Files, host: &HostStatistics) -> Value {
    let raw = files.table("memory.stat");
    let events = files.table("memory.events");
    let entry = |limit: u64, usage: u64, max: u64, failures: u64| {
        let mut entry = json!({"limit": limit, "failcnt": failures});
        for (key, value) in [("usage", usage), ("max", max)] {
            if value != 0 {
                entry[key] = value.into();
            }
        }
        entry
    };
    let usage = match files.text("memory.current") {
        "" => host.memory_bytes,
        text => text.parse().unwrap_or(0),
    };
    let swap = files.number("memory.swap.current");
    let kernel = at(&raw, "kernel");
    json!({
        "cache": at(&raw, "file"),
        "usage": entry(
            files.limit("memory.max"),
            usage,
            files.number("memory.peak"),
            at(&events, "max"),
        ),
        // Of both together, as runc has it.
        "swap": entry(
            files.limit("memory.max").saturating_add(files.limit("memory.swap.max")),
            usage.saturating_add(swap),
            0,
            0,
        ),
        "kernel": entry(NO_LIMIT, kernel, 0, 0),
        "kernelTCP": entry(NO_LIMIT, at(&raw, "sock"), 0, 0),
        "raw": raw,
    })
}

fn pids(files: &Files) -> Value {
    let mut pids = json!({"current": files.number("pids.current")});
    match files.limit("pids.max") {
        0 | NO_LIMIT => {}
        limit => pids["limit"] = limit.into(),
    }
    pids
}

fn block(host: &HostStatistics) -> Value {
    let mut bytes = Vec::new();
    let mut operations = Vec::new();
    for device in &host.block {
        let entry = |op: &str, value: u64| {
            json!({
                "major": device.major, "minor": device.minor, "op": op, "value": value,
            })
        };
        bytes.extend([
            entry("Read", device.read_bytes),
            entry("Write", device.write_bytes),
        ]);
        operations.extend([entry("Read", device.reads), entry("Write", device.writes)]);
    }
    let mut block = json!({});
    if !bytes.is_empty() {
        block["ioServiceBytesRecursive"] = bytes.into();
        block["ioServicedRecursive"] = operations.into();
    }
    block
}

/// `0-2,7` as numbers.
fn list(text: &str) -> Vec<u16> {
    let mut numbers = Vec::new();
    for part in text.split(',').take(MAX_LINES) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) {
            let room = MAX_LINES.saturating_sub(numbers.len());
            numbers.extend((first..=last).take(room));
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_cgroup::BlockDevice;

    fn files(files: &[(&str, &str)]) -> Vec<(String, Bytes)> {
        let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), text.as_bytes().to_vec());
        files.iter().map(owned).collect()
    }

    #[test]
    fn keys_are_runcs() {
        let files = files(&[
            (
                "cpu.stat",
                "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 9\nnr_throttled 0\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 1\nfile 2\nkernel 3\n"),
            ("memory.events", "low 0\nmax 7\n"),
            ("pids.current", "2\n"),
            ("pids.max", "10\n"),
            ("cpuset.cpus.effective", "0-1,3\n"),
        ]);
        let host = HostStatistics {
            block: vec![BlockDevice {
                major: 8,
                minor: 1,
                read_bytes: 512,
                reads: 1,
                ..BlockDevice::default()
            }],
            ..HostStatistics::default()
        };
        let data = data(&files, &host);
        let expected = json!({
            "cpu": {
                "usage": {"total": 5000, "kernel": 2000, "user": 3000},
                "throttling": {"periods": 9}
            },
            "cpuset": {"cpus": [0, 1, 3], "mems": []},
            "memory": {
                "cache": 2,
                "usage": {"limit": NO_LIMIT, "usage": 4096, "failcnt": 7},
                "swap": {"limit": NO_LIMIT, "usage": 4096, "failcnt": 0},
                "kernel": {"limit": NO_LIMIT, "usage": 3, "failcnt": 0},
                "kernelTCP": {"limit": NO_LIMIT, "failcnt": 0},
                "raw": {"anon": 1, "file": 2, "kernel": 3}
            },
            "pids": {"current": 2, "limit": 10},
            "blkio": {
                "ioServiceBytesRecursive": [
                    {"major": 8, "minor": 1, "op": "Read", "value": 512},
                    {"major": 8, "minor": 1, "op": "Write", "value": 0}
                ],
                "ioServicedRecursive": [
                    {"major": 8, "minor": 1, "op": "Read", "value": 1},
                    {"major": 8, "minor": 1, "op": "Write", "value": 0}
                ]
            },
            "hugetlb": {}, "intel_rdt": {}, "network_interfaces": null
        });
        assert_eq!(data, expected);
    }

    #[test]
    fn a_guest_may_say_anything() {
        let odd = files(&[
            ("cpu.stat", "usage_usec 99999999999999999999\nx\n\u{1b} 1\n"),
            ("memory.current", "-1"),
            ("memory.max", ""),
            ("memory.swap.max", "max"),
            ("cpuset.cpus.effective", "0-65535,9-1,a"),
        ]);
        let data = data(&odd, &HostStatistics::default());
        assert_eq!(data["cpu"]["usage"]["total"], 0);
        assert_eq!(data["cpuset"]["cpus"].as_array().unwrap().len(), MAX_LINES);
        assert_eq!(data["blkio"], json!({}));
    }

    #[test]
    fn memory_that_the_guest_does_not_count() {
        let host = HostStatistics {
            memory_bytes: 77,
            ..HostStatistics::default()
        };
        let memory = &data(&[], &host)["memory"];
        let expected = json!({"limit": NO_LIMIT, "usage": 77, "failcnt": 0});
        assert_eq!(memory["usage"], expected);
    }
}
