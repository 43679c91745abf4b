//! From an opened bundle to what the machine and the agent are asked for. Pure:
//! nothing is looked up here.

use vmrun_oci::mounts;
use vmrun_protocol::ROOT_EXPORT;
use vmrun_protocol::plan::{ContainerPlan, Mount, MountSource};
use vmrun_vm::spec::FsExport;

use crate::Error;
use crate::bundle::Bundle;
use crate::mount_points::MountPoint;

/// Memory of a machine whose container has no limit. Small, because every page
/// costs some hundred instructions of boot.
pub const MEM_DEFAULT_MIB: u64 = 128;

/// Least memory in which the guest kernel and the agent start.
pub const MEM_MIN_MIB: u64 = 64;

/// What the guest needs beside the container: kernel, its tables and the agent.
pub const MEM_OVERHEAD_MIB: u64 = 48;

/// Most vCPUs that the guest kernel is built for.
pub const VCPU_MAX: u8 = 32;

/// Sizes of machines are powers of two from [`MEM_MIN_MIB`] on, so that few
/// templates serve all containers. What a container may use of it is its own
/// limit's business.
fn mem_class_mib(mib: u64, host_mem_mib: u64) -> u64 {
    let class = mib.checked_next_power_of_two().unwrap_or(u64::MAX);
    // The largest class is the host itself.
    class.min(host_mem_mib.max(mib))
}

/// Size of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Guest RAM.
    pub mem_size_mib: u32,
    /// Number of vCPUs.
    pub vcpu_count: u8,
}

/// What was typed about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AskedShape {
    /// `--memory`.
    pub mem_size_mib: Option<u64>,
    /// `--cpus`.
    pub vcpu_count: Option<u8>,
}

/// The machine's size: what was asked for, else the container's limit and what
/// the guest needs beside it, within what the host has; memory is rounded up to
/// the next class.
pub fn shape(
    asked: AskedShape,
    limit_bytes: Option<u64>,
    host_mem_mib: u64,
) -> Result<Shape, Error> {
    let mem_size_mib = match (asked.mem_size_mib, limit_bytes) {
        (Some(mib), _) if mib < MEM_MIN_MIB => {
            let problem = format!("--memory: {mib} MiB are too little, at least {MEM_MIN_MIB}");
            return Err(Error::Shape(problem));
        }
        (Some(mib), _) if mib > host_mem_mib => {
            let problem = format!("--memory: {mib} MiB are more than the host's {host_mem_mib}");
            return Err(Error::Shape(problem));
        }
        (Some(mib), _) => mib,
        (None, Some(bytes)) => (bytes.div_ceil(1 << 20))
            .saturating_add(MEM_OVERHEAD_MIB)
            .clamp(MEM_MIN_MIB, host_mem_mib.max(MEM_MIN_MIB)),
        (None, None) => MEM_DEFAULT_MIB,
    };
    let vcpu_count = asked.vcpu_count.unwrap_or(1);
    if !(1..=VCPU_MAX).contains(&vcpu_count) {
        let problem = format!("--cpus: must be 1 to {VCPU_MAX}");
        return Err(Error::Shape(problem));
    }
    Ok(Shape {
        mem_size_mib: u32::try_from(mem_class_mib(mem_size_mib, host_mem_mib)).unwrap_or(u32::MAX),
        vcpu_count,
    })
}

/// What the agent gets, and what the machine's share holds.
#[derive(Debug)]
pub struct Plan {
    /// For the agent.
    pub container: ContainerPlan,
    /// For the virtio-fs device; the root comes first.
    pub exports: Vec<FsExport>,
}

/// Names an export for every bind mount (`m0`, `m1`, ... by place in `mounts`).
pub fn plan(bundle: Bundle) -> Plan {
    let mut container = bundle.container.plan;
    let mut exports = vec![FsExport {
        name: ROOT_EXPORT.to_owned(),
        source: bundle.root,
        read_only: container.root_readonly,
        live: false,
    }];
    for (i, (mount, source)) in bundle
        .container
        .mounts
        .into_iter()
        .zip(bundle.sources)
        .enumerate()
    {
        let is_dir = source.as_ref().is_some_and(|s| s.is_dir);
        let name = format!("m{i}");
        if let Some(bind) = source {
            exports.push(FsExport {
                name: name.clone(),
                source: bind.source,
                read_only: mount.read_only(),
                live: true,
            });
        }
        container.mounts.push(planned_mount(mount, name, is_dir));
    }
    Plan { container, exports }
}

