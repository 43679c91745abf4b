//! What the host has counted for a container's machine.

use std::collections::HashMap;

use super::folder::Folder;

/// Of the monitor with all of its guest. Zero where the host does not count.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostStatistics {
    /// Memory in use, in bytes: the guest's, and host pages that cache its files.
    pub memory_bytes: u64,
    /// Processor time, in nanoseconds.
    pub cpu_ns: u64,
    /// Threads of the monitor.
    pub pids: u64,
    /// Bytes and operations of each block device.
    pub block: Vec<BlockDevice>,
}

/// What was read from and written to a block device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockDevice {
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Number of reads.
    pub reads: u64,
    /// Number of writes.
    pub writes: u64,
}

impl HostStatistics {
    /// Of a process that is in no cgroup of its own, as far as /proc tells.
    pub fn of_process(pid: u32) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
        let status = status.unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = resident.map_or(0, first_number);
        Self {
            memory_bytes: kib.saturating_mul(1 << 10),
            ..Self::default()
        }
    }
}

/// Reads all of it.
pub fn read(folders: &[Folder]) -> HostStatistics {
    let of = |controller: &str| folders.iter().find(|f| f.has(controller));
    let number = |controller: &str, v1: &str, v2: &str| {
        of(controller).map_or(0, |f| {
            let file = if f.is_unified() { v2 } else { v1 };
            first_number(&f.read(file).unwrap_or_default())
        })
    };
    // Needs no controller on v2.
    let cpu = of("cpuacct").or_else(|| folders.iter().find(|f| f.is_unified()));
    HostStatistics {
        memory_bytes: number("memory", "memory.usage_in_bytes", "memory.current"),
        cpu_ns: cpu.map_or(0, cpu_ns),
        pids: number("pids", "pids.current", "pids.current"),
        block: of("io")
            .or_else(|| of("blkio"))
            .map(block)
            .unwrap_or_default(),
    }
}

fn first_number(text: &str) -> u64 {
    let word = text.split_whitespace().next().unwrap_or_default();
    word.parse().unwrap_or(0)
}

fn cpu_ns(folder: &Folder) -> u64 {
    if !folder.is_unified() {
        return first_number(&folder.read("cpuacct.usage").unwrap_or_default());
    }
    let text = folder.read("cpu.stat").unwrap_or_default();
    let usage = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "));
    usage.map_or(0, first_number).saturating_mul(1000)
}

fn block(folder: &Folder) -> Vec<BlockDevice> {
    let read = |file: &str| folder.read(file).unwrap_or_default();
    if folder.is_unified() {
        return io_stat(&read("io.stat"));
    }
    let bytes = read("blkio.throttle.io_service_bytes");
    let operations = read("blkio.throttle.io_serviced");
    blkio(&bytes, &operations)
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 ...`.
fn io_stat(text: &str) -> Vec<BlockDevice> {
    let device = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = numbers(words.next()?)?;
        let values: HashMap<_, _> = words.filter_map(|word| word.split_once('=')).collect();
        let value = |key| values.get(key).map_or(0, |text| first_number(text));
        Some(BlockDevice {
            major,
            minor,
            read_bytes: value("rbytes"),
            write_bytes: value("wbytes"),
            reads: value("rios"),
            writes: value("wios"),
        })
    };
    text.lines().filter_map(device).collect()
}

/// `8:0 Read 1`, `8:0 Write 2`, ..., `Total 3`, of bytes and of operations.
fn blkio(bytes: &str, operations: &str) -> Vec<BlockDevice> {
    let mut devices: Vec<BlockDevice> = Vec::new();
    for (text, is_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let Some((major, minor)) = words.next().and_then(numbers) else {
                continue;
            };
            let (kind, value) = (words.next(), first_number(words.next().unwrap_or_default()));
            let known = devices
                .iter()
                .position(|d| (d.major, d.minor) == (major, minor));
            let at = known.unwrap_or_else(|| {
                devices.push(BlockDevice {
                    major,
                    minor,
                    ..BlockDevice::default()
                });
                devices.len() - 1
            });
            let device = &mut devices[at];
            match (kind, is_bytes) {
                (Some("Read"), true) => device.read_bytes = value,
                (Some("Write"), true) => device.write_bytes = value,
                (Some("Read"), false) => device.reads = value,
                (Some("Write"), false) => device.writes = value,
                _ => {}
            }
        }
    }
    devices
}

fn numbers(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPECTED: BlockDevice = BlockDevice {
        major: 8,
        minor: 16,
        read_bytes: 1,
        write_bytes: 2,
        reads: 3,
        writes: 4,
    };

    #[test]
    fn this_process() {
        let own = HostStatistics::of_process(std::process::id());
        assert!(own.memory_bytes > 1 << 16, "{own:?}");
        assert_eq!(HostStatistics::of_process(0), HostStatistics::default());
    }

    #[test]
    fn block_devices_of_both_versions() {
        let v2 = "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\nx\n";
        assert_eq!(io_stat(v2), [EXPECTED]);
        let bytes = "8:16 Read 1\n8:16 Write 2\n8:16 Total 3\nTotal 3\n";
        let operations = "8:16 Read 3\n8:16 Write 4\nTotal 7\n";
        assert_eq!(blkio(bytes, operations), [EXPECTED]);
        assert!(io_stat("").is_empty() && blkio("", "Total 0\n").is_empty());
    }
}
