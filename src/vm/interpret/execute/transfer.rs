//! Moving values without flags: extensions, LEA, BSWAP, conditional moves.

use super::super::Memory;
use super::super::cpu::{RAX, RDX};
use super::super::op::Op;
use super::super::width::{Place, Width};
use super::{Flow, Vm};

/// MOVZX, MOVSX and MOVSXD of an `S` register.
pub(in super::super) fn widen_reg<const SIGNED: bool, S: Width, W: Width, M: Memory>(
    vm: &mut Vm<M>,
    op: &Op,
) -> Flow {
    let value = vm.cpu.get::<S>(op.b);
    vm.cpu
        .set::<W>(op.a, if SIGNED { S::extend(value) } else { value });
    Flow::Next
}

/// The same of memory.
pub(in super::super) fn widen_mem<const SIGNED: bool, S: Width, W: Width, M: Memory>(
    vm: &mut Vm<M>,
    op: &Op,
) -> Flow {
    let Some(value) = vm.load::<S>(op) else {
        return Flow::Leave;
    };
    vm.cpu
        .set::<W>(op.a, if SIGNED { S::extend(value) } else { value });
    Flow::Next
}

pub(in super::super) fn lea<W: Width, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let offset = vm.cpu.offset(op);
    vm.cpu.set::<W>(op.a, offset);
    Flow::Next
}

pub(in super::super) fn bswap<W: Width, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let value = vm.cpu.get::<W>(op.a);
    vm.cpu.set::<W>(op.a, value.swap_bytes() >> (64 - W::BITS));
    Flow::Next
}

/// CBW, CWDE and CDQE: the lower half of RAX to all of it.
pub(in super::super) fn extend_a<W: Width, M: Memory>(vm: &mut Vm<M>, _op: &Op) -> Flow {
    let unused = 64 - W::BITS / 2;
    let value = (vm.cpu.register(RAX) << unused) as i64 >> unused;
    vm.cpu.set::<W>(RAX, value as u64);
    Flow::Next
}

/// CWD, CDQ and CQO: the sign of RAX to all of RDX.
pub(in super::super) fn extend_d<W: Width, M: Memory>(vm: &mut Vm<M>, _op: &Op) -> Flow {
    let value = W::extend(vm.cpu.register(RAX)) as i64 >> 63;
    vm.cpu.set::<W>(RDX, value as u64);
    Flow::Next
}

/// SETcc of a register.
pub(in super::super) fn set_reg<const CODE: u8, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let met = vm.cpu.flags.condition::<CODE>();
    vm.cpu.set::<u8>(op.a, u64::from(met));
    Flow::Next
}

/// SETcc of memory.
pub(in super::super) fn set_mem<const CODE: u8, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let met = vm.cpu.flags.condition::<CODE>();
    let address = vm.cpu.address(op);
    let Some(place) = Place::<u8>::at(vm.memory, address) else {
        return Flow::Leave;
    };
    place.write(u64::from(met));
    Flow::Next
}

/// CMOVcc from a register; the size in bytes is the immediate.
pub(in super::super) fn cmov_reg<const CODE: u8, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let value = vm.cpu.register(op.b);
    cmov::<CODE, M>(vm, op, value)
}

/// CMOVcc from memory, which is read in any case.
pub(in super::super) fn cmov_mem<const CODE: u8, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let value = match op.immediate {
        2 => vm.load::<u16>(op),
        4 => vm.load::<u32>(op),
        _ => vm.load::<u64>(op),
    };
    match value {
        Some(value) => cmov::<CODE, M>(vm, op, value),
        None => Flow::Leave,
    }
}

#[inline(always)]
fn cmov<const CODE: u8, M: Memory>(vm: &mut Vm<M>, op: &Op, value: u64) -> Flow {
    let met = vm.cpu.flags.condition::<CODE>();
    let value = if met { value } else { vm.cpu.register(op.a) };
    match op.immediate {
        2 => vm.cpu.set::<u16>(op.a, value),
        4 => vm.cpu.set::<u32>(op.a, value),
        _ => vm.cpu.set::<u64>(op.a, value),
    }
    Flow::Next
}
