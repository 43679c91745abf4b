//! Multiplication and division. Only CF and OF of products are defined; a
//! division that would fault is left.

use super::super::Memory;
use super::super::cpu::{HIGH, RAX, RDX};
use super::super::flags::Flags;
use super::super::op::Op;
use super::super::width::Width;
use super::forms::Binary;
use super::{Flow, Vm};

/// Signed product; whether it does not fit in the width.
#[inline(always)]
fn signed_product<W: Width>(a: u64, b: u64) -> (i128, bool) {
    let (a, b) = (W::extend(a) as i64, W::extend(b) as i64);
    let product = i128::from(a) * i128::from(b);
    (
        product,
        i128::from(W::extend(product as u64) as i64) != product,
    )
}

/// IMUL with two operands.
pub(in super::super) struct Imul2;

impl Binary for Imul2 {
    #[inline(always)]
    fn apply<W: Width>(flags: &mut Flags, a: u64, b: u64) -> u64 {
        let (product, overflow) = signed_product::<W>(a, b);
        flags.set_carry_overflow(overflow, overflow);
        product as u64
    }
}

/// IMUL with three operands.
pub(in super::super) fn imul3<const MEMORY: bool, W: Width, M: Memory>(
    vm: &mut Vm<M>,
    op: &Op,
) -> Flow {
    let Some(b) = vm.source::<MEMORY, W>(op) else {
        return Flow::Leave;
    };
    let result = Imul2::apply::<W>(&mut vm.cpu.flags, b, op.immediate);
    vm.cpu.set::<W>(op.a, result);
    Flow::Next
}

/// Writes a double-width result to AH:AL, DX:AX, EDX:EAX or RDX:RAX.
#[inline(always)]
fn set_pair<W: Width, M: Memory>(vm: &mut Vm<M>, low: u64, high: u64) {
    vm.cpu.set::<W>(RAX, low);
    let second = if W::BITS == 8 { RAX + HIGH } else { RDX };
    vm.cpu.set::<W>(second, high);
}

/// MUL and IMUL with one operand.
pub(in super::super) fn multiply<const SIGNED: bool, const MEMORY: bool, W: Width, M: Memory>(
    vm: &mut Vm<M>,
    op: &Op,
) -> Flow {
    let Some(b) = vm.source::<MEMORY, W>(op) else {
        return Flow::Leave;
    };
    let a = vm.cpu.get::<W>(RAX);
    let (product, overflow) = if SIGNED {
        let (product, overflow) = signed_product::<W>(a, b);
        (product as u128, overflow)
    } else {
        let product = u128::from(a) * u128::from(b);
        (product, product >> W::BITS != 0)
    };
    vm.cpu.flags.set_carry_overflow(overflow, overflow);
    set_pair::<W, M>(vm, product as u64, (product >> W::BITS) as u64);
    Flow::Next
}

/// DIV and IDIV.
pub(in super::super) fn divide<const SIGNED: bool, const MEMORY: bool, W: Width, M: Memory>(
    vm: &mut Vm<M>,
    op: &Op,
) -> Flow {
    let Some(divisor) = vm.source::<MEMORY, W>(op) else {
        return Flow::Leave;
    };
    let low = vm.cpu.get::<W>(RAX);
    let second = if W::BITS == 8 { RAX + HIGH } else { RDX };
    let high = vm.cpu.get::<W>(second);
    let quotient = if SIGNED {
        signed_quotient::<W>(low, high, divisor)
    } else {
        quotient::<W>(low, high, divisor)
    };
    let Some((quotient, remainder)) = quotient else {
        return Flow::Leave;
    };
    set_pair::<W, M>(vm, quotient, remainder);
    Flow::Next
}

/// Quotient and remainder; None where the CPU raises #DE.
fn quotient<W: Width>(low: u64, high: u64, divisor: u64) -> Option<(u64, u64)> {
    if high == 0 {
        return Some((low.checked_div(divisor)?, low % divisor));
    }
    let dividend = u128::from(high) << W::BITS | u128::from(low);
    let divisor = u128::from(divisor);
    let quotient = dividend.checked_div(divisor)?;
    (quotient >> W::BITS == 0).then_some((quotient as u64, (dividend % divisor) as u64))
}

/// As [`quotient`], signed.
fn signed_quotient<W: Width>(low: u64, high: u64, divisor: u64) -> Option<(u64, u64)> {
    let high = W::extend(high) as i64;
    let divisor = W::extend(divisor) as i64;
    let extended = W::extend(low) as i64;
    let (quotient, remainder) = if high == extended >> 63 {
        (
            extended.checked_div(divisor)?,
            extended.checked_rem(divisor)?,
        )
    } else {
        let dividend = i128::from(high) << W::BITS | i128::from(low);
        let divisor = i128::from(divisor);
        let quotient = i64::try_from(dividend.checked_div(divisor)?).ok()?;
        (quotient, dividend.checked_rem(divisor)? as i64)
    };
    (W::extend(quotient as u64) as i64 == quotient).then_some((quotient as u64, remainder as u64))
}
