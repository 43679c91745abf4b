//! What is left to do for a plan by a process that has carried out steps of the
//! [usual](crate::usual) one ahead. Pure, as [`crate::steps`] is.
//!
//! The rule: what was prepared is used if it is exactly what the plan asks for.
//! Steps that both have are left out; what the plan does not ask for is taken
//! away; all else is done as if nothing had been prepared. Namespaces and dropped
//! capabilities cannot be given back: a plan that needs others does not
//! [fit](fits), and gets a process of its own.
//!
//! File systems were mounted below the agent's root, `/dev/pts` in `/dev` and so
//! on, so that each tree moves into the container's root at once. They stand for
//! the mounts at the head of the plan's list, up to the first that differs.

use vmrun_protocol::message::Failure;
use vmrun_protocol::plan::{Bytes, ContainerPlan, Mount};

use crate::mounts::{attributes, only_attributes};
use crate::steps::{self, Step};
use crate::usual;

/// One thing left to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Left<'p> {
    /// Take off the mount on this prepared path, where there is one.
    Unmount(Bytes),
    /// Remove this prepared node or link.
    Remove(Bytes),
    /// Give the mount on this prepared path, where there is one, exactly the
    /// attributes of these mount(2) flags.
    Attributes {
        /// The prepared path.
        path: Bytes,
        /// The flags.
        flags: u64,
    },
    /// Move the prepared mount, with all below it, to its place in the root.
    Move(&'p Mount),
    /// What has not been prepared.
    Do(Step<'p>),
}

/// The steps of the usual plan that are carried out ahead.
pub fn prepared(usual: &ContainerPlan) -> Result<Vec<Step<'_>>, Failure> {
    let mut steps = steps::steps(usual)?;
    // Every plan has a session, and a terminal takes the place of the pipes.
    let harmless = |step: &Step<'_>| matches!(step, Step::Session | Step::Pipes);
    steps.retain(|step| is_lasting(step) || harmless(step) || path(step).is_some());
    Ok(steps)
}

/// Steps that cannot be undone, and that not every plan has.
fn is_lasting(step: &Step<'_>) -> bool {
    matches!(step, Step::Loopback | Step::CgroupNamespace)
}

/// Where the steps that can be undone take effect.
fn path<'s>(step: &'s Step<'_>) -> Option<&'s [u8]> {
    match step {
        Step::Mount(mount) => Some(&mount.destination),
        Step::Device { node, .. } => Some(&node.path),
        Step::Link { path, .. } => Some(path.as_bytes()),
        Step::Mask(path) | Step::ReadonlyPath(path) => Some(path),
        _ => None,
    }
}

/// Whether a process prepared for `usual` can become the one of `plan`.
pub fn fits(usual: &ContainerPlan, plan: &ContainerPlan) -> bool {
    let lasting = |plan| {
        // It shares the machine's own network namespace.
        let flags = steps::clone_flags(plan, true).ok()?;
        let mut steps = steps::steps(plan).ok()?;
        steps.retain(is_lasting);
        Some((flags, format!("{steps:?}")))
    };
    let bounding = plan.process.capabilities.unwrap_or_default().bounding;
    lasting(usual) == lasting(plan) && bounding & !usual::BOUNDING == 0
}

/// What is left of the steps of a plan that fits, once `prepared` are done.
pub fn left<'p>(prepared: &[Step<'p>], plan: &[Step<'p>]) -> Vec<Left<'p>> {
    let kept = Kept::new(prepared, plan);
    let mut left = Vec::with_capacity(plan.len());
    left.extend(prepared.iter().rev().filter_map(|step| kept.undo(step)));
    left.extend(prepared.iter().filter_map(|step| kept.adjust(step)));
    let mut to_keep = kept.mounts.len();
    for step in plan {
        match step {
            Step::Mount(mount) if to_keep > 0 => {
                to_keep -= 1;
                if is_top(&mount.destination) {
                    left.push(Left::Move(mount));
                }
            }
            step if prepared.contains(step) && kept.keeps(step) => {}
            step => left.push(Left::Do(step.clone())),
        }
    }
    left
}

/// What of the prepared is used.
struct Kept<'s, 'p> {
    plan: &'s [Step<'p>],
    /// The plan's mounts that are there already, each with the prepared one.
    mounts: Vec<(&'p Mount, &'p Mount)>,
    /// The plan's other mounts.
    others: Vec<&'p Mount>,
}

