//! The container as the agent gets it: flat, validated and resolved on the host
//! from the bundle's config.json, so that the guest parses no JSON.
//!
//! Strings are bytes without NUL: Linux paths and arguments need not be UTF-8.
//! Section names are those of the OCI runtime-spec (config.md, config-linux.md).

use serde::{Deserialize, Serialize};

/// Bytes without NUL.
pub type Bytes = Vec<u8>;

/// Everything the agent needs to run one container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// `root.readonly`. The root itself is the export [`crate::ROOT_EXPORT`].
    pub root_readonly: bool,
    /// `linux.rootfsPropagation` as mount(2) flags (`MS_PRIVATE` and kin, with
    /// `MS_REC`), applied in the container's mount namespace.
    pub root_propagation: u64,
    /// `hostname`; needs [`namespace::UTS`].
    pub hostname: Option<Bytes>,
    /// `domainname`; needs [`namespace::UTS`].
    pub domainname: Option<Bytes>,
    /// `linux.namespaces`: bits of [`namespace`], all of them new.
    pub namespaces: u64,
    /// `linux.uidMappings`; needs [`namespace::USER`], which without them has every
    /// id as itself.
    pub uid_mappings: Vec<IdMapping>,
    /// `linux.gidMappings`, as [`Self::uid_mappings`].
    pub gid_mappings: Vec<IdMapping>,
    /// `mounts`, in order.
    pub mounts: Vec<Mount>,
    /// `linux.maskedPaths`.
    pub masked_paths: Vec<Bytes>,
    /// `linux.readonlyPaths`.
    pub readonly_paths: Vec<Bytes>,
    /// `linux.sysctl`: file below /proc/sys (`net/ipv4/ip_forward`) and value.
    pub sysctl: Vec<(Bytes, Bytes)>,
    /// `linux.devices`: nodes made beside the default ones.
    pub devices: Vec<DeviceNode>,
    /// `linux.resources.devices`, in order, after the host added the default
    /// rules (deny all, then the default nodes).
    pub device_rules: Vec<DeviceRule>,
    /// `linux.resources` as cgroup v2 files of the container's cgroup and what
    /// to write there (`memory.max`, `268435456`), in order. Of the core's files only
    /// the limits `cgroup.max.depth` and `cgroup.max.descendants`.
    pub cgroup_writes: Vec<(Bytes, Bytes)>,
    /// `linux.timeOffsets`: clock id (1 monotonic, 7 boottime), seconds and
    /// nanoseconds; needs [`namespace::TIME`].
    pub time_offsets: Vec<(u32, i64, u32)>,
    /// `hooks.startContainer`: run in the container, in order, before its program.
    pub start_container_hooks: Vec<Hook>,
    /// `process`.
    pub process: ProcessPlan,
}

/// A hook that runs in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Absolute path in the container.
    pub path: Bytes,
    /// Arguments, the program's name among them.
    pub args: Vec<Bytes>,
    /// `NAME=value` strings.
    pub env: Vec<Bytes>,
    /// What it reads as standard input: the container's state (runtime.md).
    pub stdin: Bytes,
    /// After which it is killed and has failed.
    pub timeout_s: Option<u32>,
}

/// Ids that follow each other, inside and outside of a user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First id inside (`containerID`).
    pub inside: u32,
    /// First id outside, in the machine and in its shared folders (`hostID`).
    pub outside: u32,
    /// How many, at least 1 (`size`).
    pub count: u32,
}

impl IdMapping {
    /// Most of them in one namespace (`UID_GID_MAP_MAX_EXTENTS` of the kernel).
    pub const MAX_COUNT: usize = 340;
}

/// Namespace bits: clone(2)'s `CLONE_NEW*`.
#[allow(missing_docs, reason = "each is the namespace it names")]
pub mod namespace {
    pub const TIME: u64 = 0x80;
    pub const MOUNT: u64 = 0x2_0000;
    pub const CGROUP: u64 = 0x200_0000;
    pub const UTS: u64 = 0x400_0000;
    pub const IPC: u64 = 0x800_0000;
    pub const USER: u64 = 0x1000_0000;
    pub const PID: u64 = 0x2000_0000;
    pub const NETWORK: u64 = 0x4000_0000;
}

/// One entry of `mounts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path inside the container; resolved by the agent inside the
    /// container's root, created when missing.
    pub destination: Bytes,
    /// What is mounted there.
    pub source: MountSource,
    /// mount(2) flags of the mount point (`MS_RDONLY`, `MS_NOSUID`, ...), and
    /// [`Mount::COPY_UP`].
    pub flags: u64,
    /// Propagation flags, applied by a second mount(2), in order.
    pub propagation: Vec<u64>,
    /// File system options (`size=64m`, `newinstance`), comma-separated.
    pub data: Bytes,
}

