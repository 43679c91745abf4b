//! The functions that execute instructions, one per operation, form and size.

pub(super) mod arithmetic;
pub(super) mod bits;
pub(super) mod branch;
pub(super) mod exchange;
pub(super) mod forms;
pub(super) mod multiply;
pub(super) mod shift;
pub(super) mod stack;
pub(super) mod string;
pub(super) mod system;
pub(super) mod transfer;

use super::Memory;
use super::cpu::Cpu;
use super::op::Op;
use super::width::{Width, load};

/// The vCPU while it runs, and its memory.
pub(super) struct Vm<'m, M> {
    pub(super) cpu: Cpu,
    pub(super) memory: &'m mut M,
}

impl<M: Memory> Vm<'_, M> {
    /// The memory operand of `op`.
    #[inline(always)]
    pub(super) fn load<W: Width>(&mut self, op: &Op) -> Option<u64> {
        let address = self.cpu.address(op);
        load::<W>(self.memory, address)
    }

    /// The operand that is only read: memory, or the second register.
    #[inline(always)]
    pub(super) fn source<const MEMORY: bool, W: Width>(&mut self, op: &Op) -> Option<u64> {
        if MEMORY {
            self.load::<W>(op)
        } else {
            Some(self.cpu.get::<W>(op.b))
        }
    }
}

/// Executes an instruction, or leaves everything as it is.
pub(super) type Handler<M> = for<'m> fn(&mut Vm<'m, M>, &Op) -> Flow;

/// Where to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Flow {
    /// With the next instruction.
    Next,
    /// At `Cpu::target`.
    Jump,
    /// Nothing was done: this one is KVM's.
    Leave,
    /// As `Leave`, but a REP instruction did some of its work.
    Partly,
    /// With this REP instruction, when there is budget again.
    Again,
    /// With the next instruction, in the shadow of STI.
    Shadow,
    /// The instruction lies in two pages.
    Cross,
}