fn planned_mount(mount: mounts::Mount, name: String, is_dir: bool) -> Mount {
    Mount {
        destination: mount.destination,
        source: match mount.source {
            mounts::Source::FileSystem { fs_type, label } => {
                MountSource::FileSystem { fs_type, label }
            }
            mounts::Source::Bind { recursive, .. } => MountSource::Export {
                name,
                is_dir,
                recursive,
            },
        },
        flags: mount.flags,
        propagation: mount.propagation,
        data: mount.data,
    }
}

impl Plan {
    /// Where something is mounted, and the working folder: what has to be there
    /// before the root is read-only.
    pub fn mount_points(&self) -> Vec<MountPoint<'_>> {
        let mounts = self.container.mounts.iter().map(|mount| MountPoint {
            path: &mount.destination,
            is_dir: !matches!(mount.source, MountSource::Export { is_dir: false, .. }),
        });
        let cwd = MountPoint {
            path: &self.container.process.cwd,
            is_dir: true,
        };
        mounts.chain([cwd]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::tests::bundle;
    use serde_json::json;

    #[test]
    fn exports_and_mounts_fit_together() {
        let folder = bundle(
            "rootfs",
            json!([
                {"destination": "/tmp", "type": "tmpfs"},
                {"destination": "/data", "source": "rootfs", "options": ["rbind", "ro"]},
                {"destination": "/conf", "source": "config.json", "options": ["bind"]}
            ]),
        );
        let plan = plan(Bundle::open(folder.path()).unwrap());
        let exports: Vec<_> = plan
            .exports
            .iter()
            .map(|e| (e.name.as_str(), e.read_only))
            .collect();
        assert_eq!(exports, [("root", true), ("m1", true), ("m2", false)]);
        let sources: Vec<_> = plan.container.mounts.iter().map(|m| &m.source).collect();
        assert!(matches!(sources[0], MountSource::FileSystem { .. }));
        let export = |name: &str, is_dir, recursive| MountSource::Export {
            name: name.to_owned(),
            is_dir,
            recursive,
        };
        assert_eq!(sources[1], &export("m1", true, true));
        assert_eq!(sources[2], &export("m2", false, false));
        let points: Vec<_> = plan
            .mount_points()
            .iter()
            .map(|p| (p.path.to_vec(), p.is_dir))
            .collect();
        assert_eq!(points[2], (b"/conf".to_vec(), false));
        assert_eq!(points[3], (b"/".to_vec(), true));
    }

    fn memory(asked: Option<u64>, limit_bytes: Option<u64>) -> Result<u32, String> {
        let asked = AskedShape {
            mem_size_mib: asked,
            vcpu_count: None,
        };
        shape(asked, limit_bytes, 4096)
            .map(|s| s.mem_size_mib)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn memory_sizes() {
        assert_eq!(memory(None, None), Ok(128));
        assert_eq!(memory(Some(64), Some(1 << 40)), Ok(64));
        assert_eq!(memory(None, Some(100 << 20)), Ok(256));
        assert_eq!(memory(None, Some(1)), Ok(64));
        assert_eq!(memory(None, Some(u64::MAX)), Ok(4096));
        assert_eq!(
            memory(Some(63), None),
            Err("--memory: 63 MiB are too little, at least 64".to_owned())
        );
        assert_eq!(
            memory(Some(4097), None),
            Err("--memory: 4097 MiB are more than the host's 4096".to_owned())
        );
    }

    #[test]
    fn memory_classes() {
        for (mib, class) in [
            (64, 64),
            (65, 128),
            (200, 256),
            (256, 256),
            (2049, 3000),
            (3000, 3000),
        ] {
            assert_eq!(mem_class_mib(mib, 3000), class, "{mib}");
        }
        // A host with less than the least machine.
        assert_eq!(mem_class_mib(64, 32), 64);
    }

    #[test]
    fn cpu_counts() {
        let count = |n| {
            let asked = AskedShape {
                mem_size_mib: None,
                vcpu_count: Some(n),
            };
            shape(asked, None, 4096).map(|s| s.vcpu_count)
        };
        assert_eq!(count(1).unwrap(), 1);
        assert_eq!(count(32).unwrap(), 32);
        assert!(count(0).is_err());
        assert!(count(33).is_err());
    }
}
