//! Instructions to try: every opcode, with any prefixes and operands.

use super::Numbers;
use super::native::BRANCH;

/// What follows the opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// Nothing.
    None,
    /// Immediate of so many bytes.
    Bytes(usize),
    /// 2 or 4 bytes by operand size.
    Word,
    /// 2, 4 or 8 bytes by operand size.
    Full,
    /// Relative branch of 1 or 4 bytes.
    Branch(usize),
}

/// One opcode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    /// Mandatory prefix.
    pub(super) prefix: Option<u8>,
    pub(super) opcode: [u8; 2],
    /// Whether the opcode is `0f` and one byte.
    two: bool,
    /// A ModRM byte follows, with any register or this digit.
    modrm: Option<Option<u8>>,
    tail: Tail,
}

impl Form {
    fn plain(opcode: u8, tail: Tail) -> Self {
        Self {
            prefix: None,
            opcode: [opcode, 0],
            two: false,
            modrm: None,
            tail,
        }
    }

    fn modrm(opcode: u8, tail: Tail) -> Self {
        Self {
            modrm: Some(None),
            ..Self::plain(opcode, tail)
        }
    }

    fn digit(opcode: u8, digit: u8, tail: Tail) -> Self {
        Self {
            modrm: Some(Some(digit)),
            ..Self::plain(opcode, tail)
        }
    }

    fn two(self) -> Self {
        Self {
            opcode: [0x0f, self.opcode[0]],
            two: true,
            ..self
        }
    }

    fn prefixed(self, prefix: u8) -> Self {
        Self {
            prefix: Some(prefix),
            ..self
        }
    }

    /// Its bytes with random prefixes and operands.
    pub(super) fn bytes(&self, numbers: &mut Numbers) -> Vec<u8> {
        let mut bytes = Vec::new();
        let small = numbers.below(4) == 0;
        let rex = (numbers.below(3) != 0).then(|| 0x40 | numbers.below(16) as u8);
        if small {
            bytes.push(0x66);
        }
        if numbers.below(8) == 0 {
            bytes.push(0x65);
        }
        if numbers.below(4) == 0 && self.modrm.is_some() && self.prefix.is_none() {
            bytes.push(0xf0);
        }
        let string = matches!(self.opcode[0], 0xa4..=0xa7 | 0xaa..=0xaf) && !self.two;
        match numbers.below(3) {
            0 if string => bytes.push(0xf3),
            1 if string => bytes.push(0xf2),
            _ => {}
        }
        bytes.extend(self.prefix);
        bytes.extend(rex);
        bytes.extend(&self.opcode[..1 + usize::from(self.two)]);
        if let Some(digit) = self.modrm {
            let digit = digit.unwrap_or(numbers.below(8) as u8);
            operand(&mut bytes, digit, numbers);
        }
        let wide = rex.is_some_and(|rex| rex & 8 != 0);
        let len = match self.tail {
            Tail::None => 0,
            Tail::Bytes(len) => len,
            Tail::Full if wide => 8,
            Tail::Word | Tail::Full if small && !wide => 2,
            Tail::Word | Tail::Full => 4,
            Tail::Branch(len) => {
                let target = i32::from(BRANCH).to_le_bytes();
                bytes.extend(&target[..len]);
                return bytes;
            }
        };
        bytes.extend(&numbers.value().to_le_bytes()[..len]);
        bytes
    }
}

/// A ModRM byte and what follows it.
fn operand(bytes: &mut Vec<u8>, digit: u8, numbers: &mut Numbers) {
    let mode = numbers.pick(&[0, 1, 2, 3, 3, 3]);
    let rm = numbers.below(8) as u8;
    bytes.push(mode << 6 | digit << 3 | rm);
    if mode == 3 {
        return;
    }
    let mut base = rm;
    if rm == 4 {
        let sib = numbers.next() as u8;
        bytes.push(sib);
        base = sib & 7;
    }
    let len = match mode {
        0 if base == 5 => 4,
        0 => 0,
        1 => 1,
        _ => 4,
    };
    let displacement = (numbers.below(4096) as i32 - 2048).to_le_bytes();
    bytes.extend(&displacement[..len]);
}

/// Every opcode that the interpreter knows, but for what only ring 0 may do.
pub(super) fn all() -> Vec<Form> {
    let mut forms = arithmetic();
    forms.extend(moves());
    forms.extend(control());
    forms.extend(bits());
    forms
}

