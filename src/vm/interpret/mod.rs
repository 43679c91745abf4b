//! Ring 0 in our own process: an interpreter for the 64-bit integer code of
//! a kernel, for hosts where KVM emulates ring 0 a thousand times slower.
//!
//! [`run`] executes instructions from [`State`] on until it meets one that it
//! does not know, or whose memory it must not touch: that one is left to KVM,
//! with nothing of it done.
//!
//! An instruction is decoded once, into an operation that names the function
//! that executes it (`decode`, `table`, `execute`), and kept by the frame that
//! its code is in (`cache`). Flags are computed when somebody looks (`flags`).
//! Guest memory is touched in `width` alone, each time through a pointer that
//! [`Memory::host`] gave for this very access.

mod cache;
mod cpu;
mod decode;
mod execute;
mod flags;
mod op;
mod run;
mod table;
#[cfg(test)]
mod tests;
mod width;

use std::ptr::NonNull;

pub use cache::CodeCache;
pub use run::run;

/// Bytes of a page of memory and of code.
const PAGE_BYTES: usize = 4096;

/// Integer state of a vCPU at ring 0 in 64-bit mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// General registers in encoding order: rax, rcx, rdx, rbx, rsp, rbp,
    /// rsi, rdi, r8 to r15.
    pub gpr: [u64; 16],
    /// Linear address of the next instruction.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// Base of FS.
    pub fs_base: u64,
    /// Base of GS.
    pub gs_base: u64,
}

/// What an instruction wants to do with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read only.
    Read,
    /// Write, or read and write.
    Write,
}

/// Guest memory as the interpreter sees it.
pub trait Memory {
    /// Host address of `len` bytes (1 to 4096) at the linear `address`; None
    /// when they are not all in one 4 KiB page, not mapped, not RAM, or must
    /// not be accessed this way: the instruction is then left to KVM, with no
    /// effect of it visible. The pointer is valid until the next call. Of an
    /// operand in two pages each part is asked for after the whole.
    fn host(&mut self, address: u64, len: usize, access: Access) -> Option<NonNull<u8>>;

    /// The page of code that `address` lies in: its guest frame number and
    /// its 4096 bytes. None as above.
    fn code(&mut self, address: u64) -> Option<(u64, NonNull<u8>)>;
}

/// Why [`run`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The instruction at `state.rip` has to be executed by KVM. Nothing of
    /// it has happened (a REP instruction may be part done, with the
    /// registers saying so).
    Leave,
    /// The budget is used up.
    Budget,
}

/// What [`run`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Why it stopped.
    pub stop: Stop,
    /// How many instructions were executed.
    pub instructions: u64,
}
