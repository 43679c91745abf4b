//! What the interface promises: the budget, the interrupt shadow, flags of
//! ring 0, code that changes, string instructions that stop.

use super::super::flags::{AC, CF, DF, ID, IF, IOPL, NT, RF, TF};
use super::super::{Ran, Stop};
use super::guest::{ALIAS, CODE, DATA, Guest, STACK};

const STI: u8 = 0xfb;
const CLI: u8 = 0xfa;
const HLT: u8 = 0xf4;
const NOP: u8 = 0x90;
const POPF: u8 = 0x9d;

const RAX: usize = 0;
const RCX: usize = 1;
const RSP: usize = 4;
const RSI: usize = 6;
const RDI: usize = 7;

pub(super) fn left(instructions: u64) -> Ran {
    Ran {
        stop: Stop::Leave,
        instructions,
    }
}

/// Runs a guest whose first instruction must be left without a trace.
pub(super) fn assert_left_whole(mut guest: Guest) {
    let state = guest.state.clone();
    let frames = guest.frames().to_vec();
    assert_eq!(guest.run(10), left(0));
    assert_eq!(guest.state, state);
    assert_eq!(guest.frames(), frames);
}

fn spent(instructions: u64) -> Ran {
    Ran {
        stop: Stop::Budget,
        instructions,
    }
}

#[test]
fn the_budget_is_kept_to_the_instruction() {
    let mut guest = Guest::new(&[NOP; 100]);
    assert_eq!(guest.run(70), spent(70));
    assert_eq!(guest.state.rip, CODE + 70);
    assert_eq!(guest.run(0), spent(0));
    assert_eq!(guest.state.rip, CODE + 70);
    // jmp to itself
    let mut guest = Guest::new(&[0xeb, 0xfe]);
    assert_eq!(guest.run(1001), spent(1001));
    assert_eq!(guest.state.rip, CODE);
}

#[test]
fn code_that_is_not_there_is_left() {
    let mut guest = Guest::new(&[0xff, 0xe0]);
    guest.state.gpr[RAX] = DATA;
    assert_eq!(guest.run(10), left(1));
    assert_eq!(guest.state.rip, DATA);
}

#[test]
fn tracing_and_resuming_are_left() {
    for flag in [TF, RF] {
        let mut guest = Guest::new(&[NOP]);
        guest.state.rflags |= flag;
        assert_left_whole(guest);
    }
}

#[test]
fn sti_and_what_is_left_are_left_together() {
    assert_left_whole(Guest::new(&[STI, HLT]));
    // An instruction that is left for its memory, and one that lies in two pages.
    assert_left_whole(Guest::new(&[STI, 0x8b, 0x00]));
    let mut guest = Guest::new(&[]);
    guest.put(CODE + 4096 - 2, &[STI, 0x8b, 0xc0]);
    guest.state.rip = CODE + 4096 - 2;
    assert_left_whole(guest);
    // Whatever is left of the budget.
    let mut guest = Guest::new(&[STI, HLT]);
    assert_eq!(guest.run(1), left(0));
    assert_eq!((guest.state.rip, guest.state.rflags), (CODE, 2));
}

#[test]
fn sti_and_what_is_known_run_together() {
    let mut guest = Guest::new(&[STI, NOP, NOP, HLT]);
    assert_eq!(guest.run(1).stop, Stop::Budget);
    assert_eq!((guest.state.rip, guest.state.rflags), (CODE + 2, 2 | IF));
    assert_eq!(guest.run(9), left(1));
    // The next one may be in the next page, and may branch.
    let mut guest = Guest::new(&[]);
    guest.put(CODE + 4095, &[STI, 0xeb, 0x10]);
    guest.put(CODE + 4096 + 0x12, &[HLT]);
    guest.state.rip = CODE + 4095;
    assert_eq!(guest.run(9), left(2));
    assert_eq!(guest.state.rip, CODE + 4096 + 0x12);
}

#[test]
fn sti_with_interrupts_on_has_no_shadow() {
    let mut guest = Guest::new(&[STI, HLT]);
    guest.state.rflags |= IF;
    assert_eq!(guest.run(9), left(1));
    assert_eq!((guest.state.rip, guest.state.rflags), (CODE + 1, 2 | IF));
}

#[test]
fn a_rep_that_got_on_ends_the_shadow() {
    let mut guest = Guest::new(&[STI, 0xf3, 0x48, 0xab]);
    guest.state.gpr[RCX] = 4;
    guest.state.gpr[RDI] = DATA + 8192 - 16;
    assert_eq!(guest.run(9).stop, Stop::Leave);
    assert_eq!((guest.state.rip, guest.state.rflags), (CODE + 1, 2 | IF));
    assert_eq!(guest.state.gpr[RCX], 2);
}

