//! The container as the agent sees it: made, started, ended, gone.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, ioctl_fionbio};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, waitpid};
use vmrun_protocol::message::{Failure, Report, Stream};
use vmrun_protocol::plan::{ContainerPlan, WindowSize, namespace};

use crate::cgroup::Cgroup;
use crate::failure::{Named, setup};
use crate::prepared::Prepared;
use crate::sys::{self, Cloned};
use crate::{child, device_filter, handshake, steps, terminal, user_namespace};

/// What the agent can use.
#[derive(Debug, Clone, Copy)]
pub struct Guest {
    /// Whether there is a cgroup v2 tree that is ours. Without one, a plan that
    /// needs it is refused, and device rules are not enforced (tests only).
    pub cgroups: bool,
    /// Whether no container has had the machine's own network namespace.
    pub network_unused: bool,
}

/// The agent's ends of a container's streams.
pub type LocalEnds = Vec<(Stream, OwnedFd)>;

/// A container whose first process exists.
pub struct Container {
    /// Its first process, not yet waited for.
    pub pid: u32,
    handshake: OwnedFd,
    cgroup: Option<Cgroup>,
    /// The kernel ends all its processes with the first one.
    own_pids: bool,
    /// Both sides of its terminal. The container's side is kept open so that the
    /// terminal outlives moments in which nobody in the container has it open.
    terminal: Option<(OwnedFd, OwnedFd)>,
}

impl Container {
    /// Makes a container up to the point where only the program is left to run.
    /// A failure leaves nothing behind. `prepared` is used if it fits the plan.
    pub fn create(
        plan: &ContainerPlan,
        guest: Guest,
        prepared: Option<Prepared>,
    ) -> Result<(Self, LocalEnds), Failure> {
        let steps = steps::steps(plan)?;
        let flags = steps::clone_flags(plan, guest.network_unused)?;
        if plan.process.args.is_empty() {
            return Err(setup("args", Errno::INVAL));
        }
        if let Some(prepared) = prepared {
            match prepared.message(plan) {
                Some(message) => return Self::from_prepared(prepared, plan, &message),
                None => prepared.discard(),
            }
        }
        if flags & namespace::USER != 0 {
            user_namespace::prepare(plan)?;
        }
        let (ours, theirs) = match plan.process.terminal {
            Some(_) => Default::default(),
            None => pipes()?,
        };
        let (agent_end, child_end) = handshake::pair().named(|| "handshake")?;
        let cgroup = guest.cgroups.then(Cgroup::create).transpose()?;
        let limited = cgroup.as_ref().map_or(Ok(()), |group| group.limit(plan));
        let cloned = limited.and_then(|()| {
            let group = cgroup.as_ref().map(|group| group.as_fd());
            sys::clone3(flags, group).named(|| "new namespaces")
        });
        let pid = match cloned {
            Ok(Cloned::Child) => child::run(plan, &steps, &child_end, &theirs),
            Ok(Cloned::Parent(pid)) => pid,
            Err(failure) => {
                let _ = cgroup.map(|group| group.try_remove());
                return Err(failure);
            }
        };
        drop((theirs, child_end));
        let container = Self {
            pid,
            handshake: agent_end,
            cgroup,
            own_pids: flags & namespace::PID != 0,
            terminal: None,
        };
        container.finish_or_discard(plan, ours)
    }

    /// A prepared process, whose namespaces are those of the plan, goes on with it.
    fn from_prepared(
        prepared: Prepared,
        plan: &ContainerPlan,
        message: &[u8],
    ) -> Result<(Self, LocalEnds), Failure> {
        let Prepared {
            pid,
            handshake,
            cgroup,
            mut ours,
            ..
        } = prepared;
        let container = Self {
            pid,
            handshake,
            cgroup,
            own_pids: true,
            terminal: None,
        };
        let limited = container.cgroup.as_ref().map_or(Ok(()), |g| g.limit(plan));
        let sent = limited.and_then(|()| {
            let handshake = container.handshake.as_fd();
            handshake::send_plan(handshake, message).named(|| "prepared process")
        });
        if let Err(failure) = sent {
            container.discard();
            return Err(failure);
        }
        if plan.process.terminal.is_some() {
            ours.clear();
        }
        container.finish_or_discard(plan, ours)
    }

