//! A value in a file: magic, version, length and checksum, then the value in
//! postcard's encoding.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `vmrunTPL` |
//! | 4 | format version, little-endian |
//! | 4 | length of the value, little-endian |
//! | 32 | SHA-256 of the 16 bytes above and of the value |
//! | length | the value |

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::{FORMAT_VERSION, SnapshotError, damaged};

const MAGIC: &[u8; 8] = b"vmrunTPL";
const FIXED_LEN: usize = 16;
const CHECKSUM_LEN: usize = 32;

/// The bytes of a file that holds `value`.
pub(super) fn seal(value: &impl Serialize) -> Result<Vec<u8>, postcard::Error> {
    Ok(frame(&postcard::to_allocvec(value)?))
}

/// The bytes of a file that holds a value of this encoding.
pub(super) fn frame(value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FIXED_LEN + CHECKSUM_LEN + value.len());
    bytes.extend(MAGIC);
    bytes.extend(FORMAT_VERSION.to_le_bytes());
    bytes.extend((value.len() as u32).to_le_bytes());
    let checksum = checksum(&bytes, value);
    bytes.extend(checksum);
    bytes.extend(value);
    bytes
}

fn checksum(fixed: &[u8], value: &[u8]) -> [u8; CHECKSUM_LEN] {
    Sha256::new()
        .chain_update(fixed)
        .chain_update(value)
        .finalize()
        .into()
}

/// The value in the bytes of `file`. Allocates no more than a small multiple of
/// their number, whatever they say.
pub(super) fn unseal<T: DeserializeOwned>(
    file: &'static str,
    bytes: &[u8],
) -> Result<T, SnapshotError> {
    let parts = split(bytes).ok_or_else(|| damaged(file, "it is too short"))?;
    let (fixed, version, len, sum, value) = parts;
    if !fixed.starts_with(MAGIC) {
        return Err(damaged(file, "it does not begin as a template"));
    }
    if version != FORMAT_VERSION {
        return Err(SnapshotError::Version {
            file,
            found: version,
        });
    }
    if len as usize != value.len() {
        return Err(damaged(file, "its length is wrong"));
    }
    if checksum(fixed, value) != *sum {
        return Err(damaged(file, "its checksum is wrong"));
    }
    match postcard::take_from_bytes(value) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(damaged(file, "something follows its end")),
        Err(_) => Err(damaged(file, "it cannot be decoded")),
    }
}

type Parts<'a> = (&'a [u8], u32, u32, &'a [u8; CHECKSUM_LEN], &'a [u8]);

fn split(bytes: &[u8]) -> Option<Parts<'_>> {
    let (fixed, rest) = bytes.split_at_checked(FIXED_LEN)?;
    let (sum, value) = rest.split_first_chunk()?;
    let number = |at: usize| Some(u32::from_le_bytes(fixed.get(at..at + 4)?.try_into().ok()?));
    Some((fixed, number(8)?, number(12)?, sum, value))
}
