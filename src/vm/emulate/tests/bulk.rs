use super::super::bulk::{Bulk, bulk_on};
use super::*;

/// Linear addresses of source and target, not aligned to each other.
const FROM: u64 = DATA + 0x10;
const TO: u64 = DATA + 0x8ff0;

/// A processor about to copy `length` bytes, and something to copy.
fn rig(length: u64) -> Rig {
    let mut rig = Rig::new();
    rig.cpu.regs.rsi = FROM;
    rig.cpu.regs.rdi = TO;
    rig.cpu.regs.rcx = length;
    let pattern: Vec<u8> = (0..0x4000u32).map(|n| (n % 251) as u8 + 1).collect();
    rig.memory
        .write_slice(&pattern, GuestAddress(DATA))
        .unwrap();
    rig
}

fn run(rig: &mut Rig, bulk: Bulk) {
    bulk_on(&mut rig.cpu, &rig.memory, bulk).unwrap();
}

#[test]
fn ports_and_sizes_tell_what_is_asked() {
    assert_eq!(Bulk::asked(0x764e, &[7]), Some(Bulk::Copy));
    assert_eq!(Bulk::asked(0x764f, &[7]), Some(Bulk::Fill(7)));
    assert_eq!(Bulk::asked(0x764e, &[7, 0]), None);
    assert_eq!(Bulk::asked(0x764d, &[7]), None);
}

#[test]
fn a_copy_crosses_pages_and_moves_the_registers_on() {
    let mut rig = rig(0x2345);
    run(&mut rig, Bulk::Copy);
    assert_eq!(
        bytes(&rig.memory, TO, 0x2345),
        bytes(&rig.memory, FROM, 0x2345)
    );
    assert_eq!(get(&rig.memory, TO + 0x2348), 0);
    let regs = rig.cpu.regs;
    assert_eq!(
        (regs.rsi, regs.rdi, regs.rcx),
        (FROM + 0x2345, TO + 0x2345, 0)
    );
    let marks = |linear| get(&rig.memory, entry_address(linear)) & (A | D);
    assert_eq!((marks(FROM), marks(TO)), (A, A | D));
}

#[test]
fn a_fill_stops_where_the_page_may_not_be_written() {
    let mut rig = rig(0x1800);
    map(&rig.memory, TO + 0x1000, ((TO & !0xfff) + 0x1000) | P);
    rig.cpu.regs.rdi = TO;
    run(&mut rig, Bulk::Fill(0xa5));
    // 0x10 bytes to the end of the first page, then the second is read-only.
    assert_eq!(rig.cpu.regs.rdi, TO + 0x10);
    assert_eq!(rig.cpu.regs.rcx, 0x1800 - 0x10);
    assert_eq!(rig.cpu.regs.rsi, FROM);
    assert_eq!(
        bytes(&rig.memory, TO, 0x11),
        [&[0xa5; 16][..], &[0]].concat()
    );
    assert_eq!(rig.cpu.raised, None);
}

#[test]
fn what_is_not_mapped_not_ram_or_not_canonical_is_left_alone() {
    for (from, to) in [
        (FROM, 0x20_0000),
        (0x20_0000, TO),
        (FROM, 0x8000_0000_0000_0000),
        (0x0000_8000_0000_0000, TO),
    ] {
        let mut rig = rig(0x100);
        (rig.cpu.regs.rsi, rig.cpu.regs.rdi) = (from, to);
        let before = rig.cpu.regs;
        run(&mut rig, Bulk::Copy);
        assert_eq!(rig.cpu.regs, before);
    }
    let mut rig = rig(0x100);
    map(&rig.memory, TO, RAM | P | RW);
    let before = rig.cpu.regs;
    run(&mut rig, Bulk::Copy);
    assert_eq!(rig.cpu.regs, before);
}

#[test]
fn a_copy_ends_at_the_end_of_ram() {
    // Mapped past the end: the last page's entry leads to the last bytes.
    let mut rig = rig(0x2000);
    rig.cpu.regs.rdi = RAM - 0x1000;
    run(&mut rig, Bulk::Copy);
    assert_eq!(rig.cpu.regs.rcx, 0x1000);
}

#[test]
fn huge_counts_are_done_in_parts() {
    let mut rig = rig(u64::MAX);
    rig.cpu.regs.rdi = DATA;
    run(&mut rig, Bulk::Fill(1));
    assert_eq!(rig.cpu.regs.rdi, RAM, "the end of what is mapped");
    // The first GiB is one page over and over.
    for page in (0..0x20_0000).step_by(0x1000) {
        map(&rig.memory, page, DATA | P | RW);
    }
    for entry in 0..512 {
        put(
            &rig.memory,
            TABLES + 0x2000 + 8 * entry,
            (TABLES + 0x3000) | P | RW,
        );
    }
    (rig.cpu.regs.rdi, rig.cpu.regs.rcx) = (0, u64::MAX);
    run(&mut rig, Bulk::Fill(2));
    assert_eq!(rig.cpu.regs.rdi, 16 << 20);
    assert_eq!(rig.cpu.regs.rcx, u64::MAX - (16 << 20));
}

#[test]
fn nothing_is_done_for_ring_3() {
    let mut rig = rig(0x100);
    rig.cpu.sregs.cs.selector = 0x33;
    let before = rig.cpu.regs;
    run(&mut rig, Bulk::Copy);
    assert_eq!(rig.cpu.regs, before);
    assert_eq!(get(&rig.memory, TO), 0);
}
