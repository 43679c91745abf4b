//! How a step that fails gets its name: results of system calls become the
//! [`Failure`] that the host prints.

use rustix::io::Errno;
use vmrun_protocol::message::{Failure, FailureKind};

/// Longest [`Failure::what`], in bytes.
const WHAT_MAX_BYTES: usize = 4096;

/// A set-up failure of the thing that `what` names.
pub fn setup(what: impl Into<String>, errno: Errno) -> Failure {
    failure(FailureKind::Setup, what, errno.raw_os_error())
}

/// A request that does not fit the container's state.
pub fn state(what: impl Into<String>) -> Failure {
    failure(FailureKind::State, what, 0)
}

/// A failure of any kind, its text cut to the length the host accepts.
pub fn failure(kind: FailureKind, what: impl Into<String>, errno: i32) -> Failure {
    let mut what = what.into();
    if what.len() > WHAT_MAX_BYTES {
        let end = (0..=WHAT_MAX_BYTES)
            .rev()
            .find(|i| what.is_char_boundary(*i));
        what.truncate(end.unwrap_or(0));
    }
    Failure { kind, what, errno }
}

/// `bytes` as they appear in a message: in quotes, control characters escaped.
pub fn quoted(bytes: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(bytes))
}

/// Names the thing that a system call was about.
pub trait Named<T> {
    /// An error becomes a set-up failure of what `what` says.
    fn named<W: Into<String>>(self, what: impl FnOnce() -> W) -> Result<T, Failure>;
}

impl<T> Named<T> for Result<T, Errno> {
    fn named<W: Into<String>>(self, what: impl FnOnce() -> W) -> Result<T, Failure> {
        self.map_err(|errno| setup(what(), errno))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_cut_between_characters() {
        let long = "x".to_owned() + &"\u{e9}".repeat(WHAT_MAX_BYTES);
        let cut = setup(long, Errno::NOENT);
        assert_eq!(cut.what.len(), WHAT_MAX_BYTES - 1);
        assert_eq!(cut.errno, 2);
    }

    #[test]
    fn quoted_text_stays_on_one_line() {
        assert_eq!(quoted(b"/a\nb\x1b"), r#""/a\nb\u{1b}""#);
    }
}
