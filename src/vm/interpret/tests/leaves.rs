//! What is left to KVM, and that nothing of it has happened then.

use super::super::flags::CF;
use super::guest::{CODE, DATA, Guest, SEALED, STACK};
use super::rules::assert_left_whole;

const HLT: u8 = 0xf4;
const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSP: usize = 4;
const RSI: usize = 6;
const RDI: usize = 7;

#[test]
fn what_is_not_known_is_left() {
    let codes: &[(&str, &[u8])] = &[
        ("hlt", &[HLT]),
        ("in", &[0xec]),
        ("out", &[0xe6, 0x80]),
        ("ins", &[0x6c]),
        ("outs", &[0xf3, 0x6f]),
        ("iretq", &[0x48, 0xcf]),
        ("sysretq", &[0x48, 0x0f, 0x07]),
        ("syscall", &[0x0f, 0x05]),
        ("swapgs", &[0x0f, 0x01, 0xf8]),
        ("mov rax, cr0", &[0x0f, 0x20, 0xc0]),
        ("mov cr3, rax", &[0x0f, 0x22, 0xd8]),
        ("mov dr7, rax", &[0x0f, 0x23, 0xf8]),
        ("rdmsr", &[0x0f, 0x32]),
        ("wrmsr", &[0x0f, 0x30]),
        ("rdtsc", &[0x0f, 0x31]),
        ("rdtscp", &[0x0f, 0x01, 0xf9]),
        ("rdpmc", &[0x0f, 0x33]),
        ("cpuid", &[0x0f, 0xa2]),
        ("lgdt", &[0x0f, 0x01, 0x10]),
        ("sgdt", &[0x0f, 0x01, 0x00]),
        ("ltr", &[0x0f, 0x00, 0xd8]),
        ("invlpg", &[0x0f, 0x01, 0x38]),
        ("wbinvd", &[0x0f, 0x09]),
        ("clts", &[0x0f, 0x06]),
        ("stac", &[0x0f, 0x01, 0xcb]),
        ("int3", &[0xcc]),
        ("int 80", &[0xcd, 0x80]),
        ("ud2", &[0x0f, 0x0b]),
        ("mov ds, ax", &[0x8e, 0xd8]),
        ("mov ax, ds", &[0x66, 0x8c, 0xd8]),
        ("push fs", &[0x0f, 0xa0]),
        ("pop gs", &[0x0f, 0xa9]),
        ("lretq", &[0x48, 0xcb]),
        ("ljmp [rax]", &[0xff, 0x28]),
        ("lcall [rax]", &[0xff, 0x18]),
        ("fwait", &[0x9b]),
        ("fninit", &[0xdb, 0xe3]),
        ("fxsave [rax]", &[0x0f, 0xae, 0x00]),
        ("xsave [rax]", &[0x0f, 0xae, 0x20]),
        ("clflush [rax]", &[0x0f, 0xae, 0x38]),
        ("movsd xmm0, [rax]", &[0xf2, 0x0f, 0x10, 0x00]),
        ("cmpsd xmm0, xmm1, 0", &[0xf2, 0x0f, 0xc2, 0xc1, 0x00]),
        ("movq mm0, rax", &[0x48, 0x0f, 0x6e, 0xc0]),
        ("andn eax, eax, eax", &[0xc4, 0xe2, 0x78, 0xf2, 0xc0]),
        ("vzeroupper", &[0xc5, 0xf8, 0x77]),
        ("cmpxchg8b [rax]", &[0x0f, 0xc7, 0x08]),
        ("cmpxchg16b [rax]", &[0xf0, 0x48, 0x0f, 0xc7, 0x08]),
        ("rdrand rax", &[0x48, 0x0f, 0xc7, 0xf0]),
        ("rdfsbase rax", &[0xf3, 0x48, 0x0f, 0xae, 0xc0]),
        ("monitor", &[0x0f, 0x01, 0xc8]),
        ("vmcall", &[0x0f, 0x01, 0xc1]),
        ("mov eax, [eax]", &[0x67, 0x8b, 0x00]),
        (
            "mov eax, [disp32], 32-bit",
            &[0x67, 0x8b, 0x04, 0x25, 0, 0, 0, 0x80],
        ),
        ("jecxz", &[0x67, 0xe3, 0]),
        ("rep movsb, 32-bit", &[0x67, 0xf3, 0xa4]),
        ("push ax", &[0x66, 0x50]),
        ("pushfw", &[0x66, 0x9c]),
        ("popfw", &[0x66, 0x9d]),
        ("retw", &[0x66, 0xc3]),
        ("callw", &[0x66, 0xe8, 0, 0]),
        ("jmp, with operand size", &[0x66, 0xeb, 0]),
        ("je, with operand size", &[0x66, 0x74, 0]),
        ("bswap ax", &[0x66, 0x0f, 0xc8]),
        ("enter", &[0xc8, 0, 0, 0]),
        ("xlat", &[0xd7]),
        ("lock add eax, eax", &[0xf0, 0x01, 0xc0]),
        ("lock mov [rax], eax", &[0xf0, 0x89, 0x00]),
        ("invalid", &[0x06]),
        ("div by 0", &[0xf7, 0xf3]),
        ("idiv by 0", &[0x48, 0xf7, 0xfb]),
    ];
    for (name, code) in codes {
        println!("{name}");
        let mut guest = Guest::new(code);
        guest.state.gpr[RAX] = DATA;
        guest.state.gpr[RSI] = DATA;
        guest.state.gpr[RDI] = DATA;
        guest.state.gpr[RCX] = 2;
        guest.put_word(STACK + 2048, CODE);
        assert_left_whole(guest);
    }
}

