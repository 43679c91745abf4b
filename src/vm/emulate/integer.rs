//! Instructions that do not touch the FPU.

#![allow(unsafe_code)]

use std::arch::asm;
use std::sync::atomic::{Ordering, fence};

use iced_x86::Code;
use vm_memory::{GuestAddress, GuestMemory};

use super::cpu::{Cpu, Exception};
use super::instruction::{Instruction, Stop, write_register};
use super::paging::Access;

const CARRY: u64 = 1;
const ZERO: u64 = 1 << 6;
/// CF, PF, AF, ZF, SF, OF.
const ARITHMETIC: u64 = CARRY | 1 << 2 | 1 << 4 | ZERO | 1 << 7 | 1 << 11;
const RFLAGS_AC: u64 = 1 << 18;

impl<C: Cpu, M: GuestMemory> Instruction<'_, C, M> {
    pub(super) fn execute_integer(&mut self) -> Result<(), Stop> {
        use Code::*;
        match self.decoded.code() {
            Popcnt_r16_rm16 => self.popcnt(2),
            Popcnt_r32_rm32 => self.popcnt(4),
            Popcnt_r64_rm64 => self.popcnt(8),
            Cmpxchg16b_m128 => self.cmpxchg16b(),
            Clac => {
                self.regs.rflags &= !RFLAGS_AC;
                Ok(())
            }
            Stac => {
                self.regs.rflags |= RFLAGS_AC;
                Ok(())
            }
            Lfence | Mfence | Sfence => {
                fence(Ordering::SeqCst);
                Ok(())
            }
            // Caches are the host's business: RAM is coherent, and no device of ours
            // reads around them.
            Wbinvd | Wbnoinvd | Pause | Endbr64 | Prefetchnta_m8 | Prefetcht0_m8
            | Prefetcht1_m8 | Prefetcht2_m8 | Prefetchw_m8 => Ok(()),
            // Linux's BUG and WARN.
            Ud2 | Ud1_r32_rm32 | Ud1_r64_rm64 => Err(Exception::INVALID_OPCODE.into()),
            _ => Err(self.unknown()),
        }
    }

    fn popcnt(&mut self, length: usize) -> Result<(), Stop> {
        let count = u64::from(self.value(1, length)?.count_ones());
        let register = self.decoded.op0_register();
        write_register(&mut self.regs, register, count).ok_or_else(|| self.unknown())?;
        self.regs.rflags &= !ARITHMETIC;
        if count == 0 {
            self.regs.rflags |= ZERO;
        }
        Ok(())
    }

    /// Also the variant without LOCK is done atomically, by the host's own
    /// instruction: another vCPU may be at the same place.
    fn cmpxchg16b(&mut self) -> Result<(), Stop> {
        let linear = self.linear(0)?;
        let operand = self.operand(0, 16, Access::Write)?;
        if !linear.is_multiple_of(16) || !is_x86_feature_detected!("cmpxchg16b") {
            return Err(Exception::PROTECTION.into());
        }
        // Aligned, so it lies in one page.
        let (physical, _) = operand.locate(0, 16)?;
        let slice = self
            .memory
            .get_slice(GuestAddress(physical), 16)
            .map_err(|_| self.unknown())?;
        let pointer = slice.ptr_guard_mut();
        let old = pair(self.regs.rdx, self.regs.rax);
        let new = pair(self.regs.rcx, self.regs.rbx);
        if slice.len() != 16 || !pointer.as_ptr().addr().is_multiple_of(16) {
            return Err(self.unknown());
        }
        // SAFETY: the processor has the instruction; the pointer is aligned, and the
        // guard keeps 16 bytes of guest memory mapped, which are only ever accessed
        // atomically or through volatile copies.
        let found = unsafe { compare_exchange(pointer.as_ptr().cast(), old, new) };
        if found == old {
            self.regs.rflags |= ZERO;
        } else {
            self.regs.rflags &= !ZERO;
            self.regs.rax = found as u64;
            self.regs.rdx = (found >> 64) as u64;
        }
        Ok(())
    }
}

/// Stores `new` at `pointer` if `old` is there; returns what was there.
///
/// # Safety
///
/// The processor has CMPXCHG16B. `pointer` is aligned to 16 bytes and valid for
/// reads and writes.
unsafe fn compare_exchange(pointer: *mut u128, old: u128, new: u128) -> u128 {
    let (mut low, mut high) = (old as u64, (old >> 64) as u64);
    // SAFETY: the caller vouches for the pointer. RBX, which the compiler keeps for
    // itself, is put back.
    unsafe {
        asm!(
            "xchg {new_low}, rbx",
            "lock cmpxchg16b [{pointer}]",
            "mov rbx, {new_low}",
            new_low = inout(reg) new as u64 => _,
            pointer = in(reg) pointer,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack),
        );
    }
    pair(high, low)
}

fn pair(high: u64, low: u64) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}
