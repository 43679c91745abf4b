use super::*;

#[test]
fn int3_traps_behind_itself() {
    for code in [&[0xcc][..], &[0xcd, 3]] {
        let mut rig = Rig::new();
        let done = rig.run(code).unwrap();
        assert_eq!(done, Completed::Raised(Exception::BREAKPOINT));
        assert_eq!(rig.cpu.raised, Some(Exception::BREAKPOINT));
        assert_eq!(rig.cpu.regs.rip, CODE + code.len() as u64);
    }
}

#[test]
fn ud2_faults_at_itself() {
    Rig::new().faults(&[0x0f, 0x0b], Exception::INVALID_OPCODE);
    // ud1 eax, [rdi]
    Rig::new().faults(&[0x0f, 0xb9, 0x07], Exception::INVALID_OPCODE);
}

#[test]
fn popcnt_counts_in_each_width() {
    let mut rig = Rig::new();
    rig.cpu.regs.rbx = 0xf0f0_0000_ffff_0001;
    rig.cpu.regs.rflags = 0x8d5 | 2;
    rig.retires(&[0xf3, 0x48, 0x0f, 0xb8, 0xc3]); // popcnt rax, rbx
    assert_eq!((rig.cpu.regs.rax, rig.cpu.regs.rflags), (25, 2));
    rig.cpu.regs.rax = u64::MAX;
    rig.retires(&[0xf3, 0x0f, 0xb8, 0xc3]); // popcnt eax, ebx
    assert_eq!(rig.cpu.regs.rax, 17);
    rig.cpu.regs.rax = u64::MAX;
    rig.retires(&[0x66, 0xf3, 0x0f, 0xb8, 0xc3]); // popcnt ax, bx
    assert_eq!(rig.cpu.regs.rax, 0xffff_ffff_ffff_0001);
    rig.retires(&[0xf3, 0x44, 0x0f, 0xb8, 0x07]); // popcnt r8d, [rdi]
    assert_eq!((rig.cpu.regs.r8, rig.cpu.regs.rflags), (0, 0x42));
}

#[test]
fn clac_and_stac_change_only_the_flag() {
    let mut rig = Rig::new();
    rig.retires(&[0x0f, 0x01, 0xcb]);
    assert_eq!(rig.cpu.regs.rflags, 0x4_0002);
    rig.retires(&[0x0f, 0x01, 0xca]);
    assert_eq!(rig.cpu.regs.rflags, 2);
}

#[test]
fn cmpxchg16b_swaps_only_what_is_equal() {
    const CODE: &[u8] = &[0xf0, 0x48, 0x0f, 0xc7, 0x0f]; // lock cmpxchg16b [rdi]
    let mut rig = Rig::new();
    put(&rig.memory, DATA, 1);
    put(&rig.memory, DATA + 8, 2);
    (rig.cpu.regs.rax, rig.cpu.regs.rdx) = (1, 3);
    (rig.cpu.regs.rbx, rig.cpu.regs.rcx) = (10, 20);
    rig.retires(CODE);
    assert_eq!((rig.cpu.regs.rax, rig.cpu.regs.rdx), (1, 2));
    assert_eq!(rig.cpu.regs.rflags & 0x40, 0);
    assert_eq!(get(&rig.memory, DATA), 1);
    rig.retires(CODE);
    assert_eq!(rig.cpu.regs.rflags & 0x40, 0x40);
    assert_eq!(
        (get(&rig.memory, DATA), get(&rig.memory, DATA + 8)),
        (10, 20)
    );
    map(&rig.memory, DATA, DATA | P);
    rig.faults(CODE, Exception::page_fault(DATA, 3));
    rig.cpu.regs.rdi += 0x1008;
    rig.faults(CODE, Exception::PROTECTION);
}

#[test]
fn hints_and_fences_are_passed_over() {
    for code in [
        &[0x0f, 0xae, 0xe8][..],   // lfence
        &[0x0f, 0xae, 0xf0],       // mfence
        &[0x0f, 0xae, 0xf8],       // sfence
        &[0xf3, 0x90],             // pause
        &[0x0f, 0x09],             // wbinvd
        &[0x0f, 0x18, 0x0f],       // prefetcht0 [rdi]
        &[0xf3, 0x0f, 0x1e, 0xfa], // endbr64
    ] {
        Rig::new().retires(code);
    }
}

#[test]
fn what_is_unknown_is_named() {
    let mut rig = Rig::new();
    let code = [0x0f, 0xc7, 0xf0]; // rdrand eax
    let error = rig.run(&code).unwrap_err().to_string();
    assert!(
        error.starts_with("RIP 0x8000: Rdrand_r32 (0f c7 f0"),
        "{error}"
    );
    let error = rig.run(&[0xf0, 0x0f, 0x0b]).unwrap_err().to_string();
    assert!(error.contains("INVALID (f0 0f 0b"), "{error}");
}

#[test]
fn the_resume_flag_ends_with_the_instruction_and_stays_with_a_fault() {
    let mut rig = Rig::new();
    rig.cpu.regs.rflags = 0x1_0002;
    rig.faults(&[0x0f, 0x0b], Exception::INVALID_OPCODE);
    rig.retires(&[0x9b]);
    assert_eq!(rig.cpu.regs.rflags, 2);
}

#[test]
fn only_64_bit_ring_0() {
    let mut rig = Rig::new();
    rig.cpu.sregs.cs.selector = 0x33;
    assert!(matches!(
        rig.run(&[0x9b]),
        Err(EmulateError::Mode { ring: 3, .. })
    ));
    let mut rig = Rig::new();
    rig.cpu.sregs.cs.l = 0;
    assert!(matches!(rig.run(&[0x9b]), Err(EmulateError::Mode { .. })));
}
