//! Single flags, fences, and what does nothing.

use std::sync::atomic::{Ordering, fence};

use super::super::Memory;
use super::super::cpu::{HIGH, RAX};
use super::super::flags::{AF, CF, DF, Flags, IF, OF, PF, SF, ZF};
use super::super::op::Op;
use super::{Flow, Vm};

/// CLC, STC.
pub(in super::super) fn set_carry<const TO: bool, M: Memory>(vm: &mut Vm<M>, _op: &Op) -> Flow {
    vm.cpu.flags.set_carry(TO);
    Flow::Next
}

/// CMC.
pub(in super::super) fn complement_carry<M: Memory>(vm: &mut Vm<M>, _op: &Op) -> Flow {
    let carry = vm.cpu.flags.carry();
    vm.cpu.flags.set_carry(!carry);
    Flow::Next
}

/// CLD, STD.
pub(in super::super) fn set_direction<const TO: bool, M: Memory>(vm: &mut Vm<M>, _op: &Op) -> Flow {
    vm.cpu.system = vm.cpu.system & !DF | if TO { DF } else { 0 };
    Flow::Next
}

pub(in super::super) fn cli<M: Memory>(vm: &mut Vm<M>, _op: &Op) -> Flow {
    vm.cpu.system &= !IF;
    Flow::Next
}

pub(in super::super) fn sti<M: Memory>(vm: &mut Vm<M>, _op: &Op) -> Flow {
    if vm.cpu.system & IF != 0 {
        return Flow::Next;
    }
    vm.cpu.system |= IF;
    Flow::Shadow
}

pub(in super::super) fn lahf<M: Memory>(vm: &mut Vm<M>, _op: &Op) -> Flow {
    let flags = vm.cpu.flags.bits();
    vm.cpu.set::<u8>(RAX + HIGH, flags);
    Flow::Next
}

pub(in super::super) fn sahf<M: Memory>(vm: &mut Vm<M>, _op: &Op) -> Flow {
    let loaded = vm.cpu.get::<u8>(RAX + HIGH) & (SF | ZF | AF | PF | CF);
    vm.cpu.flags = Flags::from_rflags(vm.cpu.flags.bits() & OF | loaded);
    Flow::Next
}

/// NOP, PAUSE, ENDBR64, prefetches, and fences that the host's stronger
/// order of loads and of stores makes needless.
pub(in super::super) fn nop<M: Memory>(_vm: &mut Vm<M>, _op: &Op) -> Flow {
    Flow::Next
}

pub(in super::super) fn mfence<M: Memory>(_vm: &mut Vm<M>, _op: &Op) -> Flow {
    fence(Ordering::SeqCst);
    Flow::Next
}
