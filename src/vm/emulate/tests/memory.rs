use proptest::prelude::*;

use super::*;

const POPCNT_MEM: &[u8] = &[0xf3, 0x48, 0x0f, 0xb8, 0x07]; // popcnt rax, [rdi]
const STMXCSR: &[u8] = &[0x0f, 0xae, 0x1f]; // stmxcsr [rdi]

#[test]
fn an_instruction_may_cross_into_a_page_that_lies_elsewhere() {
    let mut rig = Rig::new();
    map(&rig.memory, CODE + 0x1000, (CODE + 0x3000) | P);
    put(&rig.memory, CODE + 0x3000, 0x07b8);
    let at = CODE + 0x1000 - 3;
    assert_eq!(
        rig.run_at(at, &[0xf3, 0x48, 0x0f]).unwrap(),
        Completed::Retired
    );
    assert_eq!(rig.cpu.regs.rip, at + 5);
}

#[test]
fn a_short_instruction_needs_no_second_page() {
    let mut rig = Rig::new();
    map(&rig.memory, CODE + 0x1000, 0);
    let at = CODE + 0xfff;
    assert_eq!(rig.run_at(at, &[0x9b]).unwrap(), Completed::Retired);
    map(&rig.memory, CODE, 0);
    assert!(matches!(rig.run_at(at, &[0x9b]), Err(EmulateError::Fetch(rip)) if rip == at));
}

#[test]
fn accessed_and_dirty_bits_are_set_as_the_access_asks() {
    let mut rig = Rig::new();
    rig.retires(POPCNT_MEM);
    assert_eq!(get(&rig.memory, entry_address(DATA)), DATA | P | RW | A);
    rig.retires(STMXCSR);
    assert_eq!(get(&rig.memory, entry_address(DATA)), DATA | P | RW | A | D);
    for level in 0..3 {
        let entry = get(&rig.memory, TABLES + 0x1000 * level);
        assert_eq!(entry & (A | D), A, "level {level}");
    }
}

#[test]
fn write_protection_of_any_level_counts_unless_cr0_wp_is_off() {
    for level in 0..3 {
        let mut rig = Rig::new();
        let entry = get(&rig.memory, TABLES + 0x1000 * level);
        put(&rig.memory, TABLES + 0x1000 * level, entry & !RW);
        rig.faults(STMXCSR, Exception::page_fault(DATA, 3));
        rig.retires(POPCNT_MEM);
        rig.cpu.sregs.cr0 &= !(1 << 16);
        rig.retires(STMXCSR);
    }
}

#[test]
fn smap_guards_user_pages_unless_ac_is_set() {
    let mut rig = Rig::new();
    rig.cpu.sregs.cr4 |= 1 << 21;
    rig.retires(STMXCSR);
    map(&rig.memory, DATA, DATA | P | RW | US);
    rig.faults(STMXCSR, Exception::page_fault(DATA, 3));
    rig.faults(POPCNT_MEM, Exception::page_fault(DATA, 1));
    rig.cpu.regs.rflags |= 1 << 18;
    rig.retires(STMXCSR);
}

#[test]
fn a_missing_entry_of_any_level_faults() {
    for level in 0..3 {
        let mut rig = Rig::new();
        // The table for the upper half, so that the code stays mapped.
        rig.cpu.regs.rdi = match level {
            0 => 0xffff_8000_0000_0123,
            1 => 0x40_0000_0123,
            _ => 0x20_0123,
        };
        let linear = rig.cpu.regs.rdi;
        rig.faults(POPCNT_MEM, Exception::page_fault(linear, 0));
        rig.faults(STMXCSR, Exception::page_fault(linear, 2));
    }
}

#[test]
fn large_pages_are_found() {
    let mut rig = Rig::new();
    // Linear 2 MiB.. by a 2 MiB page and 1 GiB.. by a 1 GiB page, both to physical 0.
    put(&rig.memory, TABLES + 0x2000 + 8, P | RW | 0x80);
    put(&rig.memory, TABLES + 0x1000 + 8, P | RW | 0x80);
    for base in [0x20_0000, 0x4000_0000] {
        put(&rig.memory, DATA + 8, 0);
        rig.cpu.regs.rdi = base + DATA + 8;
        rig.retires(STMXCSR);
        assert_eq!(get(&rig.memory, DATA + 8), 0x1f80);
    }
    assert_eq!(get(&rig.memory, TABLES + 0x2000 + 8), P | RW | A | D | 0x80);
}

