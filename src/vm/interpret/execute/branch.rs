//! Near branches. A target that is no canonical address is left to KVM: the
//! fault belongs to the branch.

use super::super::Memory;
use super::super::cpu::{CODE_PAGE, RCX, RSP};
use super::super::op::Op;
use super::super::width::{load, store};
use super::{Flow, Vm};

/// Bits of a linear address with four levels of page tables.
const LINEAR_BITS: u32 = 48;

#[inline(always)]
fn jump<M: Memory>(vm: &mut Vm<M>, target: u64) -> Flow {
    if !canonical(target) {
        return Flow::Leave;
    }
    vm.cpu.target = target;
    Flow::Jump
}

#[inline(always)]
fn canonical(address: u64) -> bool {
    let unused = 64 - LINEAR_BITS;
    (address << unused) as i64 >> unused == address as i64
}

#[inline(always)]
fn call<M: Memory>(vm: &mut Vm<M>, op: &Op, target: u64) -> Flow {
    if !canonical(target) {
        return Flow::Leave;
    }
    let stack = vm.cpu.register(RSP).wrapping_sub(8);
    let back = vm.cpu.next(op);
    if store::<u64>(vm.memory, stack, back).is_none() {
        return Flow::Leave;
    }
    vm.cpu.set_register(RSP, stack);
    vm.cpu.target = target;
    Flow::Jump
}

#[inline(always)]
fn direct<M: Memory>(vm: &Vm<M>, op: &Op) -> u64 {
    vm.cpu.register(CODE_PAGE).wrapping_add(op.immediate)
}

/// No instruction: code goes on elsewhere in the cache.
pub(in super::super) fn link<M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    vm.cpu.left = vm.cpu.left.saturating_add(1);
    vm.cpu.target = vm.cpu.next(op);
    Flow::Jump
}

pub(in super::super) fn leave<M: Memory>(_vm: &mut Vm<M>, _op: &Op) -> Flow {
    Flow::Leave
}

pub(in super::super) fn cross<M: Memory>(_vm: &mut Vm<M>, _op: &Op) -> Flow {
    Flow::Cross
}

pub(in super::super) fn jcc<const CODE: u8, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    if vm.cpu.flags.condition::<CODE>() {
        let target = direct(vm, op);
        jump(vm, target)
    } else {
        Flow::Next
    }
}

pub(in super::super) fn jmp<M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let target = direct(vm, op);
    jump(vm, target)
}

pub(in super::super) fn jmp_reg<M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let target = vm.cpu.register(op.a);
    jump(vm, target)
}

pub(in super::super) fn jmp_mem<M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    match vm.load::<u64>(op) {
        Some(target) => jump(vm, target),
        None => Flow::Leave,
    }
}

pub(in super::super) fn call_near<M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let target = direct(vm, op);
    call(vm, op, target)
}

pub(in super::super) fn call_reg<M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let target = vm.cpu.register(op.a);
    call(vm, op, target)
}

pub(in super::super) fn call_mem<M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    match vm.load::<u64>(op) {
        Some(target) => call(vm, op, target),
        None => Flow::Leave,
    }
}

/// RET; the immediate is what it takes off the stack besides.
pub(in super::super) fn ret<M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let stack = vm.cpu.register(RSP);
    let Some(target) = load::<u64>(vm.memory, stack) else {
        return Flow::Leave;
    };
    let flow = jump(vm, target);
    if flow == Flow::Jump {
        let stack = stack.wrapping_add(8).wrapping_add(op.immediate);
        vm.cpu.set_register(RSP, stack);
    }
    flow
}

pub(in super::super) fn jrcxz<M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    if vm.cpu.register(RCX) == 0 {
        jmp(vm, op)
    } else {
        Flow::Next
    }
}

/// LOOP, LOOPE (`ZERO` is 1) and LOOPNE (0).
pub(in super::super) fn count_down<const ZERO: u8, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let count = vm.cpu.register(RCX).wrapping_sub(1);
    let again = match ZERO {
        0 => !vm.cpu.flags.zero(),
        1 => vm.cpu.flags.zero(),
        _ => true,
    };
    let flow = if count != 0 && again {
        jmp(vm, op)
    } else {
        Flow::Next
    };
    if flow != Flow::Leave {
        vm.cpu.set_register(RCX, count);
    }
    flow
}
