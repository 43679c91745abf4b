//! Tests of the interpreter: against the CPU that they run on, and against
//! the rules of the interface.

mod differential;
mod forms;
mod guest;
mod leaves;
mod native;
mod random;
mod rules;
mod speed;

use std::ptr::NonNull;

use super::{Access, Memory};

/// Numbers that are the same in every run (xorshift64*).
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// A value of the kind that finds mistakes.
    pub(super) fn value(&mut self) -> u64 {
        let bit = 1u64 << self.below(64);
        match self.below(8) {
            0 => self.pick(&[0, 1, 2, u64::MAX, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff]),
            1 => self.pick(&[
                0x7fff_ffff,
                0x8000_0000,
                0xffff_ffff,
                i64::MIN as u64,
                i64::MAX as u64,
            ]),
            2 => bit,
            3 => bit.wrapping_sub(1),
            4 => !bit,
            5 => self.below(256),
            _ => self.next(),
        }
    }
}

/// Pages of our own, at the linear addresses that they have in this process.
pub(super) struct Pages<'p> {
    /// First address, and bytes, of what may be read and written.
    pub(super) data: (u64, u64),
    /// Address of the page that holds code.
    pub(super) code: u64,
    pub(super) _pages: std::marker::PhantomData<&'p mut u8>,
}

impl Memory for Pages<'_> {
    fn host(&mut self, address: u64, len: usize, _access: Access) -> Option<NonNull<u8>> {
        let (start, bytes) = self.data;
        let inside = address >= start && address.checked_add(len as u64)? <= start + bytes;
        let one_page = address % 4096 + len as u64 <= 4096;
        (inside && one_page).then(|| NonNull::new(address as *mut u8))?
    }

    fn code(&mut self, address: u64) -> Option<(u64, NonNull<u8>)> {
        let page = address & !4095;
        (page == self.code).then(|| Some((page >> 12, NonNull::new(page as *mut u8)?)))?
    }
}
