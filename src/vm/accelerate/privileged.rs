//! Instructions that the interpreter does not know: the frequent ones that can be
//! executed here, and who executes the others.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};
use kvm_bindings::{Msrs, kvm_msr_entry, kvm_sregs};
use kvm_ioctls::VcpuFd;

use super::bulk::bulk;
use super::entry::load;
use super::segments;
use super::translate::Translator;
use super::{AccelerateError, Accelerator, refused, store, tsc};
use crate::emulate::{self, Bulk, Completed};
use crate::interpret::{Access, Memory, State};

const RSP: usize = 4;
const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RFLAGS_TF: u64 = 1 << 8;
const RFLAGS_RF: u64 = 1 << 16;
const RFLAGS_VM: u64 = 1 << 17;
const MSR_FS_BASE: u32 = 0xc000_0100;
const MSR_GS_BASE: u32 = 0xc000_0101;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// How KVM is to come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// At the next entry into the kernel, or by an exit of its own.
    Entry,
    /// At once, when no interrupt is to be delivered.
    Here,
    /// At this address.
    At(u64),
    /// After one instruction.
    Step,
}

/// Up to 15 bytes at `rip`, or as many as are mapped.
#[allow(unsafe_code)]
pub(super) fn fetch(translator: &mut Translator, rip: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(16);
    for offset in 0..15 {
        let Some(host) = translator.host(rip.wrapping_add(offset), 1, Access::Read) else {
            break;
        };
        // SAFETY: `host` gives one readable byte.
        bytes.push(unsafe { host.read_volatile() });
    }
    (!bytes.is_empty()).then_some(bytes)
}

impl Accelerator {
    /// The instruction at RIP, which the interpreter left: None if it is done, else how
    /// KVM goes on.
    pub(super) fn privileged(
        &mut self,
        vcpu: &mut VcpuFd,
        state: &mut State,
        sregs: &mut kvm_sregs,
    ) -> Result<Option<Next>, AccelerateError> {
        let Some(bytes) = fetch(&mut self.translator, state.rip) else {
            return Ok(Some(Next::Entry));
        };
        let decoded = Decoder::with_ip(64, &bytes, state.rip, DecoderOptions::NONE).decode();
        if self.done_here(vcpu, state, sregs, &decoded)? {
            return Ok(None);
        }
        if is_fpu(decoded.code()) {
            store(vcpu, state, *sregs);
            let completed = emulate::complete_here(vcpu, &self.memory)?;
            let shared = emulate::shared_registers(vcpu);
            *state = super::state(&shared.regs, &shared.sregs);
            *sregs = shared.sregs;
            return Ok(match completed {
                Completed::Retired => None,
                Completed::Raised(_) => Some(Next::Entry),
            });
        }
        self.leave(vcpu, state, sregs, &decoded).map(Some)
    }

