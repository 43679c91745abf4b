//! Every instruction against the CPU that the test runs on: registers, flags
//! that are defined, and memory.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use super::super::flags::{AF, ARITHMETIC, CF, DF, OF, PF, SF, ZF};
use super::super::{CodeCache, State, Stop, run};
use super::Numbers;
use super::forms::{self, Form};
use super::native::{Native, Registers};

/// Encodings tried of each opcode, and inputs of each encoding.
const ENCODINGS: usize = 60;
const INPUTS: usize = 8;

/// How many times more encodings are tried: for longer runs by hand.
fn rounds() -> usize {
    std::env::var("VMRUN_TEST_ROUNDS").map_or(1, |rounds| rounds.parse().expect("a number"))
}

#[test]
fn every_instruction_does_what_the_cpu_does() {
    let mut bench = Bench::new();
    let mut numbers = Numbers::new(1);
    for form in forms::all() {
        let mut compared = 0;
        for _ in 0..ENCODINGS * rounds() {
            let mut bytes = form.bytes(&mut numbers);
            compared += bench.encoding(&form, &mut bytes, &mut numbers);
        }
        assert!(compared > 20, "{form:x?}: only {compared} inputs compared");
    }
}

struct Bench {
    native: Native,
    code: CodeCache,
    gs_base: u64,
}

impl Bench {
    fn new() -> Self {
        let native = Native::new();
        let gs_base = native.data_range().0 + 64;
        native.set_gs_base(gs_base);
        Self {
            native,
            code: CodeCache::new(),
            gs_base,
        }
    }

    /// Tries an encoding with several inputs; how many could be compared.
    fn encoding(&mut self, form: &Form, bytes: &mut [u8], numbers: &mut Numbers) -> usize {
        self.native.place(bytes);
        let mut instruction = decode(bytes, self.native.rip());
        if instruction.is_invalid() || instruction.len() != bytes.len() {
            return 0;
        }
        if self.aim_displacement(bytes, &instruction, numbers) {
            self.native.place(bytes);
            instruction = decode(bytes, self.native.rip());
        }
        self.code.invalidate(self.native.rip() >> 12);
        let inputs = (0..INPUTS).filter(|_| self.input(form, &instruction, bytes, numbers));
        inputs.count()
    }

    /// An address in the data, sometimes at the edge of a page.
    fn address(&self, numbers: &mut Numbers) -> u64 {
        let (start, _) = self.native.data_range();
        start
            + match numbers.below(4) {
                0 => 4096 - 20 + numbers.below(24),
                1 => 1024 + numbers.below(1024) * 8,
                _ => 1024 + numbers.below(6144),
            }
    }

    /// Makes the displacement of an operand without registers lead to the data.
    fn aim_displacement(
        &self,
        bytes: &mut [u8],
        instruction: &Instruction,
        numbers: &mut Numbers,
    ) -> bool {
        let rip = instruction.memory_base() == Register::RIP;
        let absolute = instruction.memory_base() == Register::None
            && instruction.memory_index() == Register::None;
        let memory = (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory);
        if !memory || !(rip || absolute) {
            return false;
        }
        let mut target = self.address(numbers);
        if instruction.memory_segment() == Register::GS {
            target = target.wrapping_sub(self.gs_base);
        }
        if rip {
            target = target.wrapping_sub(instruction.next_ip());
        }
        let mut decoder = Decoder::with_ip(64, bytes, self.native.rip(), DecoderOptions::NONE);
        let offsets = {
            let instruction = decoder.decode();
            decoder.get_constant_offsets(&instruction)
        };
        let (at, len) = (offsets.displacement_offset(), offsets.displacement_size());
        bytes[at..at + len].copy_from_slice(&target.to_le_bytes()[..len]);
        true
    }

