//! A decoded instruction, small enough for two or three in a cache line.

use super::cpu::NONE;

/// The operand is the immediate (in `Op::b` of locked operations).
pub(super) const IMMEDIATE: u8 = 0xff;
/// The count is CL (in `Op::immediate` of SHLD and SHRD).
pub(super) const BY_CL: u64 = u64::MAX;

/// One instruction, ready to be executed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Op {
    /// Index of the function that executes it: see [`super::table`].
    pub(super) handler: u16,
    /// Offset in its page of code.
    pub(super) at: u16,
    /// Offset of the instruction after it.
    pub(super) next: u16,
    /// Register that is the first operand.
    pub(super) a: u8,
    /// Register that is the second operand.
    pub(super) b: u8,
    pub(super) base: u8,
    pub(super) index: u8,
    /// Of the index, as a shift.
    pub(super) scale: u8,
    pub(super) segment: u8,
    pub(super) displacement: i32,
    /// Immediate, cut to the operand size; target of a branch, relative to
    /// the page of code.
    pub(super) immediate: u64,
}

impl Op {
    pub(super) const fn new(kind: Kind, slot: usize) -> Self {
        Self {
            handler: (kind as usize * SLOTS + slot) as u16,
            at: 0,
            next: 0,
            a: NONE,
            b: NONE,
            base: NONE,
            index: NONE,
            scale: 0,
            segment: NONE,
            displacement: 0,
            immediate: 0,
        }
    }
}

/// Slots of a row of handlers: six forms of four sizes, or sixteen conditions.
pub(super) const SLOTS: usize = 24;

/// Where operands are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Form {
    /// Register, register.
    RegReg,
    /// Register, memory.
    RegMem,
    /// Memory, register.
    MemReg,
    /// Register, immediate; or one register alone.
    RegImm,
    /// Memory, immediate; or memory alone.
    MemImm,
    /// Memory, register or immediate, atomically.
    Locked,
}

impl Form {
    /// The slot of this form with operands of 1 << `log2` bytes.
    pub(super) const fn slot(self, log2: usize) -> usize {
        self as usize * 4 + log2
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident,)*) => {
        /// What is done: a row of the table of handlers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(super) enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// Every kind, in order.
            pub(super) const ALL: [Kind; Kind::COUNT] = [$(Kind::$kind),*];
            pub(super) const COUNT: usize = [$(stringify!($kind)),*].len();
        }
    };
}

kinds! {
    /// Left to KVM.
    Leave,
    /// Lies in two pages.
    Cross,
    /// No instruction: goes on at `next`.
    Link,
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
    Cmp,
    Test,
    Mov,
    Inc,
    Dec,
    Neg,
    Not,
    Rol,
    Ror,
    Rcl,
    Rcr,
    Shl,
    Shr,
    Sar,
    Bt,
    Bts,
    Btr,
    Btc,
    Bsf,
    Bsr,
    Tzcnt,
    Lzcnt,
    Popcnt,
    Imul2,
    Imul3,
    Shld,
    Shrd,
    Mul,
    Imul,
    Div,
    Idiv,
    MovzxByte,
    MovzxWord,
    MovsxByte,
    MovsxWord,
    MovsxDword,
    Xchg,
    Xadd,
    Cmpxchg,
    Lea,
    Bswap,
    /// cbw, cwde, cdqe.
    ExtendA,
    /// cwd, cdq, cqo.
    ExtendD,
    /// Slots of the next five are conditions.
    Jcc,
    SetReg,
    SetMem,
    CmovReg,
    CmovMem,
    Jmp,
    JmpReg,
    JmpMem,
    Call,
    CallReg,
    CallMem,
    Ret,
    Jrcxz,
    Loop,
    Loope,
    Loopne,
    PushReg,
    PushMem,
    PushImm,
    PopReg,
    PopMem,
    LeaveFrame,
    Pushf,
    Popf,
    Clc,
    Stc,
    Cmc,
    Cld,
    Std,
    Cli,
    Sti,
    Lahf,
    Sahf,
    Nop,
    Mfence,
    Movs,
    Stos,
    Lods,
    Scas,
    Cmps,
}
