//! Page tables in guest RAM, walked and tracked.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::ram::{CODE, LEVEL, PAGE, Ram};
use super::translate::Translator;
use crate::interpret::{Access, Memory};

const ROOT: u64 = 0x10_000;
const PDPT: u64 = 0x11_000;
const PD: u64 = 0x12_000;
const PT: u64 = 0x13_000;
const DATA: u64 = 0x20_000;
/// Where `DATA` is mapped for ring 3.
const USER: u64 = 0x40_0000;
/// Where all of RAM is mapped for ring 0, one to one from here.
const DIRECT: u64 = 0xffff_8880_0000_0000;
const PRESENT: u64 = 1;
const RW: u64 = 2;
const US: u64 = 4;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NX: u64 = 1 << 63;

struct Machine {
    memory: GuestMemoryMmap,
    translator: Translator,
}

impl Machine {
    fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        let put =
            |address: u64, entry: u64| memory.write_obj(entry, GuestAddress(address)).unwrap();
        put(ROOT, PDPT | PRESENT | RW | US);
        put(PDPT, PD | PRESENT | RW | US);
        put(PD + 2 * 8, PT | PRESENT | RW | US);
        put(PT, DATA | PRESENT | RW | US);
        put(PT + 8, (DATA + PAGE) | PRESENT | US);
        // The direct map: 2 MiB pages.
        put(ROOT + 273 * 8, 0x14_000 | PRESENT | RW);
        put(0x14_000, 0x15_000 | PRESENT | RW);
        put(0x15_000, PRESENT | RW | LARGE);
        put(0x15_008, 0x20_0000 | PRESENT | RW | LARGE | NX);
        let mut translator = Translator::new(Ram::new(&memory));
        translator.set_mode(1 << 16, ROOT);
        translator.settle();
        Self { memory, translator }
    }

    fn entry(&self, address: u64) -> u64 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn level(&self, table: u64) -> u8 {
        self.translator.ram.marks(table / PAGE) & LEVEL
    }

    /// Stores as an instruction would; false where it is left to KVM.
    fn store(&mut self, physical: u64, value: u64) -> bool {
        let host = self.translator.host(DIRECT + physical, 8, Access::Write);
        if host.is_some() {
            self.memory
                .write_obj(value, GuestAddress(physical))
                .unwrap();
        }
        host.is_some()
    }

    /// Stores as KVM does it for us.
    fn store_by_kvm(&mut self, physical: u64, value: u64) {
        let left = self.translator.leave_write(DIRECT + physical).unwrap();
        self.memory
            .write_obj(value, GuestAddress(physical))
            .unwrap();
        self.translator.left_write(left);
    }
}

#[test]
fn small_and_large_pages_are_found_and_marked() {
    let mut machine = Machine::new();
    machine
        .memory
        .write_obj(0x77u8, GuestAddress(DATA + 5))
        .unwrap();
    let host = machine.translator.host(USER + 5, 1, Access::Read).unwrap();
    let same = machine
        .translator
        .host(DIRECT + DATA + 5, 1, Access::Read)
        .unwrap();
    assert_eq!(host, same);
    assert_eq!(machine.entry(PT) & DIRTY, 0);
    assert!(machine.translator.host(USER, 8, Access::Write).is_some());
    assert_ne!(machine.entry(PT) & DIRTY, 0);
}

#[test]
fn what_would_fault_is_left() {
    let mut machine = Machine::new();
    let mut refused =
        |address, len, access| machine.translator.host(address, len, access).is_none();
    assert!(refused(USER + PAGE, 1, Access::Write), "read-only");
    assert!(!refused(USER + PAGE, 1, Access::Read));
    assert!(refused(USER + 2 * PAGE, 1, Access::Read), "absent");
    assert!(refused(USER + PAGE - 4, 8, Access::Read), "two pages");
    assert!(refused(0x8000_0000_0000, 1, Access::Read), "not canonical");
    assert!(refused(DIRECT + (4 << 20), 1, Access::Read), "not RAM");
}

#[test]
fn code_is_neither_the_users_nor_data() {
    let mut machine = Machine::new();
    assert!(machine.translator.code(USER).is_none());
    assert!(machine.translator.code(DIRECT + (2 << 20)).is_none());
    let (frame, _) = machine.translator.code(DIRECT + DATA).unwrap();
    assert_eq!(frame, DATA / PAGE);
}

#[test]
fn a_write_to_code_is_told_once_even_behind_the_tlb() {
    let mut machine = Machine::new();
    assert!(machine.store(DATA, 1));
    machine.translator.code(DIRECT + DATA).unwrap();
    assert!(machine.store(DATA, 2));
    assert!(machine.store(DATA, 3));
    let stale: Vec<u64> = machine.translator.stale_code().collect();
    assert_eq!(stale, [DATA / PAGE]);
    assert_eq!(machine.translator.ram.marks(DATA / PAGE) & CODE, 0);
}

#[test]
fn tables_of_ring_3_are_known_from_the_root() {
    let machine = Machine::new();
    let levels = [ROOT, PDPT, PD, PT, DATA, 0x14_000].map(|table| machine.level(table));
    assert_eq!(levels, [4, 3, 2, 1, 0, 0]);
}

#[test]
fn only_absent_entries_are_changed_here() {
    let mut machine = Machine::new();
    assert!(!machine.store(PT, 0), "present");
    assert!(machine.store(PT + 3 * 8, DATA | PRESENT | US), "absent");
    assert!(!machine.store(PT + 3 * 8, 0), "present now");
    machine.store_by_kvm(PT + 3 * 8, 0);
    assert!(machine.store(PT + 3 * 8, DATA | PRESENT | US));
}

#[test]
fn new_tables_are_learnt_and_cleared_ones_forgotten() {
    let mut machine = Machine::new();
    let table = 0x30_000;
    assert!(machine.store(table, DATA | PRESENT | US));
    assert!(machine.store(PD + 3 * 8, table | PRESENT | RW | US));
    assert_eq!(machine.level(table), 0, "not before KVM can see it");
    machine.translator.settle();
    assert_eq!(machine.level(table), 1);
    // Although the TLB knew the page from before.
    assert!(!machine.store(table, 0));
    machine.store_by_kvm(PD + 3 * 8, 0);
    assert_eq!(machine.level(table), 0);
    assert!(machine.store(table, 0));
}

#[test]
fn a_root_becomes_data_when_it_is_used_as_such() {
    let mut machine = Machine::new();
    let other = 0x40_000;
    let kernel = machine.entry(ROOT + 273 * 8);
    assert!(machine.store(other + 273 * 8, kernel));
    machine.translator.set_mode(1 << 16, other);
    machine.translator.settle();
    assert_eq!(machine.level(other), 4);
    assert!(!machine.store(other + 273 * 8, 7), "in use");
    machine.translator.set_mode(1 << 16, ROOT);
    assert!(machine.store(other + 273 * 8, 7));
    assert_eq!(machine.level(other), 0);
}
