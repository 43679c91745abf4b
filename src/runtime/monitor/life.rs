//! The monitor's own life, from its fork to the container's exit code.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};
use vmrun_oci::host_limits::HostLimits;
use vmrun_protocol::message::ExitStatus;
use vmrun_vm::machine::RunningMachine;
use vmrun_vm::trace::Timeline;

use super::door::Door;
use super::progress::{FromMonitor, Parent};
use super::serve::{KILL_DEADLINE, Limits, Monitor, Stdio};
use super::spawn::{close_inherited, forget_standard_streams, set_death_signal};
use crate::console::{ConsoleSocket, HostTerminal};
use crate::control::Control;
use crate::error::chain;
use crate::guest_image::GuestImage;
use crate::host_cgroup::{CgroupError, HostCgroup};
use crate::plan::{Plan, Shape};
use crate::session::{Deadlines, Session};
use crate::signals::Signals;
use crate::start::{MachineRequest, Start};
use crate::stdio::HostStreams;
use crate::template::{Notices, Workshop};
use crate::{Error, machine, mount_points, namespace};

/// Everything that the verb has prepared for the monitor.
pub struct Life<'a> {
    /// The machine that is wanted.
    pub request: &'a MachineRequest,
    /// Its size.
    pub shape: Shape,
    /// What it boots.
    pub image: GuestImage,
    /// Container and exports.
    pub plan: Plan,
    /// CPUs of the host to run on.
    pub host_cpus: Option<Vec<usize>>,
    /// Where the monitor belongs on the host.
    pub cgroup: Option<HostCgroup>,
    /// What holds there.
    pub limits: HostLimits,
    /// Path of the network namespace to be in; none for one of its own.
    pub network: Option<PathBuf>,
    /// Whether there are hooks to wait for.
    pub has_hooks: bool,
    /// Where verbs come.
    pub listener: UnixListener,
    /// What the container's streams are.
    pub stdout: Stdout,
    /// Blocked before the fork.
    pub signals: &'a Signals,
    /// Tells the user while a template is made.
    pub notices: &'a dyn Notices,
    /// Of the start.
    pub timeline: &'a Timeline,
    /// The verb.
    pub verb: Pid,
}

/// What the container's streams are on the host, and for how long.
#[derive(Debug)]
pub enum Stdout {
    /// Those of the verb, which stays and shows them.
    Shared,
    /// Those of the verb, which ends.
    Inherited,
    /// A terminal of the host, whose master is given away here.
    Console(ConsoleSocket),
}

