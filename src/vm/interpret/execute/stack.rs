//! The stack: 64-bit operands only, others are left.

use super::super::Memory;
use super::super::cpu::{RBP, RSP};
use super::super::flags::{
    AC, ARITHMETIC, DF, Flags, ID, IF, IOPL, NT, RF, TF, VIF, VIP, VM as VIRTUAL,
};
use super::super::op::Op;
use super::super::width::{load, store};
use super::{Flow, Vm};

/// What POPF changes at ring 0, arithmetic flags aside.
const POPPED: u64 = DF | IF | IOPL | NT | AC | ID;

#[inline(always)]
fn push<M: Memory>(vm: &mut Vm<M>, value: u64) -> Flow {
    let stack = vm.cpu.register(RSP).wrapping_sub(8);
    if store::<u64>(vm.memory, stack, value).is_none() {
        return Flow::Leave;
    }
    vm.cpu.set_register(RSP, stack);
    Flow::Next
}

pub(in super::super) fn push_reg<M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let value = vm.cpu.register(op.a);
    push(vm, value)
}

pub(in super::super) fn push_imm<M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    push(vm, op.immediate)
}

pub(in super::super) fn push_mem<M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    match vm.load::<u64>(op) {
        Some(value) => push(vm, value),
        None => Flow::Leave,
    }
}

pub(in super::super) fn pop_reg<M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let stack = vm.cpu.register(RSP);
    let Some(value) = load::<u64>(vm.memory, stack) else {
        return Flow::Leave;
    };
    vm.cpu.set_register(RSP, stack.wrapping_add(8));
    vm.cpu.set_register(op.a, value);
    Flow::Next
}

/// An address that uses RSP uses it as it is afterwards.
pub(in super::super) fn pop_mem<M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let stack = vm.cpu.register(RSP);
    let Some(value) = load::<u64>(vm.memory, stack) else {
        return Flow::Leave;
    };
    vm.cpu.set_register(RSP, stack.wrapping_add(8));
    let address = vm.cpu.address(op);
    if store::<u64>(vm.memory, address, value).is_none() {
        vm.cpu.set_register(RSP, stack);
        return Flow::Leave;
    }
    Flow::Next
}

/// LEAVE.
pub(in super::super) fn leave_frame<M: Memory>(vm: &mut Vm<M>, _op: &Op) -> Flow {
    let frame = vm.cpu.register(RBP);
    let Some(value) = load::<u64>(vm.memory, frame) else {
        return Flow::Leave;
    };
    vm.cpu.set_register(RSP, frame.wrapping_add(8));
    vm.cpu.set_register(RBP, value);
    Flow::Next
}

pub(in super::super) fn pushf<M: Memory>(vm: &mut Vm<M>, _op: &Op) -> Flow {
    let value = vm.cpu.rflags() & !(RF | VIRTUAL);
    push(vm, value)
}

pub(in super::super) fn popf<M: Memory>(vm: &mut Vm<M>, _op: &Op) -> Flow {
    let stack = vm.cpu.register(RSP);
    let Some(value) = load::<u64>(vm.memory, stack) else {
        return Flow::Leave;
    };
    if value & (TF | RF | VIRTUAL | VIF | VIP) != 0 {
        return Flow::Leave;
    }
    vm.cpu.set_register(RSP, stack.wrapping_add(8));
    vm.cpu.flags = Flags::from_rflags(value & ARITHMETIC);
    vm.cpu.system = vm.cpu.system & !POPPED | value & POPPED;
    Flow::Next
}
