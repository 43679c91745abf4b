//! The container as the agent sees it: made, started, ended, gone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, ioctl_fionbio};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};
use vmrun_protocol::message::{Failure, Report, Stream};
use vmrun_protocol::plan::{ContainerPlan, WindowSize, namespace};

use crate::cgroup::Cgroup;
use crate::failure::{Named, setup};
use crate::handshake::Heard;
use crate::joining::Place;
use crate::prepared::Prepared;
use crate::procfs::Procfs;
use crate::steps::Step;
use crate::sys::{self, Cloned};
use crate::{child, clocks, device_filter, handshake, steps, terminal, user_namespace};

/// What the agent can use.
#[derive(Debug, Clone, Copy)]
pub struct Guest {
    /// Whether there is a cgroup v2 tree that is ours. Without one, a plan that
    /// needs it is refused, and device rules are not enforced (tests only).
    pub cgroups: bool,
    /// Whether nothing but containers uses the machine's memory: what the kernel kills
    /// for lack of it is the container's.
    pub machine_is_ours: bool,
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
    /// Namespaces that are not the agent's: bits of [`namespace`].
    namespaces: u64,
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
                Some(message) => {
                    return Self::from_prepared(prepared, plan, &steps, &message);
                }
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
            clone(plan, flags, group)
        });
        let pid = match cloned {
            Ok(Cloned::Child) => child::run(plan, &steps, &child_end, &theirs),
            Ok(Cloned::Parent(pid)) => pid,
            Err(failure) => {
                // The end of the handshake ends one that was made all the same.
                drop((agent_end, child_end));
                let _ = cgroup.map(|group| group.try_remove());
                return Err(failure);
            }
        };
        drop((theirs, child_end));
        let container = Self {
            pid,
            handshake: agent_end,
            cgroup,
            namespaces: flags | steps::later_namespaces(&steps),
            terminal: None,
        };
        container.finish_or_discard(plan, ours)
    }

    /// A prepared process, whose namespaces are those of the plan, goes on with it.
    fn from_prepared(
        prepared: Prepared,
        plan: &ContainerPlan,
        steps: &[Step<'_>],
        message: &[u8],
    ) -> Result<(Self, LocalEnds), Failure> {
        let flags = steps::clone_flags(plan, true)?;
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
            namespaces: flags | steps::later_namespaces(steps),
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
            user_namespace::map_ids(self.pid, plan)?;
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

    /// Lets the first process go on to its program. After a failure of this or of
    /// what follows the container must be discarded.
    pub fn go(&self) -> Result<(), Failure> {
        handshake::go(self.handshake.as_fd()).named(|| "container's first process")
    }

    /// After [`Self::go`]: waits until the program runs.
    pub fn await_program(&self) -> Result<(), Failure> {
        started(self.hear()?.map(|(report, _)| report))
    }

    /// The same without waiting: None while it cannot be told.
    pub fn program_runs(&self) -> Option<Result<(), Failure>> {
        match handshake::hear_now(self.handshake.as_fd()) {
            Err(Errno::AGAIN) => None,
            Ok(Heard::Gone) => Some(started(None)),
            Ok(Heard::Report(report, _)) => Some(started(Some(report))),
            Ok(Heard::Pid(_)) | Err(_) => Some(started(Some(Report::Created))),
        }
    }

    /// What is readable when [`Self::program_runs`] has something to tell.
    pub fn handshake(&self) -> BorrowedFd<'_> {
        self.handshake.as_fd()
    }

    /// Its cgroup, where there is a tree.
    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    /// Where a further process of this container goes.
    pub fn place<'a>(&self, proc: &'a Procfs) -> Result<Place<'a>, Failure> {
        let init = Pid::from_raw(self.pid as i32).ok_or(Errno::SRCH);
        let init = init.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let cgroup = self.cgroup.as_ref();
        let cgroup = cgroup.map(|group| group.for_more(self.pid, proc));
        Ok(Place {
            init: init.named(|| "container's first process")?,
            namespaces: self.namespaces,
            cgroup: cgroup.transpose().named(|| "cgroup")?,
            proc,
        })
    }

    /// Sends a signal to all processes in its cgroup. False where there is none.
    pub fn signal_group(&self, signal: u8, paused: bool) -> bool {
        let Some(cgroup) = &self.cgroup else {
            return false;
        };
        if i32::from(signal) == libc::SIGKILL {
            let _ = cgroup.kill();
            return true;
        }
        // So that none forks away from it.
        let _ = cgroup.freeze(true);
        for pid in cgroup.pids() {
            let _ = sys::kill(pid, signal);
        }
        if !paused {
            let _ = cgroup.freeze(false);
        }
        true
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

    /// Whether the kernel ends all its processes with the first one.
    fn own_pids(&self) -> bool {
        self.namespaces & namespace::PID != 0
    }

    /// The first process has ended: ends the others.
    pub fn kill_rest(&self) {
        if !self.own_pids()
            && let Some(cgroup) = &self.cgroup
        {
            let _ = cgroup.kill();
        }
    }

    /// Whether no process of the container is left, once the first one has ended.
    pub fn is_empty(&mut self) -> bool {
        // A namespace's first process is the last that the kernel lets go.
        self.own_pids() || self.remove_group() != Err(Errno::BUSY)
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

/// The container's first process, in namespaces that are the bits of `flags`.
fn clone(
    plan: &ContainerPlan,
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Cloned, Failure> {
    let clone = |flags| sys::clone3(flags, cgroup).named(|| "new namespaces");
    if flags & namespace::TIME == 0 || plan.time_offsets.is_empty() {
        clone(flags)
    } else {
        clocks::with_offsets(&plan.time_offsets, || clone(flags & !namespace::TIME))
    }
}

/// How a start went, by what the process has told: at its execve nobody has its end
/// of the handshake any more.
fn started(told: Option<Report>) -> Result<(), Failure> {
    match told {
        None => Ok(()),
        Some(Report::Failed(failure)) => Err(failure),
        Some(_) => Err(setup("container's first process", Errno::PROTO)),
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
