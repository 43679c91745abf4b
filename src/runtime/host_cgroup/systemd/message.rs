//! D-Bus messages (D-Bus specification, "Message Protocol"), as far as calls to
//! systemd need them: little-endian, and of few types.

/// Method call, reply, error, signal.
pub const CALL: u8 = 1;
/// See [`CALL`].
pub const REPLY: u8 = 2;
/// See [`CALL`].
pub const ERROR: u8 = 3;
/// See [`CALL`].
pub const SIGNAL: u8 = 4;

/// Length of the fixed part of a message, in bytes.
pub const FIXED_BYTES: usize = 16;

/// Largest message that is read, in bytes.
pub const MAX_BYTES: usize = 256 << 10;

/// Header fields.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const SIGNATURE: u8 = 8;

/// A property of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `b`
    Bool(bool),
    /// `t`
    U64(u64),
    /// `s`
    Text(String),
    /// `au`
    U32s(Vec<u32>),
}

/// Values one after the other, each aligned as its type demands.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn align(&mut self, to: usize) {
        let len = self.bytes.len().next_multiple_of(to);
        self.bytes.resize(len, 0);
    }

    /// `u`
    pub fn u32(&mut self, value: u32) {
        self.align(4);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// `b`
    pub fn bool(&mut self, value: bool) {
        self.u32(value.into());
    }

    /// `s` and `o`
    pub fn text(&mut self, text: &str) {
        self.u32(len(text.len()));
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
    }

    fn signature(&mut self, signature: &str) {
        // Ours are short.
        self.bytes.push(len(signature.len()) as u8);
        self.bytes.extend_from_slice(signature.as_bytes());
        self.bytes.push(0);
    }

    /// An array whose elements are aligned to `to`.
    pub fn array(&mut self, to: usize, elements: impl FnOnce(&mut Self)) {
        self.u32(0);
        let at = self.bytes.len() - 4;
        self.align(to);
        let start = self.bytes.len();
        elements(self);
        let length = len(self.bytes.len() - start);
        self.bytes[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// `(sv)`
    pub fn property(&mut self, name: &str, value: &Value) {
        self.align(8);
        self.text(name);
        match value {
            Value::Bool(value) => {
                self.signature("b");
                self.bool(*value);
            }
            Value::U64(value) => {
                self.signature("t");
                self.align(8);
                self.bytes.extend_from_slice(&value.to_le_bytes());
            }
            Value::Text(text) => {
                self.signature("s");
                self.text(text);
            }
            Value::U32s(values) => {
                self.signature("au");
                self.array(4, |w| values.iter().for_each(|v| w.u32(*v)));
            }
        }
    }
}

fn len(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// A call of a method of `interface` at `path`.
pub fn call(
    serial: u32,
    (path, interface, member): (&str, &str, &str),
    signature: &str,
    body: Writer,
) -> Vec<u8> {
    let mut message = Writer {
        bytes: vec![b'l', CALL, 0, 1],
    };
    message.u32(len(body.bytes.len()));
    message.u32(serial);
    message.array(8, |fields| {
        for (code, kind, value) in [
            (PATH, "o", path),
            (INTERFACE, "s", interface),
            (MEMBER, "s", member),
        ] {
            fields.align(8);
            fields.bytes.push(code);
            fields.signature(kind);
            fields.text(value);
        }
        fields.align(8);
        fields.bytes.push(SIGNATURE);
        fields.signature("g");
        fields.signature(signature);
    });
    message.align(8);
    message.bytes.extend_from_slice(&body.bytes);
    message.bytes
}

/// Length of the whole message that begins with `fixed`; nothing if it is none that
/// we read.
pub fn whole_bytes(fixed: &[u8; FIXED_BYTES]) -> Option<usize> {
    if fixed[0] != b'l' || fixed[3] != 1 {
        return None;
    }
    let mut fixed = Reader {
        bytes: fixed,
        at: 4,
    };
    let (body, _serial, fields) = (fixed.u32()?, fixed.u32()?, fixed.u32()?);
    let header = FIXED_BYTES.checked_add(fields as usize)?;
    let whole = header
        .checked_next_multiple_of(8)?
        .checked_add(body as usize)?;
    (whole <= MAX_BYTES).then_some(whole)
}

/// What is looked at of a message that came.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Incoming {
    /// [`REPLY`], [`ERROR`], [`SIGNAL`], ...
    pub kind: u8,
    /// Name of a signal.
    pub member: String,
    /// Name of an error.
    pub error: String,
    /// To which call it is the answer.
    pub reply_to: u32,
    /// Of the body: its strings and object paths, in order, as far as it has nothing
    /// else but numbers.
    pub texts: Vec<String>,
}

/// Takes a whole message apart; nothing if it makes no sense.
pub fn parse(message: &[u8]) -> Option<Incoming> {
    let mut reader = Reader {
        bytes: message,
        at: 12,
    };
    let mut incoming = Incoming {
        kind: *message.get(1)?,
        ..Incoming::default()
    };
    let fields_bytes = reader.u32()? as usize;
    let end = FIXED_BYTES.checked_add(fields_bytes)?;
    let mut signature = String::new();
    while reader.at < end {
        reader.align(8)?;
        let code = reader.byte()?;
        match (code, reader.signature()?.as_str()) {
            (SIGNATURE, "g") => signature = reader.signature()?,
            (MEMBER, "s") => incoming.member = reader.text()?,
            (ERROR_NAME, "s") => incoming.error = reader.text()?,
            (REPLY_SERIAL, "u") => incoming.reply_to = reader.u32()?,
            (_, "s" | "o") => drop(reader.text()?),
            (_, "g") => drop(reader.signature()?),
            (_, "u") => drop(reader.u32()?),
            _ => return None,
        }
    }
    reader.align(8)?;
    for kind in signature.chars() {
        match kind {
            's' | 'o' => incoming.texts.push(reader.text()?),
            'u' | 'b' | 'i' => drop(reader.u32()?),
            _ => break,
        }
    }
    Some(incoming)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) -> Option<()> {
        self.at = self.at.checked_next_multiple_of(to)?;
        Some(())
    }

    fn take(&mut self, len: usize) -> Option<&[u8]> {
        let end = self.at.checked_add(len)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u32(&mut self) -> Option<u32> {
        self.align(4)?;
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<String> {
        let len = self.u32()? as usize;
        let text = String::from_utf8(self.take(len)?.to_vec()).ok()?;
        self.take(1)?;
        Some(text)
    }

    fn signature(&mut self) -> Option<String> {
        let len = self.byte()?.into();
        let text = String::from_utf8(self.take(len)?.to_vec()).ok()?;
        self.take(1)?;
        Some(text)
    }
}

/// What systemd would send: a signal has its name, all else what it answers.
#[cfg(test)]
pub fn built(kind: u8, reply_to: u32, signature: &str, body: Writer) -> Vec<u8> {
    let mut message = Writer {
        bytes: vec![b'l', kind, 0, 1],
    };
    message.u32(len(body.bytes.len()));
    message.u32(9);
    message.array(8, |fields| {
        if kind == SIGNAL {
            fields.bytes.push(MEMBER);
            fields.signature("s");
            fields.text("JobRemoved");
        } else {
            fields.bytes.push(REPLY_SERIAL);
            fields.signature("u");
            fields.u32(reply_to);
        }
        fields.align(8);
        fields.bytes.push(SIGNATURE);
        fields.signature("g");
        fields.signature(signature);
    });
    message.align(8);
    message.bytes.extend_from_slice(&body.bytes);
    message.bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_call_is_aligned_and_whole() {
        let mut body = Writer::default();
        body.text("a");
        body.array(8, |properties| {
            properties.property("PIDs", &Value::U32s(vec![7]));
            properties.property("MemoryMax", &Value::U64(u64::MAX));
        });
        let message = call(3, ("/p", "i.f", "M"), "sa(sv)", body);
        let fixed = message.first_chunk().unwrap();
        assert_eq!(whole_bytes(fixed), Some(message.len()));
        let incoming = parse(&message).unwrap();
        assert_eq!((incoming.kind, incoming.member.as_str()), (CALL, "M"));
        assert_eq!(incoming.texts, ["a"]);
        // By hand, from the specification.
        let body = &message[message.len() - 72..];
        assert_eq!(&body[..8], b"\x01\0\0\0a\0\0\0");
        assert_eq!(&body[8..12], 56u32.to_le_bytes());
        assert_eq!(&body[16..25], b"\x04\0\0\0PIDs\0");
        assert_eq!(&body[25..29], b"\x02au\0");
        assert_eq!(&body[32..40], b"\x04\0\0\0\x07\0\0\0");
        assert_eq!(&body[40..54], b"\x09\0\0\0MemoryMax\0");
        assert_eq!(&body[54..57], b"\x01t\0");
        assert_eq!(&body[64..72], [0xff; 8]);
    }

    #[test]
    fn too_long_or_of_another_kind() {
        let fixed = |first: u8, body: u32, fields: u32| {
            let mut fixed = [0; FIXED_BYTES];
            fixed[0] = first;
            fixed[3] = 1;
            fixed[4..8].copy_from_slice(&body.to_le_bytes());
            fixed[12..16].copy_from_slice(&fields.to_le_bytes());
            whole_bytes(&fixed)
        };
        assert_eq!(fixed(b'l', 1, 1), Some(25));
        assert_eq!(fixed(b'B', 1, 1), None);
        assert_eq!(fixed(b'l', u32::MAX, u32::MAX), None);
        assert_eq!(fixed(b'l', 300 << 10, 0), None);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse(&bytes);
        }
    }
}
