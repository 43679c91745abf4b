//! One instruction: fetched, decoded, and led to its completion.

use iced_x86::{Code, Decoder, DecoderOptions, OpKind, Register};
use kvm_bindings::{kvm_regs, kvm_sregs};
use vm_memory::GuestMemory;

use super::EmulateError;
use super::cpu::{Cpu, Exception};
use super::operand::Operand;
use super::paging::{Access, PAGE, Paging};
use super::xsave::XsaveLayout;

/// No instruction is longer (SDM vol. 2, 2.3.11).
const MAX_LENGTH: usize = 15;
/// Resume flag: cleared by every instruction that completes.
const RFLAGS_RF: u64 = 1 << 16;

/// What an instruction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// It is done.
    Retired,
    /// It is done and raises an exception afterwards.
    Trap(Exception),
}

/// Why an instruction did not do anything.
#[derive(Debug)]
pub(super) enum Stop {
    /// The guest gets this exception.
    Fault(Exception),
    /// It cannot be completed.
    Error(EmulateError),
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Self {
        Self::Fault(exception)
    }
}

impl From<EmulateError> for Stop {
    fn from(error: EmulateError) -> Self {
        Self::Error(error)
    }
}

/// An instruction and the machine around it. `regs` is written back when it is done.
pub(super) struct Instruction<'a, C, M> {
    pub(super) cpu: &'a mut C,
    pub(super) memory: &'a M,
    pub(super) layout: &'a XsaveLayout,
    pub(super) regs: kvm_regs,
    pub(super) sregs: kvm_sregs,
    pub(super) decoded: iced_x86::Instruction,
    bytes: Vec<u8>,
}

impl<'a, C: Cpu, M: GuestMemory> Instruction<'a, C, M> {
    /// Fetches and decodes what RIP points to.
    pub(super) fn fetch(
        cpu: &'a mut C,
        memory: &'a M,
        layout: &'a XsaveLayout,
        regs: kvm_regs,
        sregs: kvm_sregs,
    ) -> Result<Self, EmulateError> {
        let (long_mode, ring) = mode(&sregs);
        if !long_mode || ring != 0 {
            return Err(EmulateError::Mode {
                rip: regs.rip,
                ring,
                long_mode,
            });
        }
        let bytes = fetch_bytes(memory, &Paging::new(&sregs, regs.rflags), regs.rip)?;
        let mut decoder = Decoder::with_ip(64, &bytes, regs.rip, DecoderOptions::NONE);
        let decoded = decoder.decode();
        Ok(Self {
            cpu,
            memory,
            layout,
            regs,
            sregs,
            decoded,
            bytes,
        })
    }

    /// Does what the processor would do.
    pub(super) fn execute(&mut self) -> Result<Effect, Stop> {
        let effect = match self.decoded.code() {
            Code::Int3 => Effect::Trap(Exception::BREAKPOINT),
            Code::Int_imm8 if self.decoded.immediate8() == 3 => Effect::Trap(Exception::BREAKPOINT),
            code if is_fpu(code) => {
                self.execute_fpu()?;
                Effect::Retired
            }
            _ => {
                self.execute_integer()?;
                Effect::Retired
            }
        };
        self.regs.rip = self.decoded.next_ip();
        self.regs.rflags &= !RFLAGS_RF;
        Ok(effect)
    }

    /// The error that names this instruction.
    pub(super) fn unknown(&self) -> Stop {
        let bytes: Vec<String> = self
            .bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let error = EmulateError::Unknown {
            rip: self.regs.rip,
            mnemonic: format!("{:?}", self.decoded.code()),
            bytes: bytes.join(" "),
        };
        error.into()
    }

    /// Linear address of the memory operand number `index`.
    pub(super) fn linear(&self, index: u32) -> Result<u64, Stop> {
        let value = |register: Register, _, _| match register {
            // Bases that 64-bit mode ignores (SDM vol. 1, 3.4.4).
            Register::CS | Register::DS | Register::ES | Register::SS => Some(0),
            Register::FS => Some(self.sregs.fs.base),
            Register::GS => Some(self.sregs.gs.base),
            register => read_register(&self.regs, register),
        };
        self.decoded
            .virtual_address(index, 0, value)
            .ok_or_else(|| self.unknown())
    }

