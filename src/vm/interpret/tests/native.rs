//! Runs instructions on the CPU, with all registers under control.

#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ptr;

use super::Pages;

const PAGE: usize = 4096;
/// Pages of the mapping: code, registers, and what instructions work on.
const PAGES: usize = 4;
/// Offsets in the page of registers.
const FLAGS: usize = 16;
const HOST_RSP: usize = 40;
const TAKEN: usize = 41;
const OUT: usize = 48;

/// The registers before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) gpr: [u64; 16],
    pub(super) rflags: u64,
}

/// A mapping below 2 GiB, so that absolute 32-bit addresses reach it.
pub(super) struct Native {
    start: *mut u8,
    /// Offset of the code under test in its page, and behind it.
    at: usize,
    end: usize,
}

/// Bytes between the end of the code under test and where branches lead.
pub(super) const BRANCH: u8 = 9;

impl Native {
    pub(super) fn new() -> Self {
        // SAFETY: a fresh anonymous mapping.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                PAGES * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
                -1,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        Self {
            start: start.cast(),
            at: 0,
            end: 0,
        }
    }

    fn base(&self) -> u64 {
        self.start as u64
    }

    /// Where the data starts, and how many bytes it has.
    pub(super) fn data_range(&self) -> (u64, u64) {
        (self.base() + 2 * PAGE as u64, 2 * PAGE as u64)
    }

    /// The data, which nothing else uses while this is borrowed.
    pub(super) fn data(&mut self) -> &mut [u8] {
        // SAFETY: inside of the mapping, borrowed with it, and never executed.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(2 * PAGE), 2 * PAGE) }
    }

    /// As the interpreter sees it.
    pub(super) fn memory(&mut self) -> Pages<'_> {
        Pages {
            data: self.data_range(),
            code: self.base(),
            _pages: PhantomData,
        }
    }

    /// Where the code under test starts.
    pub(super) fn rip(&self) -> u64 {
        self.base() + self.at as u64
    }

    /// Where it goes on if no branch was taken.
    pub(super) fn behind(&self) -> u64 {
        self.base() + self.end as u64
    }

    /// Where taken branches lead.
    pub(super) fn target(&self) -> u64 {
        self.behind() + u64::from(BRANCH)
    }

    /// Puts `code` between what loads the registers and what stores them.
    pub(super) fn place(&mut self, code: &[u8]) {
        let mut page = Code(Vec::new());
        // push rbx, rbp, r12-r15
        page.put(&[0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57]);
        page.register(0x89, 4, HOST_RSP);
        page.slot(&[0xff, 0x35], FLAGS); // push
        page.put(&[0x9d]); // popfq
        for register in 0..16 {
            page.register(0x8b, register, usize::from(register));
        }
        self.at = page.0.len();
        page.put(code);
        self.end = page.0.len();
        page.taken(0);
        page.put(&[0xeb, 7]); // jmp over the next
        assert_eq!(page.0.len() - self.end, usize::from(BRANCH));
        page.taken(1);
        for register in 0..16 {
            page.register(0x89, register, OUT + usize::from(register));
        }
        page.register(0x8b, 4, HOST_RSP);
        page.put(&[0x9c]); // pushfq
        page.slot(&[0x8f, 0x05], OUT + FLAGS); // pop
        page.put(&[0xfc]); // cld
        page.put(&[
            0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3,
        ]);
        assert!(page.0.len() <= PAGE);
        self.protect(libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: the page is ours, writable, and has room for the code.
        unsafe { ptr::copy_nonoverlapping(page.0.as_ptr(), self.start, page.0.len()) };
        self.protect(libc::PROT_READ | libc::PROT_EXEC);
    }

    fn protect(&self, protection: i32) {
        // SAFETY: the page of code is ours and does not run at the moment.
        let result = unsafe { libc::mprotect(self.start.cast(), PAGE, protection) };
        assert_eq!(result, 0);
    }

    fn slots(&mut self) -> &mut [u64] {
        // SAFETY: the page of registers, borrowed with the mapping; page-aligned.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(PAGE).cast(), PAGE / 8) }
    }

    /// Runs the code under test: the registers afterwards, and whether it
    /// ended at the branch target. All that it accesses must be in the data.
    pub(super) fn run(&mut self, registers: &Registers) -> (Registers, bool) {
        let slots = self.slots();
        slots[..16].copy_from_slice(&registers.gpr);
        slots[FLAGS] = registers.rflags;
        // SAFETY: `place` put a function there that keeps what callees must keep; the
        // code in it was executed by the interpreter before, within the data.
        unsafe {
            let function: extern "sysv64" fn() = std::mem::transmute(self.start);
            function();
        }
        let slots = self.slots();
        let mut after = Registers {
            gpr: [0; 16],
            rflags: slots[OUT + FLAGS],
        };
        after.gpr.copy_from_slice(&slots[OUT..OUT + 16]);
        (after, slots[TAKEN] & 0xff != 0)
    }

    /// The base of GS of this thread, which nothing else uses.
    pub(super) fn set_gs_base(&self, base: u64) {
        const ARCH_SET_GS: i32 = 0x1001;
        // SAFETY: neither Rust nor the C library use GS in 64-bit programs.
        let result = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) };
        assert_eq!(result, 0);
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.cast(), PAGES * PAGE) };
    }
}

/// Code that is being put together for the beginning of the mapping.
struct Code(Vec<u8>);

impl Code {
    fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// An instruction whose operand is a slot of the page of registers.
    fn slot(&mut self, opcode: &[u8], slot: usize) {
        self.put(opcode);
        let displacement = PAGE + slot * 8 - (self.0.len() + 4);
        self.put(&(displacement as i32).to_le_bytes());
    }

    /// MOV between a register and a slot.
    fn register(&mut self, opcode: u8, register: u8, slot: usize) {
        let rex = 0x48 | (register >> 3) << 2;
        self.slot(&[rex, opcode, 0x05 | (register & 7) << 3], slot);
    }

    /// Notes whether the branch was taken.
    fn taken(&mut self, taken: u8) {
        self.put(&[0xc6, 0x05]);
        let displacement = PAGE + TAKEN * 8 - (self.0.len() + 5);
        self.put(&(displacement as i32).to_le_bytes());
        self.put(&[taken]);
    }
}
