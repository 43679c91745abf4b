//! String instructions. Long copies and fills go by the piece, the others by
//! the element; both stop between elements when the budget is used up.

use super::super::cpu::{RAX, RCX, RDI, RSI};
use super::super::op::Op;
use super::super::width::{Piece, Width, load, store};
use super::super::{Access, Memory, PAGE_BYTES};
use super::arithmetic::Cmp;
use super::forms::Binary;
use super::{Flow, Vm};

/// `Op::immediate`: no REP prefix.
pub(in super::super) const ONCE: u64 = 0;
/// REP, or REPE of comparisons.
pub(in super::super) const REP: u64 = 1;
/// REPNE.
pub(in super::super) const REPNE: u64 = 2;

/// How much is copied at once: what fits on the stack cheaply.
const PIECE_BYTES: usize = 1024;
/// Bytes copied or filled that count as one instruction of the budget.
const BYTES_PER_INSTRUCTION: u64 = 64;

/// Moves a pointer behind an element.
#[inline(always)]
fn advance<W: Width, M: Memory>(vm: &mut Vm<M>, register: u8, elements: u64) {
    let bytes = elements * W::BYTES as u64;
    let pointer = vm.cpu.register(register);
    let pointer = if vm.cpu.down() {
        pointer.wrapping_sub(bytes)
    } else {
        pointer.wrapping_add(bytes)
    };
    vm.cpu.set_register(register, pointer);
}

#[inline(always)]
fn source<M: Memory>(vm: &Vm<M>, op: &Op) -> u64 {
    vm.cpu
        .register(op.segment)
        .wrapping_add(vm.cpu.register(RSI))
}

/// Repeats `step`, which does one to RCX elements and says how many, None if
/// it could not do any; until RCX is 0 or `last` says that it was the last.
#[inline(always)]
fn repeat<M: Memory>(
    vm: &mut Vm<M>,
    op: &Op,
    step: impl Fn(&mut Vm<M>, &Op) -> Option<u64>,
    last: impl Fn(&Vm<M>) -> bool,
) -> Flow {
    let mut stopped = Flow::Leave;
    loop {
        let count = vm.cpu.register(RCX);
        if count == 0 {
            return Flow::Next;
        }
        if stopped == Flow::Partly {
            let Some(left) = vm.cpu.left.checked_sub(1) else {
                return Flow::Again;
            };
            vm.cpu.left = left;
        }
        let Some(done) = step(vm, op) else {
            return stopped;
        };
        vm.cpu.set_register(RCX, count - done);
        if last(vm) {
            return Flow::Next;
        }
        stopped = Flow::Partly;
    }
}

/// One element, without or with REP.
#[inline(always)]
fn elements<M: Memory>(
    vm: &mut Vm<M>,
    op: &Op,
    step: impl Fn(&mut Vm<M>, &Op) -> Option<()>,
    last: impl Fn(&Vm<M>) -> bool,
) -> Flow {
    if op.immediate != ONCE {
        return repeat(vm, op, |vm, op| step(vm, op).map(|()| 1), last);
    }
    match step(vm, op) {
        Some(()) => Flow::Next,
        None => Flow::Leave,
    }
}

pub(in super::super) fn movs<W: Width, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    if op.immediate == ONCE || vm.cpu.down() {
        return elements(vm, op, move_one::<W, M>, |_| false);
    }
    let step = |vm: &mut Vm<M>, op: &Op| {
        move_piece::<W, M>(vm, op).or_else(|| move_one::<W, M>(vm, op).map(|()| 1))
    };
    repeat(vm, op, step, |_| false)
}

fn move_one<W: Width, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Option<()> {
    let from = source(vm, op);
    let value = load::<W>(vm.memory, from)?;
    store::<W>(vm.memory, vm.cpu.register(RDI), value)?;
    advance::<W, M>(vm, RSI, 1);
    advance::<W, M>(vm, RDI, 1);
    Some(())
}

/// How many elements from `address` on lie in its page.
fn room<W: Width>(address: u64) -> usize {
    (PAGE_BYTES - address as usize % PAGE_BYTES) / W::BYTES
}

/// As many of RCX elements, at most `limit`, as a piece may have; None if it
/// is not worth it.
fn piece_elements<W: Width, M: Memory>(vm: &Vm<M>, limit: usize) -> Option<usize> {
    let count = usize::try_from(vm.cpu.register(RCX)).map_or(limit, |count| count.min(limit));
    (count > 1).then_some(count)
}

