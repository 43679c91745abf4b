//! From bytes to [`Op`]. Whatever is not listed here is left to KVM.

mod operands;

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic, OpKind};

use super::cpu::NONE;
use super::execute::string::{ONCE, REP, REPNE};
use super::op::{Kind, Op};

/// Operand-size prefix.
const OPERAND_SIZE: u8 = 0x66;
/// Address-size prefix.
const ADDRESS_SIZE: u8 = 0x67;

/// Decodes instructions that follow each other in a page of code.
pub(super) struct Reader<'b> {
    bytes: &'b [u8],
    decoder: Decoder<'b>,
    instruction: Instruction,
    /// Offset of the next instruction in its page.
    at: u16,
}

impl<'b> Reader<'b> {
    /// For `bytes`, the first of which is at offset `at` of its page.
    pub(super) fn new(bytes: &'b [u8], at: u16) -> Self {
        Self {
            bytes,
            decoder: Decoder::with_ip(64, bytes, u64::from(at), DecoderOptions::NONE),
            instruction: Instruction::default(),
            at,
        }
    }

    /// Offset of the next instruction in its page.
    pub(super) fn at(&self) -> u16 {
        self.at
    }

    /// The next instruction, and whether it is the last one in a row: control
    /// does not go on behind it, or it is not known how.
    pub(super) fn read(&mut self) -> (Op, bool) {
        let rest = &self.bytes[self.decoder.position()..];
        self.decoder.decode_out(&mut self.instruction);
        let instruction = Decoded {
            instruction: &self.instruction,
            prefixes: Prefixes::of(rest),
        };
        let (op, last) = if !instruction.instruction.is_invalid() {
            match instruction.op() {
                Some(op) => (op, instruction.ends_run()),
                None => (Op::new(Kind::Leave, 0), true),
            }
        } else if self.decoder.last_error() == DecoderError::NoMoreBytes {
            (Op::new(Kind::Cross, 0), true)
        } else {
            (Op::new(Kind::Leave, 0), true)
        };
        let at = self.at;
        self.at += self.instruction.len() as u16;
        (
            Op {
                at,
                next: self.at,
                ..op
            },
            last,
        )
    }
}

/// Prefixes that change more than iced tells apart.
struct Prefixes {
    operand_size: bool,
    address_size: bool,
}

impl Prefixes {
    fn of(bytes: &[u8]) -> Self {
        let legacy = bytes.iter().take_while(|byte| {
            matches!(
                byte,
                0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3
            )
        });
        let has = |prefix| legacy.clone().any(|byte| *byte == prefix);
        Self {
            operand_size: has(OPERAND_SIZE),
            address_size: has(ADDRESS_SIZE),
        }
    }
}

/// An instruction on its way to an [`Op`].
struct Decoded<'i> {
    instruction: &'i Instruction,
    prefixes: Prefixes,
}