#[test]
fn divisions_that_overflow_are_left() {
    let codes: &[(&[u8], u64, u64, u64)] = &[
        (&[0xf6, 0xf3], 0x0100, 0, 1),
        (&[0xf6, 0xfb], 0xff80, 0, 0xff),
        (&[0x66, 0xf7, 0xf3], 0, 1, 1),
        (&[0x66, 0xf7, 0xfb], 0x8000, 0xffff, 0xffff),
        (&[0xf7, 0xf3], 0, 1, 1),
        (&[0xf7, 0xfb], 0x8000_0000, 0xffff_ffff, 0xffff_ffff),
        (&[0x48, 0xf7, 0xf3], 0, 1, 1),
        (&[0x48, 0xf7, 0xfb], 1 << 63, u64::MAX, u64::MAX),
        (&[0x48, 0xf7, 0xfb], 0, 1 << 63, u64::MAX),
    ];
    for (code, rax, rdx, rbx) in codes {
        let mut guest = Guest::new(code);
        guest.state.gpr[RAX] = *rax;
        guest.state.gpr[RDX] = *rdx;
        guest.state.gpr[RBX] = *rbx;
        assert_left_whole(guest);
    }
}

#[test]
fn a_refused_access_leaves_no_trace() {
    const BAD: u64 = 0xffff_8000_0000_0000;
    // With rax as an address that is refused, rbx one that is not.
    let codes: &[(&str, &[u8])] = &[
        ("mov [rax], rbx", &[0x48, 0x89, 0x18]),
        ("mov rbx, [rax]", &[0x48, 0x8b, 0x18]),
        ("add [rax], rbx", &[0x48, 0x01, 0x18]),
        ("add rbx, [rax]", &[0x48, 0x03, 0x18]),
        ("cmp [rax], rbx", &[0x48, 0x39, 0x18]),
        ("lock add [rax], rbx", &[0xf0, 0x48, 0x01, 0x18]),
        ("push [rax]", &[0xff, 0x30]),
        ("pop [rax]", &[0x8f, 0x00]),
        ("call [rax]", &[0xff, 0x10]),
        ("jmp [rax]", &[0xff, 0x20]),
        ("xchg [rax], rbx", &[0x48, 0x87, 0x18]),
        ("xadd [rax], rbx", &[0x48, 0x0f, 0xc1, 0x18]),
        ("cmpxchg [rax], rbx", &[0x48, 0x0f, 0xb1, 0x18]),
        ("setb [rax]", &[0x0f, 0x92, 0x00]),
        ("cmovb rbx, [rax]", &[0x48, 0x0f, 0x42, 0x18]),
        ("bts [rax], rbx", &[0x48, 0x0f, 0xab, 0x18]),
        ("shl [rax], 1", &[0x48, 0xd1, 0x20]),
        ("shld [rax], rbx, 3", &[0x48, 0x0f, 0xa4, 0x18, 3]),
        ("mul [rax]", &[0x48, 0xf7, 0x20]),
        ("div [rax]", &[0x48, 0xf7, 0x30]),
        ("movzx ebx, [rax]", &[0x0f, 0xb6, 0x18]),
        ("stosq", &[0x48, 0xab]),
        ("movsq", &[0x48, 0xa5]),
        ("rep stosq", &[0xf3, 0x48, 0xab]),
        ("rep movsq", &[0xf3, 0x48, 0xa5]),
    ];
    for (name, code) in codes {
        println!("{name}");
        // Not mapped; and, unless it is one byte, from a page that is mapped into one
        // that is not.
        let edge = DATA + 8191;
        let byte = name.starts_with("setb") || name.starts_with("movzx");
        for address in [BAD, edge].into_iter().take(2 - usize::from(byte)) {
            let mut guest = Guest::new(code);
            guest.state.gpr[RAX] = address;
            guest.state.gpr[RBX] = 5;
            guest.state.gpr[RCX] = 5;
            guest.state.gpr[RSI] = DATA;
            guest.state.gpr[RDI] = address;
            guest.state.rflags |= CF;
            assert_left_whole(guest);
        }
    }
    // A stack that cannot be written, for what reads memory first.
    for code in [
        &[0xff, 0x30][..],
        &[0xff, 0x10],
        &[0x50],
        &[0x9c],
        &[0xe8, 0, 0, 0, 0],
    ] {
        let mut guest = Guest::new(code);
        guest.state.gpr[RAX] = DATA;
        guest.put_word(DATA, CODE);
        guest.state.gpr[RSP] = SEALED + 64;
        assert_left_whole(guest);
    }
}

#[test]
fn atomic_operations_that_are_not_aligned_are_left() {
    for code in [
        &[0xf0, 0x48, 0x01, 0x18][..],
        &[0x48, 0x87, 0x18],
        &[0xf0, 0x48, 0x0f, 0xc1, 0x18],
        &[0xf0, 0x48, 0x0f, 0xb1, 0x18],
        &[0xf0, 0x48, 0xff, 0x00],
        &[0xf0, 0x0f, 0xba, 0x28, 3],
    ] {
        let mut guest = Guest::new(code);
        guest.state.gpr[RAX] = DATA + 2;
        assert_left_whole(guest);
    }
}

#[test]
fn branches_to_addresses_that_are_not_canonical_are_left() {
    for code in [
        &[0xff, 0xe0][..],
        &[0xff, 0xd0],
        &[0xff, 0x23],
        &[0xff, 0x13],
        &[0xc3],
    ] {
        let mut guest = Guest::new(code);
        guest.state.gpr[RAX] = 1 << 47;
        guest.state.gpr[RBX] = DATA;
        guest.put_word(DATA, 1 << 47);
        guest.put_word(STACK + 2048, 1 << 47);
        assert_left_whole(guest);
    }
}
