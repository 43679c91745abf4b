//! A further process of a container, from clone3 to execve. It takes two: the first
//! one, the helper, is in the container's cgroup but in the agent's pid namespace,
//! where the container cannot see it. It closes what it has of the agent, joins the
//! namespaces and takes on all that a process can inherit, rights included; the second
//! one, its sibling, is the first that is in the container's pid namespace, and
//! becomes the program.
//!
//! So a container that may trace every process of its own finds nothing of the agent
//! there, and no rights that the program will not have; others cannot even look at it
//! until execve (CVE-2016-9962), as it is undumpable.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::{DumpableBehavior, getpid, set_dumpable_behavior};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use vmrun_protocol::message::Failure;
use vmrun_protocol::plan::{ProcessPlan, namespace};

use crate::child::{self, Child, Pipes};
use crate::failure::Named;
use crate::process_steps::exec_steps;
use crate::procfs::Procfs;
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
pub fn run(plan: &ProcessPlan, place: &Place<'_>, handshake: BorrowedFd<'_>, pipes: &Pipes) -> ! {
    let (before, itself) = exec_steps(plan);
    let prepare = || {
        join(plan, place, handshake, pipes)?;
        if place.namespaces & namespace::USER != 0 {
            credentials::become_root()?;
        }
        let mut child = Child::joined()?;
        credentials::leave_groups()?;
        before.iter().try_for_each(|step| child.carry_out(step))?;
        // To become another user may have changed that.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).named(|| "make undumpable")?;
        let cloned = sys::clone_sibling().named(|| "new process in the container")?;
        Ok((child, cloned))
    };
    match prepare() {
        Ok((_, Cloned::Parent(pid))) => {
            let _ = handshake::tell_pid(handshake, pid);
            sys::exit_now(0)
        }
        Ok((mut child, Cloned::Child)) => {
            let carried_out = itself.iter().try_for_each(|step| child.carry_out(step));
            let home = carried_out.and_then(|()| child.ready(handshake));
            child::finish_process(plan, &[], handshake, home)
        }
        Err(failure) => child::fail(handshake, failure),
    }
}

/// The first part of it, up to where the process is in the container.
fn join(
    plan: &ProcessPlan,
    place: &Place<'_>,
    handshake: BorrowedFd<'_>,
    pipes: &Pipes,
) -> Result<(), Failure> {
    if let Some(value) = plan.oom_score_adj {
        let own = getpid().as_raw_nonzero().get() as u32;
        let text = value.to_string();
        let written = place.proc.write(own, "oom_score_adj", text.as_bytes());
        written.named(|| format!("oomScoreAdj {value}"))?;
    }
    child::put_pipes(pipes)?;
    let init = place.init.as_fd();
    sys::close_all_but(&[handshake, init]).named(|| "close descriptors")?;
    let namespaces = ThreadNameSpaceType::from_bits_retain(place.namespaces as u32);
    let what = || "join the container's namespaces";
    move_into_thread_name_spaces(init, namespaces).named(what)?;
    sys::close_all_but(&[handshake]).named(|| "close descriptors")
}