impl Mount {
    /// `tmpcopyup`, of a tmpfs only: it begins with a copy of what is at its
    /// destination. A bit that mount(2) does not have.
    pub const COPY_UP: u64 = 1 << 63;
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A new file system of the guest kernel.
    FileSystem {
        /// `proc`, `sysfs`, `tmpfs`, `devpts`, `mqueue` or `cgroup2`.
        fs_type: FsType,
        /// `source` of the entry, shown in /proc/mounts only.
        label: Bytes,
    },
    /// An export of the host by its name at the top of the [`crate::FS_TAG`]
    /// share: a folder, or a single file.
    Export {
        /// The export's name: `[a-z0-9]+`.
        name: String,
        /// Whether it is a folder (else a file: the target must be one, too).
        is_dir: bool,
        /// `rbind` rather than `bind`.
        recursive: bool,
    },
}

/// File systems a container may mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each is the file system it names")]
pub enum FsType {
    Proc,
    Sysfs,
    Tmpfs,
    Devpts,
    Mqueue,
    Cgroup2,
}

/// One entry of `linux.devices`, a node inside the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Absolute path inside the container.
    pub path: Bytes,
    /// What kind of node.
    pub kind: DeviceKind,
    /// Device number; 0 for a fifo.
    pub major: u32,
    /// Device number; 0 for a fifo.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Kinds of device nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each is the node it names")]
pub enum DeviceKind {
    Char,
    Block,
    Fifo,
}

/// One entry of `linux.resources.devices`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Allow or deny.
    pub allow: bool,
    /// Char or block; `None` is both (`a`).
    pub kind: Option<DeviceKind>,
    /// `None` is every major number.
    pub major: Option<u32>,
    /// `None` is every minor number.
    pub minor: Option<u32>,
    /// Bits of [`access`].
    pub access: u8,
}

/// Access bits of a [`DeviceRule`], those of `BPF_DEVCG_ACC_*`.
#[allow(missing_docs, reason = "each is the access it names")]
pub mod access {
    pub const MKNOD: u8 = 1;
    pub const READ: u8 = 2;
    pub const WRITE: u8 = 4;
}

/// `process`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProcessPlan {
    /// Program and arguments, never empty. A program without `/` is looked up
    /// in `PATH` of `env`, inside the container.
    pub args: Vec<Bytes>,
    /// `NAME=value` strings.
    pub env: Vec<Bytes>,
    /// Absolute working folder inside the container.
    pub cwd: Bytes,
    /// A terminal of this size for stdin, stdout and stderr, or none.
    pub terminal: Option<WindowSize>,
    /// `user`.
    pub user: User,
    /// `capabilities`; `None` leaves none at all.
    pub capabilities: Option<Capabilities>,
    /// `noNewPrivileges`.
    pub no_new_privileges: bool,
    /// `oomScoreAdj`.
    pub oom_score_adj: Option<i32>,
    /// `rlimits`.
    pub rlimits: Vec<Rlimit>,
    /// `linux.seccomp`, installed in this order as the last step before the
    /// program: the strictest answer of all counts (seccomp(2)). They must allow
    /// execve, write and exit_group, each but the last seccomp, and without
    /// [`Self::no_new_privileges`] capset and, for ambient capabilities, prctl.
    pub seccomp: Vec<SeccompFilter>,
    /// `linux.personality`: personality(2).
    pub personality: Option<u32>,
    /// `scheduler`: sched_setattr(2).
    pub scheduler: Option<Scheduler>,
    /// `ioPriority` as ioprio_set(2) has it: class in the upper 3 of 16 bits.
    pub io_priority: Option<u16>,
}

/// One seccomp filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompFilter {
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
    /// `struct sock_filter`, each as a number: code in bits 0..16, jt in 16..24, jf
    /// in 24..32, k in 32..64. At most [`SeccompFilter::MAX_LEN`].
    pub program: Vec<u64>,
}

impl SeccompFilter {
    /// `BPF_MAXINSNS` of the kernel.
    pub const MAX_LEN: usize = 4096;
}

/// `process.scheduler`, the fields of `struct sched_attr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Scheduler {
    /// `SCHED_*` number.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For the normal policies.
    pub nice: i32,
    /// For the real-time policies.
    pub priority: u32,
    /// For the deadline policy, in nanoseconds.
    pub runtime_ns: u64,
    /// For the deadline policy, in nanoseconds.
    pub deadline_ns: u64,
    /// For the deadline policy, in nanoseconds.
    pub period_ns: u64,
}

/// `process.user`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct User {
    /// A name to be found in the container's /etc/passwd; then uid and gid are
    /// the ones found there and the fields below are ignored.
    pub name: Option<Bytes>,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// File mode creation mask; `None` is 0o022.
    pub umask: Option<u32>,
}

/// The five capability sets: bit n is capability n of linux/capability.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each is the set it names")]
pub struct Capabilities {
    pub bounding: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub permitted: u64,
    pub ambient: u64,
}

/// One entry of `process.rlimits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_*` number of x86-64 Linux.
    pub resource: u32,
    /// Soft limit, in the resource's own unit.
    pub soft: u64,
    /// Hard limit, in the resource's own unit.
    pub hard: u64,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}
