//! Instructions on the FPU's state: which checks come first, what memory they
//! touch (SDM vol. 2, each instruction's page).

use iced_x86::Code;
use vm_memory::GuestMemory;

use super::cpu::{Cpu, Exception};
use super::instruction::{Instruction, Stop};
use super::paging::Access;
use super::xsave::{FpuState, HEADER_END, LEGACY_END, Pointers, xstate_bv};

const CR0_MP: u64 = 1 << 1;
const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXSAVE: u64 = 1 << 18;

/// x87 status: an exception is pending that the control word does not mask.
const FSW_ES: u16 = 1 << 7;
/// What FNCLEX leaves of the status: condition codes and top of stack.
const FSW_KEPT: u16 = 0x7f00;

/// Alignment of an XSAVE area.
const XSAVE_ALIGN: u64 = 64;
/// Alignment of an FXSAVE area.
const FXSAVE_ALIGN: u64 = 16;

impl<'a, C: Cpu, M: GuestMemory> Instruction<'a, C, M> {
    pub(super) fn execute_fpu(&mut self) -> Result<(), Stop> {
        use Code::*;
        match self.decoded.code() {
            Wait => self.wait(),
            Fninit => self.change_x87(|state| state.reset_x87()),
            Fnclex => self.change_x87(|state| state.set_status(state.status() & FSW_KEPT)),
            Fnstcw_m2byte => self.store_x87(|state| state.control()),
            Fnstsw_m2byte => self.store_x87(|state| state.status()),
            Fnstsw_AX => {
                self.need(CR0_EM | CR0_TS)?;
                let status = self.state()?.status();
                self.regs.rax = (self.regs.rax & !0xffff) | u64::from(status);
                Ok(())
            }
            Emms => {
                self.forbid_em()?;
                self.need(CR0_TS)?;
                self.no_pending_x87()?;
                self.change(|state| state.empty_x87())
            }
            Ldmxcsr_m32 => self.ldmxcsr(),
            Stmxcsr_m32 => self.stmxcsr(),
            Fxsave_m512byte => self.fxsave(Pointers::Narrow),
            Fxsave64_m512byte => self.fxsave(Pointers::Wide),
            Fxrstor_m512byte => self.fxrstor(Pointers::Narrow),
            Fxrstor64_m512byte => self.fxrstor(Pointers::Wide),
            Xsave_mem => self.xsave(false, Pointers::Narrow),
            Xsave64_mem => self.xsave(false, Pointers::Wide),
            Xsaveopt_mem => self.xsave(true, Pointers::Narrow),
            Xsaveopt64_mem => self.xsave(true, Pointers::Wide),
            Xrstor_mem => self.xrstor(Pointers::Narrow),
            Xrstor64_mem => self.xrstor(Pointers::Wide),
            _ => Err(self.unknown()),
        }
    }

    fn wait(&mut self) -> Result<(), Stop> {
        if self.sregs.cr0 & (CR0_MP | CR0_TS) == CR0_MP | CR0_TS {
            return Err(Exception::NO_DEVICE.into());
        }
        self.no_pending_x87()
    }

    fn xsave(&mut self, optimised: bool, pointers: Pointers) -> Result<(), Stop> {
        let (_, mask) = self.xsave_mask()?;
        let length = self.layout.extent(mask);
        self.need_alignment(XSAVE_ALIGN)?;
        let operand = self.operand(0, length, Access::Write)?;
        let mut header = [0; HEADER_END];
        operand.read(0, &mut header)?;
        let state = self.state()?;
        state.save(
            mask,
            optimised,
            pointers,
            xstate_bv(&header),
            |offset, bytes| operand.write(offset, bytes),
        )?;
        Ok(())
    }

    fn xrstor(&mut self, pointers: Pointers) -> Result<(), Stop> {
        let (xcr0, mask) = self.xsave_mask()?;
        self.need_alignment(XSAVE_ALIGN)?;
        let mut area = vec![0; HEADER_END];
        self.operand(0, HEADER_END, Access::Read)?
            .read(0, &mut area)?;
        // The header that was read decides, whatever another vCPU writes now.
        let length = self.layout.extent(mask & xstate_bv(&area));
        if length > HEADER_END {
            area.resize(length, 0);
            let operand = self.operand(0, length, Access::Read)?;
            operand.read(HEADER_END, &mut area[HEADER_END..])?;
        }
        let mut state = self.state()?;
        state.restore(&area, xcr0, mask, pointers)?;
        Ok(self.cpu.set_fpu_state(&state.into_bytes())?)
    }

