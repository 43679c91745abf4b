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
    steps.retain(|step| is_lasting(step) || path(step).is_some());
    Ok(steps)
}

/// Steps that cannot be undone.
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
