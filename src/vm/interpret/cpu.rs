//! The registers while instructions run.

use super::State;
use super::flags::{ARITHMETIC, DF, Flags};
use super::op::Op;
use super::width::Width;

pub(super) const RAX: u8 = 0;
pub(super) const RCX: u8 = 1;
pub(super) const RDX: u8 = 2;
pub(super) const RSP: u8 = 4;
pub(super) const RBP: u8 = 5;
pub(super) const RSI: u8 = 6;
pub(super) const RDI: u8 = 7;
/// Always 0: the base, index or segment that an operand does not have.
pub(super) const NONE: u8 = 16;
/// Linear address of the page of code: what RIP-relative operands start from.
pub(super) const CODE_PAGE: u8 = 17;
pub(super) const FS: u8 = 18;
pub(super) const GS: u8 = 19;
/// Added to rax..rbx: the second byte of the register (ah, ch, dh, bh).
pub(super) const HIGH: u8 = 32;

const REGISTERS: usize = 32;

pub(super) struct Cpu {
    /// General registers and the pseudo registers above. The array is longer
    /// so that a masked index needs no check.
    registers: [u64; REGISTERS],
    pub(super) flags: Flags,
    /// RFLAGS without the arithmetic flags.
    pub(super) system: u64,
    /// Where a branch that was taken leads.
    pub(super) target: u64,
    /// Instructions left of the budget, at the last branch.
    pub(super) left: u64,
}

impl Cpu {
    pub(super) fn new(state: &State, budget: u64) -> Self {
        let mut registers = [0; REGISTERS];
        registers[..16].copy_from_slice(&state.gpr);
        registers[usize::from(FS)] = state.fs_base;
        registers[usize::from(GS)] = state.gs_base;
        Self {
            registers,
            flags: Flags::from_rflags(state.rflags),
            system: state.rflags & !ARITHMETIC,
            target: 0,
            left: budget,
        }
    }

    /// Puts the registers back.
    pub(super) fn save(&self, state: &mut State) {
        state.gpr.copy_from_slice(&self.registers[..16]);
        state.rflags = self.rflags();
    }

    pub(super) fn rflags(&self) -> u64 {
        self.flags.bits() | self.system
    }

    /// All 64 bits of a register.
    #[inline(always)]
    pub(super) fn register(&self, number: u8) -> u64 {
        self.registers[usize::from(number) % REGISTERS]
    }

    #[inline(always)]
    pub(super) fn set_register(&mut self, number: u8, value: u64) {
        self.registers[usize::from(number) % REGISTERS] = value;
    }

    /// A register as an operand of size `W`.
    #[inline(always)]
    pub(super) fn get<W: Width>(&self, number: u8) -> u64 {
        let value = self.register(number);
        W::truncate(if W::BITS == 8 {
            value >> high_shift(number)
        } else {
            value
        })
    }

    /// Writes an operand of size `W`: 32 bits clear the upper half, 8 and 16
    /// leave the rest.
    #[inline(always)]
    pub(super) fn set<W: Width>(&mut self, number: u8, value: u64) {
        let value = W::truncate(value);
        let register = &mut self.registers[usize::from(number) % REGISTERS];
        *register = match W::BITS {
            8 => {
                let shift = high_shift(number);
                *register & !(0xff << shift) | value << shift
            }
            16 => *register & !0xffff | value,
            _ => value,
        };
    }

    /// The linear address of the memory operand.
    #[inline(always)]
    pub(super) fn address(&self, op: &Op) -> u64 {
        self.register(op.segment).wrapping_add(self.offset(op))
    }

    /// The memory operand's address without its segment's base (LEA).
    #[inline(always)]
    pub(super) fn offset(&self, op: &Op) -> u64 {
        self.register(op.base)
            .wrapping_add(self.register(op.index) << (op.scale & 3))
            .wrapping_add(i64::from(op.displacement) as u64)
    }

    /// Linear address of the instruction after `op`.
    #[inline(always)]
    pub(super) fn next(&self, op: &Op) -> u64 {
        self.register(CODE_PAGE).wrapping_add(u64::from(op.next))
    }

    /// Whether string instructions run downwards.
    #[inline(always)]
    pub(super) fn down(&self) -> bool {
        self.system & DF != 0
    }
}

#[inline(always)]
fn high_shift(number: u8) -> u32 {
    u32::from(number & HIGH) >> 2
}