    fn fxsave(&mut self, pointers: Pointers) -> Result<(), Stop> {
        self.need(CR0_EM | CR0_TS)?;
        self.need_alignment(FXSAVE_ALIGN)?;
        let operand = self.operand(0, LEGACY_END, Access::Write)?;
        let with_xmm = self.sregs.cr4 & CR4_OSFXSR != 0;
        let state = self.state()?;
        state.save_legacy(with_xmm, pointers, |offset, bytes| {
            operand.write(offset, bytes)
        })?;
        Ok(())
    }

    fn fxrstor(&mut self, pointers: Pointers) -> Result<(), Stop> {
        self.need(CR0_EM | CR0_TS)?;
        self.need_alignment(FXSAVE_ALIGN)?;
        let mut area = [0; LEGACY_END];
        self.operand(0, LEGACY_END, Access::Read)?
            .read(0, &mut area)?;
        let with_xmm = self.sregs.cr4 & CR4_OSFXSR != 0;
        let mut state = self.state()?;
        state.restore_legacy(&area, with_xmm, pointers)?;
        Ok(self.cpu.set_fpu_state(&state.into_bytes())?)
    }

    fn ldmxcsr(&mut self) -> Result<(), Stop> {
        self.need_sse()?;
        let mut value = [0; 4];
        self.operand(0, 4, Access::Read)?.read(0, &mut value)?;
        let mut state = self.state()?;
        state.set_mxcsr(u32::from_le_bytes(value))?;
        Ok(self.cpu.set_fpu_state(&state.into_bytes())?)
    }

    fn stmxcsr(&mut self) -> Result<(), Stop> {
        self.need_sse()?;
        let operand = self.operand(0, 4, Access::Write)?;
        Ok(operand.write(0, &self.state()?.mxcsr().to_le_bytes())?)
    }

    fn store_x87(&mut self, word: impl Fn(&FpuState<'_>) -> u16) -> Result<(), Stop> {
        self.need(CR0_EM | CR0_TS)?;
        let operand = self.operand(0, 2, Access::Write)?;
        Ok(operand.write(0, &word(&self.state()?).to_le_bytes())?)
    }

    fn change_x87(&mut self, change: impl Fn(&mut FpuState<'_>)) -> Result<(), Stop> {
        self.need(CR0_EM | CR0_TS)?;
        self.change(change)
    }

    fn change(&mut self, change: impl Fn(&mut FpuState<'_>)) -> Result<(), Stop> {
        let mut state = self.state()?;
        change(&mut state);
        Ok(self.cpu.set_fpu_state(&state.into_bytes())?)
    }

    fn state(&self) -> Result<FpuState<'a>, Stop> {
        Ok(FpuState::new(self.layout, self.cpu.fpu_state()?))
    }

    /// XCR0 and the components that the instruction is about: EDX:EAX within XCR0.
    fn xsave_mask(&self) -> Result<(u64, u64), Stop> {
        if self.sregs.cr4 & CR4_OSXSAVE == 0 {
            return Err(Exception::INVALID_OPCODE.into());
        }
        self.need(CR0_TS)?;
        let xcr0 = self.cpu.xcr0()?;
        let edx_eax = (self.regs.rdx & 0xffff_ffff) << 32 | (self.regs.rax & 0xffff_ffff);
        Ok((xcr0, edx_eax & xcr0))
    }

    fn need_sse(&self) -> Result<(), Stop> {
        self.forbid_em()?;
        if self.sregs.cr4 & CR4_OSFXSR == 0 {
            return Err(Exception::INVALID_OPCODE.into());
        }
        self.need(CR0_TS)
    }

    /// #NM if one of `cr0` is set: the FPU is away.
    fn need(&self, cr0: u64) -> Result<(), Stop> {
        if self.sregs.cr0 & cr0 != 0 {
            return Err(Exception::NO_DEVICE.into());
        }
        Ok(())
    }

    /// #UD if there is to be no FPU at all.
    fn forbid_em(&self) -> Result<(), Stop> {
        if self.sregs.cr0 & CR0_EM != 0 {
            return Err(Exception::INVALID_OPCODE.into());
        }
        Ok(())
    }

    /// #GP if the memory operand is not aligned to `bytes`.
    fn need_alignment(&self, bytes: u64) -> Result<(), Stop> {
        if !self.linear(0)?.is_multiple_of(bytes) {
            return Err(Exception::PROTECTION.into());
        }
        Ok(())
    }

    /// #MF if an earlier x87 instruction left an unmasked exception.
    fn no_pending_x87(&self) -> Result<(), Stop> {
        if self.state()?.status() & FSW_ES != 0 {
            return Err(Exception::X87.into());
        }
        Ok(())
    }
}
