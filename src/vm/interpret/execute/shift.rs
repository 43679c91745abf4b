//! Shifts and rotations. A count of 0 changes no flags; only CF, OF (of a
//! count of 1), SF, ZF and PF are defined.

use super::super::Memory;
use super::super::cpu::RCX;
use super::super::flags::Flags;
use super::super::op::{BY_CL, Op};
use super::super::width::{Place, Width};
use super::forms::Binary;
use super::{Flow, Vm};

/// The bits of a count that count.
#[inline(always)]
fn cut<W: Width>(count: u64) -> u32 {
    count as u32 & if W::BITS == 64 { 63 } else { 31 }
}

#[inline(always)]
fn top<W: Width>(value: u64) -> bool {
    value >> (W::BITS - 1) & 1 != 0
}

macro_rules! shift {
    ($($(#[$doc:meta])* $name:ident: |$flags:ident, $value:ident, $count:ident| $result:expr;)*) => {$(
        $(#[$doc])*
        pub(in super::super) struct $name;

        impl Binary for $name {
            #[inline(always)]
            fn apply<W: Width>($flags: &mut Flags, $value: u64, count: u64) -> u64 {
                let $count = cut::<W>(count);
                if $count == 0 {
                    return $value;
                }
                $result
            }
        }
    )*};
}

shift! {
    Shl: |flags, value, count| {
        let result = value << count;
        let carry = match W::BITS {
            64 => value >> (64 - count) & 1 != 0,
            bits => result >> bits & 1 != 0,
        };
        flags.set_result::<W>(result);
        flags.clear_carries();
        flags.set_carry_overflow(carry, carry != top::<W>(result));
        result
    };
    Shr: |flags, value, count| {
        let result = value >> count;
        flags.set_result::<W>(result);
        flags.clear_carries();
        flags.set_carry_overflow(value >> (count - 1) & 1 != 0, top::<W>(value));
        result
    };
    Sar: |flags, value, count| {
        let value = W::extend(value) as i64;
        let result = (value >> count) as u64;
        flags.set_result::<W>(result);
        flags.clear_carries();
        flags.set_carry_overflow(value >> (count - 1) & 1 != 0, false);
        result
    };
    Rol: |flags, value, count| {
        let result = rotate_left::<W>(value, count % W::BITS);
        let carry = result & 1 != 0;
        flags.set_carry_overflow(carry, carry != top::<W>(result));
        result
    };
    Ror: |flags, value, count| {
        let result = rotate_left::<W>(value, (W::BITS - count % W::BITS) % W::BITS);
        let carry = top::<W>(result);
        flags.set_carry_overflow(carry, carry != top::<W>(result << 1));
        result
    };
    Rcl: |flags, value, count| {
        let mut value = value;
        let mut carry = flags.carry();
        for _ in 0..count % (W::BITS + 1) {
            let out = top::<W>(value);
            value = W::truncate(value << 1) | u64::from(carry);
            carry = out;
        }
        flags.set_carry_overflow(carry, carry != top::<W>(value));
        value
    };
    Rcr: |flags, value, count| {
        let mut value = value;
        let mut carry = flags.carry();
        for _ in 0..count % (W::BITS + 1) {
            let out = value & 1 != 0;
            value = value >> 1 | u64::from(carry) << (W::BITS - 1);
            carry = out;
        }
        flags.set_carry_overflow(carry, top::<W>(value) != top::<W>(value << 1));
        value
    };
}

#[inline(always)]
fn rotate_left<W: Width>(value: u64, count: u32) -> u64 {
    if count == 0 {
        return value;
    }
    W::truncate(value << count | value >> (W::BITS - count))
}

/// SHLD and SHRD of `a` with bits of `b`; None where the result is undefined.
fn double<const LEFT: bool, W: Width>(
    flags: &mut Flags,
    a: u64,
    b: u64,
    count: u32,
) -> Option<u64> {
    if count > W::BITS {
        return None;
    }
    if count == 0 {
        return Some(a);
    }
    let (result, carry) = if LEFT {
        // In 128 bits, so that a count of all bits needs no case of its own.
        let both = u128::from(a) << W::BITS | u128::from(b);
        let result = (both << count >> W::BITS) as u64;
        (result, a >> (W::BITS - count) & 1)
    } else {
        let both = u128::from(b) << W::BITS | u128::from(a);
        ((both >> count) as u64, a >> (count - 1) & 1)
    };
    flags.set_result::<W>(result);
    flags.clear_carries();
    flags.set_carry_overflow(carry != 0, top::<W>(result) != top::<W>(a));
    Some(result)
}

fn double_count<W: Width, M: Memory>(vm: &Vm<M>, op: &Op) -> u32 {
    cut::<W>(match op.immediate {
        BY_CL => vm.cpu.register(RCX),
        count => count,
    })
}

pub(in super::super) fn double_reg<const LEFT: bool, W: Width, M: Memory>(
    vm: &mut Vm<M>,
    op: &Op,
) -> Flow {
    let count = double_count::<W, M>(vm, op);
    let (a, b) = (vm.cpu.get::<W>(op.a), vm.cpu.get::<W>(op.b));
    let Some(result) = double::<LEFT, W>(&mut vm.cpu.flags, a, b, count) else {
        return Flow::Leave;
    };
    vm.cpu.set::<W>(op.a, result);
    Flow::Next
}

pub(in super::super) fn double_mem<const LEFT: bool, W: Width, M: Memory>(
    vm: &mut Vm<M>,
    op: &Op,
) -> Flow {
    let count = double_count::<W, M>(vm, op);
    let b = vm.cpu.get::<W>(op.b);
    let address = vm.cpu.address(op);
    let Some(place) = Place::<W>::at(vm.memory, address) else {
        return Flow::Leave;
    };
    let Some(result) = double::<LEFT, W>(&mut vm.cpu.flags, place.read(), b, count) else {
        return Flow::Leave;
    };
    place.write(result);
    Flow::Next
}