    /// Maps `length` bytes of the memory operand number `index`.
    pub(super) fn operand(
        &self,
        index: u32,
        length: usize,
        access: Access,
    ) -> Result<Operand<'a, M>, Stop> {
        let linear = self.linear(index)?;
        let paging = Paging::new(&self.sregs, self.regs.rflags);
        let last = linear.wrapping_add(length.saturating_sub(1) as u64);
        // An operand may wrap around from the top to address 0 no more than it may
        // reach into the hole.
        if last < linear || !paging.is_canonical(linear) || !paging.is_canonical(last) {
            let on_stack = self.decoded.memory_segment() == Register::SS;
            return Err(if on_stack {
                Exception::STACK
            } else {
                Exception::PROTECTION
            }
            .into());
        }
        Operand::map(self.memory, &paging, linear, length, access)
    }

    /// Value of operand number `index`, `length` bytes, in a register or memory.
    pub(super) fn value(&self, index: u32, length: usize) -> Result<u64, Stop> {
        if self.decoded.op_kind(index) == OpKind::Register {
            return read_register(&self.regs, self.decoded.op_register(index))
                .ok_or_else(|| self.unknown());
        }
        let mut value = [0; 8];
        self.operand(index, length, Access::Read)?
            .read(0, &mut value[..length])?;
        Ok(u64::from_le_bytes(value))
    }
}

/// Whether the code segment is a 64-bit one, and the current privilege level.
pub(super) fn mode(sregs: &kvm_sregs) -> (bool, u8) {
    const EFER_LMA: u64 = 1 << 10;
    let long_mode = sregs.efer & EFER_LMA != 0 && sregs.cs.l != 0;
    (long_mode, (sregs.cs.selector & 3) as u8)
}

fn is_fpu(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        Wait | Fninit
            | Fnclex
            | Fnstcw_m2byte
            | Fnstsw_m2byte
            | Fnstsw_AX
            | Emms
            | Ldmxcsr_m32
            | Stmxcsr_m32
            | Fxsave_m512byte
            | Fxsave64_m512byte
            | Fxrstor_m512byte
            | Fxrstor64_m512byte
            | Xsave_mem
            | Xsave64_mem
            | Xsaveopt_mem
            | Xsaveopt64_mem
            | Xrstor_mem
            | Xrstor64_mem
    )
}

/// As many of the longest instruction's bytes as are mapped. The walk's accessed
/// bits are those that the fetch has set already.
fn fetch_bytes(
    memory: &impl GuestMemory,
    paging: &Paging,
    rip: u64,
) -> Result<Vec<u8>, EmulateError> {
    // Fetching is not subject to SMAP, and SMEP passed when KVM fetched.
    let paging = paging.without_smap();
    let mut bytes = vec![0; MAX_LENGTH];
    let in_page = ((PAGE - rip % PAGE) as usize).min(MAX_LENGTH);
    for length in [MAX_LENGTH, in_page] {
        match Operand::map(memory, &paging, rip, length, Access::Read) {
            Ok(operand) => {
                bytes.truncate(length);
                operand.read(0, &mut bytes)?;
                return Ok(bytes);
            }
            Err(Stop::Error(EmulateError::NotRam { .. }) | Stop::Fault(_)) => {}
            Err(Stop::Error(error)) => return Err(error),
        }
    }
    Err(EmulateError::Fetch(rip))
}

/// The general register behind `register`, whatever the width.
fn slot(regs: &mut kvm_regs, register: Register) -> Option<&mut u64> {
    Some(match register.full_register() {
        Register::RAX => &mut regs.rax,
        Register::RCX => &mut regs.rcx,
        Register::RDX => &mut regs.rdx,
        Register::RBX => &mut regs.rbx,
        Register::RSP => &mut regs.rsp,
        Register::RBP => &mut regs.rbp,
        Register::RSI => &mut regs.rsi,
        Register::RDI => &mut regs.rdi,
        Register::R8 => &mut regs.r8,
        Register::R9 => &mut regs.r9,
        Register::R10 => &mut regs.r10,
        Register::R11 => &mut regs.r11,
        Register::R12 => &mut regs.r12,
        Register::R13 => &mut regs.r13,
        Register::R14 => &mut regs.r14,
        Register::R15 => &mut regs.r15,
        _ => return None,
    })
}

/// Reads a general register of 2, 4 or 8 bytes.
fn read_register(regs: &kvm_regs, register: Register) -> Option<u64> {
    let value = *slot(&mut regs.clone(), register)?;
    match register.size() {
        2 => Some(value & 0xffff),
        4 => Some(value & 0xffff_ffff),
        8 => Some(value),
        _ => None,
    }
}

/// Writes a general register: 4 bytes clear the upper half, 2 bytes leave the
/// rest (SDM vol. 1, 3.4.1.1).
pub(super) fn write_register(regs: &mut kvm_regs, register: Register, value: u64) -> Option<()> {
    let slot = slot(regs, register)?;
    *slot = match register.size() {
        2 => (*slot & !0xffff) | (value & 0xffff),
        4 => value & 0xffff_ffff,
        8 => value,
        _ => return None,
    };
    Some(())
}
