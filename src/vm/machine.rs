//! A machine: built paused from a [`MachineSpec`], resumed, ended.
//!
//! [`Machine::build`] reads in the order of a boot, [`Machine::restore`] makes the
//! same of a template; from there on there is one path. Everything starts paused
//! and is undone by `Drop`.

mod frozen;
#[cfg(test)]
pub(crate) mod testing;

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use kvm_ioctls::VcpuFd;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::boot::{self, BootError, BootImages, MmioDevice};
use crate::bus::{Bus, BusDevice, Overlap};
use crate::cpu::{self, CpuError, VcpuContext, VcpuThread};
use crate::devices::{
    MILESTONE_PORT, Milestones, RESET_PORT, RESET_PORTS, Reset, SERIAL_PORT, SERIAL_PORTS,
    SerialConsole,
};
use crate::ending::{Ending, Outcome};
use crate::event_loop::LoopError;
use crate::heap;
use crate::kick;
use crate::kvm::{KvmError, Vm};
use crate::memory::{self, MemoryError, layout};
use crate::probe::{self, HostKind};
use crate::profile::Profile;
use crate::slots::{Devices, Slots, SlotsError};
use crate::snapshot::SnapshotError;
use crate::spec::MachineSpec;
use crate::trace::Timeline;
use crate::virtio::vsock::VsockHandle;

