//! Which function executes what: a row for every [`Kind`].

use super::Memory;
use super::execute::arithmetic::{
    Adc, Add, And, Cmp, Dec, Inc, Mov, Neg, Not, Or, Sbb, Sub, Test, Xor,
};
use super::execute::bits::{Bt, Btc, Btr, Bts, Lzcnt, Popcnt, Tzcnt, scan};
use super::execute::branch::{self, cross, jcc, leave, link};
use super::execute::exchange::{cmpxchg, xadd_mem, xadd_reg, xchg_mem, xchg_reg};
use super::execute::forms::{locked, mem_imm, mem_reg, reg_imm, reg_mem, reg_reg};
use super::execute::multiply::{Imul2, divide, imul3, multiply};
use super::execute::shift::{Rcl, Rcr, Rol, Ror, Sar, Shl, Shr, double_mem, double_reg};
use super::execute::string::{cmps, lods, movs, scas, stos};
use super::execute::transfer::{
    bswap, cmov_mem, cmov_reg, extend_a, extend_d, lea, set_mem, set_reg, widen_mem, widen_reg,
};
use super::execute::{Handler, stack, system};
use super::op::{Form, Kind, SLOTS};

type Row<M> = [Handler<M>; SLOTS];

/// The table of handlers, for one type of memory.
pub(super) struct Table<M>(std::marker::PhantomData<M>);

/// The same function in every slot.
macro_rules! one {
    ($handler:expr) => {
        [$handler; SLOTS]
    };
}

/// A row with the given forms; the slots of others leave the instruction.
/// Each form is a function, with its type parameters before the width.
macro_rules! forms {
    ($($form:ident: $function:ident [$($before:tt)*]),* $(,)?) => {{
        let mut row: Row<M> = [leave::<M>; SLOTS];
        $(
            row[Form::$form.slot(0)] = $function::<$($before)* u8, M>;
            row[Form::$form.slot(1)] = $function::<$($before)* u16, M>;
            row[Form::$form.slot(2)] = $function::<$($before)* u32, M>;
            row[Form::$form.slot(3)] = $function::<$($before)* u64, M>;
        )*
        row
    }};
}

/// An operation that takes every form.
macro_rules! binary {
    ($operation:ident) => {
        forms!(
            RegReg: reg_reg [$operation,], RegMem: reg_mem [$operation,],
            MemReg: mem_reg [$operation,], RegImm: reg_imm [$operation,],
            MemImm: mem_imm [$operation,], Locked: locked [$operation,],
        )
    };
}

/// One that has no atomic form.
macro_rules! plain {
    ($operation:ident) => {
        forms!(
            RegReg: reg_reg [$operation,], RegMem: reg_mem [$operation,],
            MemReg: mem_reg [$operation,], RegImm: reg_imm [$operation,],
            MemImm: mem_imm [$operation,],
        )
    };
}

/// One operand, which is read and written.
macro_rules! unary {
    ($operation:ident) => {
        forms!(
            RegImm: reg_imm [$operation,], MemImm: mem_imm [$operation,],
            Locked: locked [$operation,],
        )
    };
}

/// The count is an immediate or CL.
macro_rules! shift {
    ($operation:ident) => {
        forms!(
            RegReg: reg_reg [$operation,], MemReg: mem_reg [$operation,],
            RegImm: reg_imm [$operation,], MemImm: mem_imm [$operation,],
        )
    };
}

/// The result goes to a register.
macro_rules! to_register {
    ($operation:ident) => {
        forms!(RegReg: reg_reg [$operation,], RegMem: reg_mem [$operation,])
    };
}

/// One source operand besides RAX and RDX.
macro_rules! source {
    ($function:ident [$($before:tt)*]) => {
        forms!(
            RegReg: $function [$($before)* false,], RegMem: $function [$($before)* true,],
        )
    };
}

/// No operands but the width.
macro_rules! sized {
    ($function:ident) => {{
        let mut row: Row<M> = [leave::<M>; SLOTS];
        row[0] = $function::<u8, M>;
        row[1] = $function::<u16, M>;
        row[2] = $function::<u32, M>;
        row[3] = $function::<u64, M>;
        row
    }};
}