    fn done_here(
        &mut self,
        vcpu: &VcpuFd,
        state: &mut State,
        sregs: &mut kvm_sregs,
        decoded: &Instruction,
    ) -> Result<bool, AccelerateError> {
        match decoded.code() {
            Code::Swapgs => {
                state.gs_base = self.kernel_gs.swap(vcpu, state.gs_base)?;
            }
            Code::Rdtsc => {
                let Some(offset) = self.tsc_offset else {
                    return Ok(false);
                };
                let now = tsc::now().wrapping_add(offset);
                state.gpr[RAX] = now & 0xffff_ffff;
                state.gpr[RDX] = now >> 32;
            }
            Code::Mov_r64_cr => {
                let value = match decoded.op1_register() {
                    Register::CR0 => sregs.cr0,
                    Register::CR2 => sregs.cr2,
                    Register::CR3 => sregs.cr3,
                    Register::CR4 => sregs.cr4,
                    _ => return Ok(false),
                };
                state.gpr[decoded.op0_register().number()] = value;
            }
            Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg | Code::Mov_rm16_Sreg
                if decoded.op0_kind() == OpKind::Register =>
            {
                let value = u64::from(segments::selector(sregs, decoded.op1_register()));
                let target = &mut state.gpr[decoded.op0_register().number()];
                *target = match decoded.op0_register().size() {
                    2 => *target & !0xffff | value,
                    _ => value,
                };
            }
            Code::Out_DX_AL => {
                let (port, value) = (state.gpr[RDX] as u16, state.gpr[RAX] as u8);
                let Some(asked) = Bulk::asked(port, &[value]) else {
                    return Ok(false);
                };
                bulk(&mut self.translator, state, asked);
            }
            Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 | Code::Mov_Sreg_rm16
                if decoded.op1_kind() == OpKind::Register =>
            {
                let source = value(state, sregs, decoded.op1_register().full_register());
                let loaded = source.and_then(|source| {
                    let target = decoded.op0_register();
                    segments::load(&mut self.translator, state, sregs, target, source as u16)
                });
                if loaded.is_none() {
                    return Ok(false);
                }
            }
            Code::Wrmsr => {
                let value = state.gpr[RDX] << 32 | state.gpr[RAX] & 0xffff_ffff;
                match state.gpr[RCX] as u32 {
                    // Not canonical: a fault.
                    _ if (value << 16) as i64 >> 16 != value as i64 => return Ok(false),
                    MSR_FS_BASE => state.fs_base = value,
                    MSR_GS_BASE => state.gs_base = value,
                    MSR_KERNEL_GS_BASE => {
                        self.kernel_gs.swap(vcpu, value)?;
                    }
                    _ => return Ok(false),
                }
            }
            Code::Mov_r32_rm32 | Code::Mov_rm32_r32 => {
                return Ok(self.access_device(state, sregs, decoded));
            }
            Code::Iretq => return Ok(self.return_to_kernel(state, sregs)),
            _ => return Ok(false),
        }
        state.rip = decoded.next_ip();
        Ok(true)
    }

    /// IRETQ where neither the privilege level nor a segment changes.
    fn return_to_kernel(&mut self, state: &mut State, sregs: &kvm_sregs) -> bool {
        let mut frame = [0; 5];
        for (offset, value) in (0..).step_by(8).zip(&mut frame) {
            match load(&mut self.translator, state.gpr[RSP].wrapping_add(offset)) {
                Some(loaded) => *value = loaded,
                None => return false,
            }
        }
        let [rip, cs, rflags, rsp, ss] = frame;
        let same = cs == u64::from(sregs.cs.selector) && ss == u64::from(sregs.ss.selector);
        if !same || rflags & (RFLAGS_TF | RFLAGS_VM) != 0 {
            return false;
        }
        state.rip = rip;
        state.rflags = rflags & !RFLAGS_RF | 2;
        state.gpr[RSP] = rsp;
        true
    }

    /// Linux's readl() and writel() of a device of ours. What is behind other
    /// addresses is for KVM to say.
    fn access_device(
        &mut self,
        state: &mut State,
        sregs: &kvm_sregs,
        decoded: &Instruction,
    ) -> bool {
        let stores = decoded.op0_kind() == OpKind::Memory;
        let (memory, register) = if stores {
            (0, decoded.op1_register())
        } else {
            (1, decoded.op0_register())
        };
        let lookup = |register: Register, _, _| value(state, sregs, register);
        let address = decoded
            .virtual_address(memory, 0, lookup)
            .and_then(|linear| self.translator.device(linear));
        let Some(address) = address.filter(|address| self.mmio.has(*address)) else {
            return false;
        };
        let value = &mut state.gpr[register.number()];
        if stores {
            self.mmio.write(address, &(*value as u32).to_le_bytes());
        } else {
            let mut data = [0; 4];
            self.mmio.read(address, &mut data);
            *value = u32::from_le_bytes(data).into();
        }
        state.rip = decoded.next_ip();
        true
    }

