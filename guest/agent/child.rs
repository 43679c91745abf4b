//! The container's first process, from clone3 to execve: carries out the steps
//! in order, reports, waits for the start, and becomes the program.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, ioctl_tiocsctty, set_dumpable_behavior, setsid, umask};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stderr, stdin, stdout};
use vmrun_protocol::message::{Failure, Report, Stream};
use vmrun_protocol::plan::{Bytes, ContainerPlan, Hook, ProcessPlan, namespace};

use crate::failure::{Named, quoted, setup};
use crate::root_fs::RootFs;
use crate::steps::Step;
use crate::terminal::Terminal;
use crate::users::{self, Ids};
use crate::{attributes, credentials, handshake, program, sys};

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
        credentials::leave_groups()?;
        if !plan.uid_mappings.is_empty() || !plan.gid_mappings.is_empty() {
            credentials::become_root()?;
            // So that its files in /proc are its own. In the container there is nobody
            // yet who could look at it.
            set_dumpable_behavior(DumpableBehavior::Dumpable).named(|| "make dumpable")?;
        }
        let mut child = Child::new(pipes)?;
        steps.iter().try_for_each(|step| child.carry_out(step))?;
        program::look(&plan.process)?;
        child.ready(handshake)
    };
    let home = set_up();
    finish(plan, handshake, home)
}

/// Runs the program when the agent says so. `home` is what [`Child::ready`] gave.
pub fn finish(
    plan: &ContainerPlan,
    handshake: BorrowedFd<'_>,
    home: Result<Option<Bytes>, Failure>,
) -> ! {
    let hooks = &plan.start_container_hooks;
    finish_process(&plan.process, hooks, handshake, home)
}

/// The same for any process, `hooks` being those of its start.
pub fn finish_process(
    plan: &ProcessPlan,
    hooks: &[Hook],
    handshake: BorrowedFd<'_>,
    home: Result<Option<Bytes>, Failure>,
) -> ! {
    let failure = match home {
        Ok(home) => match handshake::await_go(handshake) {
            Ok(true) => program::run(plan, hooks, home),
            // The agent is gone, and so is the machine.
            _ => sys::exit_now(1),
        },
        Err(failure) => failure,
    };
    fail(handshake, failure)
}

pub fn fail(handshake: BorrowedFd<'_>, failure: Failure) -> ! {
    let _ = handshake::tell(handshake, &Report::Failed(failure), &[]);
    sys::exit_now(1)
}

/// The process while it sets itself up.
pub struct Child<'p> {
    pipes: &'p [(Stream, OwnedFd)],
    /// Its file system tree.
    pub root_fs: RootFs,
    terminal: Option<Terminal>,
    ids: Ids,
    home: Option<Bytes>,
    /// What may still be in the bounding set.
    bounding: u64,
}

impl<'p> Child<'p> {
    /// Called by the new process itself, in its namespaces.
    pub fn new(pipes: &'p [(Stream, OwnedFd)]) -> Result<Self, Failure> {
        Self::with(RootFs::new()?, pipes)
    }

    /// Called by a process that has joined a container, its pipes in their places.
    pub fn joined() -> Result<Self, Failure> {
        Self::with(RootFs::joined()?, &[])
    }

    fn with(root_fs: RootFs, pipes: &'p [(Stream, OwnedFd)]) -> Result<Self, Failure> {
        sys::restore_signals().named(|| "signals")?;
        // Modes of nodes and folders are given in full.
        umask(Mode::empty());
        Ok(Self {
            pipes,
            root_fs,
            terminal: None,
            ids: Ids::default(),
            home: None,
            bounding: u64::MAX,
        })
    }

    /// Everything is done but to run the program: tells the agent. Returns the
    /// user's home folder where `env` says nothing about it.
    pub fn ready(mut self, handshake: BorrowedFd<'_>) -> Result<Option<Bytes>, Failure> {
        let terminal = self.terminal.as_ref();
        let handles = terminal.map(|t| [t.master.as_fd(), t.slave.as_fd()]);
        let handles = handles.as_ref().map_or(&[][..], |both| both);
        handshake::tell(handshake, &Report::Created, handles).named(|| "report to the agent")?;
        let home = self.home.take();
        std::mem::forget(self);
        sys::close_all_but(&[handshake]).named(|| "close descriptors")?;
        Ok(home)
    }