    /// `ends` are the agent's ends of the pipes, if there are any.
    fn finish_or_discard(
        mut self,
        plan: &ContainerPlan,
        mut ends: LocalEnds,
    ) -> Result<(Self, LocalEnds), Failure> {
        match self.finish(plan) {
            Ok(master) => {
                ends.extend(master.map(|master| (Stream::Terminal, master)));
                Ok((self, ends))
            }
            Err(failure) => {
                self.discard();
                Err(failure)
            }
        }
    }

    /// The agent's part while the process sets itself up. Returns the terminal's
    /// master side for the relay.
    fn finish(&mut self, plan: &ContainerPlan) -> Result<Option<OwnedFd>, Failure> {
        if plan.namespaces & namespace::USER != 0 {
            user_namespace::map_ids(self.pid)?;
            handshake::go(self.handshake.as_fd()).named(|| "user namespace")?;
        }
        let handles = match self.hear()? {
            Some((Report::Created, handles)) => handles,
            Some((Report::Failed(failure), _)) => return Err(failure),
            _ => return Err(setup("container's first process", Errno::CHILD)),
        };
        if let Some(cgroup) = &self.cgroup
            && device_filter::needed(plan)
        {
            device_filter::attach(cgroup.as_fd(), plan)?;
        }
        if plan.process.terminal.is_none() {
            return Ok(None);
        }
        let mut handles = handles.into_iter();
        let (Some(master), Some(slave)) = (handles.next(), handles.next()) else {
            return Err(setup("terminal", Errno::BADF));
        };
        let relayed = master
            .try_clone()
            .map_err(|_| setup("terminal", Errno::MFILE))?;
        self.terminal = Some((master, slave));
        Ok(Some(relayed))
    }

    fn hear(&self) -> Result<Option<(Report, Vec<OwnedFd>)>, Failure> {
        handshake::hear(self.handshake.as_fd()).named(|| "container's first process")
    }

    /// Runs the program. After a failure the container must be discarded.
    pub fn start(&self) -> Result<(), Failure> {
        handshake::go(self.handshake.as_fd()).named(|| "container's first process")?;
        match self.hear()? {
            // execve has closed the process's end.
            None => Ok(()),
            Some((Report::Failed(failure), _)) => Err(failure),
            Some(_) => Err(setup("container's first process", Errno::PROTO)),
        }
    }

    /// Sends a signal to the first process.
    pub fn signal(&self, signal: u8) {
        // A process that is gone is no error, and neither is a number unknown.
        let _ = sys::kill(self.pid, signal);
    }

    /// Resizes the terminal, if there is one.
    pub fn resize(&self, size: WindowSize) {
        if let Some((master, _)) = &self.terminal {
            let _ = terminal::resize(master.as_fd(), size);
        }
    }

    /// The first process has ended: ends the others.
    pub fn kill_rest(&self) {
        if !self.own_pids
            && let Some(cgroup) = &self.cgroup
        {
            let _ = cgroup.kill();
        }
    }

    /// Whether no process of the container is left, once the first one has ended.
    pub fn is_empty(&mut self) -> bool {
        // A namespace's first process is the last that the kernel lets go.
        self.own_pids || self.remove_group() != Err(Errno::BUSY)
    }

    fn remove_group(&mut self) -> rustix::io::Result<()> {
        let removed = self.cgroup.as_ref().map_or(Ok(()), Cgroup::try_remove);
        if removed != Err(Errno::BUSY) {
            self.cgroup = None;
        }
        removed
    }

    /// Removes what a container had of which no process is left.
    pub fn remove(mut self) {
        let _ = self.remove_group();
    }

    /// Ends a container that failed, and removes what it had.
    pub fn discard(self) {
        let _ = sys::kill(self.pid, libc::SIGKILL as u8);
        self.kill_rest();
        reap(self.pid);
        self.remove();
    }
}

/// Waits for a process that is about to end.
pub fn reap(pid: u32) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        let _ = waitpid(Some(pid), WaitOptions::empty());
    }
}

/// Pipes between agent and container: the agent's ends and the container's.
pub fn pipes() -> Result<(LocalEnds, child::Pipes), Failure> {
    let what = || "standard streams";
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for stream in [Stream::Stdin, Stream::Stdout, Stream::Stderr] {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).named(what)?;
        let (agent, container) = match stream {
            Stream::Stdin => (writer, reader),
            _ => (reader, writer),
        };
        ioctl_fionbio(&agent, true).named(what)?;
        ours.push((stream, agent));
        theirs.push((stream, container));
    }
    Ok((ours, theirs))
}
