//! Length-prefixed frames: a little-endian `u32` payload length, then the
//! payload in postcard encoding.
//!
//! The length is checked against the direction's cap before anything is
//! allocated; a frame is either read whole or is an error, after which the
//! connection must be dropped.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

/// Largest payload the host sends, in bytes. A plan holds arguments and
/// environment, which Linux itself limits to 2 MiB by default, and mounts.
pub const MAX_TO_GUEST_BYTES: usize = 4 << 20;

/// Largest payload the host accepts from the guest, in bytes. Reports are a few
/// numbers and at most one line of text.
pub const MAX_TO_HOST_BYTES: usize = 64 << 10;

const HEADER_BYTES: usize = 4;

/// Why a frame could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer closed the connection between two frames.
    #[error("connection closed")]
    Closed,
    /// The connection broke, or ended inside a frame.
    #[error("connection broken")]
    Io(#[source] io::Error),
    /// The length is over the cap of this direction.
    #[error("frame of {len_bytes} bytes is over the limit of {max_bytes}")]
    TooLong {
        /// Length that was announced or is to be sent.
        len_bytes: usize,
        /// The cap.
        max_bytes: usize,
    },
    /// The payload is not the message that was expected.
    #[error("malformed frame")]
    Malformed(#[source] postcard::Error),
}

/// Writes `message` as one frame of at most `max_bytes`, in a single `write`
/// where the stream takes it.
pub fn write<T: Serialize>(
    stream: &mut impl Write,
    message: &T,
    max_bytes: usize,
) -> Result<(), FrameError> {
    let frame =
        postcard::to_extend(message, vec![0; HEADER_BYTES]).map_err(FrameError::Malformed)?;
    let len_bytes = frame.len() - HEADER_BYTES;
    if len_bytes > max_bytes {
        return Err(FrameError::TooLong {
            len_bytes,
            max_bytes,
        });
    }
    let mut frame = frame;
    frame[..HEADER_BYTES].copy_from_slice(&(len_bytes as u32).to_le_bytes());
    stream.write_all(&frame).map_err(FrameError::Io)
}

/// Reads one frame of at most `max_bytes`. Blocks until it is whole.
pub fn read<T: DeserializeOwned>(
    stream: &mut impl Read,
    max_bytes: usize,
) -> Result<T, FrameError> {
    let mut header = [0; HEADER_BYTES];
    read_header(stream, &mut header)?;
    let len_bytes = u32::from_le_bytes(header) as usize;
    if len_bytes > max_bytes {
        return Err(FrameError::TooLong {
            len_bytes,
            max_bytes,
        });
    }
    // A payload may hold a seed, of which no copy may stay behind.
    let mut payload = Zeroizing::new(vec![0; len_bytes]);
    stream.read_exact(&mut payload).map_err(FrameError::Io)?;
    let (message, rest) = postcard::take_from_bytes(&payload).map_err(FrameError::Malformed)?;
    if rest.is_empty() {
        Ok(message)
    } else {
        Err(FrameError::Malformed(
            postcard::Error::DeserializeBadEncoding,
        ))
    }
}

/// Fills `header`; an end of file before its first byte is an orderly close.
fn read_header(stream: &mut impl Read, header: &mut [u8]) -> Result<(), FrameError> {
    let first = loop {
        match stream.read(header) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => break other.map_err(FrameError::Io)?,
        }
    };
    if first == 0 {
        return Err(FrameError::Closed);
    }
    stream
        .read_exact(&mut header[first..])
        .map_err(FrameError::Io)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frame_comes_back() {
        let mut wire = Vec::new();
        write(&mut wire, &("true".to_owned(), 7u32), 100).unwrap();
        let back: (String, u32) = read(&mut wire.as_slice(), 100).unwrap();
        assert_eq!(back, ("true".to_owned(), 7));
    }

    #[test]
    fn length_is_refused_before_the_payload_is_read() {
        let mut wire: &[u8] = &[0xff, 0xff, 0xff, 0xff];
        assert!(matches!(
            read::<u32>(&mut wire, 16),
            Err(FrameError::TooLong {
                len_bytes: 0xffff_ffff,
                max_bytes: 16
            })
        ));
    }

    #[test]
    fn end_between_frames_differs_from_end_inside_one() {
        assert!(matches!(
            read::<u32>(&mut [].as_slice(), 16),
            Err(FrameError::Closed)
        ));
        assert!(matches!(
            read::<u32>(&mut [1, 0].as_slice(), 16),
            Err(FrameError::Io(_))
        ));
        assert!(matches!(
            read::<u32>(&mut [9, 0, 0, 0, 1].as_slice(), 16),
            Err(FrameError::Io(_))
        ));
    }

    #[test]
    fn bytes_behind_the_message_are_malformed() {
        let mut wire: &[u8] = &[2, 0, 0, 0, 7, 7];
        assert!(matches!(
            read::<u32>(&mut wire, 16),
            Err(FrameError::Malformed(_))
        ));
    }

    #[test]
    fn too_long_is_not_sent() {
        let mut wire = Vec::new();
        assert!(matches!(
            write(&mut wire, &[1u8; 32], 16),
            Err(FrameError::TooLong { .. })
        ));
        assert!(wire.is_empty());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(wire in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = read::<crate::message::Report>(&mut wire.as_slice(), MAX_TO_HOST_BYTES);
            let _ = read::<crate::message::Request>(&mut wire.as_slice(), MAX_TO_GUEST_BYTES);
        }
    }
}