    /// Who comes back when, after KVM has executed `decoded`.
    fn leave(
        &mut self,
        vcpu: &VcpuFd,
        state: &State,
        sregs: &kvm_sregs,
        decoded: &Instruction,
    ) -> Result<Next, AccelerateError> {
        match decoded.code() {
            Code::Iretq if !self.returns_to_kernel(state) => {
                self.kernel_gs.give_back(vcpu)?;
                return Ok(Next::Entry);
            }
            Code::Sysretq | Code::Sysretd => {
                self.kernel_gs.give_back(vcpu)?;
                return Ok(Next::Entry);
            }
            // Wakes by an interrupt.
            Code::Hlt => {
                self.idle.halt(decoded.next_ip(), &self.code);
                return Ok(Next::Entry);
            }
            // The interpreter left it for the sake of the HLT behind it.
            Code::Sti => {
                const HLT_BYTES: u64 = 1;
                self.idle.halt(decoded.next_ip() + HLT_BYTES, &self.code);
                return Ok(Next::Entry);
            }
            Code::Rdmsr if state.gpr[RCX] as u32 == MSR_KERNEL_GS_BASE => {
                self.kernel_gs.give_back(vcpu)?;
            }
            Code::Invlpg_m | Code::Mov_cr_r64 | Code::Invpcid_r64_m128 => self.left_paging = true,
            _ => {}
        }
        self.note_writes(state, sregs, decoded);
        Ok(match decoded.flow_control() {
            FlowControl::Next => Next::At(decoded.next_ip()),
            FlowControl::Exception | FlowControl::Interrupt => Next::Entry,
            _ => Next::Step,
        })
    }

    fn returns_to_kernel(&mut self, state: &State) -> bool {
        let cs = load(&mut self.translator, state.gpr[RSP].wrapping_add(8));
        cs.is_some_and(|cs| cs & 3 == 0)
    }

    /// Entries of page tables that KVM is about to change.
    fn note_writes(&mut self, state: &State, sregs: &kvm_sregs, decoded: &Instruction) {
        for operand in 0..decoded.op_count() {
            let register = |register: Register, _, _| value(state, sregs, register);
            if let Some(linear) = decoded.virtual_address(operand, 0, register)
                && let Some(entry) = self.translator.leave_write(linear)
            {
                self.left_write = Some(entry);
            }
        }
    }
}

fn value(state: &State, sregs: &kvm_sregs, register: Register) -> Option<u64> {
    match register {
        Register::CS | Register::DS | Register::ES | Register::SS => Some(0),
        Register::FS => Some(sregs.fs.base),
        Register::GS => Some(state.gs_base),
        register if register.is_gpr() => {
            let value = state.gpr.get(register.full_register().number())?;
            match register.size() {
                4 => Some(value & 0xffff_ffff),
                8 => Some(*value),
                _ => None,
            }
        }
        _ => None,
    }
}

/// What KVM's emulator lacks, and [`emulate`] has: no need to ask KVM first.
fn is_fpu(code: Code) -> bool {
    matches!(
        code,
        Code::Wait | Code::Xsave_mem | Code::Xsave64_mem | Code::Xrstor_mem | Code::Xrstor64_mem
    )
}

/// IA32_KERNEL_GS_BASE, which SWAPGS exchanges with the base of GS. Asking KVM costs as
/// much as hundreds of instructions, and each entry swaps twice.
#[derive(Debug, Default)]
pub(super) struct KernelGs {
    /// What KVM has.
    kvm: Option<u64>,
    /// What it should be.
    now: u64,
}

impl KernelGs {
    /// Exchanges it with `gs_base`.
    fn swap(&mut self, vcpu: &VcpuFd, gs_base: u64) -> Result<u64, AccelerateError> {
        if self.kvm.is_none() {
            let mut msrs = one_msr(0)?;
            let read = vcpu.get_msrs(&mut msrs);
            read.map_err(refused("read a model-specific register"))?;
            let value = msrs.as_slice().first().map_or(0, |entry| entry.data);
            (self.kvm, self.now) = (Some(value), value);
        }
        Ok(std::mem::replace(&mut self.now, gs_base))
    }

    /// Tells KVM.
    pub fn give_back(&mut self, vcpu: &VcpuFd) -> Result<(), AccelerateError> {
        if self.kvm.is_some_and(|kvm| kvm != self.now) {
            let set = vcpu.set_msrs(&one_msr(self.now)?);
            set.map_err(refused("set a model-specific register"))?;
            self.kvm = Some(self.now);
        }
        Ok(())
    }
}

fn one_msr(data: u64) -> Result<Msrs, AccelerateError> {
    let entry = kvm_msr_entry {
        index: MSR_KERNEL_GS_BASE,
        data,
        ..Default::default()
    };
    Msrs::from_entries(&[entry])
        .map_err(|_| refused("hold a register")(kvm_ioctls::Error::new(libc::ENOMEM)))
}
