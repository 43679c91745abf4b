//! `create`, which `run` begins with too: a bundle from its folder to a container
//! that waits to be started. Its monitor is a child; everything else here happens
//! in the verb, and is undone when a step fails.

use std::path::PathBuf;
use std::time::SystemTime;

use rustix::event::PollFlags;
use rustix::process::getpid;
use vmrun_protocol::plan::WindowSize;
use vmrun_vm::trace::Timeline;

use crate::bundle::Bundle;
use crate::console::ConsoleSocket;
use crate::error::chain;
use crate::hooks::{self, Point};
use crate::host_cgroup::{self, Driver, HostCgroup};
use crate::monitor::{FromMonitor, Life, Spawned, Stdout, spawn};
use crate::plan;
use crate::session::{draw_random, wait_for};
use crate::signals::{Signal, Signals};
use crate::start::MachineRequest;
use crate::state::{Id, ProcessName, Record, Reserved, Root, Status, VERSION};
use crate::state_json::state_json;
use crate::template::Notices;
use crate::user::own_uid;
use crate::{Error, guest_image, handover, machine, pid_file, terminal};

/// What was decided about a container.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// Folder of the bundle.
    pub bundle: PathBuf,
    /// Folder for the state of containers.
    pub root: PathBuf,
    /// Its id; none to have one made up.
    pub id: Option<String>,
    /// Its machine.
    pub machine: MachineRequest,
    /// Who makes its cgroup on the host.
    pub driver: Driver,
    /// Memory of the host that its machine needs beside it.
    pub overhead_mib: u64,
    /// Gets the master of its terminal.
    pub console_socket: Option<PathBuf>,
    /// Gets a descriptor of its monitor.
    pub pidfd_socket: Option<PathBuf>,
    /// Gets the pid of its monitor.
    pub pid_file: Option<PathBuf>,
}

/// Who is told what.
#[derive(Clone, Copy)]
pub struct Telling<'a> {
    /// While a template is made.
    pub notices: &'a dyn Notices,
    /// Of the start.
    pub timeline: &'a Timeline,
    /// Called once the timeline is whole.
    pub at_end: &'a dyn Fn(&Timeline),
}

/// `create`: the container waits to be started, its monitor stays behind.
pub fn create(request: &CreateRequest, telling: Telling) -> Result<(), Error> {
    let signals = Signals::block().map_err(Error::host("receive signals"))?;
    let born = bring_up(request, telling, &signals, false)?;
    born.or_undo(born.hand_over(request))
}

/// A container that is created, and its monitor, a child of this process.
pub struct Born {
    /// What is kept of it.
    pub record: Record,
    /// Its monitor.
    pub monitor: Spawned,
    /// Whether it has a terminal.
    pub has_terminal: bool,
    reserved: Reserved,
}

/// Creates the container. With `stays` this process shows the container's streams,
/// and the machine ends with it.
pub fn bring_up(
    request: &CreateRequest,
    telling: Telling,
    signals: &Signals,
    stays: bool,
) -> Result<Born, Error> {
    let id = match &request.id {
        Some(id) => Id::new(id.as_str())?,
        None => made_up_id()?,
    };
    let mut bundle = Bundle::open(&request.bundle)?;
    for warning in &bundle.container.warnings {
        log::warn!("{warning}");
    }
    let limit = bundle.container.memory_limit_bytes;
    let shape = plan::shape(request.machine.shape, limit, machine::host_mem_mib())?;
    let image = guest_image::find(
        &request.machine.guest_dir,
        request.machine.kernel.as_deref(),
        request.machine.initramfs.as_deref(),
        shape.vcpu_count,
    )?;
    let stdout = streams(request, &mut bundle, stays)?;
    let has_terminal = bundle.container.plan.process.terminal.is_some();
    let cgroup = HostCgroup::plan(&host_cgroup::Asked {
        id: id.as_str(),
        path: bundle.container.cgroups_path.as_deref(),
        driver: request.driver,
        overhead_mib: request.overhead_mib,
    })?;
    let reserved = Root::make(&request.root)?.reserve(&id)?;
    let undo = |error: Error| {
        give_up(&reserved);
        error
    };
    reserved
        .keep_config(&bundle.config)
        .map_err(|e| undo(e.into()))?;
    let listener = reserved.listen().map_err(|e| undo(e.into()))?;
    let record = record(id, &bundle, cgroup.clone());
    for hook in &mut bundle.container.plan.start_container_hooks {
        hook.stdin = state_inside(&record);
    }
    let verb = getpid();
    let life = Life {
        request: &request.machine,
        shape,
        image,
        host_cpus: bundle.container.host_cpus.clone(),
        cgroup: cgroup.clone(),
        limits: bundle.container.host_limits.clone(),
        network: bundle.container.network_namespace.clone(),
        has_hooks: has_create_hooks(&record),
        plan: plan::plan(bundle),
        listener,
        stdout,
        signals,
        notices: telling.notices,
        timeline: telling.timeline,
        verb,
    };
    telling.timeline.mark("bundle read");
    let orphaned = || {
        if let Some(cgroup) = &cgroup {
            cgroup.leave();
        }
        give_up(&reserved);
    };
    let monitor = spawn(verb, |parent| {
        let code = life.live(parent, orphaned);
        (telling.at_end)(telling.timeline);
        code
    });
    let mut born = Born {
        monitor: monitor.map_err(undo)?,
        record,
        reserved,
        has_terminal,
    };
    let created = born.attend(signals);
    born.or_undo(created)?;
    Ok(born)
}

fn made_up_id() -> Result<Id, Error> {
    let mut bytes = [0; 8];
    draw_random(&mut bytes)?;
    Ok(Id::new(format!("{:016x}", u64::from_ne_bytes(bytes)))?)
}

