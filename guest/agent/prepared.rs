//! A container's first process, made before any container is asked for: in its
//! cgroup and namespaces, with the usual file systems mounted, it waits for the
//! plan. Made once, before the machine is frozen as a template, and so there at
//! once in every machine made from it.
//!
//! Nothing of a tenant has reached the machine by then, and the process draws no
//! randomness that lasts: execve gives its program an address layout of its own.

use std::os::fd::{AsFd, OwnedFd};

use vmrun_protocol::message::{Failure, Report};
use vmrun_protocol::plan::ContainerPlan;

use crate::cgroup::Cgroup;
use crate::container::{LocalEnds, pipes, reap};
use crate::failure::{Named, setup};
use crate::sys::{self, Cloned};
use crate::{handshake, remainder, steps, usual, waiting};

/// The process, and what the agent holds of it.
pub struct Prepared {
    /// Its number.
    pub pid: u32,
    /// The agent's end.
    pub handshake: OwnedFd,
    /// Its cgroup, without limits; none where there is no tree.
    pub cgroup: Option<Cgroup>,
    /// The agent's ends of its pipes.
    pub ours: LocalEnds,
    usual: ContainerPlan,
}

impl Prepared {
    /// Makes one, with a cgroup where there is a tree that is ours. Returns when it
    /// has done all it can and waits. The machine's own network namespace must be
    /// unused.
    pub fn make(cgroups: bool) -> Result<Self, Failure> {
        let usual = usual::plan(cgroups);
        let steps = remainder::prepared(&usual)?;
        let flags = steps::clone_flags(&usual, true)?;
        let (ours, theirs) = pipes()?;
        let (agent_end, child_end) = handshake::pair().named(|| "handshake")?;
        let cgroup = cgroups.then(Cgroup::create).transpose()?;
        let group = cgroup.as_ref().map(|group| group.as_fd());
        let pid = match sys::clone3(flags, group).named(|| "new namespaces")? {
            Cloned::Child => waiting::run(&steps, &child_end, &theirs),
            Cloned::Parent(pid) => pid,
        };
        drop((theirs, child_end, steps));
        let prepared = Self {
            pid,
            handshake: agent_end,
            cgroup,
            ours,
            usual,
        };
        match prepared.rehearse() {
            Ok(()) => Ok(prepared),
            Err(failure) => {
                prepared.discard();
                Err(failure)
            }
        }
    }

    /// Sends it the usual plan, which it only reads: so that what reading one
    /// takes is in its memory.
    fn rehearse(&self) -> Result<(), Failure> {
        let what = || "prepared process";
        let socket = self.handshake.as_fd();
        let message = handshake::plan_message(&self.usual).unwrap_or_default();
        handshake::send_plan(socket, &message).named(what)?;
        match handshake::hear(socket).named(what)? {
            Some((Report::Created, _)) => Ok(()),
            Some((Report::Failed(failure), _)) => Err(failure),
            _ => Err(setup(what(), rustix::io::Errno::CHILD)),
        }
    }

    /// What to send it so that it becomes the first process of `plan`. None where
    /// it cannot.
    pub fn message(&self, plan: &ContainerPlan) -> Option<Vec<u8>> {
        let fits = remainder::fits(&self.usual, plan);
        fits.then(|| handshake::plan_message(plan)).flatten()
    }

    /// Ends it, and removes what it had.
    pub fn discard(self) {
        let _ = sys::kill(self.pid, libc::SIGKILL as u8);
        reap(self.pid);
        let _ = self.cgroup.map(|group| group.try_remove());
    }
}