/// A slot for each condition.
macro_rules! conditions {
    ($function:ident) => {{
        let mut row: Row<M> = [leave::<M>; SLOTS];
        conditions!(row, $function: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        row
    }};
    ($row:ident, $function:ident: $($code:literal)*) => {
        $($row[$code] = $function::<$code, M>;)*
    };
}

impl<M: Memory> Table<M> {
    /// The handlers by [`super::op::Op::handler`].
    pub(super) const HANDLERS: [Handler<M>; Kind::COUNT * SLOTS] = {
        let mut handlers = [leave::<M> as Handler<M>; Kind::COUNT * SLOTS];
        let mut kind = 0;
        while kind < Kind::COUNT {
            let row = Self::row(Kind::ALL[kind]);
            let mut slot = 0;
            while slot < SLOTS {
                handlers[kind * SLOTS + slot] = row[slot];
                slot += 1;
            }
            kind += 1;
        }
        handlers
    };

    const fn row(kind: Kind) -> Row<M> {
        match kind {
            Kind::Leave => one!(leave::<M>),
            Kind::Cross => one!(cross::<M>),
            Kind::Link => one!(link::<M>),
            Kind::Add => binary!(Add),
            Kind::Or => binary!(Or),
            Kind::Adc => binary!(Adc),
            Kind::Sbb => binary!(Sbb),
            Kind::And => binary!(And),
            Kind::Sub => binary!(Sub),
            Kind::Xor => binary!(Xor),
            Kind::Cmp => plain!(Cmp),
            Kind::Test => plain!(Test),
            Kind::Mov => plain!(Mov),
            Kind::Inc => unary!(Inc),
            Kind::Dec => unary!(Dec),
            Kind::Neg => unary!(Neg),
            Kind::Not => unary!(Not),
            Kind::Rol => shift!(Rol),
            Kind::Ror => shift!(Ror),
            Kind::Rcl => shift!(Rcl),
            Kind::Rcr => shift!(Rcr),
            Kind::Shl => shift!(Shl),
            Kind::Shr => shift!(Shr),
            Kind::Sar => shift!(Sar),
            Kind::Bt => plain!(Bt),
            Kind::Bts => binary!(Bts),
            Kind::Btr => binary!(Btr),
            Kind::Btc => binary!(Btc),
            Kind::Bsf => source!(scan [false,]),
            Kind::Bsr => source!(scan [true,]),
            Kind::Tzcnt => to_register!(Tzcnt),
            Kind::Lzcnt => to_register!(Lzcnt),
            Kind::Popcnt => to_register!(Popcnt),
            Kind::Imul2 => to_register!(Imul2),
            Kind::Imul3 => source!(imul3 []),
            Kind::Shld => forms!(RegReg: double_reg [true,], MemReg: double_mem [true,]),
            Kind::Shrd => forms!(RegReg: double_reg [false,], MemReg: double_mem [false,]),
            Kind::Mul => source!(multiply [false,]),
            Kind::Imul => source!(multiply [true,]),
            Kind::Div => source!(divide [false,]),
            Kind::Idiv => source!(divide [true,]),
            Kind::MovzxByte => {
                forms!(RegReg: widen_reg [false, u8,], RegMem: widen_mem [false, u8,])
            }
            Kind::MovzxWord => {
                forms!(RegReg: widen_reg [false, u16,], RegMem: widen_mem [false, u16,])
            }
            Kind::MovsxByte => {
                forms!(RegReg: widen_reg [true, u8,], RegMem: widen_mem [true, u8,])
            }
            Kind::MovsxWord => {
                forms!(RegReg: widen_reg [true, u16,], RegMem: widen_mem [true, u16,])
            }
            Kind::MovsxDword => {
                forms!(RegReg: widen_reg [true, u32,], RegMem: widen_mem [true, u32,])
            }
            Kind::Xchg => forms!(RegReg: xchg_reg [], MemReg: xchg_mem []),
            Kind::Xadd => forms!(RegReg: xadd_reg [], MemReg: xadd_mem []),
            Kind::Cmpxchg => forms!(MemReg: cmpxchg []),
            Kind::Lea => sized!(lea),
            Kind::Bswap => sized!(bswap),
            Kind::ExtendA => sized!(extend_a),
            Kind::ExtendD => sized!(extend_d),
            Kind::Jcc => conditions!(jcc),
            Kind::SetReg => conditions!(set_reg),
            Kind::SetMem => conditions!(set_mem),
            Kind::CmovReg => conditions!(cmov_reg),
            Kind::CmovMem => conditions!(cmov_mem),
            Kind::Jmp => one!(branch::jmp::<M>),
            Kind::JmpReg => one!(branch::jmp_reg::<M>),
            Kind::JmpMem => one!(branch::jmp_mem::<M>),
            Kind::Call => one!(branch::call_near::<M>),
            Kind::CallReg => one!(branch::call_reg::<M>),
            Kind::CallMem => one!(branch::call_mem::<M>),
            Kind::Ret => one!(branch::ret::<M>),
            Kind::Jrcxz => one!(branch::jrcxz::<M>),
            Kind::Loopne => one!(branch::count_down::<0, M>),
            Kind::Loope => one!(branch::count_down::<1, M>),
            Kind::Loop => one!(branch::count_down::<2, M>),
            Kind::PushReg => one!(stack::push_reg::<M>),
            Kind::PushMem => one!(stack::push_mem::<M>),
            Kind::PushImm => one!(stack::push_imm::<M>),
            Kind::PopReg => one!(stack::pop_reg::<M>),
            Kind::PopMem => one!(stack::pop_mem::<M>),
            Kind::LeaveFrame => one!(stack::leave_frame::<M>),
            Kind::Pushf => one!(stack::pushf::<M>),
            Kind::Popf => one!(stack::popf::<M>),
            Kind::Clc => one!(system::set_carry::<false, M>),
            Kind::Stc => one!(system::set_carry::<true, M>),
            Kind::Cmc => one!(system::complement_carry::<M>),
            Kind::Cld => one!(system::set_direction::<false, M>),
            Kind::Std => one!(system::set_direction::<true, M>),
            Kind::Cli => one!(system::cli::<M>),
            Kind::Sti => one!(system::sti::<M>),
            Kind::Lahf => one!(system::lahf::<M>),
            Kind::Sahf => one!(system::sahf::<M>),
            Kind::Nop => one!(system::nop::<M>),
            Kind::Mfence => one!(system::mfence::<M>),
            Kind::Movs => sized!(movs),
            Kind::Stos => sized!(stos),
            Kind::Lods => sized!(lods),
            Kind::Scas => sized!(scas),
            Kind::Cmps => sized!(cmps),
        }
    }
}