    /// Drops all capabilities but `kept` from the bounding set.
    pub fn bound(&mut self, kept: u64) -> Result<(), Failure> {
        credentials::bound(kept, self.bounding)?;
        self.bounding &= kept;
        Ok(())
    }

    /// Does one thing for the container.
    pub fn carry_out(&mut self, step: &Step<'_>) -> Result<(), Failure> {
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
            Step::WorkingFolder { path, create } => root_fs.enter_working_folder(path, *create),
            Step::RootReadonly => root_fs.make_readonly(),
            Step::Session => setsid().map(drop).named(|| "session"),
            Step::Pipes => put_pipes(self.pipes),
            Step::ControllingTerminal => {
                ioctl_tiocsctty(self.slave()?).named(|| "controlling terminal")
            }
            Step::TerminalStreams => self.put_terminal(),
            Step::FindUser(user) => {
                self.ids = users::find(root_fs.root()?, user)?;
                umask(Mode::from_raw_mode(user.umask.unwrap_or(0o022) & 0o777));
                Ok(())
            }
            Step::FindHome => {
                self.home = Some(users::home(root_fs.root()?, self.ids.uid)?);
                Ok(())
            }
            Step::OwnStreams => self.own_streams().named(|| "standard streams"),
            Step::Personality(persona) => {
                attributes::set_personality(*persona).named(|| format!("personality {persona:#x}"))
            }
            Step::Scheduler(scheduler) => attributes::set_scheduler(scheduler)
                .named(|| format!("scheduler policy {}", scheduler.policy)),
            Step::IoPriority(priority) => {
                attributes::set_io_priority(*priority).named(|| format!("ioPriority {priority:#x}"))
            }
            Step::Limit(limit) => sys::set_rlimit(limit.resource, limit.soft, limit.hard)
                .named(|| format!("rlimit {}", limit.resource)),
            Step::RaiseLimit(limit) => sys::raise_rlimit(limit.resource, limit.hard)
                .named(|| format!("rlimit {}", limit.resource)),
            Step::BoundingSet(kept) => self.bound(*kept),
            Step::BecomeUser => credentials::become_user(&self.ids),
            Step::Capabilities(sets) => credentials::set_capabilities(sets),
            Step::NoNewPrivileges => {
                rustix::thread::set_no_new_privs(true).named(|| "no new privileges")
            }
        }
    }

    fn slave(&self) -> Result<&OwnedFd, Failure> {
        let missing = || setup("terminal", Errno::BADF);
        Ok(&self.terminal.as_ref().ok_or_else(missing)?.slave)
    }

    fn put_terminal(&self) -> Result<(), Failure> {
        let terminal = self.slave()?;
        let put = || {
            dup2_stdin(terminal)?;
            dup2_stdout(terminal)?;
            dup2_stderr(terminal)
        };
        put().named(|| "standard streams")
    }

    /// Lets the user open /dev/stdout and kin again, and own the terminal.
    fn own_streams(&self) -> rustix::io::Result<()> {
        if self.ids.uid == 0 {
            return Ok(());
        }
        let owner = Some(Uid::from_raw(self.ids.uid));
        let streams = [stdin(), stdout(), stderr()];
        streams.into_iter().try_for_each(|stream| {
            match rustix::fs::fchown(stream, owner, None::<Gid>) {
                // A user namespace that does not own the pipe's file system.
                Err(Errno::PERM | Errno::INVAL) => Ok(()),
                other => other,
            }
        })
    }
}

/// Puts the container's ends of its pipes on 0, 1 and 2.
pub fn put_pipes(pipes: &[(Stream, OwnedFd)]) -> Result<(), Failure> {
    let put = |(stream, pipe): &(Stream, OwnedFd)| match stream {
        Stream::Stdin => dup2_stdin(pipe),
        Stream::Stdout => dup2_stdout(pipe),
        Stream::Stderr => dup2_stderr(pipe),
        Stream::Terminal => Err(Errno::INVAL),
    };
    pipes.iter().try_for_each(put).named(|| "standard streams")
}
