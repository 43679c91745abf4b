//! A further process of a container, from clone3 to execve. It takes two: the first
//! one, which nobody in the container can see, closes what it has of the agent and
//! joins the namespaces; the second one, its sibling, is the first that is in the pid
//! namespace, and becomes the program.
//!
//! Neither can be traced by the container, nor its memory and descriptors be looked
//! at, until execve (CVE-2016-9962): both are undumpable, and what the second one has
//! is its streams and its end of the handshake.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::{DumpableBehavior, getpid, set_dumpable_behavior};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use vmrun_protocol::message::Failure;
use vmrun_protocol::plan::{Bytes, ProcessPlan};

use crate::child::{self, Child, Pipes};
use crate::failure::Named;
use crate::procfs::Procfs;
use crate::steps::Step;
use crate::sys::{self, Cloned};
use crate::{credentials, handshake};

/// Where a process goes.
pub struct Place<'a> {
    /// The container's first process.
    pub init: OwnedFd,
    /// Its namespaces that are not the agent's: bits of
    /// [`vmrun_protocol::plan::namespace`].
    pub namespaces: u64,
    /// The cgroup, where there is a tree.
    pub cgroup: Option<OwnedFd>,
    /// The agent's.
    pub proc: &'a Procfs,
}

/// Becomes the helper, and its sibling the program. `handshake` is their end. As in
/// [`child::run`] nothing is dropped on the way.
pub fn run(
    plan: &ProcessPlan,
    steps: &[Step<'_>],
    place: &Place<'_>,
    handshake: &OwnedFd,
    pipes: &Pipes,
) -> ! {
    let handshake = handshake.as_fd();
    match join(plan, place, handshake, pipes) {
        Ok(Cloned::Parent(pid)) => {
            let _ = handshake::tell_pid(handshake, pid);
            sys::exit_now(0)
        }
        Ok(Cloned::Child) => {
            let home = set_up(steps, handshake);
            child::finish_process(plan, &[], handshake, home)
        }
        Err(failure) => child::fail(handshake, failure),
    }
}

fn join(
    plan: &ProcessPlan,
    place: &Place<'_>,
    handshake: BorrowedFd<'_>,
    pipes: &Pipes,
) -> Result<Cloned, Failure> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).named(|| "make undumpable")?;
    if let Some(value) = plan.oom_score_adj {
        let own = getpid().as_raw_nonzero().get() as u32;
        let text = value.to_string();
        let written = place.proc.write(own, "oom_score_adj", text.as_bytes());
        written.named(|| format!("oomScoreAdj {value}"))?;
    }
    child::put_pipes(pipes)?;
    let cgroup = place.cgroup.as_ref().map(|group| group.as_fd());
    let kept = [Some(handshake), Some(place.init.as_fd()), cgroup];
    let kept: Vec<_> = kept.into_iter().flatten().collect();
    sys::close_all_but(&kept).named(|| "close descriptors")?;
    let namespaces = ThreadNameSpaceType::from_bits_retain(place.namespaces as u32);
    move_into_thread_name_spaces(place.init.as_fd(), namespaces)
        .named(|| "join the container's namespaces")?;
    sys::clone_sibling(cgroup).named(|| "new process in the container")
}

/// The sibling's part. Returns what [`Child::ready`] does.
fn set_up(steps: &[Step<'_>], handshake: BorrowedFd<'_>) -> Result<Option<Bytes>, Failure> {
    sys::close_all_but(&[handshake]).named(|| "close descriptors")?;
    let mut child = Child::joined()?;
    credentials::leave_groups()?;
    steps.iter().try_for_each(|step| child.carry_out(step))?;
    child.ready(handshake)
}
