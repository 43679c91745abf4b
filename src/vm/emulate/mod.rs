//! Completing the instructions that KVM hands back.
//!
//! Where ring 0 of the guest is emulated, KVM's emulator lacks instructions
//! that Linux cannot do without. KVM_RUN then ends with an internal error,
//! suberror 1, RIP at the instruction. [`complete`] does what the processor
//! would have done, to the letter of the SDM (Intel's Software Developer's
//! Manual), faults included, and the vCPU runs on.
//!
//! - `paging` walks the guest's page tables as a supervisor access does;
//! - `operand` is a piece of linear memory, mapped as a whole or not at all;
//! - `xsave` knows the formats of the FPU's state, `fpu` its instructions;
//! - `bulk` does what our kernel asks for because emulation is slow at it;
//! - `integer` has the rest; `cpu` is the vCPU as all of these see it.
//!
//! Only 64-bit code at ring 0: rings above run on the processor. A single-step
//! trap (RFLAGS.TF) that would follow a completed instruction is not raised.

mod bulk;
mod cpu;
mod fpu;
mod instruction;
mod integer;
mod operand;
mod paging;
#[cfg(test)]
mod tests;
mod vcpu;
mod xsave;

use kvm_bindings::kvm_sregs;
use kvm_ioctls::VcpuFd;
use vm_memory::GuestMemory;

use cpu::Cpu;
use instruction::{Effect, Instruction, Stop};
use vcpu::Vcpu;
use xsave::XsaveLayout;

pub use bulk::{Bulk, bulk};
pub use cpu::Exception;
pub use vcpu::{share_registers, shared_registers, shares_registers};

/// `KVM_INTERNAL_ERROR_EMULATION` of linux/kvm.h.
const SUBERROR_EMULATION: u32 = 1;

/// How an instruction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completed {
    /// It was executed; RIP is behind it.
    Retired,
    /// It raised an exception, which the guest takes on the next entry.
    Raised(Exception),
}

/// The instruction could not be completed: the machine has to stop.
#[derive(Debug, thiserror::Error)]
pub enum EmulateError {
    /// KVM stopped for another reason than an instruction it cannot emulate.
    #[error("KVM stopped with internal error {0}")]
    NotEmulation(u32),
    /// Not 64-bit code at ring 0.
    #[error("not 64-bit code at ring 0: RIP {rip:#x}, ring {ring}, long mode {long_mode}")]
    Mode {
        /// Where.
        rip: u64,
        /// Current privilege level.
        ring: u8,
        /// Whether the code segment is a 64-bit one.
        long_mode: bool,
    },
    /// No memory is mapped at RIP.
    #[error("no instruction can be fetched at RIP {0:#x}")]
    Fetch(u64),
    /// No completion for this instruction.
    #[error("RIP {rip:#x}: {mnemonic} ({bytes})")]
    Unknown {
        /// Where.
        rip: u64,
        /// What the decoder makes of it.
        mnemonic: String,
        /// The bytes at RIP, hexadecimal.
        bytes: String,
    },
    /// Page tables or operand lie outside RAM, so no processor state tells what
    /// would happen.
    #[error(
        "access to linear address {linear:#x} ends at physical address {physical:#x}, which is not RAM"
    )]
    NotRam {
        /// What the instruction accessed.
        linear: u64,
        /// Where that led.
        physical: u64,
    },
    /// KVM refused.
    #[error("KVM cannot {what}")]
    Kvm {
        /// What was asked of it.
        what: &'static str,
        /// Why not.
        source: kvm_ioctls::Error,
    },
}

/// Completes the instruction at which `vcpu` stopped with
/// `KVM_EXIT_INTERNAL_ERROR`. On success the vCPU can be entered again; on
/// failure its state is as KVM left it.
pub fn complete<M: GuestMemory>(vcpu: &mut VcpuFd, memory: &M) -> Result<Completed, EmulateError> {
    let mut vcpu = Vcpu::new(vcpu);
    match vcpu.suberror() {
        SUBERROR_EMULATION => complete_on(&mut vcpu, memory, XsaveLayout::host()),
        other => Err(EmulateError::NotEmulation(other)),
    }
}

/// Completes the instruction at RIP without KVM having been asked.
/// Registers must be shared, see [`share_registers`].
pub fn complete_here<M: GuestMemory>(
    vcpu: &mut VcpuFd,
    memory: &M,
) -> Result<Completed, EmulateError> {
    complete_on(&mut Vcpu::new(vcpu), memory, XsaveLayout::host())
}

/// Whether these are the registers of 64-bit code at ring 0.
pub fn ring0_64(sregs: &kvm_sregs) -> bool {
    instruction::mode(sregs) == (true, 0)
}

fn complete_on(
    cpu: &mut impl Cpu,
    memory: &impl GuestMemory,
    layout: &XsaveLayout,
) -> Result<Completed, EmulateError> {
    let before = cpu.regs()?;
    let sregs = cpu.sregs()?;
    let mut instruction = Instruction::fetch(cpu, memory, layout, before, sregs)?;
    let raised = match instruction.execute() {
        Ok(Effect::Retired) => None,
        Ok(Effect::Trap(exception)) => Some(exception),
        Err(Stop::Fault(exception)) => {
            // A fault leaves everything as it was. Writing the registers back also
            // drops the #UD that KVM queues when it gives up.
            instruction.regs = before;
            Some(exception)
        }
        Err(Stop::Error(error)) => return Err(error),
    };
    let (regs, mut sregs) = (instruction.regs, instruction.sregs);
    cpu.set_regs(&regs)?;
    let Some(exception) = raised else {
        return Ok(Completed::Retired);
    };
    if let Some(linear) = exception.cr2 {
        sregs.cr2 = linear;
        cpu.set_sregs(&sregs)?;
    }
    cpu.raise(exception)?;
    Ok(Completed::Raised(exception))
}
