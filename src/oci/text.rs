//! Checks that every string of a config.json goes through on its way to the guest.

use std::path::Path;

use vmrun_protocol::plan::Bytes;

use crate::Error;

/// Longest path that Linux takes, in bytes (`PATH_MAX` without its NUL).
pub const MAX_PATH_BYTES: usize = 4095;

/// `text` as bytes, if it has no NUL, which no system call can be given.
pub fn bytes(path: &str, text: &str) -> Result<Bytes, Error> {
    if text.contains('\0') {
        return Err(Error::property(path, "must not contain a NUL character"));
    }
    Ok(text.as_bytes().to_vec())
}

/// An absolute path.
pub fn absolute_path(path: &str, value: &Path) -> Result<Bytes, Error> {
    // oci-spec reads paths from JSON strings, so they always are UTF-8.
    let text = value.to_str().unwrap_or_default();
    let checked = bytes(path, text)?;
    if text.is_empty() {
        return Err(Error::property(path, "must not be empty"));
    }
    if !text.starts_with('/') {
        return Err(Error::property(path, "must be an absolute path"));
    }
    if text.len() > MAX_PATH_BYTES {
        let problem = format!("is longer than {MAX_PATH_BYTES} bytes");
        return Err(Error::property(path, problem));
    }
    Ok(checked)
}

/// An absolute path inside the container, without `..`: such a path has no
/// meaning there that its author can rely on.
pub fn container_path(path: &str, value: &Path) -> Result<Bytes, Error> {
    let checked = absolute_path(path, value)?;
    if checked.split(|&b| b == b'/').any(|part| part == b"..") {
        return Err(Error::property(path, "must not contain \"..\""));
    }
    Ok(checked)
}

/// Refuses a list that is longer than any honest one.
pub fn at_most(path: &str, len: usize, max: usize) -> Result<(), Error> {
    if len > max {
        let problem = format!("has {len} entries, more than {max}");
        return Err(Error::property(path, problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(value: &str) -> Option<String> {
        container_path("p", Path::new(value))
            .err()
            .map(|e| e.to_string())
    }

    #[test]
    fn container_paths() {
        assert_eq!(problem("/a/b"), None);
        assert_eq!(problem("/a/..b"), None);
        assert_eq!(problem("").unwrap(), "p: must not be empty");
        assert_eq!(problem("a").unwrap(), "p: must be an absolute path");
        assert_eq!(problem("/a/../b").unwrap(), "p: must not contain \"..\"");
        assert_eq!(
            problem("/a\0b").unwrap(),
            "p: must not contain a NUL character"
        );
        assert_eq!(
            problem(&"/a".repeat(2048)).unwrap(),
            "p: is longer than 4095 bytes"
        );
    }

    #[test]
    fn list_lengths() {
        assert!(at_most("p", 3, 3).is_ok());
        assert_eq!(
            at_most("p", 4, 3).unwrap_err().to_string(),
            "p: has 4 entries, more than 3"
        );
    }
}