/// Takes what a piece costs off the budget, beyond its first instruction.
fn charge<W: Width, M: Memory>(vm: &mut Vm<M>, elements: u64) {
    let cost = elements * W::BYTES as u64 / BYTES_PER_INSTRUCTION;
    vm.cpu.left = vm.cpu.left.saturating_sub(cost);
}

fn move_piece<W: Width, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Option<u64> {
    let from = source(vm, op);
    let to = vm.cpu.register(RDI);
    let limit = room::<W>(from)
        .min(room::<W>(to))
        .min(PIECE_BYTES / W::BYTES);
    let mut count = piece_elements::<W, M>(vm, limit)?;
    let len = count * W::BYTES;

    let mut bytes = [0; PIECE_BYTES];
    let piece = Piece::at(vm.memory, from, len, Access::Read)?;
    piece.copy_to(&mut bytes);
    let source_address = piece.address();
    let piece = Piece::at(vm.memory, to, len, Access::Write)?;
    // An element that reads what an earlier one wrote must not be in this piece.
    let ahead = piece.address().wrapping_sub(source_address);
    if ahead != 0 && ahead < len {
        count = ahead / W::BYTES;
    }
    if count == 0 {
        return None;
    }
    piece.copy_from(&bytes[..count * W::BYTES]);
    let count = count as u64;
    advance::<W, M>(vm, RSI, count);
    advance::<W, M>(vm, RDI, count);
    charge::<W, M>(vm, count);
    Some(count)
}

pub(in super::super) fn stos<W: Width, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    if op.immediate == ONCE || vm.cpu.down() {
        return elements(vm, op, store_one::<W, M>, |_| false);
    }
    let step = |vm: &mut Vm<M>, op: &Op| {
        store_piece::<W, M>(vm).or_else(|| store_one::<W, M>(vm, op).map(|()| 1))
    };
    repeat(vm, op, step, |_| false)
}

fn store_one<W: Width, M: Memory>(vm: &mut Vm<M>, _op: &Op) -> Option<()> {
    let value = vm.cpu.get::<W>(RAX);
    store::<W>(vm.memory, vm.cpu.register(RDI), value)?;
    advance::<W, M>(vm, RDI, 1);
    Some(())
}

fn store_piece<W: Width, M: Memory>(vm: &mut Vm<M>) -> Option<u64> {
    let to = vm.cpu.register(RDI);
    let count = piece_elements::<W, M>(vm, room::<W>(to))?;
    let value = vm.cpu.get::<W>(RAX);
    Piece::at(vm.memory, to, count * W::BYTES, Access::Write)?.fill::<W>(value);
    let count = count as u64;
    advance::<W, M>(vm, RDI, count);
    charge::<W, M>(vm, count);
    Some(count)
}

pub(in super::super) fn lods<W: Width, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let step = |vm: &mut Vm<M>, op: &Op| {
        let from = source(vm, op);
        let value = load::<W>(vm.memory, from)?;
        vm.cpu.set::<W>(RAX, value);
        advance::<W, M>(vm, RSI, 1);
        Some(())
    };
    elements(vm, op, step, |_| false)
}

/// Whether a repeated comparison ends with the flags as they are.
fn decided<M: Memory>(repeat: u64) -> impl Fn(&Vm<M>) -> bool {
    move |vm| vm.cpu.flags.zero() == (repeat == REPNE)
}

pub(in super::super) fn scas<W: Width, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let step = |vm: &mut Vm<M>, _op: &Op| {
        let found = load::<W>(vm.memory, vm.cpu.register(RDI))?;
        let wanted = vm.cpu.get::<W>(RAX);
        Cmp::apply::<W>(&mut vm.cpu.flags, wanted, found);
        advance::<W, M>(vm, RDI, 1);
        Some(())
    };
    elements(vm, op, step, decided(op.immediate))
}

pub(in super::super) fn cmps<W: Width, M: Memory>(vm: &mut Vm<M>, op: &Op) -> Flow {
    let step = |vm: &mut Vm<M>, op: &Op| {
        let from = source(vm, op);
        let a = load::<W>(vm.memory, from)?;
        let b = load::<W>(vm.memory, vm.cpu.register(RDI))?;
        Cmp::apply::<W>(&mut vm.cpu.flags, a, b);
        advance::<W, M>(vm, RSI, 1);
        advance::<W, M>(vm, RDI, 1);
        Some(())
    };
    elements(vm, op, step, decided(op.immediate))
}