    /// Sets the registers of the operands so that they lead to the data.
    fn aim(&self, state: &mut State, instruction: &Instruction, numbers: &mut Numbers) {
        use Mnemonic::*;
        let address = self.address(numbers);
        // The stack pointer first: operands may use it as well.
        state.gpr[4] = address & !7;
        match instruction.mnemonic() {
            Leave => state.gpr[5] = address,
            Movsb | Movsw | Movsd | Movsq | Stosb | Stosw | Stosd | Stosq | Lodsb | Lodsw
            | Lodsd | Lodsq | Scasb | Scasw | Scasd | Scasq | Cmpsb | Cmpsw | Cmpsd | Cmpsq => {
                state.gpr[6] = address;
                state.gpr[7] = match numbers.below(3) {
                    0 => self.address(numbers),
                    _ => address.wrapping_add(numbers.below(64)).wrapping_sub(32),
                };
                if instruction.memory_segment() == Register::GS {
                    state.gpr[6] = state.gpr[6].wrapping_sub(self.gs_base);
                }
                let limit = numbers.pick(&[4, 60, 600]);
                state.gpr[1] = numbers.below(limit);
            }
            Bt | Bts | Btr | Btc if instruction.op1_kind() == OpKind::Register => {
                let register = instruction.op1_register().full_register().number();
                let offset = numbers.below(10_000) as i64 - 5000;
                state.gpr[register] = numbers.next() << 32 | offset as u32 as u64;
                if instruction.op1_register().size() == 8 {
                    state.gpr[register] = offset as u64;
                }
            }
            Div | Idiv if numbers.below(2) == 0 => {
                state.gpr[2] = numbers.pick(&[0, u64::MAX, 1, 7]);
            }
            Loop | Loope | Loopne | Jrcxz => state.gpr[1] = numbers.below(4),
            _ => {}
        }
        self.aim_operand(state, instruction, address, numbers);
    }

    fn aim_operand(
        &self,
        state: &mut State,
        instruction: &Instruction,
        mut target: u64,
        numbers: &mut Numbers,
    ) {
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let scale = u64::from(instruction.memory_index_scale());
        if instruction.memory_segment() == Register::GS {
            target = target.wrapping_sub(self.gs_base);
        }
        target = target.wrapping_sub(instruction.memory_displacement64());
        match (base.is_gpr64(), index.is_gpr64()) {
            (true, true) if base == index => state.gpr[base.number()] = target / (1 + scale),
            (true, true) => {
                let value = numbers.below(32);
                state.gpr[index.number()] = value;
                state.gpr[base.number()] = target.wrapping_sub(value * scale);
            }
            (true, false) => state.gpr[base.number()] = target,
            (false, true) => state.gpr[index.number()] = target / scale,
            (false, false) => {}
        }
    }

