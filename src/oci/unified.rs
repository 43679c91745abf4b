//! `linux.resources.unified` (config-linux.md, "Unified"): files of cgroup v2 by
//! their names. Each is the guest's, the host's, or refused.

use std::collections::HashMap;

use crate::host_limits;
use crate::resources::{Limit, Resources};
use crate::{Error, text};

const MAX_FILES: usize = 256;

/// Longest value, in bytes: a page, as the kernel takes it.
const MAX_VALUE_BYTES: usize = 4096;

/// Where a file is written.
enum Home {
    /// In the container's cgroup in the guest.
    Guest,
    /// The CPUs and memory nodes are those of the host.
    HostCpus,
    HostMems,
    /// Nowhere: the guest has nothing of what it limits.
    Kept,
}

fn home(file: &str) -> Option<Home> {
    Some(match file {
        "memory.max" | "memory.high" | "memory.low" | "memory.min" | "memory.oom.group"
        | "cpu.weight" | "cpu.weight.nice" | "cpu.max" | "cpu.max.burst" | "cpu.idle"
        | "pids.max" => Home::Guest,
        "cpuset.cpus" => Home::HostCpus,
        "cpuset.mems" => Home::HostMems,
        "memory.swap.max" | "memory.swap.high" | "memory.zswap.max" => Home::Kept,
        other if other.starts_with("hugetlb.") || other.starts_with("rdma.") => Home::Kept,
        _ => return None,
    })
}

/// Resolves the files, by name.
pub fn resolve(unified: &HashMap<String, String>, to: &mut Resources) -> Result<(), Error> {
    text::at_most("linux.resources.unified", unified.len(), MAX_FILES)?;
    let mut sorted: Vec<_> = unified.iter().collect();
    sorted.sort();
    for (file, value) in sorted {
        let shown: String = file.chars().take(64).flat_map(char::escape_debug).collect();
        let path = format!("linux.resources.unified.{shown}");
        let Some(home) = home(file) else {
            let problem = "is not a file of memory, cpu, cpuset or pids that can be set here";
            return Err(Error::property(path, problem));
        };
        let value = value.trim_end_matches('\n');
        let bytes = text::bytes(&path, value)?;
        if value.is_empty() || value.len() > MAX_VALUE_BYTES {
            let problem = format!("must be 1 to {MAX_VALUE_BYTES} bytes");
            return Err(Error::property(path, problem));
        }
        match home {
            Home::Guest => {
                if file == "memory.max" {
                    memory_limit(value, to);
                }
                to.cgroup_writes.push((file.clone().into_bytes(), bytes));
            }
            Home::HostCpus => {
                to.host_cpus = Some(crate::resources::cpu_list(&path, value)?);
                to.host_limits.cpus = host_limits::list(&path, Some(value))?;
            }
            Home::HostMems => to.host_limits.mems = host_limits::list(&path, Some(value))?,
            Home::Kept => {}
        }
    }
    Ok(())
}

/// It sizes the machine and its cgroup as `memory.limit` does.
fn memory_limit(value: &str, to: &mut Resources) {
    if let Ok(bytes) = value.parse() {
        to.memory_limit_bytes = Some(bytes);
        to.host_limits.memory = Some(Limit::At(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(files: &[(&str, &str)]) -> Result<Resources, String> {
        let own = |&(f, v): &(&str, &str)| (f.to_owned(), v.to_owned());
        let unified = files.iter().map(own).collect();
        let mut to = Resources::default();
        resolve(&unified, &mut to).map_err(|e| e.to_string())?;
        Ok(to)
    }

    #[test]
    fn each_file_to_its_home() {
        let to = resolved(&[
            ("memory.swap.max", "0"),
            ("memory.max", "1048576"),
            ("memory.oom.group", "1"),
            ("cpuset.cpus", "0,2"),
            ("cpuset.mems", "0"),
            ("hugetlb.2MB.max", "0"),
        ])
        .unwrap();
        let writes = [
            (b"memory.max".to_vec(), b"1048576".to_vec()),
            (b"memory.oom.group".to_vec(), b"1".to_vec()),
        ];
        assert_eq!(to.cgroup_writes, writes);
        assert_eq!(to.memory_limit_bytes, Some(1 << 20));
        assert_eq!(to.host_limits.memory, Some(Limit::At(1 << 20)));
        assert_eq!(to.host_cpus, Some(vec![0, 2]));
        assert_eq!(to.host_limits.cpus.as_deref(), Some("0,2"));
        assert_eq!(to.host_limits.mems.as_deref(), Some("0"));
    }

    #[test]
    fn files_that_are_none() {
        for file in [
            "../memory.max",
            "memory",
            "memory.reclaim",
            "cgroup.procs",
            "cgroup.subtree_control",
            "io.max",
            "m.\0",
            "",
        ] {
            let message = resolved(&[(file, "1")]).unwrap_err();
            assert!(message.ends_with("that can be set here"), "{message}");
        }
        let long = "1".repeat(4097);
        for value in ["", "\n", "a\0", &long] {
            assert!(resolved(&[("memory.high", value)]).is_err(), "{value:?}");
        }
    }
}
