//! Which frames hold page tables that ring 3 runs on.
//!
//! KVM shadows those tables: it write-protects them against the guest and learns of
//! every change by emulating it. A store that this process makes passes it by. A
//! change of an entry that is *not present* needs no notice, for an absent entry
//! is never shadowed; every other change has to be left to KVM.
//!
//! Tables become known when CR3 first points to them, and when an entry of a known
//! table comes to point to one; they are forgotten when that entry is cleared, and
//! a root when something else is evidently made of its frame. A frame that is
//! taken for a table by mistake only costs time.

use super::ram::{LEVEL, PAGE, Ram};

const PRESENT: u64 = 1;
const USER: u64 = 1 << 2;
/// The entry maps memory itself.
const LARGE: u64 = 1 << 7;
/// Bits 51:12 of an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// First entry of a root for addresses of ring 0.
const KERNEL_HALF: u64 = 256;
/// Level of a root.
const ROOT: u8 = 4;
const ENTRIES: u64 = 512;

/// Whether an entry that held `old` may be changed without KVM.
pub(super) fn is_absent(old: u64) -> bool {
    old & PRESENT == 0
}

/// Learns the tables below the root at `cr3`, unless they are known. True if there
/// is a new one.
pub(super) fn learn_root(ram: &mut Ram, cr3: u64) -> bool {
    let frame = (cr3 & ADDRESS) / PAGE;
    let new = ram.marks(frame) & LEVEL != ROOT;
    if new {
        learn(ram, frame, ROOT);
    }
    new
}

/// `frame` is a table of `level`, and so are those that it points to.
fn learn(ram: &mut Ram, frame: u64, level: u8) {
    ram.set_marks(frame, ram.marks(frame) & !LEVEL | level);
    if level == 1 {
        return;
    }
    let used = if level == ROOT { KERNEL_HALF } else { ENTRIES };
    for index in 0..used {
        learn_entry(ram, frame * PAGE + index * 8, level);
    }
}

/// The entry at `address`, in a table of `level`, has been changed. True if it
/// points to a new table.
pub(super) fn learn_entry(ram: &mut Ram, address: u64, level: u8) -> bool {
    let Some(child) = child(ram, address, level) else {
        return false;
    };
    let new = ram.marks(child) & LEVEL != level - 1;
    if new {
        learn(ram, child, level - 1);
    }
    new
}

/// The table that the entry at `address` of a table of `level` points to.
fn child(ram: &Ram, address: u64, level: u8) -> Option<u64> {
    let of_kernel = level == ROOT && address % PAGE / 8 >= KERNEL_HALF;
    if level <= 1 || of_kernel {
        return None;
    }
    let entry = ram.load(address)?;
    let is_table = entry & (PRESENT | USER | LARGE) == PRESENT | USER;
    let frame = (entry & ADDRESS) / PAGE;
    (is_table && ram.page(frame).is_some()).then_some(frame)
}

/// The entry at `address` is about to be changed by KVM: what it points to may be
/// no table afterwards. Tables that stay are learnt again from the new entry.
pub(super) fn forget_entry(ram: &mut Ram, address: u64, level: u8) {
    if let Some(child) = child(ram, address, level) {
        forget(ram, child, level - 1);
    }
}

fn forget(ram: &mut Ram, frame: u64, level: u8) {
    if ram.marks(frame) & LEVEL != level {
        return;
    }
    ram.set_marks(frame, ram.marks(frame) & !LEVEL);
    if level > 1 {
        for index in 0..ENTRIES {
            forget_entry(ram, frame * PAGE + index * 8, level);
        }
    }
}

/// Whether a write of `len` bytes at `offset` of a root that is not in use shows
/// that it is no root any more: Linux writes neither to the kernel's half of a
/// root nor to a whole live table.
pub(super) fn ends_root(level: u8, offset: u64, len: usize) -> bool {
    level == ROOT && (offset >= KERNEL_HALF * 8 || len as u64 == PAGE)
}
