//! Linear addresses of ring 0 to host addresses: a software TLB before a walk of the
//! guest's page tables (SDM vol. 3, 4.5).
//!
//! The TLB outlives exits to KVM. What can make it stale is executed by KVM at our
//! request, and [`Translator::flush`] is called then.

use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use super::ram::{CODE, LEVEL, PAGE, Ram};
use super::tables;
use crate::interpret::{Access, Memory};

/// What a walk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Read,
    Write,
    /// Not of pages of ring 3 (SMEP), nor of data (NX).
    Fetch,
}

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const USER: u64 = 1 << 2;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Entries of each TLB, direct-mapped.
const TLB_ENTRIES: usize = 1024;
/// No linear page has this number.
const NO_PAGE: u64 = u64::MAX;

/// Entries noted in one run; more would be refused.
const CHANGED_MAX: usize = 4096;

#[derive(Clone, Copy)]
struct TlbEntry {
    page: u64,
    host: NonNull<u8>,
}

type Tlb = Box<[TlbEntry; TLB_ENTRIES]>;

/// A page of code.
#[derive(Clone, Copy)]
struct FetchEntry {
    page: u64,
    frame: u64,
    host: NonNull<u8>,
}

/// Entries for code, direct-mapped.
const FETCH_ENTRIES: usize = 256;

/// See the module's text.
pub(super) struct Translator {
    pub ram: Ram,
    reads: Tlb,
    writes: Tlb,
    /// Their frames have the mark [`CODE`].
    fetches: Box<[FetchEntry; FETCH_ENTRIES]>,
    /// CR3.
    pub root: u64,
    /// Read-only pages cannot be written by ring 0 either (CR0.WP).
    pub write_protect: bool,
    /// Entries of known tables that were written: address and level.
    changed: Vec<(u64, u8)>,
    /// Frames with decoded code that were written.
    stale_code: Vec<u64>,
}

// SAFETY: host addresses are into `ram`, see there.
#[allow(unsafe_code)]
unsafe impl Send for Translator {}

impl Translator {
    pub fn new(ram: Ram) -> Self {
        Self {
            ram,
            reads: empty(),
            writes: empty(),
            fetches: Box::new([NO_CODE; FETCH_ENTRIES]),
            root: 0,
            write_protect: true,
            changed: Vec::with_capacity(64),
            stale_code: Vec::new(),
        }
    }

    /// Forgets all translations.
    pub fn flush(&mut self) {
        self.reads.fill(NOTHING);
        self.writes.fill(NOTHING);
        self.fetches.fill(NO_CODE);
    }

    /// The guest-physical address behind `linear`, if it is not RAM.
    pub fn device(&self, linear: u64) -> Option<u64> {
        let physical = self.walk(linear, Purpose::Read)?;
        self.ram.page(physical / PAGE).is_none().then_some(physical)
    }

    /// Forgets translations of ring 3's addresses.
    fn flush_user(&mut self) {
        const USER_PAGES: u64 = 1 << (47 - 12);
        for entry in self.reads.iter_mut().chain(self.writes.iter_mut()) {
            if entry.page < USER_PAGES {
                *entry = NOTHING;
            }
        }
    }

    /// CR0 and CR3 as they are now. KVM may have changed them.
    pub fn set_mode(&mut self, cr0: u64, cr3: u64) {
        const CR0_WP: u64 = 1 << 16;
        let write_protect = cr0 & CR0_WP != 0;
        if (self.root, self.write_protect) != (cr3 & ADDRESS, write_protect) {
            self.root = cr3 & ADDRESS;
            self.write_protect = write_protect;
            self.flush();
        }
    }

    /// Before KVM may use the tables: learns those that were added.
    pub fn settle(&mut self) {
        let mut new = tables::learn_root(&mut self.ram, self.root);
        for (address, level) in self.changed.drain(..) {
            new |= tables::learn_entry(&mut self.ram, address, level);
        }
        if new {
            // From now on writes to them have to be seen.
            self.writes.fill(NOTHING);
        }
    }

    /// KVM is going to execute an instruction that writes to `linear`.
    pub fn leave_write(&mut self, linear: u64) -> Option<(u64, u8)> {
        let physical = self.walk(linear, Purpose::Read)?;
        self.code_changes(physical / PAGE);
        let level = self.ram.marks(physical / PAGE) & LEVEL;
        if level == 0 {
            return None;
        }
        let address = physical & !7;
        tables::forget_entry(&mut self.ram, address, level);
        Some((address, level))
    }

    /// The entry that [`Self::leave_write`] told of has its new value.
    pub fn left_write(&mut self, (address, level): (u64, u8)) {
        if tables::learn_entry(&mut self.ram, address, level) {
            self.writes.fill(NOTHING);
        }
        self.flush_user();
    }

