//! `vmrun run`: a bundle from its folder to its exit code.

use std::path::PathBuf;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};
use vmrun_protocol::message::INIT;
use vmrun_protocol::plan::WindowSize;
use vmrun_vm::spec::BootProtocol;
use vmrun_vm::trace::Timeline;

use crate::bundle::Bundle;
use crate::guest_image;
use crate::plan::{self, AskedShape};
use crate::session::{Deadlines, Session};
use crate::signals::Signals;
use crate::start::Start;
use crate::stdio::{HostStreams, Relays};
use crate::template::{Found, Notices, TemplateUse, Workshop};
use crate::terminal::{self, RawTerminal};
use crate::{Error, machine, mount_points};

/// What was decided about a run.
#[derive(Debug, Clone, Default)]
pub struct RunRequest {
    /// Folder of the bundle.
    pub bundle: PathBuf,
    /// Size of the machine.
    pub shape: AskedShape,
    /// Folder of the guest image.
    pub guest_dir: PathBuf,
    /// Another kernel than the image's.
    pub kernel: Option<PathBuf>,
    /// Another initramfs than the image's.
    pub initramfs: Option<PathBuf>,
    /// Further parameters of the guest kernel.
    pub kernel_params: Vec<String>,
    /// How the kernel is entered.
    pub boot_protocol: BootProtocol,
    /// File for the guest's console.
    pub console: Option<PathBuf>,
    /// File for the guest's early serial console.
    pub serial: Option<PathBuf>,
    /// File for samples of what the guest does.
    pub profile: Option<PathBuf>,
    /// Which templates to use; none to boot.
    pub templates: Option<TemplateUse>,
}

impl RunRequest {
    /// Whether the machine is to be another than those of templates.
    pub fn changes_machine(&self) -> bool {
        let files = [&self.kernel, &self.initramfs, &self.console, &self.serial];
        files.iter().any(|file| file.is_some())
            || !self.kernel_params.is_empty()
            || self.boot_protocol != BootProtocol::default()
    }
}

/// Runs the container and returns its exit code. Whatever happens, nothing is
/// left behind: every step is undone by the end of its scope.
pub fn run(request: &RunRequest, notices: &dyn Notices, timeline: &Timeline) -> Result<u8, Error> {
    let signals = Signals::block().map_err(Error::host("receive signals"))?;
    raise_descriptor_limit();
    let bundle = Bundle::open(&request.bundle)?;
    for warning in &bundle.container.warnings {
        log::warn!("{warning}");
    }
    let shape = plan::shape(
        request.shape,
        bundle.container.memory_limit_bytes,
        machine::host_mem_mib(),
    )?;
    let image = guest_image::find(
        &request.guest_dir,
        request.kernel.as_deref(),
        request.initramfs.as_deref(),
        shape.vcpu_count,
    )?;
    stay_on(bundle.container.host_cpus.as_deref())?;
    let mut plan = plan::plan(bundle);
    prepare_root(&plan)?;
    let has_terminal = plan.container.process.terminal.is_some();
    if has_terminal {
        plan.container.process.terminal = Some(terminal_size(plan.container.process.terminal)?);
    }
    timeline.mark("bundle read");

    let host = machine::host_kind()?;
    timeline.mark("host probed");
    let workshop = Workshop {
        signals: &signals,
        notices,
    };
    let start = Start {
        request,
        shape,
        image,
        host,
        workshop,
        timeline,
    };
    let started = start.machine(plan.exports)?;
    let machine = started.machine;

    let size = || terminal::window_size(rustix::stdio::stdin());
    let deadlines = Deadlines::of(host, shape.mem_size_mib);
    let mut session = Session::new(started.control, &machine, &signals, deadlines, size);
    session.greet()?;
    timeline.mark("agent ready");
    session.create(plan.container)?;
    timeline.mark("container created");
    if let Some(folder) = started.unlearnt {
        Found::learn(folder, &machine);
    }
    let relays = Relays::start(&machine, INIT, has_terminal, HostStreams::own()?)?;
    let raw = has_terminal.then(|| RawTerminal::enter(rustix::stdio::stdin()));
    let raw = raw.transpose()?;
    let status = session.start().and_then(|()| {
        timeline.mark("container started");
        session.wait()
    });
    timeline.mark("container exited");
    if status.is_ok() {
        session.drain(&relays)?;
    }
    log::debug!("{}", machine.stop());
    timeline.mark("machine stopped");
    // What has left the guest arrives, however it ended.
    relays.finish(&signals)?;
    drop(raw);
    status.map(|status| status.shell_code())
}

/// Every file that the guest knows is a descriptor of the file system server. The
/// container's own limit is set in the guest. As many as the host allows will do.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
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

fn prepare_root(plan: &plan::Plan) -> Result<(), Error> {
    let root = &plan.exports[0];
    if root.read_only {
        mount_points::make(&root.source, &plan.mount_points())
            .map_err(Error::host("make the mount points in root.path"))?;
    }
    Ok(())
}

/// The terminal's own size, else the one in config.json.
fn terminal_size(configured: Option<WindowSize>) -> Result<WindowSize, Error> {
    let stdin = rustix::stdio::stdin();
    if !terminal::is_terminal(stdin) {
        return Err(Error::NoTerminal);
    }
    Ok(terminal::window_size(stdin)
        .or(configured)
        .unwrap_or_default())
}