/// A machine could not be built or started.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The spec cannot be met.
    #[error("{0}")]
    Spec(String),
    /// No guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Kernel or initramfs cannot be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A vCPU cannot be set up.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// A virtio device cannot be set up.
    #[error(transparent)]
    Slots(#[from] SlotsError),
    /// Two devices overlap.
    #[error(transparent)]
    Bus(#[from] Overlap),
    /// No event loop.
    #[error(transparent)]
    Loop(#[from] LoopError),
    /// The template cannot be used.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The host refused something else.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

/// A machine that has not run yet.
pub struct Machine {
    // Fields are dropped in this order: threads that use the memory, then the VM,
    // then the memory.
    devices: Devices,
    vcpus: Vec<VcpuFd>,
    vsock: Option<VsockHandle>,
    timeline: Timeline,
    host: HostKind,
    /// It has a UART, whose state is not saved.
    has_serial: bool,
    /// Checksum of the template's memory.
    restored_from: Option<[u8; 32]>,
    vm: Vm,
    context: VcpuContext,
}

/// A machine whose vCPUs run. Dropping it stops it.
pub struct RunningMachine {
    vcpus: Vec<VcpuThread>,
    machine: Machine,
}

impl Machine {
    /// Builds the machine, paused at the kernel's first instruction.
    pub fn build(
        mut spec: MachineSpec,
        host: HostKind,
        timeline: &Timeline,
    ) -> Result<Self, MachineError> {
        check(&spec)?;
        let memory = memory::allocate(spec.mem_size_mib)?;
        let vm = Vm::new(&memory)?;
        timeline.mark("vm made");

        let mut slots = Slots::default();
        let vsock = slots.add_devices(&vm, &memory, &mut spec)?;
        let cmdline = cmdline(&spec, host, slots.windows())?;
        let entry = boot::load(
            &memory,
            &BootImages {
                kernel: &spec.kernel,
                initramfs: spec.initramfs.as_deref(),
                cmdline: &cmdline,
                protocol: spec.boot_protocol,
            },
        )?;
        boot::mptable::write_table(&memory, spec.vcpu_count)?;
        timeline.mark("kernel loaded");

        let vcpus = cpu::create(&vm, spec.vcpu_count, entry, &memory, host)?;
        let parts = Parts {
            memory,
            vm,
            slots,
            vsock,
            vcpus,
        };
        let machine = parts.assemble(spec, host, timeline)?;
        timeline.mark("machine built");
        Ok(machine)
    }

    /// Lets the vCPUs run.
    pub fn resume(mut self) -> Result<RunningMachine, MachineError> {
        heap::share();
        kick::install_handler().map_err(host_error("install the kick signal"))?;
        let vcpus = std::mem::take(&mut self.vcpus);
        let mut running = RunningMachine {
            vcpus: Vec::new(),
            machine: self,
        };
        running.machine.timeline.mark("first instruction");
        for (id, vcpu) in vcpus.into_iter().enumerate() {
            let thread = VcpuThread::start(vcpu, id, running.machine.context.clone())?;
            running.vcpus.push(thread);
        }
        // While the guest runs already: its first requests wait that long.
        let machine = &mut running.machine;
        machine.devices.start(&machine.context.outcome)?;
        Ok(running)
    }
}

/// What a boot and a restore come together at.
struct Parts {
    memory: GuestMemoryMmap,
    vm: Vm,
    slots: Slots,
    vsock: Option<VsockHandle>,
    vcpus: Vec<VcpuFd>,
}

impl Parts {
    fn assemble(
        self,
        mut spec: MachineSpec,
        host: HostKind,
        timeline: &Timeline,
    ) -> Result<Machine, MachineError> {
        let outcome = Arc::new(Outcome::new().map_err(host_error("make an eventfd"))?);
        let (mmio, devices) = self.slots.finish()?;
        let has_serial = spec.serial.is_some();
        let ports = ports(&self.vm, &mut spec, timeline, &outcome)?;
        let context = VcpuContext {
            ports: Arc::new(ports),
            mmio: Arc::new(mmio),
            memory: self.memory,
            outcome,
            accelerate: cpu::is_accelerated(host, spec.vcpu_count),
            counters: timeline.counters(),
            profile: (spec.profile).map(|out| Arc::new(Profile::new(out, timeline.clone()))),
        };
        Ok(Machine {
            devices,
            vcpus: self.vcpus,
            vsock: self.vsock,
            timeline: timeline.clone(),
            host,
            has_serial,
            restored_from: None,
            vm: self.vm,
            context,
        })
    }
}

impl RunningMachine {
    /// Opens connections to the guest's vsock ports; none without a vsock device.
    pub fn vsock(&self) -> Option<&VsockHandle> {
        self.machine.vsock.as_ref()
    }

    /// Readable once [`Self::ending`] is there. Only to be polled.
    pub fn ended_fd(&self) -> BorrowedFd<'_> {
        self.machine.context.outcome.event_fd()
    }

    /// How the machine ended, once it has.
    pub fn ending(&self) -> Option<Ending> {
        self.machine.context.outcome.ending().cloned()
    }

    /// Stops the machine of a process that ends with it, waits for its threads, and
    /// tells how it ended: [`Ending::Stopped`] unless it had ended before.
    pub fn stop(mut self) -> Ending {
        self.shut_down();
        if let Err(error) = self.machine.vm.stay_until_exit() {
            log::debug!("the machine is taken apart at once: {error}");
        }
        self.ending().unwrap_or(Ending::Stopped)
    }

    fn shut_down(&mut self) {
        self.machine.context.outcome.end(Ending::Stopped);
        for vcpu in self.vcpus.drain(..) {
            vcpu.join();
        }
        if let Some(profile) = self.machine.context.profile.take()
            && let Err(error) = profile.write()
        {
            log::warn!("cannot write the profile: {error}");
        }
    }
}

impl Drop for RunningMachine {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// Parameters of every guest kernel, each with its reason.
const KERNEL_PARAMS: &[&str] = &[
    // Nothing is printed unless a console is asked for: each character costs.
    "quiet",
    // A panic resets at once, by the keyboard controller: the machine ends.
    "panic=-1",
    "reboot=k",
    // KVM's clock is stable; no watchdog and no calibration against the PIT.
    "tsc=reliable",
    "no_timer_check",
    // The initramfs needs no limits and no swap: half the work of a tmpfs page.
    "rootfstype=ramfs",
];

/// What every guest needs, then what this kind of host needs, then what was asked for.
fn cmdline(
    spec: &MachineSpec,
    host: HostKind,
    windows: &[MmioDevice],
) -> Result<String, BootError> {
    let asked: Vec<&str> = spec.kernel_params.iter().map(String::as_str).collect();
    let console = console_params(spec);
    let params = [KERNEL_PARAMS, probe::kernel_params(host), &console, &asked].concat();
    Ok(boot::build_cmdline(params, windows)?)
}

fn console_params(spec: &MachineSpec) -> Vec<&'static str> {
    let mut params = Vec::new();
    if spec.console.is_some() {
        params.push("console=hvc0");
    }
    if spec.serial.is_some() {
        params.extend([
            "8250.nr_uarts=1",
            "console=ttyS0",
            "earlyprintk=ttyS0",
            "ignore_loglevel",
        ]);
    } else {
        // No probing of a UART that is not there.
        params.push("8250.nr_uarts=0");
    }
    params
}

fn check(spec: &MachineSpec) -> Result<(), MachineError> {
    let max = boot::mptable::MAX_CPUS;
    if spec.vcpu_count == 0 || spec.vcpu_count > max {
        return Err(MachineError::Spec(format!(
            "{} vCPUs: must be 1 to {max}",
            spec.vcpu_count
        )));
    }
    if spec.mem_size_mib < MEM_SIZE_MIN_MIB {
        return Err(MachineError::Spec(format!(
            "{} MiB of memory are too little: at least {MEM_SIZE_MIN_MIB}",
            spec.mem_size_mib
        )));
    }
    Ok(())
}

/// Below this not even the tables of [`layout`] and the kernel's link address fit.
const MEM_SIZE_MIN_MIB: u32 = 32;

fn ports(
    vm: &Vm,
    spec: &mut MachineSpec,
    timeline: &Timeline,
    outcome: &Arc<Outcome>,
) -> Result<Bus, MachineError> {
    let mut ports = Bus::default();
    let reset = Arc::new(Reset::new(outcome.clone()));
    ports.insert(RESET_PORT, RESET_PORTS, reset)?;
    let milestones = Arc::new(Milestones::new(timeline.clone(), outcome.clone()));
    ports.insert(MILESTONE_PORT, 1, milestones)?;
    if let Some(out) = spec.serial.take() {
        ports.insert(SERIAL_PORT, SERIAL_PORTS, serial(vm, out)?)?;
    }
    Ok(ports)
}

fn serial(vm: &Vm, out: File) -> Result<Arc<dyn BusDevice>, MachineError> {
    let interrupt =
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host_error("make an eventfd"))?;
    vm.connect_interrupt(&interrupt, layout::SERIAL_GSI)?;
    Ok(Arc::new(SerialConsole::new(interrupt, out)))
}

fn host_error(what: &'static str) -> impl Fn(std::io::Error) -> MachineError {
    move |source| MachineError::Host { what, source }
}
