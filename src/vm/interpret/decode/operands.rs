//! Operands of an instruction that is being decoded.

use iced_x86::{ConditionCode, OpKind, Register};

use super::Decoded;
use crate::interpret::cpu::{CODE_PAGE, FS, GS, HIGH, NONE, RCX};
use crate::interpret::op::{BY_CL, Form, IMMEDIATE, Kind, Op};

impl Decoded<'_> {
    /// The general register that operand `number` is, and the logarithm of
    /// its size in bytes.
    pub(super) fn register(&self, number: u32) -> Option<(u8, usize)> {
        if self.instruction.op_kind(number) != OpKind::Register {
            return None;
        }
        let register = self.instruction.op_register(number);
        let high = matches!(
            register,
            Register::AH | Register::CH | Register::DH | Register::BH
        );
        let log2 = register.size().trailing_zeros() as usize;
        register.is_gpr().then(|| {
            let number = register.full_register().number() as u8;
            (if high { number + HIGH } else { number }, log2)
        })
    }

    /// Logarithm of the size of the memory operand in bytes.
    fn memory_log2(&self) -> Option<usize> {
        match self.instruction.memory_size().size() {
            size @ (1 | 2 | 4 | 8) => Some(size.trailing_zeros() as usize),
            _ => None,
        }
    }

    fn is_memory(&self, number: u32) -> bool {
        self.instruction.op_kind(number) == OpKind::Memory
    }

    /// Operand `number` as an immediate, cut to `1 << log2` bytes.
    fn immediate(&self, number: u32, log2: usize) -> Option<u64> {
        let value = self.instruction.try_immediate(number).ok()?;
        Some(value & u64::MAX >> (64 - (8 << log2)))
    }

    /// The base register of the memory operand's segment.
    pub(super) fn segment(&self) -> u8 {
        match self.instruction.memory_segment() {
            Register::FS => FS,
            Register::GS => GS,
            _ => NONE,
        }
    }

    pub(super) fn condition(&self) -> Option<usize> {
        match self.instruction.condition_code() {
            ConditionCode::None => None,
            code => Some(code as usize - 1),
        }
    }

    /// `op` with the address of the memory operand.
    pub(super) fn with_memory(&self, op: Op) -> Option<Op> {
        let general = |register: Register| match register {
            Register::None => Some(NONE),
            // The displacement was made one from the page of code on.
            Register::RIP => Some(CODE_PAGE),
            _ => register.is_gpr64().then(|| register.number() as u8),
        };
        let displacement = self.instruction.memory_displacement64() as i64;
        Some(Op {
            base: general(self.instruction.memory_base())?,
            index: general(self.instruction.memory_index())?,
            scale: self.instruction.memory_index_scale().trailing_zeros() as u8,
            segment: self.segment(),
            displacement: i32::try_from(displacement).ok()?,
            ..op
        })
    }

    /// Two operands of one size.
    pub(super) fn pair(&self, kind: Kind) -> Option<Op> {
        let locked = self.instruction.has_lock_prefix();
        match (self.register(0), self.register(1)) {
            (Some((a, log2)), Some((b, other))) => (log2 == other).then_some(Op {
                a,
                b,
                ..Op::new(kind, Form::RegReg.slot(log2))
            }),
            (Some((a, log2)), None) if self.is_memory(1) => {
                let op = Op::new(kind, Form::RegMem.slot(log2));
                (Some(log2) == self.memory_log2()).then_some(())?;
                self.with_memory(Op { a, ..op })
            }
            (Some((a, log2)), None) => Some(Op {
                a,
                immediate: self.immediate(1, log2)?,
                ..Op::new(kind, Form::RegImm.slot(log2))
            }),
            (None, Some((b, log2))) if self.is_memory(0) => {
                let form = if locked { Form::Locked } else { Form::MemReg };
                (Some(log2) == self.memory_log2()).then_some(())?;
                self.with_memory(Op {
                    b,
                    ..Op::new(kind, form.slot(log2))
                })
            }
            (None, None) if self.is_memory(0) => {
                let log2 = self.memory_log2()?;
                let form = if locked { Form::Locked } else { Form::MemImm };
                self.with_memory(Op {
                    b: IMMEDIATE,
                    immediate: self.immediate(1, log2)?,
                    ..Op::new(kind, form.slot(log2))
                })
            }
            _ => None,
        }
    }

    /// One operand, which is read and written.
    pub(super) fn single(&self, kind: Kind) -> Option<Op> {
        if let Some((a, log2)) = self.register(0) {
            return Some(Op {
                a,
                ..Op::new(kind, Form::RegImm.slot(log2))
            });
        }
        let form = match self.instruction.has_lock_prefix() {
            true => Form::Locked,
            false => Form::MemImm,
        };
        self.with_memory(Op {
            b: IMMEDIATE,
            ..Op::new(kind, form.slot(self.memory_log2()?))
        })
    }

    /// An operand and a count: an immediate or CL.
    pub(super) fn shift(&self, kind: Kind) -> Option<Op> {
        let by_register = self.register(1).is_some();
        let immediate = if by_register {
            0
        } else {
            self.immediate(1, 0)?
        };
        let op = |form: Form, log2| Op {
            b: RCX,
            immediate,
            ..Op::new(kind, form.slot(log2))
        };
        match self.register(0) {
            Some((a, log2)) => {
                let form = if by_register {
                    Form::RegReg
                } else {
                    Form::RegImm
                };
                Some(Op {
                    a,
                    ..op(form, log2)
                })
            }
            None => {
                let form = if by_register {
                    Form::MemReg
                } else {
                    Form::MemImm
                };
                self.with_memory(op(form, self.memory_log2()?))
            }
        }
    }

    /// SHLD and SHRD.
    pub(super) fn double_shift(&self, kind: Kind) -> Option<Op> {
        let (b, log2) = self.register(1)?;
        let immediate = match self.register(2) {
            Some(_) => BY_CL,
            None => self.immediate(2, 0)?,
        };
        let op = |form: Form| Op {
            b,
            immediate,
            ..Op::new(kind, form.slot(log2))
        };
        match self.register(0) {
            Some((a, _)) => Some(Op {
                a,
                ..op(Form::RegReg)
            }),
            None => self.with_memory(op(Form::MemReg)),
        }
    }

    /// One operand, which is only read: operand `number`.
    fn source_operand(&self, kind: Kind, number: u32) -> Option<Op> {
        match self.register(number) {
            Some((b, log2)) => Some(Op {
                b,
                ..Op::new(kind, Form::RegReg.slot(log2))
            }),
            None if self.is_memory(number) => {
                self.with_memory(Op::new(kind, Form::RegMem.slot(self.memory_log2()?)))
            }
            None => None,
        }
    }

    /// The one operand of MUL and DIV.
    pub(super) fn source(&self, kind: Kind) -> Option<Op> {
        self.source_operand(kind, 0)
    }

    /// IMUL with three operands.
    pub(super) fn imul3(&self) -> Option<Op> {
        let (a, log2) = self.register(0)?;
        Some(Op {
            a,
            immediate: self.immediate(2, log2)?,
            ..self.source_operand(Kind::Imul3, 1)?
        })
    }

    /// MOVZX and MOVSX.
    pub(super) fn widen(&self, byte: Kind, word: Kind) -> Option<Op> {
        let source = match self.register(1) {
            Some((_, log2)) => log2,
            None => self.memory_log2()?,
        };
        self.widen_from(if source == 0 { byte } else { word })
    }

    pub(super) fn movsxd(&self) -> Option<Op> {
        match self.register(0)? {
            (_, 3) => self.widen_from(Kind::MovsxDword),
            _ => None,
        }
    }

    fn widen_from(&self, kind: Kind) -> Option<Op> {
        let (a, log2) = self.register(0)?;
        match self.register(1) {
            Some((b, _)) => Some(Op {
                a,
                b,
                ..Op::new(kind, Form::RegReg.slot(log2))
            }),
            None => self.with_memory(Op {
                a,
                ..Op::new(kind, Form::RegMem.slot(log2))
            }),
        }
    }

    /// XCHG, XADD and CMPXCHG; the immediate says whether LOCK was there.
    pub(super) fn exchange(&self, kind: Kind) -> Option<Op> {
        let (b, log2) = self.register(1)?;
        match self.register(0) {
            Some((a, _)) => Some(Op {
                a,
                b,
                ..Op::new(kind, Form::RegReg.slot(log2))
            }),
            None => self.with_memory(Op {
                b,
                immediate: u64::from(self.instruction.has_lock_prefix()),
                ..Op::new(kind, Form::MemReg.slot(log2))
            }),
        }
    }
}
