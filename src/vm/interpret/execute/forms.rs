//! Operations with two operands, in every form that they come in.

use super::super::Memory;
use super::super::flags::Flags;
use super::super::op::{IMMEDIATE, Op};
use super::super::width::{Place, Width, store};
use super::{Flow, Vm};

/// An operation on two operands, the first of which takes the result.
/// Operands are cut to the width, results need not be.
pub(in super::super) trait Binary {
    /// Whether the first operand counts. MOV is the only one to memory where it does
    /// not, and changes no flags.
    const READS: bool = true;
    /// Whether the first operand takes a result.
    const WRITES: bool = true;

    fn apply<W: Width>(flags: &mut Flags, a: u64, b: u64) -> u64;

    /// How far from the address of its memory operand the operation with the
    /// register operand `b` takes place, in bytes.
    #[inline(always)]
    fn reach<W: Width>(_b: u64) -> u64 {
        0
    }
}

#[inline(always)]
fn on_register<B: Binary, W: Width, M: Memory>(vm: &mut Vm<M>, op: &Op, b: u64) -> Flow {
    let a = if B::READS { vm.cpu.get::<W>(op.a) } else { 0 };
    let result = B::apply::<W>(&mut vm.cpu.flags, a, b);
    if B::WRITES {
        vm.cpu.set::<W>(op.a, result);
    }
    Flow::Next
}

#[inline(always)]
fn on_memory<B: Binary, W: Width, M: Memory>(vm: &mut Vm<M>, address: u64, b: u64) -> Flow {
    if !B::WRITES {
        let Some(a) = super::load::<W>(vm.memory, address) else {
            return Flow::Leave;
        };
        B::apply::<W>(&mut vm.cpu.flags, a, b);
        return Flow::Next;
    }
    if !B::READS {
        let result = B::apply::<W>(&mut vm.cpu.flags, 0, b);
        return match store::<W>(vm.memory, address, result) {
            Some(()) => Flow::Next,
            None => Flow::Leave,
        };
    }
    let Some(place) = Place::<W>::at(vm.memory, address) else {
        return Flow::Leave;
    };
    place.write(B::apply::<W>(&mut vm.cpu.flags, place.read(), b));
    Flow::Next
}

pub(in super::super) fn reg_reg<B: Binary, W: Width, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let b = vm.cpu.get::<W>(op.b);
    on_register::<B, W, M>(vm, op, b)
}

pub(in super::super) fn reg_mem<B: Binary, W: Width, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let Some(b) = vm.load::<W>(op) else {
        return Flow::Leave;
    };
    on_register::<B, W, M>(vm, op, b)
}

pub(in super::super) fn reg_imm<B: Binary, W: Width, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    on_register::<B, W, M>(vm, op, op.immediate)
}

pub(in super::super) fn mem_reg<B: Binary, W: Width, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let b = vm.cpu.get::<W>(op.b);
    let address = vm.cpu.address(op).wrapping_add(B::reach::<W>(b));
    on_memory::<B, W, M>(vm, address, b)
}

pub(in super::super) fn mem_imm<B: Binary, W: Width, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let address = vm.cpu.address(op);
    on_memory::<B, W, M>(vm, address, op.immediate)
}

/// Memory and register or immediate, atomically.
pub(in super::super) fn locked<B: Binary, W: Width, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let mut address = vm.cpu.address(op);
    let mut b = op.immediate;
    if op.b != IMMEDIATE {
        b = vm.cpu.get::<W>(op.b);
        address = address.wrapping_add(B::reach::<W>(b));
    }
    let Some(place) = Place::<W>::at(vm.memory, address).and_then(Place::aligned) else {
        return Flow::Leave;
    };
    let mut a = place.read();
    loop {
        let mut flags = vm.cpu.flags;
        let result = B::apply::<W>(&mut flags, a, b);
        match place.compare_exchange(a, result) {
            Ok(_) => {
                vm.cpu.flags = flags;
                return Flow::Next;
            }
            Err(now) => a = now,
        }
    }
}
