//! XCHG, XADD and CMPXCHG. With memory, `Op::immediate` says whether the
//! operation is atomic.

use super::super::Memory;
use super::super::cpu::RAX;
use super::super::op::Op;
use super::super::width::{Place, Width};
use super::arithmetic::{Add, Cmp};
use super::forms::Binary;
use super::{Flow, Vm};

pub(in super::super) fn xchg_reg<W: Width, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let (a, b) = (vm.cpu.get::<W>(op.a), vm.cpu.get::<W>(op.b));
    vm.cpu.set::<W>(op.a, b);
    vm.cpu.set::<W>(op.b, a);
    Flow::Next
}

/// Atomic with or without LOCK.
pub(in super::super) fn xchg_mem<W: Width, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let value = vm.cpu.get::<W>(op.b);
    let address = vm.cpu.address(op);
    let Some(place) = Place::<W>::at(vm.memory, address).and_then(Place::aligned) else {
        return Flow::Leave;
    };
    let before = place.swap(value);
    vm.cpu.set::<W>(op.b, before);
    Flow::Next
}

pub(in super::super) fn xadd_reg<W: Width, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let (a, b) = (vm.cpu.get::<W>(op.a), vm.cpu.get::<W>(op.b));
    let sum = Add::apply::<W>(&mut vm.cpu.flags, a, b);
    vm.cpu.set::<W>(op.b, a);
    vm.cpu.set::<W>(op.a, sum);
    Flow::Next
}

pub(in super::super) fn xadd_mem<W: Width, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let b = vm.cpu.get::<W>(op.b);
    let address = vm.cpu.address(op);
    let Some(place) = Place::<W>::at(vm.memory, address) else {
        return Flow::Leave;
    };
    let mut flags = vm.cpu.flags;
    let mut a = place.read();
    if op.immediate == 0 {
        place.write(Add::apply::<W>(&mut flags, a, b));
    } else {
        let Some(place) = place.aligned() else {
            return Flow::Leave;
        };
        while let Err(now) = place.compare_exchange(a, Add::apply::<W>(&mut flags, a, b)) {
            a = now;
        }
    }
    vm.cpu.flags = flags;
    vm.cpu.set::<W>(op.b, a);
    Flow::Next
}

/// With memory only: compilers do not make the form with two registers.
pub(in super::super) fn cmpxchg<W: Width, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let expected = vm.cpu.get::<W>(RAX);
    let new = vm.cpu.get::<W>(op.b);
    let address = vm.cpu.address(op);
    let Some(place) = Place::<W>::at(vm.memory, address) else {
        return Flow::Leave;
    };
    let found = if op.immediate == 0 {
        let found = place.read();
        if found == expected {
            place.write(new);
        }
        found
    } else {
        let Some(place) = place.aligned() else {
            return Flow::Leave;
        };
        match place.compare_exchange(expected, new) {
            Ok(found) | Err(found) => found,
        }
    };
    Cmp::apply::<W>(&mut vm.cpu.flags, expected, found);
    if found != expected {
        vm.cpu.set::<W>(RAX, found);
    }
    Flow::Next
}
