//! What nearly every container asks for, and so can be made before anyone has
//! asked: the list of `runc spec`, which containerd, Docker and Podman start
//! from. Pure data.

use vmrun_protocol::plan::{
    Bytes, Capabilities, ContainerPlan, FsType, Mount, MountSource, namespace,
};

/// Capabilities that stay in the bounding set: what containerd, Docker and Podman
/// give by default, of which `runc spec` is a part.
pub const BOUNDING: u64 = 1 // CAP_CHOWN
    | 1 << 1 // CAP_DAC_OVERRIDE
    | 1 << 3 // CAP_FOWNER
    | 1 << 4 // CAP_FSETID
    | 1 << 5 // CAP_KILL
    | 1 << 6 // CAP_SETGID
    | 1 << 7 // CAP_SETUID
    | 1 << 8 // CAP_SETPCAP
    | 1 << 10 // CAP_NET_BIND_SERVICE
    | 1 << 13 // CAP_NET_RAW
    | 1 << 18 // CAP_SYS_CHROOT
    | 1 << 27 // CAP_MKNOD
    | 1 << 29 // CAP_AUDIT_WRITE
    | 1 << 31; // CAP_SETFCAP

const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

const MASKED_PATHS: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
];

/// The usual plan; with a cgroup of its own, and a mount that shows it, where
/// there is a cgroup tree.
pub fn plan(cgroups: bool) -> ContainerPlan {
    let mut plan = ContainerPlan {
        namespaces: namespace::PID
            | namespace::NETWORK
            | namespace::IPC
            | namespace::UTS
            | namespace::MOUNT,
        mounts: mounts(cgroups),
        masked_paths: bytes(&MASKED_PATHS),
        readonly_paths: bytes(&READONLY_PATHS),
        ..ContainerPlan::default()
    };
    plan.process.args = bytes(&["true"]);
    plan.process.cwd = b"/".to_vec();
    plan.process.capabilities = Some(Capabilities {
        bounding: BOUNDING,
        ..Capabilities::default()
    });
    plan
}

fn mounts(cgroups: bool) -> Vec<Mount> {
    use libc::{MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_STRICTATIME};
    const CLOSED: u64 = MS_NOSUID | MS_NOEXEC | MS_NODEV;
    let devpts = "newinstance,ptmxmode=0666,mode=0620,gid=5";
    let mut mounts = vec![
        mount(FsType::Proc, "proc", "/proc", 0, ""),
        mount(
            FsType::Tmpfs,
            "tmpfs",
            "/dev",
            MS_NOSUID | MS_STRICTATIME,
            "mode=755,size=65536k",
        ),
        mount(
            FsType::Devpts,
            "devpts",
            "/dev/pts",
            MS_NOSUID | MS_NOEXEC,
            devpts,
        ),
        mount(
            FsType::Tmpfs,
            "shm",
            "/dev/shm",
            CLOSED,
            "mode=1777,size=65536k",
        ),
        mount(FsType::Mqueue, "mqueue", "/dev/mqueue", CLOSED, ""),
        mount(FsType::Sysfs, "sysfs", "/sys", CLOSED | MS_RDONLY, ""),
    ];
    if cgroups {
        let flags = CLOSED | MS_RDONLY;
        mounts.push(mount(
            FsType::Cgroup2,
            "cgroup",
            "/sys/fs/cgroup",
            flags,
            "",
        ));
    }
    mounts
}

fn mount(fs_type: FsType, label: &str, destination: &str, flags: u64, data: &str) -> Mount {
    Mount {
        destination: destination.into(),
        source: MountSource::FileSystem {
            fs_type,
            label: label.into(),
        },
        flags,
        propagation: Vec::new(),
        data: data.into(),
    }
}

fn bytes(strings: &[&str]) -> Vec<Bytes> {
    strings.iter().map(|s| s.as_bytes().to_vec()).collect()
}
