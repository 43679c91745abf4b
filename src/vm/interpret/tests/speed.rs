//! How fast it is: printed, not asserted (`--release -- --nocapture speed`).

#![allow(unsafe_code)]

use std::arch::global_asm;
use std::ptr::NonNull;
use std::time::Instant;

use super::super::{Access, CodeCache, Memory, Ran, State, Stop, run};

// Code as a kernel's: frames, a list that is searched, a counter with LOCK, a
// small copy, a bitmap, callees in other pages. The list's nodes are
// (next, key, value, counter).
global_asm!(
    ".balign 4096",
    "vmrun_speed_start:",
    "push rbp",
    "mov rbp, rsp",
    "push rbx",
    "push r12",
    "mov rbx, rdi",
    "mov r12d, 1000",
    "2:",
    "mov rdi, rbx",
    "mov esi, r12d",
    "and esi, 15",
    "call vmrun_speed_search",
    "test rax, rax",
    "je 3f",
    "mov rdi, rax",
    "mov esi, r12d",
    "call vmrun_speed_use",
    "add qword ptr [rbx + 16], rax",
    "3:",
    "sub r12d, 1",
    "jne 2b",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    ".balign 4096",
    "vmrun_speed_search:",
    "mov rax, rdi",
    "jmp 3f",
    "2:",
    "mov rax, qword ptr [rax]",
    "test rax, rax",
    "je 4f",
    "3:",
    "cmp dword ptr [rax + 8], esi",
    "jne 2b",
    "4:",
    "ret",
    ".balign 4096",
    "vmrun_speed_use:",
    "push rbp",
    "mov rbp, rsp",
    "sub rsp, 40",
    "mov qword ptr [rbp - 8], rdi",
    "lock inc dword ptr [rdi + 24]",
    "movzx eax, byte ptr [rdi + 25]",
    "lea rdx, [rax + rsi * 4 + 5]",
    "mov rcx, qword ptr [rdi + 16]",
    "mov qword ptr [rbp - 40], rcx",
    "mov rcx, qword ptr [rdi + 8]",
    "mov qword ptr [rbp - 32], rcx",
    "xor ecx, ecx",
    "2:",
    "movzx r8d, byte ptr [rbp + rcx - 40]",
    "imul edx, edx, 31",
    "add edx, r8d",
    "inc ecx",
    "cmp ecx, 8",
    "jb 2b",
    "mov eax, edx",
    "shr eax, 7",
    "cmp edx, 1000",
    "cmovbe eax, edx",
    "bt rax, 5",
    "sbb ecx, ecx",
    "and ecx, 3",
    "add eax, ecx",
    "mov rdi, qword ptr [rbp - 8]",
    "mov dword ptr [rdi + 16], eax",
    "leave",
    "ret",
    ".balign 4096",
    "vmrun_speed_end:",
);

unsafe extern "C" {
    static vmrun_speed_start: u8;
    static vmrun_speed_end: u8;
}

const ENTRIES: usize = 256;

/// The address space of this process behind a table of pages seen last, as a
/// software TLB has it.
struct Process {
    pages: [(u64, u64); ENTRIES],
    code: (u64, u64),
    misses: u64,
}

impl Process {
    #[inline(never)]
    #[cold]
    fn miss(&mut self, page: u64) {
        self.misses += 1;
        self.pages[page as usize % ENTRIES] = (page, page << 12);
    }
}

impl Memory for Process {
    #[inline]
    fn host(&mut self, address: u64, len: usize, _access: Access) -> Option<NonNull<u8>> {
        let (page, offset) = (address >> 12, address & 4095);
        if offset + len as u64 > 4096 {
            return None;
        }
        if self.pages[page as usize % ENTRIES].0 != page {
            self.miss(page);
        }
        NonNull::new((self.pages[page as usize % ENTRIES].1 + offset) as *mut u8)
    }

    #[inline]
    fn code(&mut self, address: u64) -> Option<(u64, NonNull<u8>)> {
        let page = address & !4095;
        if page < self.code.0 || page >= self.code.1 {
            return None;
        }
        Some((page >> 12, NonNull::new(page as *mut u8)?))
    }
}

#[test]
fn speed() {
    let mut stack = vec![0u64; 512];
    let mut nodes = vec![[0u64; 4]; 16];
    for key in 0..15 {
        nodes[key] = [nodes[key + 1].as_ptr() as u64, key as u64, 1, 0];
    }
    let (start, end) = (&raw const vmrun_speed_start, &raw const vmrun_speed_end);
    let mut memory = Process {
        pages: [(0, 0); ENTRIES],
        code: (start as u64, end as u64),
        misses: 0,
    };
    let mut code = CodeCache::new();
    let calls = if cfg!(debug_assertions) { 3 } else { 1000 };
    let mut instructions = 0;
    let begin = Instant::now();
    for _ in 0..calls {
        let mut gpr = [0; 16];
        // The return address on top of the stack is 0, where there is no code.
        gpr[4] = &raw mut stack[511] as u64;
        gpr[7] = nodes.as_ptr() as u64;
        let mut state = State {
            gpr,
            rip: start as u64,
            rflags: 2,
            fs_base: 0,
            gs_base: 0,
        };
        let ran = run(&mut state, &mut memory, &mut code, u64::MAX);
        let expected = Ran {
            stop: Stop::Leave,
            instructions: ran.instructions,
        };
        assert_eq!((ran, state.rip), (expected, 0));
        instructions += ran.instructions;
    }
    let elapsed = begin.elapsed();
    let per_second = instructions as f64 / elapsed.as_secs_f64() / 1e6;
    println!(
        "{instructions} instructions in {elapsed:?}: {per_second:.0} M/s, {} misses",
        memory.misses
    );
}
