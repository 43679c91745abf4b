//! The container's first process where it is [`crate::prepared`]: prepares itself,
//! waits for the plan, and does what is left.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vmrun_protocol::message::{Failure, Report};
use vmrun_protocol::plan::{Bytes, ContainerPlan};

use crate::child::{self, Child, Pipes};
use crate::failure::{Named, setup};
use crate::remainder::{self, Left};
use crate::steps::{self, Step};
use crate::{credentials, handshake, program, sys, usual};

/// Carries out the steps `prepared`, waits, and becomes the container's program, or
/// reports why not and ends. As in [`child::run`] nothing is dropped on the way.
pub fn run(prepared: &[Step<'_>], handshake: &OwnedFd, pipes: &Pipes) -> ! {
    let third = child::put_pipes(pipes)
        .and_then(|()| sys::keep_as_third(handshake.as_fd()).named(|| "descriptors"));
    let handshake = match third {
        Ok(third) => third,
        Err(failure) => child::fail(handshake.as_fd(), failure),
    };
    let handshake = handshake.as_fd();
    let mut buffer = vec![0; handshake::PLAN_MAX_BYTES];
    let ready = prepare(prepared, handshake, &mut buffer);
    let plan = receive(handshake, &mut buffer);
    let (child, plan) = match (ready, plan) {
        (Ok(child), Ok(plan)) => (child, plan),
        (Err(failure), _) | (_, Err(failure)) => child::fail(handshake, failure),
    };
    let home = follow(&plan, prepared, child, handshake);
    child::finish(&plan, handshake, home)
}

/// Everything that can be done without a plan. The first plan that comes is the
/// usual one, for practice: it is read, and no more.
fn prepare<'p>(
    prepared: &[Step<'p>],
    handshake: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> Result<Child<'p>, Failure> {
    // The pipes are in their places.
    let mut child = Child::new(&[])?;
    child.root_fs.prepare()?;
    prepared.iter().try_for_each(|step| child.carry_out(step))?;
    child.bound(usual::BOUNDING)?;
    credentials::leave_groups()?;
    let practice = receive(handshake, buffer)?;
    drop(remainder::left(prepared, &steps::steps(&practice)?));
    handshake::tell(handshake, &Report::Created, &[]).named(|| "report to the agent")?;
    Ok(child)
}

fn receive(handshake: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<ContainerPlan, Failure> {
    match handshake::await_plan(handshake, buffer) {
        Ok(Some(plan)) => Ok(plan),
        // The agent is gone.
        Ok(None) => sys::exit_now(1),
        Err(errno) => Err(setup("receive the plan", errno)),
    }
}

/// Does what is left of `plan`. Returns what [`Child::ready`] does.
fn follow(
    plan: &ContainerPlan,
    prepared: &[Step<'_>],
    mut child: Child<'_>,
    handshake: BorrowedFd<'_>,
) -> Result<Option<Bytes>, Failure> {
    let steps = steps::steps(plan)?;
    for left in remainder::left(prepared, &steps) {
        match left {
            Left::Unmount(path) => child.root_fs.unmount_prepared(&path),
            Left::Remove(path) => child.root_fs.remove_prepared(&path),
            Left::Attributes { path, flags } => child.root_fs.set_prepared_attributes(&path, flags),
            Left::Move(mount) => child.root_fs.move_prepared(mount),
            Left::Do(step) => child.carry_out(&step),
        }?;
    }
    program::look(&plan.process)?;
    child.ready(handshake)
}
