//! The container's first process, from clone3 to execve: carries out the steps
//! in order, reports, waits for the start, and becomes the program.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::process::{ioctl_tiocsctty, setsid, umask};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use vmrun_protocol::message::{Failure, Report, Stream};
use vmrun_protocol::plan::{Bytes, ContainerPlan, namespace};

use crate::failure::{Named, quoted, setup};
use crate::remainder::{self, Left};
use crate::root_fs::RootFs;
use crate::steps::{self, Step};
use crate::terminal::Terminal;
use crate::users::{self, Ids};
use crate::{credentials, handshake, program, sys, usual};

/// The container's ends of the pipes; none with a terminal.
pub type Pipes = Vec<(Stream, OwnedFd)>;

/// Becomes the container's program, or reports why not and ends. `handshake` is
/// this process's end.
///
/// Nothing here is dropped on the way: all descriptors are closed at once, and
/// execve or the end of the process takes the rest.
pub fn run(plan: &ContainerPlan, steps: &[Step<'_>], handshake: &OwnedFd, pipes: &Pipes) -> ! {
    let handshake = handshake.as_fd();
    let set_up = || {
        if plan.namespaces & namespace::USER != 0 {
            let mapped = handshake::await_go(handshake).named(|| "user namespace")?;
            if !mapped {
                sys::exit_now(1);
            }
        }
        let mut child = Child::new(pipes)?;
        steps.iter().try_for_each(|step| child.carry_out(step))?;
        child.ready(handshake)
    };
    let home = set_up();
    finish(plan, handshake, home)
}

/// As [`run`], for a process that is made ahead: carries out the steps `prepared`
/// and waits for the plan. It gets two, the first one for practice.
pub fn prepare(prepared: &[Step<'_>], handshake: &OwnedFd, pipes: &Pipes) -> ! {
    let handshake = handshake.as_fd();
    let mut buffer = vec![0; handshake::PLAN_MAX_BYTES];
    let mut receive = || match handshake::await_plan(handshake, &mut buffer) {
        Ok(Some(plan)) => Ok(plan),
        Ok(None) => sys::exit_now(1),
        Err(errno) => Err(setup("receive the plan", errno)),
    };
    let mut make_ready = || {
        let mut child = Child::new(pipes)?;
        child.root_fs.prepare()?;
        prepared.iter().try_for_each(|step| child.carry_out(step))?;
        child.bound(usual::BOUNDING)?;
        let practice = receive()?;
        drop(remainder::left(prepared, &steps::steps(&practice)?));
        handshake::tell(handshake, &Report::Created, &[]).named(|| "report to the agent")?;
        Ok(child)
    };
    let ready = make_ready();
    let plan = receive();
    let (mut child, plan) = match (ready, plan) {
        (Ok(child), Ok(plan)) => (child, plan),
        (Err(failure), _) | (_, Err(failure)) => fail(handshake, failure),
    };
    let set_up = || {
        let steps = steps::steps(&plan)?;
        let left = remainder::left(prepared, &steps);
        left.iter()
            .try_for_each(|left| child.carry_out_left(left))?;
        child.ready(handshake)
    };
    let home = set_up();
    finish(&plan, handshake, home)
}

/// Runs the program when the agent says so. `home` is what [`Child::ready`] gave.
fn finish(
    plan: &ContainerPlan,
    handshake: BorrowedFd<'_>,
    home: Result<Option<Bytes>, Failure>,
) -> ! {
    let failure = match home {
        Ok(home) => match handshake::await_go(handshake) {
            Ok(true) => program::run(&plan.process, home),
            // The agent is gone, and so is the machine.
            _ => sys::exit_now(1),
        },
        Err(failure) => failure,
    };
    fail(handshake, failure)
}

fn fail(handshake: BorrowedFd<'_>, failure: Failure) -> ! {
    let _ = handshake::tell(handshake, &Report::Failed(failure), &[]);
    sys::exit_now(1)
}

/// The process while it sets itself up.
struct Child<'p> {
    pipes: &'p Pipes,
    root_fs: RootFs,
    terminal: Option<Terminal>,
    ids: Ids,
    home: Option<Bytes>,
    /// What may still be in the bounding set.
    bounding: u64,
}

impl<'p> Child<'p> {
    /// Called by the new process itself, in its namespaces.
    fn new(pipes: &'p Pipes) -> Result<Self, Failure> {
        // Modes of nodes and folders are given in full.
        umask(Mode::empty());
        Ok(Self {
            pipes,
            root_fs: RootFs::new()?,
            terminal: None,
            ids: Ids::default(),
            home: None,
            bounding: u64::MAX,
        })
    }

    /// Everything is done but to run the program: tells the agent. Returns the
    /// user's home folder where `env` says nothing about it.
    fn ready(mut self, handshake: BorrowedFd<'_>) -> Result<Option<Bytes>, Failure> {
        sys::restore_signals().named(|| "signals")?;
        let terminal = self.terminal.as_ref();
        let handles = terminal.map(|t| [t.master.as_fd(), t.slave.as_fd()]);
        let handles = handles.as_ref().map_or(&[][..], |both| both);
        handshake::tell(handshake, &Report::Created, handles).named(|| "report to the agent")?;
        let home = self.home.take();
        std::mem::forget(self);
        sys::close_all_but(handshake).named(|| "close descriptors")?;
        Ok(home)
    }

    fn carry_out_left(&mut self, left: &Left<'_>) -> Result<(), Failure> {
        match left {
            Left::Unmount(path) => self.root_fs.unmount_prepared(path),
            Left::Remove(path) => self.root_fs.remove_prepared(path),
            Left::Attributes { path, flags } => self.root_fs.set_prepared_attributes(path, *flags),
            Left::Move(mount) => self.root_fs.move_prepared(mount),
            Left::Do(step) => self.carry_out(step),
        }
    }

    fn bound(&mut self, kept: u64) -> Result<(), Failure> {
        credentials::bound(kept, self.bounding)?;
        self.bounding &= kept;
        Ok(())
    }

    fn carry_out(&mut self, step: &Step<'_>) -> Result<(), Failure> {
        let root_fs = &mut self.root_fs;
        match step {
            Step::Hostname(name) => {
                rustix::system::sethostname(name).named(|| format!("hostname {}", quoted(name)))
            }
            Step::Domainname(name) => {
                rustix::system::setdomainname(name).named(|| format!("domainname {}", quoted(name)))
            }
            Step::Loopback => sys::loopback_up().named(|| "loopback interface"),
            Step::CgroupNamespace => sys::new_cgroup_namespace().named(|| "cgroup namespace"),
            Step::Root => root_fs.bind_root(),
            Step::Mount(mount) => root_fs.mount(mount),
            Step::DeviceFolder => root_fs.mount_device_folder(),
            Step::Device { node, bind } => root_fs.device(node, bind.as_deref()),
            Step::Link { path, target } => root_fs.link(path, target),
            Step::Terminal(size) => {
                self.terminal = Some(Terminal::open(root_fs.root()?, *size)?);
                Ok(())
            }
            Step::Console => match &self.terminal {
                Some(terminal) => terminal.bind_console(root_fs.root()?),
                None => Ok(()),
            },
            Step::Sysctl { file, value } => root_fs.sysctl(file, value),
            Step::OomScoreAdj(value) => root_fs.oom_score_adj(*value),
            Step::Mask(path) => root_fs.mask(path),
            Step::ReadonlyPath(path) => root_fs.make_path_readonly(path),
            Step::EnterRoot => root_fs.enter(),
            Step::RootPropagation(flags) => root_fs.propagate(*flags),
            Step::WorkingFolder(path) => root_fs.enter_working_folder(path),
            Step::RootReadonly => root_fs.make_readonly(),
            Step::Session => self.new_session(),
            Step::FindUser(user) => {
                self.ids = users::find(root_fs.root()?, user)?;
                umask(Mode::from_raw_mode(user.umask.unwrap_or(0o022) & 0o777));
                Ok(())
            }
            Step::FindHome => {
                self.home = Some(users::home(root_fs.root()?, self.ids.uid)?);
                Ok(())
            }
            Step::StandardStreams => self.standard_streams(),
            Step::Limit(limit) => sys::set_rlimit(limit.resource, limit.soft, limit.hard)
                .named(|| format!("rlimit {}", limit.resource)),
            Step::BoundingSet(kept) => self.bound(*kept),
            Step::BecomeUser => credentials::become_user(&self.ids),
            Step::Capabilities(sets) => credentials::set_capabilities(sets),
            Step::NoNewPrivileges => {
                rustix::thread::set_no_new_privs(true).named(|| "no new privileges")
            }
        }
    }

    fn new_session(&self) -> Result<(), Failure> {
        setsid().named(|| "session")?;
        match &self.terminal {
            Some(terminal) => ioctl_tiocsctty(&terminal.slave).named(|| "controlling terminal"),
            None => Ok(()),
        }
    }

    fn standard_streams(&self) -> Result<(), Failure> {
        let what = || "standard streams";
        if let Some(terminal) = &self.terminal {
            self.give_to_user(terminal.slave.as_fd()).named(what)?;
            dup2_stdin(&terminal.slave).named(what)?;
            dup2_stdout(&terminal.slave).named(what)?;
            return dup2_stderr(&terminal.slave).named(what);
        }
        for (stream, pipe) in self.pipes {
            self.give_to_user(pipe.as_fd()).named(what)?;
            match stream {
                Stream::Stdin => dup2_stdin(pipe),
                Stream::Stdout => dup2_stdout(pipe),
                Stream::Stderr => dup2_stderr(pipe),
                Stream::Terminal => Err(Errno::INVAL),
            }
            .named(what)?;
        }
        Ok(())
    }

    /// Lets the user open /dev/stdout and kin again, and own the terminal.
    fn give_to_user(&self, stream: BorrowedFd<'_>) -> rustix::io::Result<()> {
        if self.ids.uid == 0 {
            return Ok(());
        }
        let owner = Some(Uid::from_raw(self.ids.uid));
        match rustix::fs::fchown(stream, owner, None::<Gid>) {
            // A user namespace that does not own the pipe's file system.
            Err(Errno::PERM | Errno::INVAL) => Ok(()),
            other => other,
        }
    }
}