#[test]
fn cli_and_directions_change_their_flag() {
    let mut guest = Guest::new(&[STI, NOP, CLI, 0xfd, HLT]);
    assert_eq!(guest.run(9), left(4));
    assert_eq!(guest.state.rflags, 2 | DF);
}

#[test]
fn popf_changes_what_ring_0_may() {
    let mut guest = Guest::new(&[POPF]);
    let loaded = IF | DF | NT | AC | ID | IOPL | CF;
    guest.put_word(STACK + 2048, loaded | 1 << 40 | 1 << 3);
    assert_eq!(guest.run(1), spent(1));
    assert_eq!(guest.state.rflags, loaded | 2);
    assert_eq!(guest.state.gpr[RSP], STACK + 2056);
    for odd in [TF, RF, 1 << 17, 1 << 19, 1 << 20] {
        let mut guest = Guest::new(&[POPF]);
        guest.put_word(STACK + 2048, odd | 2);
        assert_left_whole(guest);
    }
}

#[test]
fn pushf_stores_all_flags() {
    let mut guest = Guest::new(&[0x9c]);
    guest.state.rflags = 2 | IF | IOPL | AC | ID | CF;
    assert_eq!(guest.run(1), spent(1));
    assert_eq!(guest.word(STACK + 2040), guest.state.rflags);
}

#[test]
fn an_instruction_may_lie_in_two_pages() {
    // mov rax, imm64; hlt
    let code = [0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, HLT];
    for split in 1..10 {
        let start = CODE + 4096 - split;
        let mut guest = Guest::new(&[]);
        guest.put(start, &code);
        guest.state.rip = start;
        assert_eq!(guest.run(9), left(1));
        assert_eq!(guest.state.gpr[RAX], 0x0807_0605_0403_0201);
        assert_eq!(guest.state.rip, start + 10);
        // Its second half changes, and only that page is invalidated.
        guest.put(start + 9, &[0xff]);
        guest.code.invalidate(guest.frame_number(start + 9));
        guest.state.rip = start;
        assert_eq!(guest.run(9), left(1));
        assert_eq!(guest.state.gpr[RAX], 0xff07_0605_0403_0201);
    }
    // call [rip+x] on the edge: relative to its end, in the second page.
    let mut guest = Guest::new(&[]);
    let start = CODE + 4096 - 3;
    guest.put(start, &[0xff, 0x15, 2, 0, 0, 0, HLT, HLT]);
    guest.put_word(start + 8, CODE);
    guest.state.rip = start;
    assert_eq!(guest.run(1), spent(1));
    assert_eq!(guest.state.rip, CODE);
    assert_eq!(guest.word(STACK + 2040), start + 6);
    // The second page is not there.
    let mut guest = Guest::new(&[]);
    guest.put(CODE + 8191, &[0x48]);
    guest.state.rip = CODE + 8191;
    assert_left_whole(guest);
}

#[test]
fn code_that_changed_is_decoded_again() {
    let mut guest = Guest::new(&[0xff, 0xc0, HLT]); // inc eax
    assert_eq!(guest.run(9), left(1));
    assert_eq!(guest.state.gpr[RAX], 1);
    guest.put(CODE, &[0xff, 0xc8, HLT]); // dec eax
    guest.code.invalidate(guest.frame_number(CODE));
    guest.state.rip = CODE;
    assert_eq!(guest.run(9), left(1));
    assert_eq!(guest.state.gpr[RAX], 0);
    guest.put(CODE, &[0xff, 0xc0, HLT]);
    guest.code.clear();
    guest.state.rip = CODE;
    assert_eq!(guest.run(9), left(1));
    assert_eq!(guest.state.gpr[RAX], 1);
}

#[test]
fn a_long_copy_stops_and_goes_on() {
    let mut guest = Guest::new(&[0xf3, 0xa4, HLT]); // rep movsb
    let bytes: [u8; 4096] = std::array::from_fn(|at| (at * 7) as u8);
    guest.put(DATA, &bytes);
    guest.state.gpr[RSI] = DATA + 1;
    guest.state.gpr[RDI] = DATA + 4096 + 30;
    guest.state.gpr[RCX] = 4000;
    let mut runs = 0;
    loop {
        let ran = guest.run(2);
        runs += 1;
        if ran.stop == Stop::Leave {
            break;
        }
        let done = 4000 - guest.state.gpr[RCX];
        assert_eq!(guest.state.gpr[RSI], DATA + 1 + done);
        assert_eq!(guest.state.gpr[RDI], DATA + 4096 + 30 + done);
    }
    assert!(runs > 2, "done in {runs} runs");
    assert_eq!((guest.state.rip, guest.state.gpr[RCX]), (CODE + 2, 0));
    assert_eq!(guest.bytes::<4000>(DATA + 4096 + 30), bytes[1..4001]);
}

