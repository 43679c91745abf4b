//! The plan of a container as a list of steps, in the order in which the
//! container's first process carries them out. Pure: nothing here touches the
//! system, so that order and completeness can be tested.
//!
//! A mount namespace is made whether the plan asks for one or not: the
//! container must not see, or change, the agent's mounts. A cgroup namespace is
//! also made when the container mounts cgroup2, so that its mount shows its own
//! group and nothing above.
//!
//! A new network namespace is the one that the machine started with, as long as
//! nobody has had it: it is as new as any, no other container of this machine
//! has seen it, and the agent's vsock is in none. Making another one costs some
//! 900,000 instructions of the kernel, a quarter of a container's creation.

use rustix::io::Errno;
use vmrun_protocol::message::Failure;
use vmrun_protocol::plan::{
    Capabilities, ContainerPlan, DeviceKind, DeviceNode, FsType, Mount, MountSource, Rlimit,
    Scheduler, User, WindowSize, namespace,
};

use crate::failure::{quoted, setup};
use crate::inside::is_root;
use crate::mounts::flags_known;
use crate::process_steps::process_steps;

/// One thing to do for a container. The order of the list matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<'p> {
    /// sethostname(2).
    Hostname(&'p [u8]),
    /// setdomainname(2).
    Domainname(&'p [u8]),
    /// Bring `lo` up in the container's own network namespace.
    Loopback,
    /// Make the container's cgroup the root of a new cgroup namespace. Not a flag
    /// of clone3: that would take the agent's group as the root.
    CgroupNamespace,
    /// Bind the root export over itself: from now on paths are resolved in it.
    Root,
    /// An entry of `mounts`.
    Mount(&'p Mount),
    /// A tmpfs on /dev where no mount of the plan covers it: device nodes are
    /// never made in the bundle's own folder.
    DeviceFolder,
    /// A device node.
    Device {
        /// Which one.
        node: DeviceNode,
        /// Name below the agent's /dev of a node to bind there, where the
        /// container's user namespace may not make one itself.
        bind: Option<String>,
    },
    /// A symlink below /dev; one that is there already is left alone.
    Link {
        /// Where.
        path: &'static str,
        /// What it says.
        target: &'static str,
    },
    /// Open a terminal in the container's devpts.
    Terminal(WindowSize),
    /// Bind the terminal on /dev/console.
    Console,
    /// Write a file below /proc/sys.
    Sysctl {
        /// The file.
        file: &'p [u8],
        /// What to write.
        value: &'p [u8],
    },
    /// Write /proc/self/oom_score_adj.
    OomScoreAdj(i32),
    /// Hide a path.
    Mask(&'p [u8]),
    /// Make a path read-only.
    ReadonlyPath(&'p [u8]),
    /// pivot_root(2), and detach everything the container must not see.
    EnterRoot,
    /// Propagation of the root mount, as mount(2) flags.
    RootPropagation(u64),
    /// Enter the working folder.
    WorkingFolder {
        /// Which one.
        path: &'p [u8],
        /// Make it where it is missing.
        create: bool,
    },
    /// Make the root mount read-only.
    RootReadonly,
    /// A session of its own.
    Session,
    /// Put the pipes on 0, 1 and 2.
    Pipes,
    /// Make the terminal the session's.
    ControllingTerminal,
    /// Put the terminal on 0, 1 and 2.
    TerminalStreams,
    /// Find the user's numbers. Before limits and ids change.
    FindUser(&'p User),
    /// Find the user's home folder, for a HOME that `env` does not have.
    FindHome,
    /// Give what is on 0, 1 and 2 to the user found.
    OwnStreams,
    /// personality(2).
    Personality(u32),
    /// sched_setattr(2).
    Scheduler(Scheduler),
    /// ioprio_set(2).
    IoPriority(u16),
    /// prlimit(2).
    Limit(Rlimit),
    /// Let the limit be this one, or a lower one, later and without privileges.
    RaiseLimit(Rlimit),
    /// Drop capabilities from the bounding set; needs CAP_SETPCAP.
    BoundingSet(u64),
    /// Become the user found.
    BecomeUser,
    /// Set the other capability sets.
    Capabilities(Capabilities),
    /// prctl(PR_SET_NO_NEW_PRIVS).
    NoNewPrivileges,
}

/// Whether the container can have the machine's own network namespace for its new
/// one. In a user namespace it could not administer it.
pub fn takes_machine_network(plan: &ContainerPlan) -> bool {
    plan.namespaces & (namespace::NETWORK | namespace::USER) == namespace::NETWORK
}

/// Namespaces as clone3(2) flags for the container's first process, without a
/// network namespace if it has the machine's. The cgroup namespace is not among
/// them, see [`Step::CgroupNamespace`].
pub fn clone_flags(plan: &ContainerPlan, machine_network: bool) -> Result<u64, Failure> {
    const KNOWN: u64 = namespace::TIME
        | namespace::MOUNT
        | namespace::CGROUP
        | namespace::UTS
        | namespace::IPC
        | namespace::USER
        | namespace::PID
        | namespace::NETWORK;
    let unknown = plan.namespaces & !KNOWN;
    if unknown != 0 {
        return Err(setup(format!("namespaces {unknown:#x}"), Errno::INVAL));
    }
    let mut left_out = namespace::CGROUP;
    if machine_network && takes_machine_network(plan) {
        left_out |= namespace::NETWORK;
    }
    Ok((plan.namespaces | namespace::MOUNT) & !left_out)
}

/// Namespaces that steps make, in addition to the [`clone_flags`].
pub fn later_namespaces(steps: &[Step<'_>]) -> u64 {
    if steps.contains(&Step::CgroupNamespace) {
        namespace::CGROUP
    } else {
        0
    }
}

/// Whether the container can see its cgroup.
fn mounts_cgroup(plan: &ContainerPlan) -> bool {
    let cgroup = |mount: &Mount| file_system(mount) == Some(FsType::Cgroup2);
    plan.mounts.iter().any(cgroup)
}

/// Whether the container can make groups below its own.
pub fn manages_cgroups(plan: &ContainerPlan) -> bool {
    plan.mounts.iter().any(|mount| {
        file_system(mount) == Some(FsType::Cgroup2) && mount.flags & libc::MS_RDONLY == 0
    })
}

/// The steps of `plan`.
pub fn steps(plan: &ContainerPlan) -> Result<Vec<Step<'_>>, Failure> {
    let mut steps = Vec::with_capacity(64);
    namespaces(plan, &mut steps);
    steps.push(Step::Root);
    root_file_system(plan, &mut steps)?;
    steps.push(Step::EnterRoot);
    if !is_private(plan) {
        steps.push(Step::RootPropagation(plan.root_propagation));
    }
    steps.push(Step::WorkingFolder {
        path: &plan.process.cwd,
        create: true,
    });
    if plan.root_readonly {
        steps.push(Step::RootReadonly);
    }
    process_steps(&plan.process, &mut steps);
    Ok(steps)
}

/// Whether the propagation asked for is the one that all mounts begin with.
fn is_private(plan: &ContainerPlan) -> bool {
    let kind = plan.root_propagation & !(libc::MS_REC | libc::MS_SILENT);
    kind == 0 || kind == libc::MS_PRIVATE && plan.mounts.iter().all(|m| m.propagation.is_empty())
}

fn namespaces<'p>(plan: &'p ContainerPlan, steps: &mut Vec<Step<'p>>) {
    steps.extend(plan.hostname.as_deref().map(Step::Hostname));
    steps.extend(plan.domainname.as_deref().map(Step::Domainname));
    if plan.namespaces & namespace::NETWORK != 0 {
        steps.push(Step::Loopback);
    }
    if plan.namespaces & namespace::CGROUP != 0 || mounts_cgroup(plan) {
        steps.push(Step::CgroupNamespace);
    }
}

fn root_file_system<'p>(plan: &'p ContainerPlan, steps: &mut Vec<Step<'p>>) -> Result<(), Failure> {
    let dev = dev_cover(plan);
    if dev == DevCover::Nothing {
        steps.push(Step::DeviceFolder);
    }
    for mount in &plan.mounts {
        check_mount(mount)?;
        steps.push(Step::Mount(mount));
    }
    // A folder of the host on /dev comes with nodes of its own, or with none.
    if dev != DevCover::Export {
        devices(plan, steps);
    }
    if let Some(size) = plan.process.terminal {
        steps.push(Step::Terminal(size));
        steps.push(Step::Console);
    }
    steps.extend((plan.sysctl.iter()).map(|(file, value)| Step::Sysctl { file, value }));
    steps.extend(plan.process.oom_score_adj.map(Step::OomScoreAdj));
    steps.extend(plan.readonly_paths.iter().map(|p| Step::ReadonlyPath(p)));
    steps.extend(plan.masked_paths.iter().map(|p| Step::Mask(p)));
    Ok(())
}

fn check_mount(mount: &Mount) -> Result<(), Failure> {
    if is_root(&mount.destination) {
        return Err(setup("mount over the container's root", Errno::INVAL));
    }
    let copies_up = mount.flags & Mount::COPY_UP != 0;
    if !flags_known(mount.flags & !Mount::COPY_UP)
        || (copies_up && file_system(mount) != Some(FsType::Tmpfs))
    {
        let what = format!(
            "mount flags {:#x} of {}",
            mount.flags,
            quoted(&mount.destination)
        );
        return Err(setup(what, Errno::INVAL));
    }
    Ok(())
}

/// What the plan's mounts put on /dev.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DevCover {
    Nothing,
    FileSystem,
    Export,
}

fn dev_cover(plan: &ContainerPlan) -> DevCover {
    let trimmed = |path: &[u8]| path.strip_suffix(b"/").unwrap_or(path) == b"/dev";
    let last = plan.mounts.iter().rfind(|m| trimmed(&m.destination));
    match last.map(file_system) {
        None => DevCover::Nothing,
        Some(Some(_)) => DevCover::FileSystem,
        Some(None) => DevCover::Export,
    }
}

fn file_system(mount: &Mount) -> Option<FsType> {
    match mount.source {
        MountSource::FileSystem { fs_type, .. } => Some(fs_type),
        MountSource::Export { .. } => None,
    }
}

/// Nodes that every container has (config-linux.md, Default Devices).
const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Links that every container has (runtime-linux.md, Dev symbolic links). The
/// guest's kernel has no /proc/kcore to link /dev/core to.
const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// The nodes that the container gets: the default ones and the plan's, which
/// may replace a default one.
pub fn device_nodes(plan: &ContainerPlan) -> Vec<DeviceNode> {
    let defaults = DEFAULT_DEVICES
        .iter()
        .map(|(name, major, minor)| DeviceNode {
            path: format!("/dev/{name}").into_bytes(),
            kind: DeviceKind::Char,
            major: *major,
            minor: *minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
        });
    let replaced = |node: &DeviceNode| plan.devices.iter().any(|own| own.path == node.path);
    let mut nodes: Vec<_> = defaults.filter(|node| !replaced(node)).collect();
    nodes.extend(plan.devices.iter().cloned());
    nodes
}

fn devices(plan: &ContainerPlan, steps: &mut Vec<Step<'_>>) {
    let bound = plan.namespaces & namespace::USER != 0;
    for (index, node) in device_nodes(plan).into_iter().enumerate() {
        let bind = (bound && node.kind != DeviceKind::Fifo).then(|| index.to_string());
        steps.push(Step::Device { node, bind });
    }
    let links = LINKS.iter();
    steps.extend(links.map(|&(path, target)| Step::Link { path, target }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tmpfs(destination: &[u8]) -> Mount {
        Mount {
            destination: destination.to_vec(),
            source: MountSource::FileSystem {
                fs_type: FsType::Tmpfs,
                label: b"tmpfs".to_vec(),
            },
            flags: libc::MS_NOSUID,
            propagation: vec![],
            data: vec![],
        }
    }

    fn export(destination: &[u8]) -> Mount {
        Mount {
            source: MountSource::Export {
                name: "m1".to_owned(),
                is_dir: true,
                recursive: false,
            },
            ..tmpfs(destination)
        }
    }

    fn at(steps: &[Step], wanted: impl Fn(&Step) -> bool) -> usize {
        steps.iter().position(wanted).expect("step is there")
    }

    #[test]
    fn privileges_go_in_the_only_order_that_works() {
        let mut plan = ContainerPlan {
            root_readonly: true,
            masked_paths: vec![b"/proc/kcore".to_vec()],
            ..ContainerPlan::default()
        };
        plan.process.no_new_privileges = true;
        plan.process.terminal = Some(WindowSize::default());
        plan.process.rlimits = vec![Rlimit {
            resource: 7,
            soft: 10,
            hard: 10,
        }];
        let steps = steps(&plan).unwrap();
        let order = [
            at(&steps, |s| matches!(s, Step::Root)),
            at(&steps, |s| matches!(s, Step::DeviceFolder)),
            at(&steps, |s| matches!(s, Step::Device { .. })),
            at(&steps, |s| matches!(s, Step::Terminal(_))),
            at(&steps, |s| matches!(s, Step::Console)),
            at(&steps, |s| matches!(s, Step::Mask(_))),
            at(&steps, |s| matches!(s, Step::EnterRoot)),
            at(&steps, |s| {
                matches!(s, Step::WorkingFolder { create: true, .. })
            }),
            at(&steps, |s| matches!(s, Step::RootReadonly)),
            at(&steps, |s| matches!(s, Step::Session)),
            at(&steps, |s| matches!(s, Step::TerminalStreams)),
            at(&steps, |s| matches!(s, Step::FindUser(_))),
            at(&steps, |s| matches!(s, Step::FindHome)),
            at(&steps, |s| matches!(s, Step::OwnStreams)),
            at(&steps, |s| matches!(s, Step::Limit(_))),
            at(&steps, |s| matches!(s, Step::BoundingSet(0))),
            at(&steps, |s| matches!(s, Step::BecomeUser)),
            at(&steps, |s| matches!(s, Step::Capabilities(_))),
            at(&steps, |s| matches!(s, Step::NoNewPrivileges)),
        ];
        assert!(order.is_sorted(), "{order:?}");
        assert_eq!(*order.last().unwrap(), steps.len() - 1);
    }

    #[test]
    fn mounts_that_are_private_are_not_made_so() {
        let mut plan = ContainerPlan::default();
        let set = |plan: &ContainerPlan| {
            let steps = steps(plan).unwrap();
            steps.iter().any(|s| matches!(s, Step::RootPropagation(_)))
        };
        assert!(!set(&plan));
        plan.root_propagation = libc::MS_PRIVATE | libc::MS_REC;
        assert!(!set(&plan));
        plan.mounts = vec![tmpfs(b"/a")];
        plan.mounts[0].propagation = vec![libc::MS_SHARED];
        assert!(set(&plan));
        plan.mounts.clear();
        plan.root_propagation = libc::MS_SLAVE;
        assert!(set(&plan));
    }

    #[test]
    fn dev_is_covered_once() {
        let mut plan = ContainerPlan::default();
        let has = |plan: &ContainerPlan, wanted: fn(&Step) -> bool| {
            steps(plan).unwrap().iter().any(wanted)
        };
        assert!(has(&plan, |s| matches!(s, Step::DeviceFolder)));
        plan.mounts = vec![tmpfs(b"/dev/"), tmpfs(b"/dev/shm")];
        assert!(!has(&plan, |s| matches!(s, Step::DeviceFolder)));
        assert!(has(&plan, |s| matches!(s, Step::Device { .. })));
        plan.mounts = vec![export(b"/dev")];
        assert!(!has(&plan, |s| matches!(s, Step::DeviceFolder)));
        assert!(!has(&plan, |s| matches!(s, Step::Device { .. })));
    }

    #[test]
    fn a_user_namespace_binds_its_devices() {
        let plan = ContainerPlan {
            namespaces: namespace::USER,
            ..ContainerPlan::default()
        };
        let steps = steps(&plan).unwrap();
        assert!(steps.iter().all(|step| match step {
            Step::Device { bind, .. } => bind.is_some(),
            _ => true,
        }));
    }

    #[test]
    fn the_plan_may_replace_a_default_device() {
        let mut plan = ContainerPlan::default();
        let mut null = device_nodes(&plan).remove(0);
        null.mode = 0o600;
        plan.devices.push(null.clone());
        let nodes = device_nodes(&plan);
        assert_eq!(nodes.len(), DEFAULT_DEVICES.len());
        assert_eq!(nodes.last(), Some(&null));
    }

    #[test]
    fn namespaces_are_what_was_asked_for() {
        let mut plan = ContainerPlan {
            namespaces: namespace::PID | namespace::CGROUP,
            ..ContainerPlan::default()
        };
        let flags = clone_flags(&plan, true).unwrap();
        assert_eq!(flags, namespace::PID | namespace::MOUNT);
        assert!(steps(&plan).unwrap().contains(&Step::CgroupNamespace));
        assert!(!steps(&plan).unwrap().contains(&Step::Loopback));
        plan.namespaces |= 1;
        assert_eq!(clone_flags(&plan, true).unwrap_err().what, "namespaces 0x1");
    }

    #[test]
    fn the_machines_network_is_had_once_and_never_from_a_user_namespace() {
        let mut plan = ContainerPlan {
            namespaces: namespace::NETWORK,
            ..ContainerPlan::default()
        };
        assert_eq!(clone_flags(&plan, true).unwrap(), namespace::MOUNT);
        let own = namespace::MOUNT | namespace::NETWORK;
        assert_eq!(clone_flags(&plan, false).unwrap(), own);
        assert!(steps(&plan).unwrap().contains(&Step::Loopback));
        plan.namespaces |= namespace::USER;
        assert_eq!(clone_flags(&plan, true).unwrap(), own | namespace::USER);
    }

    #[test]
    fn nonsense_mounts_are_refused() {
        for mount in [
            tmpfs(b"/."),
            Mount {
                flags: libc::MS_MOVE,
                ..tmpfs(b"/a")
            },
        ] {
            let plan = ContainerPlan {
                mounts: vec![mount],
                ..ContainerPlan::default()
            };
            assert!(steps(&plan).is_err());
        }
    }
}