#[test]
fn segment_bases_and_rip_relative_addresses_are_used() {
    let mut rig = Rig::new();
    rig.cpu.sregs.gs.base = 0x100;
    rig.cpu.sregs.ds.base = 0x4000;
    rig.retires(&[0x65, 0x0f, 0xae, 0x1f]); // stmxcsr gs:[rdi]
    assert_eq!(get(&rig.memory, DATA + 0x100), 0x1f80);
    rig.retires(STMXCSR);
    assert_eq!(get(&rig.memory, DATA), 0x1f80);
    let offset = (DATA + 0x200 - CODE - 7) as u32;
    let mut code = vec![0x0f, 0xae, 0x1d];
    code.extend(offset.to_le_bytes());
    rig.retires(&code); // stmxcsr [rip + offset]
    assert_eq!(get(&rig.memory, DATA + 0x200), 0x1f80);
}

#[test]
fn addresses_that_cannot_be_are_general_protection_or_stack_faults() {
    for linear in [0x8000_0000_0000, 0x7fff_ffff_fffd, u64::MAX - 1] {
        let mut rig = Rig::new();
        rig.cpu.regs.rdi = linear;
        rig.faults(POPCNT_MEM, Exception::PROTECTION);
        rig.cpu.regs.rbp = linear;
        rig.faults(&[0x0f, 0xae, 0x5d, 0], Exception::STACK); // stmxcsr [rbp]
    }
}

#[test]
fn what_is_not_ram_stops_the_machine_and_changes_nothing() {
    let mut rig = Rig::new();
    map(&rig.memory, DATA, 0xfee0_0000 | P | RW);
    let before = rig.cpu.clone();
    let error = rig.run(STMXCSR).unwrap_err();
    assert!(matches!(
        error,
        EmulateError::NotRam {
            linear: DATA,
            physical: 0xfee0_0000
        }
    ));
    assert_eq!(rig.cpu.state, before.state);
    assert_eq!(rig.cpu.raised, None);
    // Page tables outside RAM.
    rig.cpu.sregs.cr3 = 0xfee0_0000;
    assert!(matches!(rig.run(STMXCSR), Err(EmulateError::Fetch(CODE))));
}

proptest! {
    /// Whatever the guest has in its tables, registers and code: an answer, no panic.
    #[test]
    fn any_machine_gets_an_answer(
        code in prop::collection::vec(any::<u8>(), 15),
        opcode in 0usize..8,
        tables in prop::collection::vec((0u64..512 * 4, any::<u64>(), 0u64..4), 0..8),
        rdi in any::<u64>(),
        rip in prop_oneof![Just(CODE), any::<u64>(), 0x8ff0u64..0x9000],
        cr4 in any::<u64>(),
    ) {
        const STARTS: [&[u8]; 8] = [
            &[], &[0x48, 0x0f, 0xae, 0x27], &[0x48, 0x0f, 0xae, 0x2f], &[0x0f, 0xae],
            &[0xf3, 0x0f, 0xb8], &[0xf0, 0x48, 0x0f, 0xc7, 0x0f], &[0xdb], &[0x9b],
        ];
        let mut rig = Rig::new();
        for (slot, entry, kind) in tables {
            // Random entries, and random entries that lead into RAM.
            let entry = if kind == 0 { entry } else { entry & (RAM - 1) | P };
            put(&rig.memory, TABLES + slot * 8, entry);
        }
        rig.cpu.regs.rdi = rdi;
        rig.cpu.regs.rip = rip;
        rig.cpu.sregs.cr4 ^= cr4 & !(1 << 5);
        let code = [STARTS[opcode], &code].concat();
        let _ = rig.memory.write_slice(&code, GuestAddress(rip));
        let _ = complete_on(&mut rig.cpu, &rig.memory, &rig.layout);
    }
}
