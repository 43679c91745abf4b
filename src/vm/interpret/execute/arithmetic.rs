//! Addition, subtraction, logic; MOV, which is the simplest of the kind.

use super::super::flags::Flags;
use super::super::width::Width;
use super::forms::Binary;

#[inline(always)]
fn add<W: Width>(flags: &mut Flags, a: u64, b: u64, carry: u64) -> u64 {
    let result = a.wrapping_add(b).wrapping_add(carry);
    flags.set_result::<W>(result);
    flags.set_carries::<W>(a & b | (a | b) & !result);
    result
}

/// Borrows out of each bit of `a - b` (less a borrow) that gave `result`.
#[inline(always)]
fn borrows(a: u64, b: u64, result: u64) -> u64 {
    !a & b | !(a ^ b) & result
}

#[inline(always)]
fn subtract<W: Width>(flags: &mut Flags, a: u64, b: u64, borrow: u64) -> u64 {
    let result = a.wrapping_sub(b).wrapping_sub(borrow);
    flags.set_result::<W>(result);
    flags.set_carries::<W>(borrows(a, b, result));
    result
}

#[inline(always)]
fn logic<W: Width>(flags: &mut Flags, result: u64) -> u64 {
    flags.set_result::<W>(result);
    flags.clear_carries();
    result
}

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident($writes:literal): |$flags:ident, $a:ident, $b:ident| $result:expr;)*) => {$(
        $(#[$doc])*
        pub(in super::super) struct $name;

        impl Binary for $name {
            const WRITES: bool = $writes;

            #[inline(always)]
            fn apply<W: Width>($flags: &mut Flags, $a: u64, $b: u64) -> u64 {
                $result
            }
        }
    )*};
}

binary! {
    Add(true): |flags, a, b| add::<W>(flags, a, b, 0);
    Or(true): |flags, a, b| logic::<W>(flags, a | b);
    Adc(true): |flags, a, b| {
        let carry = u64::from(flags.carry());
        add::<W>(flags, a, b, carry)
    };
    Sbb(true): |flags, a, b| {
        let borrow = u64::from(flags.carry());
        subtract::<W>(flags, a, b, borrow)
    };
    And(true): |flags, a, b| logic::<W>(flags, a & b);
    Sub(true): |flags, a, b| subtract::<W>(flags, a, b, 0);
    Xor(true): |flags, a, b| logic::<W>(flags, a ^ b);
    Cmp(false): |flags, a, b| subtract::<W>(flags, a, b, 0);
    Test(false): |flags, a, b| logic::<W>(flags, a & b);
    Inc(true): |flags, a, _b| {
        let result = a.wrapping_add(1);
        flags.set_result::<W>(result);
        flags.set_carries_but_cf::<W>(a & 1 | (a | 1) & !result);
        result
    };
    Dec(true): |flags, a, _b| {
        let result = a.wrapping_sub(1);
        flags.set_result::<W>(result);
        flags.set_carries_but_cf::<W>(borrows(a, 1, result));
        result
    };
    Neg(true): |flags, a, _b| subtract::<W>(flags, 0, a, 0);
    Not(true): |_flags, a, _b| !a;
}

/// MOV.
pub(in super::super) struct Mov;

impl Binary for Mov {
    const READS: bool = false;

    #[inline(always)]
    fn apply<W: Width>(_flags: &mut Flags, _a: u64, b: u64) -> u64 {
        b
    }
}