#[test]
fn a_copy_onto_itself_repeats_its_beginning() {
    // Through the same address, and through another one of the same page.
    for to in [DATA, ALIAS] {
        let mut guest = Guest::new(&[0xf3, 0xa4, HLT]);
        guest.put(DATA, b"abc");
        guest.state.gpr[RSI] = DATA;
        guest.state.gpr[RDI] = to + 3;
        guest.state.gpr[RCX] = 300;
        assert_eq!(guest.run(10_000).stop, Stop::Leave);
        let expected: [u8; 303] = std::array::from_fn(|at| b"abc"[at % 3]);
        assert_eq!(guest.bytes::<303>(DATA), expected);
    }
}

#[test]
fn what_is_refused_in_one_piece_goes_by_the_element() {
    let mut guest = Guest::new(&[0xf3, 0x48, 0xab, HLT]); // rep stosq
    guest.longest = 8;
    guest.state.gpr[RAX] = 0x0123_4567_89ab_cdef;
    guest.state.gpr[RDI] = DATA + 4096 - 40;
    guest.state.gpr[RCX] = 10;
    assert_eq!(guest.run(11), left(10));
    for element in 0..10 {
        assert_eq!(
            guest.word(DATA + 4096 - 40 + element * 8),
            guest.state.gpr[RAX]
        );
    }
}

#[test]
fn a_rep_that_is_refused_later_says_how_far_it_came() {
    let mut guest = Guest::new(&[0xf3, 0x48, 0xa5, HLT]); // rep movsq
    guest.state.gpr[RSI] = DATA;
    guest.state.gpr[RDI] = DATA + 8192 - 80;
    guest.state.gpr[RCX] = 20;
    assert_eq!(guest.run(100).stop, Stop::Leave);
    assert_eq!((guest.state.rip, guest.state.gpr[RCX]), (CODE, 10));
    assert_eq!(guest.state.gpr[RSI], DATA + 80);
    assert_eq!(guest.state.gpr[RDI], DATA + 8192);
}

#[test]
fn fs_and_gs_have_bases() {
    // mov rax, fs:[8]; mov rdx, gs:[rax]; lea rcx, gs:[rax]; hlt
    let mut guest = Guest::new(&[
        0x64, 0x48, 0x8b, 0x04, 0x25, 8, 0, 0, 0, 0x65, 0x48, 0x8b, 0x10, 0x65, 0x48, 0x8d, 0x08,
        HLT,
    ]);
    guest.state.fs_base = DATA;
    guest.state.gs_base = DATA + 0x100;
    guest.put_word(DATA + 8, 0x20);
    guest.put_word(DATA + 0x120, 42);
    assert_eq!(guest.run(9), left(3));
    assert_eq!(guest.state.gpr[..3], [0x20, 0x20, 42]);
}

#[test]
fn one_page_of_code_may_be_at_two_addresses() {
    let mut guest = Guest::new(&[0x48, 0x8d, 0x05, 0, 0, 0, 0, HLT]); // lea rax, [rip]
    guest.code_everywhere = true;
    assert_eq!(guest.run(9), left(1));
    assert_eq!(guest.state.gpr[RAX], CODE + 7);
    let code: [u8; 8] = guest.bytes(CODE);
    guest.put(DATA, &code);
    for address in [DATA, ALIAS] {
        guest.state.rip = address;
        assert_eq!(guest.run(9), left(1));
        assert_eq!(guest.state.gpr[RAX], address + 7);
    }
}

#[test]
fn an_operand_may_lie_in_two_pages() {
    // mov [rax], rbx; mov rcx, [rax + 1]; push rbx; pop rdx; hlt
    let code = [0x48, 0x89, 0x18, 0x48, 0x8b, 0x48, 1, 0x53, 0x5a, HLT];
    for offset in 4088..4100 {
        let mut guest = Guest::new(&code);
        guest.put(DATA + offset + 8, &[0x99]);
        guest.state.gpr[RAX] = DATA + offset;
        guest.state.gpr[3] = 0x8877_6655_4433_2211;
        guest.state.gpr[RSP] = DATA + offset + 16;
        assert_eq!(guest.run(9), left(4));
        assert_eq!(guest.word(DATA + offset), 0x8877_6655_4433_2211);
        assert_eq!(guest.state.gpr[RCX], 0x9988_7766_5544_3322);
        assert_eq!(guest.state.gpr[2], 0x8877_6655_4433_2211);
    }
}
