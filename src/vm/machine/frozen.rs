//! A machine that is frozen into a template, and one that is made of it.

use std::os::fd::BorrowedFd;

use kvm_ioctls::VcpuFd;

use super::{Machine, MachineError, Parts, RunningMachine, check};
use crate::cpu::{self, CpuError, SaveError};
use crate::ending::Ending;
use crate::kvm::Vm;
use crate::memory;
use crate::probe::HostKind;
use crate::slots::{Slots, SlotsError};
use crate::snapshot::{self, MachineState, SnapshotError, Template, Untouched, WorkingSet};
use crate::spec::MachineSpec;
use crate::trace::Timeline;

impl Machine {
    /// Makes the machine that was frozen into `template`, paused where that was
    /// stopped. `spec` must ask for the same memory, vCPUs and devices; what it
    /// says about the boot is not used. Its exports, its context id and its ports
    /// of the host take effect, and connections that the template's guest had are
    /// reset. The guest's clocks go on from where they stopped.
    pub fn restore(
        template: Template,
        mut spec: MachineSpec,
        host: HostKind,
        timeline: &Timeline,
    ) -> Result<Self, MachineError> {
        check(&spec)?;
        let (origin, state) = template.into_parts();
        fits(&state, &spec, host)?;
        if let Some(set) = &origin.working_set {
            snapshot::prefetch(&origin.memory, set);
        }
        let memory = memory::map(origin.memory, spec.mem_size_mib)?;
        let vm = Vm::new(&memory)?;
        timeline.mark("vm made");

        let mut slots = Slots::default();
        let vsock = slots.add_devices(&vm, &memory, &mut spec)?;
        let vcpus = restore_kvm(&vm, &state, host)?;
        slots.thaw(state.devices).map_err(unsuitable)?;
        let parts = Parts {
            memory,
            vm,
            slots,
            vsock,
            vcpus,
        };
        let mut machine = parts.assemble(spec, host, timeline)?;
        machine.restored_from = Some(origin.checksum);
        timeline.mark("machine restored");
        Ok(machine)
    }
}

impl Machine {
    /// Writes the machine, whose vCPUs these are and run no more.
    fn write(&mut self, vcpus: Vec<VcpuFd>, folder: BorrowedFd) -> Result<(), SnapshotError> {
        let vcpus = cpu::save(&self.vm, vcpus, &self.context).map_err(unsaved)?;
        let chips = self.vm.chips()?;
        let devices = self.devices.freeze().map_err(SnapshotError::from)?;
        let memory = &self.context.memory;
        let state = MachineState {
            host: self.host,
            mem_size_mib: memory::size_mib(memory),
            vcpus,
            chips,
            devices,
        };
        let untouched = match self.restored_from {
            None => Untouched::Zero,
            Some(_) => Untouched::Mapped,
        };
        snapshot::write(folder, memory, untouched, state)
    }
}

/// vCPUs and what KVM emulates beside them, in the order in which they depend on
/// each other.
fn restore_kvm(
    vm: &Vm,
    state: &MachineState,
    host: HostKind,
) -> Result<Vec<VcpuFd>, SnapshotError> {
    let vcpus = cpu::restore(vm, &state.vcpus, host).map_err(SnapshotError::Refused)?;
    let refused = |error| SnapshotError::Refused(CpuError::Kvm(error));
    vm.set_chips(&state.chips).map_err(refused)?;
    cpu::restore_events(&vcpus, &state.vcpus).map_err(refused)?;
    Ok(vcpus)
}

fn fits(state: &MachineState, spec: &MachineSpec, host: HostKind) -> Result<(), SnapshotError> {
    let misfit = |what: String| Err(SnapshotError::Misfit(what));
    if state.host != host {
        return misfit(format!("{:?} and {host:?} hosts differ", state.host));
    }
    if state.mem_size_mib != spec.mem_size_mib {
        let saved = state.mem_size_mib;
        return misfit(format!("{saved} MiB of memory, not {}", spec.mem_size_mib));
    }
    if state.vcpus.count() != usize::from(spec.vcpu_count) {
        let saved = state.vcpus.count();
        return misfit(format!("{saved} vCPUs, not {}", spec.vcpu_count));
    }
    if spec.serial.is_some() {
        return misfit("no UART".to_owned());
    }
    Ok(())
}

fn unsuitable(error: SlotsError) -> MachineError {
    match error {
        SlotsError::State(source) => SnapshotError::Devices(source).into(),
        SlotsError::Count { saved, asked } => {
            SnapshotError::Misfit(format!("{saved} virtio devices, not {asked}")).into()
        }
        other => other.into(),
    }
}

impl RunningMachine {
    /// Stops the machine and writes it into `folder`, which is private to the
    /// user and holds no template yet: see [`crate::snapshot`]. The machine is gone
    /// afterwards, in any case.
    ///
    /// Connections of the vsock device are forgotten. A machine with exports, or
    /// with a UART, cannot be frozen, nor one that has ended already.
    pub fn freeze(mut self, folder: BorrowedFd) -> Result<(), SnapshotError> {
        if self.machine.has_serial {
            return Err(SnapshotError::Device {
                device: "serial",
                why: "its registers are not saved",
            });
        }
        let vcpus = self.pause()?;
        self.machine.write(vcpus, folder)
    }

    /// Takes the vCPUs off their threads.
    fn pause(&mut self) -> Result<Vec<VcpuFd>, SnapshotError> {
        let outcome = self.machine.context.outcome.clone();
        outcome.end(Ending::Stopped);
        let joined: Option<Vec<_>> = self.vcpus.drain(..).map(|vcpu| vcpu.join()).collect();
        match (outcome.ending(), joined) {
            (Some(Ending::Stopped), Some(vcpus)) => Ok(vcpus),
            (Some(ending), Some(_)) => Err(SnapshotError::Ended(ending.clone())),
            _ => Err(SnapshotError::Ended(Ending::Failed(
                "a vCPU thread panicked".to_owned(),
            ))),
        }
    }

    /// The pages that the guest has touched since the machine was restored, to be
    /// written beside the template's other files. Fails for a machine that was
    /// booted.
    pub fn touched(&self) -> Result<WorkingSet, SnapshotError> {
        let Some(checksum) = self.machine.restored_from else {
            return Err(SnapshotError::Misfit("the machine was booted".to_owned()));
        };
        WorkingSet::of(&self.machine.context.memory, checksum)
    }
}

fn unsaved(error: SaveError) -> SnapshotError {
    match error {
        SaveError::Ended(ending) => SnapshotError::Ended(ending),
        SaveError::Cpu(source) => SnapshotError::Cpu(source),
    }
}

#[cfg(test)]
mod tests;
