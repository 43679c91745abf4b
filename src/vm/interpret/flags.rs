//! RFLAGS, kept as what the last operation left rather than as bits: most
//! flags are overwritten before anybody looks.

use super::width::Width;

pub(super) const CF: u64 = 1;
const FIXED: u64 = 1 << 1;
pub(super) const PF: u64 = 1 << 2;
pub(super) const AF: u64 = 1 << 4;
pub(super) const ZF: u64 = 1 << 6;
pub(super) const SF: u64 = 1 << 7;
pub(super) const TF: u64 = 1 << 8;
pub(super) const IF: u64 = 1 << 9;
pub(super) const DF: u64 = 1 << 10;
pub(super) const OF: u64 = 1 << 11;
pub(super) const IOPL: u64 = 3 << 12;
pub(super) const NT: u64 = 1 << 14;
pub(super) const RF: u64 = 1 << 16;
pub(super) const VM: u64 = 1 << 17;
pub(super) const AC: u64 = 1 << 18;
pub(super) const VIF: u64 = 1 << 19;
pub(super) const VIP: u64 = 1 << 20;
pub(super) const ID: u64 = 1 << 21;
/// The flags that arithmetic changes.
pub(super) const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

const TOP: u64 = 1 << 63;

/// The arithmetic flags.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flags {
    /// ZF: whether this is 0.
    zero: u64,
    /// SF: bit 63. PF: parity of the low byte.
    sign: u64,
    /// Carries out of each bit. CF: bit 63. OF: bits 63 and 62 differ. AF:
    /// bit 3, of the operation before it was aligned to bit 63.
    carries: u64,
}

impl Flags {
    pub(super) fn from_rflags(rflags: u64) -> Self {
        let carry = rflags & CF;
        let overflow = (rflags & OF) >> 11;
        Self {
            zero: (rflags & ZF) ^ ZF,
            sign: (rflags & SF) << 56 | u64::from(rflags & PF == 0),
            carries: carry << 63 | (carry ^ overflow) << 62 | (rflags & AF) >> 1,
        }
    }

    /// The arithmetic flags and bit 1, as RFLAGS has them.
    pub(super) fn bits(&self) -> u64 {
        u64::from(self.carry())
            | FIXED
            | u64::from(self.parity()) << 2
            | (self.carries & 8) << 1
            | u64::from(self.zero == 0) << 6
            | self.sign >> 63 << 7
            | u64::from(self.overflow()) << 11
    }

    #[inline(always)]
    pub(super) fn carry(&self) -> bool {
        self.carries >> 63 != 0
    }

    #[inline(always)]
    pub(super) fn zero(&self) -> bool {
        self.zero == 0
    }

    fn overflow(&self) -> bool {
        (self.carries ^ self.carries << 1) >> 63 != 0
    }

    fn parity(&self) -> bool {
        (self.sign as u8).count_ones().is_multiple_of(2)
    }

    /// The condition `CODE` of Jcc, SETcc and CMOVcc.
    #[inline(always)]
    pub(super) fn condition<const CODE: u8>(&self) -> bool {
        let less = || ((self.sign ^ self.carries ^ self.carries << 1) as i64) < 0;
        let met = match CODE >> 1 {
            0 => self.overflow(),
            1 => self.carry(),
            2 => self.zero(),
            3 => self.carry() || self.zero(),
            4 => (self.sign as i64) < 0,
            5 => self.parity(),
            6 => less(),
            _ => less() || self.zero(),
        };
        met != (CODE & 1 != 0)
    }

    /// ZF, SF and PF of a result.
    #[inline(always)]
    pub(super) fn set_result<W: Width>(&mut self, result: u64) {
        let extended = W::extend(result);
        self.zero = extended;
        self.sign = extended;
    }

    /// CF, OF and AF of the carries out of each bit of an operation.
    #[inline(always)]
    pub(super) fn set_carries<W: Width>(&mut self, carries: u64) {
        self.carries = match W::BITS {
            64 => carries,
            bits => carries << (64 - bits) | carries & 8,
        };
    }

    /// As [`Self::set_carries`], but CF stays.
    #[inline(always)]
    pub(super) fn set_carries_but_cf<W: Width>(&mut self, carries: u64) {
        let before = self.carries;
        self.set_carries::<W>(carries);
        let flip = (self.carries ^ before) & TOP;
        self.carries ^= flip | flip >> 1;
    }

    /// CF, OF and AF of a logical operation: all clear.
    #[inline(always)]
    pub(super) fn clear_carries(&mut self) {
        self.carries = 0;
    }

    /// CF; the others stay.
    #[inline(always)]
    pub(super) fn set_carry(&mut self, carry: bool) {
        let flip = (self.carries ^ u64::from(carry) << 63) & TOP;
        self.carries ^= flip | flip >> 1;
    }

    /// CF and OF; the others stay.
    #[inline(always)]
    pub(super) fn set_carry_overflow(&mut self, carry: bool, overflow: bool) {
        self.carries &= (TOP >> 1) - 1;
        self.carries |= u64::from(carry) << 63 | u64::from(carry != overflow) << 62;
    }

    /// ZF; the others stay.
    #[inline(always)]
    pub(super) fn set_zero(&mut self, zero: bool) {
        self.zero = u64::from(!zero);
    }
}
