//! The four operand sizes, and the only places where bytes of the guest are
//! touched through host pointers.

#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::SeqCst};

use super::{Access, Memory};

/// An operand size: u8, u16, u32 or u64. Values travel as u64, of which only
/// the low `BITS` count.
pub(super) trait Width: Copy {
    const BITS: u32;
    const BYTES: usize;

    /// The low bits of `value`.
    fn truncate(value: u64) -> u64;

    /// The low bits of `value`, sign-extended to 64.
    fn extend(value: u64) -> u64;

    /// # Safety
    /// `from` must be readable for `BYTES`.
    unsafe fn read(from: *const u8) -> u64;

    /// # Safety
    /// `to` must be writable for `BYTES`.
    unsafe fn write(to: *mut u8, value: u64);

    /// # Safety
    /// `at` must be writable for `BYTES` and aligned to them.
    unsafe fn compare_exchange(at: *mut u8, old: u64, new: u64) -> Result<u64, u64>;

    /// # Safety
    /// `at` must be writable for `BYTES` and aligned to them.
    unsafe fn swap(at: *mut u8, value: u64) -> u64;
}

macro_rules! width {
    ($type:ty, $signed:ty, $atomic:ty) => {
        impl Width for $type {
            const BITS: u32 = <$type>::BITS;
            const BYTES: usize = size_of::<$type>();

            #[inline(always)]
            fn truncate(value: u64) -> u64 {
                u64::from(value as $type)
            }

            #[inline(always)]
            fn extend(value: u64) -> u64 {
                value as $signed as i64 as u64
            }

            #[inline(always)]
            unsafe fn read(from: *const u8) -> u64 {
                // SAFETY: readable, as the caller promises; any bytes make an integer.
                u64::from(unsafe { from.cast::<$type>().read_unaligned() })
            }

            #[inline(always)]
            unsafe fn write(to: *mut u8, value: u64) {
                // SAFETY: writable, as the caller promises.
                unsafe { to.cast::<$type>().write_unaligned(value as $type) }
            }

            #[inline(always)]
            unsafe fn compare_exchange(at: *mut u8, old: u64, new: u64) -> Result<u64, u64> {
                // SAFETY: writable and aligned, as the caller promises.
                let atomic = unsafe { <$atomic>::from_ptr(at.cast()) };
                atomic
                    .compare_exchange(old as $type, new as $type, SeqCst, SeqCst)
                    .map(u64::from)
                    .map_err(u64::from)
            }

            #[inline(always)]
            unsafe fn swap(at: *mut u8, value: u64) -> u64 {
                // SAFETY: writable and aligned, as the caller promises.
                let atomic = unsafe { <$atomic>::from_ptr(at.cast()) };
                u64::from(atomic.swap(value as $type, SeqCst))
            }
        }
    };
}

width!(u8, i8, AtomicU8);
width!(u16, i16, AtomicU16);
width!(u32, i32, AtomicU32);
width!(u64, i64, AtomicU64);

/// Reads an operand; None leaves the instruction.
#[inline(always)]
pub(super) fn load<W: Width>(memory: &mut impl Memory, address: u64) -> Option<u64> {
    match memory.host(address, W::BYTES, Access::Read) {
        // SAFETY: `Memory::host` vouches for `BYTES` until its next call.
        Some(from) => Some(unsafe { W::read(from.as_ptr()) }),
        None => load_across::<W>(memory, address),
    }
}

/// Writes an operand; None leaves the instruction.
#[inline(always)]
pub(super) fn store<W: Width>(memory: &mut impl Memory, address: u64, value: u64) -> Option<()> {
    match memory.host(address, W::BYTES, Access::Write) {
        Some(to) => {
            // SAFETY: `Memory::host` vouches for `BYTES` until its next call.
            unsafe { W::write(to.as_ptr(), value) };
            Some(())
        }
        None => store_across::<W>(memory, address, value),
    }
}

/// How many bytes of an operand that lies in two pages are in the first one.
fn split<W: Width>(address: u64) -> Option<usize> {
    let first = super::PAGE_BYTES - address as usize % super::PAGE_BYTES;
    (first < W::BYTES).then_some(first)
}

/// Reads an operand that lies in two pages.
#[cold]
#[inline(never)]
fn load_across<W: Width>(memory: &mut impl Memory, address: u64) -> Option<u64> {
    let first = split::<W>(address)?;
    let second = address.wrapping_add(first as u64);
    let mut bytes = [0; 8];
    Piece::at(memory, address, first, Access::Read)?.copy_to(&mut bytes);
    Piece::at(memory, second, W::BYTES - first, Access::Read)?.copy_to(&mut bytes[first..]);
    Some(u64::from_le_bytes(bytes))
}

