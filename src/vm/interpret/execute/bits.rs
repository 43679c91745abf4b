//! Single bits, and counting them.

use super::super::Memory;
use super::super::flags::Flags;
use super::super::op::Op;
use super::super::width::Width;
use super::forms::Binary;
use super::{Flow, Vm};

macro_rules! bit_test {
    ($($name:ident($writes:literal): |$a:ident, $bit:ident| $result:expr;)*) => {$(
        pub(in super::super) struct $name;

        impl Binary for $name {
            const WRITES: bool = $writes;

            #[inline(always)]
            fn apply<W: Width>(flags: &mut Flags, $a: u64, b: u64) -> u64 {
                let number = b as u32 % W::BITS;
                flags.set_carry($a >> number & 1 != 0);
                let $bit = 1u64 << number;
                $result
            }

            /// The register operand counts bits from the memory operand on, in both
            /// directions.
            #[inline(always)]
            fn reach<W: Width>(b: u64) -> u64 {
                let operands = W::extend(b) as i64 >> W::BITS.trailing_zeros();
                operands.wrapping_mul(W::BYTES as i64) as u64
            }
        }
    )*};
}

bit_test! {
    Bt(false): |a, _bit| a;
    Bts(true): |a, bit| a | bit;
    Btr(true): |a, bit| a & !bit;
    Btc(true): |a, bit| a ^ bit;
}

macro_rules! count {
    ($($name:ident: |$flags:ident, $b:ident| $result:expr;)*) => {$(
        pub(in super::super) struct $name;

        impl Binary for $name {
            const READS: bool = false;

            #[inline(always)]
            fn apply<W: Width>($flags: &mut Flags, _a: u64, $b: u64) -> u64 {
                $result
            }
        }
    )*};
}

count! {
    Tzcnt: |flags, b| {
        let result = u64::from(b.trailing_zeros().min(W::BITS));
        flags.set_carry(b == 0);
        flags.set_zero(result == 0);
        result
    };
    Lzcnt: |flags, b| {
        let result = u64::from(b.leading_zeros() - (64 - W::BITS));
        flags.set_carry(b == 0);
        flags.set_zero(result == 0);
        result
    };
    Popcnt: |flags, b| {
        let result = u64::from(b.count_ones());
        *flags = Flags::from_rflags(0);
        flags.set_zero(b == 0);
        result
    };
}

/// BSF, and BSR if `REVERSE`. Of 0 the register stays as it was, all of it:
/// so does AMD, and Linux relies on its lower half.
pub(in super::super) fn scan<const REVERSE: bool, const MEMORY: bool, W: Width, M: Memory>(
    vm: &mut Vm<M>,
    op: &Op,
) -> Flow {
    let Some(value) = vm.source::<MEMORY, W>(op) else {
        return Flow::Leave;
    };
    vm.cpu.flags.set_zero(value == 0);
    if value != 0 {
        let number = if REVERSE {
            value.ilog2()
        } else {
            value.trailing_zeros()
        };
        vm.cpu.set::<W>(op.a, u64::from(number));
    }
    Flow::Next
}