    /// Frames whose decoded code is no longer what they hold.
    pub fn stale_code(&mut self) -> std::vec::Drain<'_, u64> {
        self.stale_code.drain(..)
    }

    /// The guest-physical address of `linear` for ring 0, with accessed and dirty
    /// bits set; None where the processor would fault.
    fn walk(&self, linear: u64, purpose: Purpose) -> Option<u64> {
        // Four levels: not canonical is not mapped.
        if (linear << 16) as i64 >> 16 != linear as i64 {
            return None;
        }
        let mut table = self.root;
        let (mut writable, mut user, mut executable) = (true, true, true);
        for shift in [39, 30, 21, 12] {
            let entry_ref = self.ram.entry(table + (linear >> shift & 0x1ff) * 8)?;
            let entry = entry_ref.load(Ordering::Acquire);
            if entry & PRESENT == 0 {
                return None;
            }
            writable &= entry & WRITABLE != 0;
            user &= entry & USER != 0;
            executable &= entry & NO_EXECUTE == 0;
            let is_leaf = shift == 12 || (shift <= 30 && entry & LARGE != 0);
            let allowed = match purpose {
                Purpose::Read => true,
                Purpose::Write => writable || !self.write_protect,
                Purpose::Fetch => executable && !user,
            };
            if is_leaf && !allowed {
                return None;
            }
            let writes = is_leaf && purpose == Purpose::Write;
            let dirty = if writes { DIRTY } else { 0 };
            let marks = ACCESSED | dirty;
            if entry & marks != marks {
                entry_ref.fetch_or(marks, Ordering::AcqRel);
            }
            table = entry & ADDRESS;
            if is_leaf {
                let within = (1 << shift) - 1;
                return Some(entry & ADDRESS & !within | linear & within);
            }
        }
        None
    }

    #[cold]
    fn fill(&mut self, address: u64, len: usize, access: Access) -> Option<NonNull<u8>> {
        let purpose = match access {
            Access::Read => Purpose::Read,
            Access::Write => Purpose::Write,
        };
        let physical = self.walk(address, purpose)?;
        let frame = physical / PAGE;
        let host = self.ram.page(frame)?;
        let entry = TlbEntry {
            page: address / PAGE,
            host,
        };
        let index = entry.page as usize % TLB_ENTRIES;
        match access {
            Access::Read => self.reads[index] = entry,
            Access::Write => {
                let marks = self.ram.marks(frame);
                if marks & LEVEL != 0 && !self.may_write_table(physical, marks & LEVEL, len) {
                    return None;
                }
                self.code_changes(frame);
                if self.ram.marks(frame) & LEVEL == 0 {
                    self.writes[index] = entry;
                }
            }
        }
        Some(at(host, address))
    }

    #[cold]
    fn fill_code(&mut self, address: u64) -> Option<(u64, NonNull<u8>)> {
        let physical = self.walk(address, Purpose::Fetch)?;
        let (page, frame) = (address / PAGE, physical / PAGE);
        let host = self.ram.page(frame)?;
        let marks = self.ram.marks(frame);
        if marks & CODE == 0 {
            self.ram.set_marks(frame, marks | CODE);
            // From now on its writes have to be seen.
            self.writes.fill(NOTHING);
        }
        self.fetches[page as usize % FETCH_ENTRIES] = FetchEntry { page, frame, host };
        Some((frame, host))
    }

    /// `frame` is going to be written.
    fn code_changes(&mut self, frame: u64) {
        let marks = self.ram.marks(frame);
        if marks & CODE != 0 {
            self.stale_code.push(frame);
            self.ram.set_marks(frame, marks & !CODE);
            self.fetches.fill(NO_CODE);
        }
    }

    /// Whether a write to a frame that holds a table can be made here. It is noted.
    fn may_write_table(&mut self, physical: u64, level: u8, len: usize) -> bool {
        let frame = physical / PAGE;
        if frame != self.root / PAGE && tables::ends_root(level, physical % PAGE, len) {
            self.ram.set_marks(frame, self.ram.marks(frame) & !LEVEL);
            return true;
        }
        let aligned = physical.is_multiple_of(8) && len <= 8;
        let absent = || self.ram.load(physical).is_some_and(tables::is_absent);
        if !aligned || !absent() || self.changed.len() == CHANGED_MAX {
            return false;
        }
        if level > 1 {
            self.changed.push((physical, level));
        }
        true
    }
}

impl Memory for Translator {
    #[inline]
    fn host(&mut self, address: u64, len: usize, access: Access) -> Option<NonNull<u8>> {
        let page = address / PAGE;
        let entry = match access {
            Access::Read => &self.reads[page as usize % TLB_ENTRIES],
            Access::Write => &self.writes[page as usize % TLB_ENTRIES],
        };
        if address % PAGE + len as u64 > PAGE {
            return None;
        }
        if entry.page == page {
            return Some(at(entry.host, address));
        }
        self.fill(address, len, access)
    }

    #[inline]
    fn code(&mut self, address: u64) -> Option<(u64, NonNull<u8>)> {
        let page = address / PAGE;
        let entry = &self.fetches[page as usize % FETCH_ENTRIES];
        if entry.page == page {
            return Some((entry.frame, entry.host));
        }
        self.fill_code(address)
    }
}

/// The byte of `address` in the page at `host`.
#[inline]
#[allow(unsafe_code)]
fn at(host: NonNull<u8>, address: u64) -> NonNull<u8> {
    // SAFETY: `host` is the start of a mapped page of guest RAM.
    unsafe { host.add((address % PAGE) as usize) }
}

const NOTHING: TlbEntry = TlbEntry {
    page: NO_PAGE,
    host: NonNull::dangling(),
};

const NO_CODE: FetchEntry = FetchEntry {
    page: NO_PAGE,
    frame: 0,
    host: NonNull::dangling(),
};

fn empty() -> Tlb {
    Box::new([NOTHING; TLB_ENTRIES])
}