/// Writes an operand that lies in two pages: both are asked for before one is
/// written.
#[cold]
#[inline(never)]
fn store_across<W: Width>(memory: &mut impl Memory, address: u64, value: u64) -> Option<()> {
    let first = split::<W>(address)?;
    let second = address.wrapping_add(first as u64);
    let bytes = value.to_le_bytes();
    let (low, high) = bytes.split_at(first);
    let high = &high[..W::BYTES - first];
    Piece::at(memory, second, high.len(), Access::Write)?;
    Piece::at(memory, address, first, Access::Write)?.copy_from(low);
    Piece::at(memory, second, high.len(), Access::Write)?.copy_from(high);
    Some(())
}

/// A writable operand in guest memory. It borrows the memory, so that no
/// other access can come between.
pub(super) struct Place<'m, W>(NonNull<u8>, PhantomData<(&'m mut u8, W)>);

impl<'m, W: Width> Place<'m, W> {
    /// None leaves the instruction.
    #[inline(always)]
    pub(super) fn at(memory: &'m mut impl Memory, address: u64) -> Option<Self> {
        let host = memory.host(address, W::BYTES, Access::Write)?;
        Some(Self(host, PhantomData))
    }

    /// For atomic access: None if the operand is not aligned to its size.
    #[inline(always)]
    pub(super) fn aligned(self) -> Option<Aligned<'m, W>> {
        (self.0.addr().get() & (W::BYTES - 1) == 0).then_some(Aligned(self))
    }

    #[inline(always)]
    pub(super) fn read(&self) -> u64 {
        // SAFETY: made from `Memory::host` for `BYTES`, which was not called since.
        unsafe { W::read(self.0.as_ptr()) }
    }

    #[inline(always)]
    pub(super) fn write(&self, value: u64) {
        // SAFETY: as in `read`; it was asked for writing.
        unsafe { W::write(self.0.as_ptr(), value) }
    }
}

/// A writable operand aligned to its size.
pub(super) struct Aligned<'m, W>(Place<'m, W>);

impl<W: Width> Aligned<'_, W> {
    #[inline(always)]
    pub(super) fn read(&self) -> u64 {
        self.0.read()
    }

    #[inline(always)]
    pub(super) fn compare_exchange(&self, old: u64, new: u64) -> Result<u64, u64> {
        // SAFETY: writable, see `Place`; `Place::aligned` looked at the alignment.
        unsafe { W::compare_exchange(self.0.0.as_ptr(), old, new) }
    }

    #[inline(always)]
    pub(super) fn swap(&self, value: u64) -> u64 {
        // SAFETY: as in `compare_exchange`.
        unsafe { W::swap(self.0.0.as_ptr(), value) }
    }
}

/// A run of bytes inside of one page of guest memory.
pub(super) struct Piece<'m> {
    start: NonNull<u8>,
    len: usize,
    memory: PhantomData<&'m mut u8>,
}

impl<'m> Piece<'m> {
    /// None: not this way.
    pub(super) fn at(
        memory: &'m mut impl Memory,
        address: u64,
        len: usize,
        access: Access,
    ) -> Option<Self> {
        let start = memory.host(address, len, access)?;
        Some(Self {
            start,
            len,
            memory: PhantomData,
        })
    }

    /// Where it is in our address space, to see overlaps.
    pub(super) fn address(&self) -> usize {
        self.start.addr().get()
    }

    /// Copies all of it into the beginning of `bytes`.
    pub(super) fn copy_to(&self, bytes: &mut [u8]) {
        let bytes = &mut bytes[..self.len];
        // SAFETY: `Memory::host` vouches for `len` bytes; `bytes` is ours, as long, and
        // no guest memory.
        unsafe {
            ptr::copy_nonoverlapping(self.start.as_ptr(), bytes.as_mut_ptr(), self.len);
        }
    }

    /// Overwrites its beginning with `bytes`. It must have been asked for
    /// writing.
    pub(super) fn copy_from(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.len);
        // SAFETY: not more than the `len` bytes that `Memory::host` vouches for;
        // `bytes` is ours and no guest memory.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.as_ptr(), bytes.len());
        }
    }

    /// Fills it with `value`. It must have been asked for writing, as a
    /// multiple of `W`.
    pub(super) fn fill<W: Width>(&self, value: u64) {
        for offset in (0..=self.len - W::BYTES).step_by(W::BYTES) {
            // SAFETY: `offset + BYTES` is not more than the `len` bytes that
            // `Memory::host` vouches for.
            unsafe { W::write(self.start.as_ptr().add(offset), value) }
        }
    }
}

/// Copies code from `offset` of the page at `page` on into `bytes`, to the
/// page's end at most; how many bytes that are.
pub(super) fn copy_code(page: NonNull<u8>, offset: usize, bytes: &mut [u8]) -> usize {
    let len = bytes.len().min(super::PAGE_BYTES - offset);
    // SAFETY: `Memory::code` vouches for the 4096 bytes of the page, and was
    // not called since.
    unsafe { ptr::copy_nonoverlapping(page.as_ptr().add(offset), bytes.as_mut_ptr(), len) }
    len
}
