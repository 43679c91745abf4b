//! A walk of the guest's page tables (SDM vol. 3, 4.5-4.8).
//!
//! KVM_TRANSLATE tells neither whether a page may be written nor how an access
//! fails, but a page fault with the right error code is what makes copy on
//! write, and Linux's saving of registers to a signal frame, work.
//!
//! Protection keys and reserved bits are not looked at.

use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::kvm_sregs;
use vm_memory::{Bytes, GuestAddress, GuestMemory, VolatileMemory};

use super::EmulateError;
use super::cpu::Exception;
use super::instruction::Stop;

/// Bytes in a page of the smallest size.
pub(super) const PAGE: u64 = 4096;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// The entry maps a page of 2 MiB or 1 GiB.
const LARGE: u64 = 1 << 7;
/// Bits 51:12 of an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Error code: the page was present.
const ERROR_PROTECTION: u32 = 1;
/// Error code: the access was a write.
const ERROR_WRITE: u32 = 1 << 1;

const CR0_WP: u64 = 1 << 16;
const CR4_LA57: u64 = 1 << 12;
const CR4_SMAP: u64 = 1 << 21;
const RFLAGS_AC: u64 = 1 << 18;

/// Levels whose entry can map a page itself: the page (1), 2 MiB, 1 GiB.
const LARGEST_LEAF: u32 = 3;
/// A walk is begun again when the guest changed an entry under it; more often
/// than this, a hostile guest is at work.
const MAX_RETRIES: u32 = 100;

/// What an instruction does to memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Reads only.
    Read,
    /// Writes, or reads and writes.
    Write,
}

/// The paging mode, for accesses from ring 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paging {
    root: u64,
    levels: u32,
    /// Read-only pages cannot be written by ring 0 either.
    write_protect: bool,
    /// Pages of ring 3 cannot be accessed.
    smap: bool,
}

/// Where a walk ended.
enum Walk {
    Physical(u64),
    Changed,
}

impl Paging {
    pub(super) fn new(sregs: &kvm_sregs, rflags: u64) -> Self {
        Self {
            root: sregs.cr3 & ADDRESS,
            levels: if sregs.cr4 & CR4_LA57 == 0 { 4 } else { 5 },
            write_protect: sregs.cr0 & CR0_WP != 0,
            smap: sregs.cr4 & CR4_SMAP != 0 && rflags & RFLAGS_AC == 0,
        }
    }

    /// The same for fetching instructions.
    pub(super) fn without_smap(self) -> Self {
        Self {
            smap: false,
            ..self
        }
    }

    /// Whether `linear` is a possible address in this mode.
    pub(super) fn is_canonical(&self, linear: u64) -> bool {
        let unused = 64 - (self.levels * 9 + 12);
        (linear << unused) as i64 >> unused == linear as i64
    }

    /// The physical address behind the canonical address `linear`, or the page
    /// fault. Sets accessed and dirty bits.
    pub(super) fn translate(
        &self,
        memory: &impl GuestMemory,
        linear: u64,
        access: Access,
    ) -> Result<u64, Stop> {
        for _ in 0..MAX_RETRIES {
            if let Walk::Physical(physical) = self.walk(memory, linear, access)? {
                return Ok(physical);
            }
        }
        // As if the entry had been absent at that moment.
        Err(fault(linear, access, 0))
    }

    fn walk(&self, memory: &impl GuestMemory, linear: u64, access: Access) -> Result<Walk, Stop> {
        let mut table = self.root;
        let mut allowed = WRITABLE | USER;
        // Entries of the path, to be marked as accessed when the access is allowed.
        let mut path = [(0, 0); 5];
        for level in (1..=self.levels).rev() {
            let shift = 12 + 9 * (level - 1);
            let address = table + ((linear >> shift) & 0x1ff) * 8;
            let entry = load(memory, linear, address)?;
            if entry & PRESENT == 0 {
                return Err(fault(linear, access, 0));
            }
            allowed &= entry;
            path[level as usize - 1] = (address, entry);
            let is_leaf = level == 1 || (level <= LARGEST_LEAF && entry & LARGE != 0);
            if !is_leaf {
                table = entry & ADDRESS;
                continue;
            }
            self.check(linear, access, allowed)?;
            for index in (level..=self.levels).rev() {
                let (address, entry) = path[index as usize - 1];
                let dirty = index == level && access == Access::Write;
                let marks = ACCESSED | if dirty { DIRTY } else { 0 };
                if !mark(memory, linear, address, entry, marks)? {
                    return Ok(Walk::Changed);
                }
            }
            let within = (1 << shift) - 1;
            return Ok(Walk::Physical(
                (entry & ADDRESS & !within) | (linear & within),
            ));
        }
        Err(fault(linear, access, 0))
    }

    fn check(&self, linear: u64, access: Access, allowed: u64) -> Result<(), Stop> {
        let refused = (access == Access::Write && self.write_protect && allowed & WRITABLE == 0)
            || (self.smap && allowed & USER != 0);
        if refused {
            return Err(fault(linear, access, ERROR_PROTECTION));
        }
        Ok(())
    }
}

fn fault(linear: u64, access: Access, protection: u32) -> Stop {
    let write = if access == Access::Write {
        ERROR_WRITE
    } else {
        0
    };
    Exception::page_fault(linear, protection | write).into()
}

/// Reads the 8-byte entry at `address`.
fn load(memory: &impl GuestMemory, linear: u64, address: u64) -> Result<u64, EmulateError> {
    memory
        .load(GuestAddress(address), Ordering::Acquire)
        .map_err(|_| EmulateError::NotRam {
            linear,
            physical: address,
        })
}

/// Sets `marks` in the entry; false if it is no longer what was read.
fn mark(
    memory: &impl GuestMemory,
    linear: u64,
    address: u64,
    seen: u64,
    marks: u64,
) -> Result<bool, EmulateError> {
    if seen & marks == marks {
        return Ok(true);
    }
    let not_ram = || EmulateError::NotRam {
        linear,
        physical: address,
    };
    let slice = memory
        .get_slice(GuestAddress(address), size_of::<u64>())
        .map_err(|_| not_ram())?;
    let entry: &AtomicU64 = slice.get_atomic_ref(0).map_err(|_| not_ram())?;
    let swap = entry.compare_exchange(seen, seen | marks, Ordering::AcqRel, Ordering::Relaxed);
    Ok(swap.is_ok())
}