impl<'s, 'p> Kept<'s, 'p> {
    fn new(prepared: &[Step<'p>], plan: &'s [Step<'p>]) -> Self {
        let ready: Vec<_> = prepared.iter().filter_map(as_mount).collect();
        let mut kept = Self {
            plan,
            mounts: Vec::new(),
            others: plan.iter().filter_map(as_mount).collect(),
        };
        while let Some(&wanted) = kept.others.first() {
            let path = &wanted.destination;
            let in_place = is_top(path) || kept.mount(top(path)).is_some();
            let same = ready.iter().find(|ready| stands_for(ready, wanted));
            let Some(&same) = same.filter(|_| in_place && kept.mount(path).is_none()) else {
                break;
            };
            kept.others.remove(0);
            kept.mounts.push((wanted, same));
        }
        kept
    }

    /// The plan's mount on `path` and the prepared one, if that is used.
    fn mount(&self, path: &[u8]) -> Option<(&'p Mount, &'p Mount)> {
        let on_path = |(wanted, _): &&(&'p Mount, _)| wanted.destination == path;
        self.mounts.iter().find(on_path).copied()
    }

    /// Whether a prepared step has the effect that the plan asks for.
    fn keeps(&self, step: &Step<'_>) -> bool {
        let Some(path) = path(step) else {
            return true;
        };
        let top = top(path);
        let wanted = || self.mount(top).is_some() && self.plan.contains(step);
        match step {
            Step::Mount(_) => self.mount(path).is_some(),
            // Covers lie over what the plan mounts there, not below it.
            Step::Mask(_) | Step::ReadonlyPath(_) => wanted() && !self.others_reach_into(top),
            // Nodes and links are made in what is mounted there last.
            _ => wanted() && !self.others.iter().any(|other| is_same(other, top)),
        }
    }

    fn others_reach_into(&self, top: &[u8]) -> bool {
        let up = |part: &[u8]| part == b"..";
        self.others.iter().any(|other| {
            let mut parts = parts(&other.destination);
            parts.clone().any(up) || parts.next() == top.get(1..)
        })
    }

    /// How a prepared step that the plan does not have is undone. A tree that is
    /// not used stays behind as a whole.
    fn undo(&self, step: &Step<'_>) -> Option<Left<'p>> {
        let path = path(step)?;
        if self.keeps(step) || self.mount(top(path)).is_none() {
            return None;
        }
        Some(match step {
            Step::Device { .. } | Step::Link { .. } => Left::Remove(path.to_vec()),
            _ => Left::Unmount(path.to_vec()),
        })
    }

    /// The attributes of a prepared mount, or of a cover that has them from the
    /// mount it lies in, where the plan wants others.
    fn adjust(&self, step: &Step<'_>) -> Option<Left<'p>> {
        let path = path(step)?;
        let (mount, more) = match step {
            Step::Mount(_) => (self.mount(path)?, 0),
            Step::ReadonlyPath(_) if self.keeps(step) => (self.mount(top(path))?, libc::MS_RDONLY),
            _ => return None,
        };
        let (wanted, ready) = mount;
        let differ = attributes(wanted.flags) != attributes(ready.flags);
        differ.then(|| Left::Attributes {
            path: path.to_vec(),
            flags: wanted.flags | more,
        })
    }
}

fn as_mount<'p>(step: &Step<'p>) -> Option<&'p Mount> {
    match step {
        Step::Mount(mount) => Some(mount),
        _ => None,
    }
}

/// Whether `ready` is what `wanted` asks for, up to the attributes.
fn stands_for(ready: &Mount, wanted: &Mount) -> bool {
    let same = Mount {
        flags: ready.flags,
        ..wanted.clone()
    };
    *ready == same && only_attributes(wanted.flags)
}

/// The components of a path that count.
fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    let counts = |part: &&[u8]| !part.is_empty() && *part != b".";
    path.split(|b| *b == b'/').filter(counts)
}

/// The folder at the top, `/dev`, of a prepared path like `/dev/pts`.
fn top(path: &[u8]) -> &[u8] {
    let end = path.iter().skip(1).position(|b| *b == b'/');
    let end = end.map_or(path.len(), |at| at + 1);
    path.get(..end).unwrap_or(path)
}

fn is_top(path: &[u8]) -> bool {
    top(path) == path
}

/// Whether a mount is on the folder `top`, however its path is written.
fn is_same(mount: &Mount, top: &[u8]) -> bool {
    let path = &mount.destination;
    parts(path).eq(parts(top)) || parts(path).any(|part| part == b"..")
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmrun_protocol::plan::{Capabilities, DeviceKind, FsType, MountSource, namespace};

    fn usual() -> ContainerPlan {
        usual::plan(true)
    }

    /// What is left of `plan`, as text.
    fn left_of(plan: &ContainerPlan) -> Vec<String> {
        let usual = usual();
        let prepared = prepared(&usual).unwrap();
        let steps = steps::steps(plan).unwrap();
        let left = left(&prepared, &steps);
        left.iter().map(|left| format!("{left:?}")).collect()
    }

    fn begins(left: &[String], start: &str) -> usize {
        left.iter().filter(|left| left.starts_with(start)).count()
    }

    fn changed(change: impl FnOnce(&mut ContainerPlan)) -> ContainerPlan {
        let mut plan = usual();
        change(&mut plan);
        plan
    }

    fn tmpfs(destination: &str) -> Mount {
        Mount {
            destination: destination.into(),
            source: MountSource::FileSystem {
                fs_type: FsType::Tmpfs,
                label: b"tmpfs".to_vec(),
            },
            flags: 0,
            propagation: vec![],
            data: vec![],
        }
    }

    #[test]
    fn of_the_usual_plan_the_trees_are_moved_once_there_is_a_root() {
        let left = left_of(&usual());
        let (root, rest) = left.split_first().unwrap();
        assert_eq!(root, "Do(Root)");
        assert_eq!(begins(&rest[..3], "Move"), 3);
        assert_eq!(rest[3], "Do(EnterRoot)");
        let done = [
            "Mount",
            "Device",
            "Link",
            "Mask",
            "ReadonlyPath",
            "Loopback",
        ];
        for step in done {
            assert_eq!(begins(&left, &format!("Do({step}")), 0, "{left:?}");
        }
        assert_eq!(
            begins(&left, "Un") + begins(&left, "Rem") + begins(&left, "Attr"),
            0
        );
    }

    #[test]
    fn every_step_of_any_plan_is_prepared_or_left() {
        let plan = changed(|plan| {
            plan.hostname = Some(b"h".to_vec());
            plan.mounts.push(tmpfs("/run"));
            plan.masked_paths.push(b"/proc/interrupts".to_vec());
            plan.root_readonly = true;
        });
        let usual = usual();
        let prepared = prepared(&usual).unwrap();
        let steps = steps::steps(&plan).unwrap();
        let left = left(&prepared, &steps);
        let is_left = |step: &Step<'_>| left.contains(&Left::Do(step.clone()));
        assert!(steps.iter().all(|s| prepared.contains(s) || is_left(s)));
        assert!(!steps.iter().any(|s| prepared.contains(s) && is_left(s)));
    }

    #[test]
    fn what_is_not_asked_for_is_taken_away_before_anything_moves() {
        let left = left_of(&changed(|plan| {
            plan.mounts.retain(|m| m.destination != b"/dev/mqueue");
            plan.masked_paths.clear();
            plan.readonly_paths.pop();
        }));
        assert_eq!(begins(&left, "Move"), 3);
        assert_eq!(begins(&left, "Do(Mount"), 0);
        // mqueue, the path to protect, and those to hide.
        assert_eq!(begins(&left, "Unmount"), 1 + 1 + 10);
        let root = left.iter().position(|l| l == "Do(Root)").unwrap();
        assert_eq!(begins(&left[..root], "Unmount"), 1 + 1 + 10);
    }

    #[test]
    fn nodes_of_the_plan_replace_prepared_ones() {
        let left = left_of(&changed(|plan| {
            let mut null = steps::device_nodes(plan).remove(0);
            null.mode = 0o600;
            plan.devices.push(null);
        }));
        assert_eq!(begins(&left, "Remove"), 1);
        assert_eq!(begins(&left, "Do(Device"), 1);
    }

    #[test]
    fn attributes_are_set_on_the_mount_and_its_covers() {
        let left = left_of(&changed(|plan| plan.mounts[0].flags = libc::MS_NOSUID));
        assert_eq!(begins(&left, "Attributes"), 1 + 5);
        assert_eq!(begins(&left, "Move"), 3);
        // Asked for, and the case anyway.
        let left = left_of(&changed(|plan| plan.mounts[0].flags = libc::MS_RELATIME));
        assert_eq!(begins(&left, "Attributes"), 0);
    }

    #[test]
    fn other_file_systems_are_made_and_so_is_all_behind_them() {
        let of_the_system = libc::MS_SYNCHRONOUS;
        let changes: [fn(&mut Mount, u64); 5] = [
            |mount, _| mount.data.push(b'0'),
            |mount, flag| mount.flags |= flag,
            |mount, _| mount.propagation.push(libc::MS_SHARED),
            |mount, _| mount.destination.push(b'/'),
            |mount, _| *mount = tmpfs("/dev"),
        ];
        for change in changes {
            let left = left_of(&changed(|plan| change(&mut plan.mounts[1], of_the_system)));
            assert_eq!(begins(&left, "Move"), 1, "{left:?}");
            assert_eq!(begins(&left, "Do(Mount"), 6);
            assert!(begins(&left, "Do(Device") == 6 && begins(&left, "Do(Link") == 5);
        }
    }

    #[test]
    fn a_mount_in_a_tree_needs_the_tree() {
        let left = left_of(&changed(|plan| plan.mounts.swap(1, 2)));
        assert_eq!(begins(&left, "Move"), 1);
        let left = left_of(&changed(|plan| {
            let proc = plan.mounts[0].clone();
            plan.mounts.insert(1, proc);
        }));
        assert_eq!(begins(&left, "Move"), 1);
        assert_eq!(begins(&left, "Do(Mask"), 10);
    }

    #[test]
    fn covers_go_over_what_is_mounted_there() {
        for (path, covers) in [
            ("/proc/scsi", 9 + 5),
            ("/sys/x", 1),
            ("/x/../proc/sys", 10 + 5),
            ("/run", 0),
        ] {
            let left = left_of(&changed(|plan| plan.mounts.push(tmpfs(path))));
            let done = begins(&left, "Do(Mask") + begins(&left, "Do(Readonly");
            assert_eq!((done, begins(&left, "Unmount")), (covers, covers), "{path}");
        }
        let left = left_of(&changed(|plan| plan.mounts.push(tmpfs("/dev//"))));
        assert_eq!(begins(&left, "Do(Device"), 6);
        let left = left_of(&changed(|plan| plan.mounts.push(tmpfs("/dev/x"))));
        assert_eq!(begins(&left, "Do(Device"), 0);
    }

    #[test]
    fn only_what_can_be_undone_may_differ() {
        let usual = usual();
        let fit = |change: fn(&mut ContainerPlan)| fits(&usual, &changed(change));
        assert!(fit(|_| {}));
        // Without a cgroup namespace.
        assert!(!fit(|plan| plan.mounts.truncate(1)));
        assert!(fit(|plan| {
            plan.mounts.clear();
            plan.namespaces |= namespace::CGROUP;
        }));
        assert!(fit(|plan| plan.process.capabilities = None));
        assert!(!fit(|plan| plan.namespaces |= namespace::USER));
        assert!(!fit(|plan| plan.namespaces |= namespace::TIME));
        assert!(!fit(|plan| plan.namespaces &= !namespace::PID));
        assert!(!fit(|plan| plan.namespaces &= !namespace::NETWORK));
        assert!(!fit(|plan| {
            let all = Capabilities {
                bounding: usual::BOUNDING | 1 << 21,
                ..Capabilities::default()
            };
            plan.process.capabilities = Some(all);
        }));
        assert!(!fit(|plan| plan.mounts[0].destination = b"/".to_vec()));
    }

    #[test]
    fn fifos_and_blocks_are_made_as_the_plan_says() {
        let left = left_of(&changed(|plan| {
            let mut node = steps::device_nodes(plan).remove(0);
            (node.kind, node.path) = (DeviceKind::Fifo, b"/dev/fifo".to_vec());
            plan.devices.push(node);
        }));
        assert_eq!(
            (begins(&left, "Do(Device"), begins(&left, "Remove")),
            (1, 0)
        );
    }
}