impl Decoded<'_> {
    /// None: left to KVM.
    fn op(&self) -> Option<Op> {
        if self.prefixes.address_size {
            return None;
        }
        self.arithmetic()
            .or_else(|| self.transfer())
            .or_else(|| self.branch())
            .or_else(|| self.stack())
            .or_else(|| self.string())
            .or_else(|| self.conditional())
            .or_else(|| self.system())
    }

    /// Whether control never goes on behind it.
    fn ends_run(&self) -> bool {
        matches!(self.instruction.mnemonic(), Mnemonic::Jmp | Mnemonic::Ret)
    }

    fn arithmetic(&self) -> Option<Op> {
        match self.instruction.mnemonic() {
            Mnemonic::Add => self.pair(Kind::Add),
            Mnemonic::Or => self.pair(Kind::Or),
            Mnemonic::Adc => self.pair(Kind::Adc),
            Mnemonic::Sbb => self.pair(Kind::Sbb),
            Mnemonic::And => self.pair(Kind::And),
            Mnemonic::Sub => self.pair(Kind::Sub),
            Mnemonic::Xor => self.pair(Kind::Xor),
            Mnemonic::Cmp => self.pair(Kind::Cmp),
            Mnemonic::Test => self.pair(Kind::Test),
            Mnemonic::Inc => self.single(Kind::Inc),
            Mnemonic::Dec => self.single(Kind::Dec),
            Mnemonic::Neg => self.single(Kind::Neg),
            Mnemonic::Not => self.single(Kind::Not),
            Mnemonic::Rol => self.shift(Kind::Rol),
            Mnemonic::Ror => self.shift(Kind::Ror),
            Mnemonic::Rcl => self.shift(Kind::Rcl),
            Mnemonic::Rcr => self.shift(Kind::Rcr),
            Mnemonic::Shl | Mnemonic::Sal => self.shift(Kind::Shl),
            Mnemonic::Shr => self.shift(Kind::Shr),
            Mnemonic::Sar => self.shift(Kind::Sar),
            Mnemonic::Shld => self.double_shift(Kind::Shld),
            Mnemonic::Shrd => self.double_shift(Kind::Shrd),
            Mnemonic::Bt => self.pair(Kind::Bt),
            Mnemonic::Bts => self.pair(Kind::Bts),
            Mnemonic::Btr => self.pair(Kind::Btr),
            Mnemonic::Btc => self.pair(Kind::Btc),
            Mnemonic::Bsf => self.pair(Kind::Bsf),
            Mnemonic::Bsr => self.pair(Kind::Bsr),
            Mnemonic::Tzcnt if is_x86_feature_detected!("bmi1") => self.pair(Kind::Tzcnt),
            Mnemonic::Lzcnt if is_x86_feature_detected!("lzcnt") => self.pair(Kind::Lzcnt),
            Mnemonic::Popcnt if is_x86_feature_detected!("popcnt") => self.pair(Kind::Popcnt),
            Mnemonic::Imul => match self.instruction.op_count() {
                1 => self.source(Kind::Imul),
                2 => self.pair(Kind::Imul2),
                _ => self.imul3(),
            },
            Mnemonic::Mul => self.source(Kind::Mul),
            Mnemonic::Div => self.source(Kind::Div),
            Mnemonic::Idiv => self.source(Kind::Idiv),
            Mnemonic::Cbw => Some(Op::new(Kind::ExtendA, 1)),
            Mnemonic::Cwde => Some(Op::new(Kind::ExtendA, 2)),
            Mnemonic::Cdqe => Some(Op::new(Kind::ExtendA, 3)),
            Mnemonic::Cwd => Some(Op::new(Kind::ExtendD, 1)),
            Mnemonic::Cdq => Some(Op::new(Kind::ExtendD, 2)),
            Mnemonic::Cqo => Some(Op::new(Kind::ExtendD, 3)),
            _ => None,
        }
    }

    fn transfer(&self) -> Option<Op> {
        match self.instruction.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movnti => self.pair(Kind::Mov),
            Mnemonic::Movzx => self.widen(Kind::MovzxByte, Kind::MovzxWord),
            Mnemonic::Movsx => self.widen(Kind::MovsxByte, Kind::MovsxWord),
            Mnemonic::Movsxd => self.movsxd(),
            Mnemonic::Lea => {
                let (a, log2) = self.register(0)?;
                self.with_memory(Op {
                    a,
                    ..Op::new(Kind::Lea, log2)
                })
                .map(|op| Op {
                    segment: NONE,
                    ..op
                })
            }
            Mnemonic::Bswap => match self.register(0)? {
                (a, log2 @ 2..) => Some(Op {
                    a,
                    ..Op::new(Kind::Bswap, log2)
                }),
                _ => None,
            },
            Mnemonic::Xchg => self.exchange(Kind::Xchg),
            Mnemonic::Xadd => self.exchange(Kind::Xadd),
            Mnemonic::Cmpxchg => self.exchange(Kind::Cmpxchg),
            _ => None,
        }
    }

    fn branch(&self) -> Option<Op> {
        let code = self.instruction.code();
        let kind = match code {
            Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => Kind::Jmp,
            Code::Call_rel32_64 => Kind::Call,
            Code::Jrcxz_rel8_64 => Kind::Jrcxz,
            Code::Loop_rel8_64_RCX => Kind::Loop,
            Code::Loope_rel8_64_RCX => Kind::Loope,
            Code::Loopne_rel8_64_RCX => Kind::Loopne,
            Code::Retnq | Code::Retnq_imm16 => Kind::Ret,
            Code::Jmp_rm64 => return self.indirect(Kind::JmpReg, Kind::JmpMem),
            Code::Call_rm64 => return self.indirect(Kind::CallReg, Kind::CallMem),
            _ if code.is_jcc_short_or_near() => Kind::Jcc,
            _ => return None,
        };
        // Intel's CPUs ignore the prefix, AMD's do not.
        if self.prefixes.operand_size {
            return None;
        }
        let op = match kind {
            Kind::Jcc => Op::new(kind, self.condition()?),
            _ => Op::new(kind, 0),
        };
        let immediate = match (kind, self.instruction.op0_kind()) {
            (Kind::Ret, OpKind::Immediate16) => u64::from(self.instruction.immediate16()),
            (Kind::Ret, _) => 0,
            (_, OpKind::NearBranch64) => self.instruction.near_branch64(),
            _ => return None,
        };
        Some(Op { immediate, ..op })
    }

    /// A 64-bit target or source in a register or in memory.
    fn indirect(&self, register: Kind, memory: Kind) -> Option<Op> {
        if self.prefixes.operand_size {
            return None;
        }
        match self.instruction.op0_kind() {
            OpKind::Register => Some(Op {
                a: self.register(0)?.0,
                ..Op::new(register, 0)
            }),
            OpKind::Memory => self.with_memory(Op::new(memory, 0)),
            _ => None,
        }
    }

    fn stack(&self) -> Option<Op> {
        let plain = |kind| Some(Op::new(kind, 0));
        match self.instruction.code() {
            Code::Push_r64 | Code::Push_rm64 => self.indirect(Kind::PushReg, Kind::PushMem),
            Code::Pop_r64 | Code::Pop_rm64 => self.indirect(Kind::PopReg, Kind::PopMem),
            Code::Pushq_imm8 | Code::Pushq_imm32 => Some(Op {
                immediate: self.instruction.immediate(0),
                ..Op::new(Kind::PushImm, 0)
            }),
            Code::Leaveq => plain(Kind::LeaveFrame),
            Code::Pushfq => plain(Kind::Pushf),
            Code::Popfq => plain(Kind::Popf),
            _ => None,
        }
    }

    fn string(&self) -> Option<Op> {
        let (kind, log2) = match self.instruction.code() {
            Code::Movsb_m8_m8 => (Kind::Movs, 0),
            Code::Movsw_m16_m16 => (Kind::Movs, 1),
            Code::Movsd_m32_m32 => (Kind::Movs, 2),
            Code::Movsq_m64_m64 => (Kind::Movs, 3),
            Code::Stosb_m8_AL => (Kind::Stos, 0),
            Code::Stosw_m16_AX => (Kind::Stos, 1),
            Code::Stosd_m32_EAX => (Kind::Stos, 2),
            Code::Stosq_m64_RAX => (Kind::Stos, 3),
            Code::Lodsb_AL_m8 => (Kind::Lods, 0),
            Code::Lodsw_AX_m16 => (Kind::Lods, 1),
            Code::Lodsd_EAX_m32 => (Kind::Lods, 2),
            Code::Lodsq_RAX_m64 => (Kind::Lods, 3),
            Code::Scasb_AL_m8 => (Kind::Scas, 0),
            Code::Scasw_AX_m16 => (Kind::Scas, 1),
            Code::Scasd_EAX_m32 => (Kind::Scas, 2),
            Code::Scasq_RAX_m64 => (Kind::Scas, 3),
            Code::Cmpsb_m8_m8 => (Kind::Cmps, 0),
            Code::Cmpsw_m16_m16 => (Kind::Cmps, 1),
            Code::Cmpsd_m32_m32 => (Kind::Cmps, 2),
            Code::Cmpsq_m64_m64 => (Kind::Cmps, 3),
            _ => return None,
        };
        let compares = matches!(kind, Kind::Scas | Kind::Cmps);
        let repne = self.instruction.has_repne_prefix();
        Some(Op {
            segment: self.segment(),
            immediate: match repne || self.instruction.has_rep_prefix() {
                false => ONCE,
                true if repne && compares => REPNE,
                true => REP,
            },
            ..Op::new(kind, log2)
        })
    }

    fn conditional(&self) -> Option<Op> {
        use Mnemonic::*;
        match self.instruction.mnemonic() {
            Seto | Setno | Setb | Setae | Sete | Setne | Setbe | Seta | Sets | Setns | Setp
            | Setnp | Setl | Setge | Setle | Setg => {
                let condition = self.condition()?;
                match self.instruction.op0_kind() {
                    OpKind::Register => Some(Op {
                        a: self.register(0)?.0,
                        ..Op::new(Kind::SetReg, condition)
                    }),
                    _ => self.with_memory(Op::new(Kind::SetMem, condition)),
                }
            }
            Cmovo | Cmovno | Cmovb | Cmovae | Cmove | Cmovne | Cmovbe | Cmova | Cmovs | Cmovns
            | Cmovp | Cmovnp | Cmovl | Cmovge | Cmovle | Cmovg => {
                let condition = self.condition()?;
                let (a, log2) = self.register(0)?;
                let op = |kind| Op {
                    a,
                    immediate: 1 << log2,
                    ..Op::new(kind, condition)
                };
                match self.instruction.op1_kind() {
                    OpKind::Register => Some(Op {
                        b: self.register(1)?.0,
                        ..op(Kind::CmovReg)
                    }),
                    _ => self.with_memory(op(Kind::CmovMem)),
                }
            }
            _ => None,
        }
    }

    fn system(&self) -> Option<Op> {
        let kind = match self.instruction.mnemonic() {
            Mnemonic::Clc => Kind::Clc,
            Mnemonic::Stc => Kind::Stc,
            Mnemonic::Cmc => Kind::Cmc,
            Mnemonic::Cld => Kind::Cld,
            Mnemonic::Std => Kind::Std,
            Mnemonic::Cli => Kind::Cli,
            Mnemonic::Sti => Kind::Sti,
            Mnemonic::Lahf => Kind::Lahf,
            Mnemonic::Sahf => Kind::Sahf,
            Mnemonic::Nop
            | Mnemonic::Pause
            | Mnemonic::Endbr64
            | Mnemonic::Lfence
            | Mnemonic::Sfence
            | Mnemonic::Prefetchnta
            | Mnemonic::Prefetcht0
            | Mnemonic::Prefetcht1
            | Mnemonic::Prefetcht2
            | Mnemonic::Prefetchw => Kind::Nop,
            Mnemonic::Mfence => Kind::Mfence,
            _ => return None,
        };
        Some(Op::new(kind, 0))
    }
}