fn arithmetic() -> Vec<Form> {
    let mut forms = Vec::new();
    for operation in 0..8 {
        let opcode = operation * 8;
        forms.extend((0..4).map(|low| Form::modrm(opcode + low, Tail::None)));
        forms.push(Form::plain(opcode + 4, Tail::Bytes(1)));
        forms.push(Form::plain(opcode + 5, Tail::Word));
        forms.push(Form::digit(0x80, operation, Tail::Bytes(1)));
        forms.push(Form::digit(0x81, operation, Tail::Word));
        forms.push(Form::digit(0x83, operation, Tail::Bytes(1)));
        for (opcode, tail) in [
            (0xc0, Tail::Bytes(1)),
            (0xc1, Tail::Bytes(1)),
            (0xd0, Tail::None),
            (0xd1, Tail::None),
            (0xd2, Tail::None),
            (0xd3, Tail::None),
        ] {
            forms.push(Form::digit(opcode, operation, tail));
        }
    }
    forms.extend([0x84, 0x85].map(|opcode| Form::modrm(opcode, Tail::None)));
    forms.push(Form::plain(0xa8, Tail::Bytes(1)));
    forms.push(Form::plain(0xa9, Tail::Word));
    forms.push(Form::digit(0xf6, 0, Tail::Bytes(1)));
    forms.push(Form::digit(0xf7, 0, Tail::Word));
    for digit in 2..8 {
        forms.push(Form::digit(0xf6, digit, Tail::None));
        forms.push(Form::digit(0xf7, digit, Tail::None));
    }
    for digit in 0..2 {
        forms.push(Form::digit(0xfe, digit, Tail::None));
        forms.push(Form::digit(0xff, digit, Tail::None));
    }
    forms.push(Form::modrm(0x69, Tail::Word));
    forms.push(Form::modrm(0x6b, Tail::Bytes(1)));
    forms.push(Form::modrm(0xaf, Tail::None).two());
    for opcode in [0x98, 0x99, 0xf5, 0xf8, 0xf9, 0xfc, 0xfd, 0x9e, 0x9f] {
        forms.push(Form::plain(opcode, Tail::None));
    }
    forms
}

fn moves() -> Vec<Form> {
    let mut forms: Vec<_> = [0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b, 0x8d, 0x63]
        .map(|opcode| Form::modrm(opcode, Tail::None))
        .into();
    forms.push(Form::digit(0xc6, 0, Tail::Bytes(1)));
    forms.push(Form::digit(0xc7, 0, Tail::Word));
    forms.extend((0xb0..0xb8).map(|opcode| Form::plain(opcode, Tail::Bytes(1))));
    forms.extend((0xb8..0xc0).map(|opcode| Form::plain(opcode, Tail::Full)));
    forms.extend((0xa0..0xa4).map(|opcode| Form::plain(opcode, Tail::Bytes(8))));
    forms.extend((0x90..0x98).map(|opcode| Form::plain(opcode, Tail::None)));
    forms.extend((0xa4..0xa8).map(|opcode| Form::plain(opcode, Tail::None)));
    forms.extend((0xaa..0xb0).map(|opcode| Form::plain(opcode, Tail::None)));
    for opcode in [0xb6, 0xb7, 0xbe, 0xbf, 0xc0, 0xc1, 0xb0, 0xb1, 0xc3] {
        forms.push(Form::modrm(opcode, Tail::None).two());
    }
    forms.extend((0xc8..0xd0).map(|opcode| Form::plain(opcode, Tail::None).two()));
    for opcode in (0x90..0xa0).chain(0x40..0x50) {
        forms.push(Form::modrm(opcode, Tail::None).two());
    }
    forms.push(Form::digit(0x1f, 0, Tail::None).two());
    forms
}

fn control() -> Vec<Form> {
    let mut forms = Vec::new();
    forms.extend((0x70..0x80).map(|opcode| Form::plain(opcode, Tail::Branch(1))));
    forms.extend((0x80..0x90).map(|opcode| Form::plain(opcode, Tail::Branch(4)).two()));
    forms.extend((0xe0..0xe4).map(|opcode| Form::plain(opcode, Tail::Branch(1))));
    forms.push(Form::plain(0xeb, Tail::Branch(1)));
    forms.push(Form::plain(0xe9, Tail::Branch(4)));
    forms.push(Form::plain(0xe8, Tail::Branch(4)));
    forms.push(Form::plain(0xc3, Tail::None));
    forms.push(Form::plain(0xc2, Tail::Bytes(2)));
    forms.extend([2, 4, 6].map(|digit| Form::digit(0xff, digit, Tail::None)));
    forms.push(Form::digit(0x8f, 0, Tail::None));
    forms.extend((0x50..0x60).map(|opcode| Form::plain(opcode, Tail::None)));
    forms.push(Form::plain(0x68, Tail::Word));
    forms.push(Form::plain(0x6a, Tail::Bytes(1)));
    forms.extend([0xc9, 0x9c, 0x9d].map(|opcode| Form::plain(opcode, Tail::None)));
    forms
}

fn bits() -> Vec<Form> {
    let mut forms = Vec::new();
    for opcode in [0xa4, 0xac] {
        forms.push(Form::modrm(opcode, Tail::Bytes(1)).two());
        forms.push(Form::modrm(opcode + 1, Tail::None).two());
    }
    for opcode in [0xa3, 0xab, 0xb3, 0xbb, 0xbc, 0xbd] {
        forms.push(Form::modrm(opcode, Tail::None).two());
    }
    forms.extend((4..8).map(|digit| Form::digit(0xba, digit, Tail::Bytes(1)).two()));
    for opcode in [0xbc, 0xbd, 0xb8] {
        forms.push(Form::modrm(opcode, Tail::None).two().prefixed(0xf3));
    }
    forms
}