    /// Puts operands worth trying into the data.
    fn fill(&mut self, state: &State, instruction: &Instruction, numbers: &mut Numbers) {
        let target = self.native.target();
        let (start, _) = self.native.data_range();
        for word in self.native.data().chunks_exact_mut(8) {
            word.copy_from_slice(&numbers.next().to_le_bytes());
        }
        let at = |address: u64| {
            let offset = address.wrapping_sub(start) as usize;
            (offset <= 2 * 4096 - 8).then_some(offset)
        };
        let mut put = |address: u64, value: u64| {
            if let Some(offset) = at(address) {
                self.native.data()[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
            }
        };
        let operand = instruction.virtual_address(0, 0, |register, _, _| match register {
            Register::GS => Some(self.gs_base),
            _ if register.is_gpr64() => Some(state.gpr[register.number()]),
            _ => Some(0),
        });
        let memory = (0..2).any(|number| instruction.op_kind(number) == OpKind::Memory);
        match (instruction.mnemonic(), operand) {
            (Mnemonic::Ret, _) => put(state.gpr[4], target),
            (Mnemonic::Popfq, _) => {
                put(state.gpr[4], 0x202 | numbers.next() & (ARITHMETIC | DF));
            }
            (Mnemonic::Jmp | Mnemonic::Call, Some(address)) if memory => put(address, target),
            (Mnemonic::Cmpxchg, Some(address)) if numbers.below(2) == 0 => {
                put(address, state.gpr[0]);
            }
            (Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq, _)
            | (Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq, _)
                if numbers.below(2) == 0 =>
            {
                let byte = state.gpr[0] as u8;
                self.native.data().fill(byte);
                let offset = numbers.below(8192) as usize;
                self.native.data()[offset] = !byte;
            }
            (_, Some(address)) if memory => put(address, numbers.value()),
            _ => {}
        }
    }

    /// Tries one input; whether there was something to compare.
    fn input(
        &mut self,
        form: &Form,
        instruction: &Instruction,
        bytes: &[u8],
        numbers: &mut Numbers,
    ) -> bool {
        let mut state = State {
            gpr: std::array::from_fn(|_| numbers.value()),
            rip: self.native.rip(),
            rflags: 0x202 | numbers.next() & ARITHMETIC,
            fs_base: 0,
            gs_base: self.gs_base,
        };
        let string = !matches!(instruction.op0_kind(), OpKind::Register | OpKind::Memory);
        if string && numbers.below(3) == 0 {
            state.rflags |= DF;
        }
        self.aim(&mut state, instruction, numbers);
        let indirect = matches!(instruction.mnemonic(), Mnemonic::Jmp | Mnemonic::Call);
        if indirect && instruction.op0_kind() == OpKind::Register {
            state.gpr[instruction.op0_register().number()] = self.native.target();
        }
        self.fill(&state, instruction, numbers);

        let before = state.clone();
        let data = self.native.data().to_vec();
        if !self.interpret(&mut state) {
            return false;
        }
        let interpreted = self.native.data().to_vec();
        self.native.data().copy_from_slice(&data);
        let (after, taken) = self.native.run(&Registers {
            gpr: before.gpr,
            rflags: before.rflags,
        });
        let context = || {
            format!(
                "{form:x?} {bytes:02x?} {:?}\nbefore {before:x?}",
                instruction.code()
            )
        };
        assert_eq!(self.native.data(), interpreted, "memory: {}", context());
        assert_eq!(state.gpr, after.gpr, "left: ours, {}", context());
        let rip = match taken {
            true => self.native.target(),
            false => self.native.behind(),
        };
        assert_eq!(state.rip, rip, "{}", context());
        let defined = !undefined(instruction, &before);
        assert_eq!(
            state.rflags & defined,
            after.rflags & defined,
            "left: ours {:x}, CPU {:x} {}",
            state.rflags,
            after.rflags,
            context()
        );
        true
    }

    /// Executes the instruction; false if it is left. What is left has had no
    /// effect.
    fn interpret(&mut self, state: &mut State) -> bool {
        let before = state.clone();
        let data = self.native.data().to_vec();
        loop {
            let rip = self.native.rip();
            let ran = run(state, &mut self.native.memory(), &mut self.code, 1);
            match ran.stop {
                Stop::Leave => {
                    if ran.instructions == 0 && *state != before {
                        // A REP that ran before: its registers say so.
                        assert_ne!(state.gpr[1], before.gpr[1]);
                    } else if ran.instructions == 0 {
                        assert_eq!(self.native.data(), data);
                    }
                    return false;
                }
                Stop::Budget if state.rip == rip => {}
                Stop::Budget => return true,
            }
        }
    }
}

fn decode(bytes: &[u8], rip: u64) -> Instruction {
    Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE).decode()
}

/// The flags that the SDM leaves undefined.
fn undefined(instruction: &Instruction, before: &State) -> u64 {
    use Mnemonic::*;
    let size = match instruction.op0_kind() {
        OpKind::Register => instruction.op0_register().size(),
        _ => instruction.memory_size().size(),
    };
    let count = |number: u32| {
        let count = match instruction.op_kind(number) {
            OpKind::Register => before.gpr[1],
            _ => instruction.try_immediate(number).unwrap_or(0),
        };
        count as usize & if size == 8 { 63 } else { 31 }
    };
    let overflow = |count| if count == 1 { 0 } else { OF };
    match instruction.mnemonic() {
        And | Or | Xor | Test => AF,
        Shl | Sal | Shr | Sar => match count(1) {
            0 => 0,
            count if count >= size * 8 => AF | OF | CF,
            count => AF | overflow(count),
        },
        Rol | Ror | Rcl | Rcr => match count(1) {
            0 => 0,
            count => overflow(count),
        },
        Shld | Shrd => match count(2) {
            0 => 0,
            count => AF | overflow(count),
        },
        Mul | Imul => SF | ZF | AF | PF,
        Div | Idiv => ARITHMETIC,
        Bt | Bts | Btr | Btc => OF | SF | AF | PF,
        Bsf | Bsr => ARITHMETIC & !ZF,
        Tzcnt | Lzcnt => OF | SF | AF | PF,
        _ => 0,
    }
}