fn give_up(reserved: &Reserved) {
    if let Err(error) = reserved.give_up() {
        log::warn!("{}", chain(&error));
    }
}

fn has_create_hooks(record: &Record) -> bool {
    !record.hooks.prestart.is_empty() || !record.hooks.create_runtime.is_empty()
}

/// What is kept of the container, but for its monitor, which is not there yet.
fn record(id: Id, bundle: &Bundle, cgroup: Option<HostCgroup>) -> Record {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let created_ns = since_1970.unwrap_or_default().as_nanos();
    Record {
        version: VERSION,
        id,
        monitor: ProcessName {
            pid: 0,
            start_ticks: 0,
        },
        bundle: bundle.path.clone(),
        rootfs: bundle.rootfs(),
        created_ns: u64::try_from(created_ns).unwrap_or(u64::MAX),
        annotations: bundle.container.annotations.clone(),
        owner_uid: own_uid(),
        cgroup,
        hooks: bundle.container.hooks.clone(),
    }
}

/// What hooks in the container read: there its first process is number 1.
fn state_inside(record: &Record) -> Vec<u8> {
    let mut inside = record.clone();
    inside.monitor.pid = 1;
    state_json(&inside, Status::Created)
}

/// Where the container's streams go. A terminal of its own gets the size of the one
/// it is shown on.
fn streams(request: &CreateRequest, bundle: &mut Bundle, stays: bool) -> Result<Stdout, Error> {
    let terminal = &mut bundle.container.plan.process.terminal;
    match (&request.console_socket, &terminal, stays) {
        (Some(_), None, _) | (Some(_), _, true) => Err(Error::ConsoleUnused),
        (Some(path), Some(_), false) => Ok(Stdout::Console(ConsoleSocket::connect(path)?)),
        (None, None, true) => Ok(Stdout::Shared),
        (None, None, false) => Ok(Stdout::Inherited),
        (None, Some(_), false) => Err(Error::ConsoleMissing),
        (None, Some(configured), true) => {
            *terminal = Some(terminal_size(*configured)?);
            Ok(Stdout::Shared)
        }
    }
}

/// The terminal's own size, else the one in config.json.
fn terminal_size(configured: WindowSize) -> Result<WindowSize, Error> {
    let stdin = rustix::stdio::stdin();
    if !terminal::is_terminal(stdin) {
        return Err(Error::NoTerminal);
    }
    Ok(terminal::window_size(stdin).unwrap_or(configured))
}

impl Born {
    /// Sees the monitor through until the container is created.
    fn attend(&mut self, signals: &Signals) -> Result<(), Error> {
        let failed = "remember the container's monitor";
        self.record.monitor = ProcessName::of(self.monitor.pid()).map_err(Error::host(failed))?;
        self.reserved.record(&self.record)?;
        // From here on the container can be deleted by others.
        self.reserved.unlock();
        self.go()?;
        loop {
            match self.hear(signals)? {
                FromMonitor::WantsHooks => {
                    self.run_hooks()?;
                    self.go()?;
                }
                FromMonitor::Created => return Ok(()),
                FromMonitor::Failed { line, code } => return Err(Error::Reported { line, code }),
            }
        }
    }

    fn go(&mut self) -> Result<(), Error> {
        // If it has ended, what it said before tells more.
        let _ = self.monitor.progress.go();
        Ok(())
    }

    fn run_hooks(&self) -> Result<(), Error> {
        let state = state_json(&self.record, Status::Creating);
        hooks::run(Point::Prestart, &self.record.hooks.prestart, &state)?;
        hooks::run(
            Point::CreateRuntime,
            &self.record.hooks.create_runtime,
            &state,
        )?;
        Ok(())
    }

    /// What the monitor says, unless a signal ends the start.
    fn hear(&mut self, signals: &Signals) -> Result<FromMonitor, Error> {
        loop {
            let fds = [
                (self.monitor.progress.fd(), PollFlags::IN),
                (signals.fd(), PollFlags::IN),
            ];
            let [said, signalled] = wait_for(fds, None)?;
            if signalled {
                let ending = std::iter::from_fn(|| signals.take()).find_map(Signal::ends_start);
                if let Some(number) = ending {
                    return Err(Error::Interrupted(number));
                }
            }
            if said {
                return self
                    .monitor
                    .progress
                    .hear()
                    .map_err(|_| Error::MonitorEnded);
            }
        }
    }

    /// Gives those who asked for it the monitor's pid.
    pub fn hand_over(&self, request: &CreateRequest) -> Result<(), Error> {
        if let Some(path) = &request.pidfd_socket {
            handover::send_pidfd(path, self.monitor.pidfd())?;
        }
        if let Some(path) = &request.pid_file {
            pid_file::write(path, self.monitor.pid())?;
        }
        Ok(())
    }

    /// Undoes everything if `result` is a failure.
    pub fn or_undo<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.inspect_err(|_| self.undo())
    }

    fn undo(&self) {
        self.monitor.signal(rustix::process::Signal::KILL);
        if let Err(error) = self.monitor.wait() {
            log::warn!("{}", chain(&error));
        }
        self.forget();
    }

    /// Removes what is left of the container, whose monitor has ended.
    pub fn forget(&self) {
        if let Some(cgroup) = &self.record.cgroup
            && let Err(error) = cgroup.remove()
        {
            log::warn!("{}", chain(&error));
        }
        give_up(&self.reserved);
        let state = state_json(&self.record, Status::Stopped);
        hooks::run_each(Point::Poststop, &self.record.hooks.poststop, &state);
    }
}