impl Life<'_> {
    /// Lives it. The result is the exit code.
    pub fn live(mut self, mut parent: Parent, undo: impl FnOnce()) -> u8 {
        let stays = matches!(self.stdout, Stdout::Shared);
        let verb = self.verb;
        let timeline = self.timeline;
        let mut created = false;
        let result = self.run(&mut parent, |parent| {
            let signal = stays.then_some(Signal::KILL);
            let gone = Error::host("tell that the container is created");
            set_death_signal(signal, verb).map_err(gone)?;
            let gone = Error::host("tell that the container is created");
            parent
                .say(&FromMonitor::Created)
                .map_err(std::io::Error::other)
                .map_err(gone)?;
            created = true;
            Ok(())
        });
        timeline.mark("machine stopped");
        let error = match result {
            Ok(status) => return status.shell_code(),
            Err(error) => error,
        };
        let code = error.exit_code();
        let line = chain(&error);
        // Whoever made us tells it and undoes the rest, if it is still there.
        let told = FromMonitor::Failed {
            line: line.clone(),
            code,
        };
        let told = parent.say(&told);
        if !stays && (created || told.is_err()) {
            log::error!("{line}");
        }
        if !created && told.is_err() {
            undo();
        }
        code
    }

    fn run(
        &mut self,
        parent: &mut Parent,
        created: impl FnOnce(&mut Parent) -> Result<(), Error>,
    ) -> Result<ExitStatus, Error> {
        wait_for_go(parent)?;
        self.settle()?;
        let entering = self.enter_cgroup()?;
        // What closes the caller's descriptors comes before there are others; the rest
        // while the guest runs already.
        let detached = match self.stdout {
            Stdout::Shared => None,
            _ => Some(self.stdio()?),
        };
        let host = machine::host_kind()?;
        self.timeline.mark("host probed");
        let start = Start {
            request: self.request,
            shape: self.shape,
            image: self.image.clone(),
            host,
            workshop: Workshop {
                signals: self.signals,
                notices: self.notices,
            },
            timeline: self.timeline,
        };
        let started = start.machine(std::mem::take(&mut self.plan.exports))?;
        let machine = started.machine;
        let stdio = detached.map_or_else(|| self.stdio(), Ok)?;
        entering.wait()?;
        if !matches!(self.stdout, Stdout::Shared) {
            // Where the caller was may have to go away before the container does.
            rustix::process::chdir("/").map_err(Error::host("leave the caller's folder"))?;
        }
        let deadlines = Deadlines::of(host, self.shape.mem_size_mib);
        let listener = self.listener.try_clone().and_then(Door::new);
        let door = listener.map_err(Error::host("serve the container's socket"))?;
        let limits = Limits {
            start: deadlines.start,
            kill: KILL_DEADLINE,
        };
        let mut monitor = Monitor::new(machine, self.signals, door, stdio, limits, self.timeline);
        if self.has_hooks {
            let asked = parent.say(&FromMonitor::WantsHooks);
            asked
                .map_err(std::io::Error::other)
                .map_err(Error::host("ask for the hooks"))?;
            monitor.serve_until(&*parent)?;
            wait_for_go(parent)?;
        }
        let control = self.set_up(&monitor, started.control, deadlines)?;
        if let (Some(origin), Some(machine)) = (started.origin, monitor.guest()) {
            origin.served(machine);
        }
        monitor.created(control)?;
        created(parent)?;
        self.serve(monitor)
    }

    fn set_up(
        &mut self,
        monitor: &Monitor<RunningMachine>,
        control: Control,
        deadlines: Deadlines,
    ) -> Result<Control, Error> {
        let Some(machine) = monitor.guest() else {
            return Err(Error::MonitorEnded);
        };
        let mut session = Session::new(control, machine, self.signals, deadlines);
        session.greet()?;
        self.timeline.mark("agent ready");
        let control = session.create(std::mem::take(&mut self.plan.container))?;
        self.timeline.mark("container created");
        Ok(control)
    }

    fn serve(&self, mut monitor: Monitor<RunningMachine>) -> Result<ExitStatus, Error> {
        let status = monitor.serve();
        let drained = match &status {
            Ok(_) => monitor.drain(),
            Err(_) => Ok(()),
        };
        let status = status.and_then(|status| drained.map(|()| status));
        monitor.part(status.as_ref().err());
        if let Some(machine) = monitor.take_guest() {
            let ending = machine.stop();
            log::debug!("{ending}");
        }
        // What has left the guest arrives, however it ended.
        monitor.flush()?;
        status
    }

    /// Goes where the host wants the container: everything that has to be before the
    /// first thread.
    fn settle(&self) -> Result<(), Error> {
        namespace::enter_network(self.network.as_deref())?;
        raise_descriptor_limit();
        stay_on(self.host_cpus.as_deref())?;
        prepare_root(&self.plan)
    }

    /// Moves the whole process into its cgroup while the machine starts: for the first
    /// move after a while the kernel waits until all processors have been idle or
    /// rescheduled, which takes as long as half a start. What is used until then is
    /// counted where the process came from.
    fn enter_cgroup(&mut self) -> Result<Entering, Error> {
        let Some(cgroup) = self.cgroup.take() else {
            return Ok(Entering(None));
        };
        let limits = self.limits.clone();
        let thread = thread::Builder::new().name("cgroup".to_owned());
        let entering = thread.spawn(move || cgroup.enter(&limits));
        Ok(Entering(Some(
            entering.map_err(Error::host("start a thread"))?,
        )))
    }

    fn stdio(&mut self) -> Result<Stdio, Error> {
        let size = self.plan.container.process.terminal;
        let (streams, terminal) = match &self.stdout {
            Stdout::Console(socket) => {
                let terminal = HostTerminal::open(socket, size)?;
                terminal.make_controlling()?;
                let streams = terminal.streams()?;
                let own = streams
                    .stdin
                    .try_clone()
                    .map_err(Error::host("duplicate the terminal"))?;
                (streams, Some(own))
            }
            Stdout::Shared | Stdout::Inherited => {
                let streams = HostStreams::own()?;
                let own = size.map(|_| streams.stdin.try_clone()).transpose();
                (streams, own.map_err(Error::host("duplicate the terminal"))?)
            }
        };
        if !matches!(self.stdout, Stdout::Shared) {
            close_inherited().map_err(Error::host("close what the caller has left open"))?;
            forget_standard_streams().map_err(Error::host("open /dev/null"))?;
        }
        Ok(Stdio {
            streams: Some(streams),
            terminal,
        })
    }
}

/// A process that is being moved into its cgroup.
struct Entering(Option<JoinHandle<Result<(), CgroupError>>>);

impl Entering {
    /// Waits until it is there.
    fn wait(self) -> Result<(), Error> {
        match self.0.map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(entered)) => Ok(entered?),
            Some(Err(_)) => Err(Error::MonitorEnded),
        }
    }
}

fn wait_for_go(parent: &mut Parent) -> Result<(), Error> {
    let told = parent.wait_for_go().map_err(std::io::Error::other);
    told.map_err(Error::host("hear from who creates the container"))
}

/// Every file that the guest knows is a descriptor of the file system server. The
/// container's own limit is set in the guest. As many as the host allows will do.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        log::debug!("cannot raise the limit of open files: {error}");
    }
}

/// `linux.resources.cpu.cpus`: threads inherit it, so it holds for all of them.
fn stay_on(host_cpus: Option<&[usize]>) -> Result<(), Error> {
    let Some(cpus) = host_cpus else {
        return Ok(());
    };
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu);
    }
    sched_setaffinity(None, &set).map_err(Error::host("run on linux.resources.cpu.cpus"))
}

fn prepare_root(plan: &Plan) -> Result<(), Error> {
    let root = &plan.exports[0];
    if root.read_only {
        mount_points::make(&root.source, &plan.mount_points())
            .map_err(Error::host("make the mount points in root.path"))?;
    }
    Ok(())
}
