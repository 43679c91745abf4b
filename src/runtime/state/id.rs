//! Ids of containers.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::StateError;

/// An id by runc's rule: letters, digits and `_+-.`, and not a folder's `.` or `..`.
/// It can be the name of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);

impl Id {
    /// Longest id: `NAME_MAX`.
    const MAX_BYTES: usize = 255;

    /// Checks `text`.
    pub fn new(text: impl Into<String>) -> Result<Self, StateError> {
        let text = text.into();
        let known = |b: u8| b.is_ascii_alphanumeric() || b"_+-.".contains(&b);
        if text.is_empty() {
            return Err(StateError::EmptyId);
        }
        let is_folder = text == "." || text == "..";
        if is_folder || text.len() > Self::MAX_BYTES || !text.bytes().all(known) {
            return Err(StateError::InvalidId);
        }
        Ok(Self(text))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Id {
    type Error = StateError;

    fn try_from(text: String) -> Result<Self, StateError> {
        Self::new(text)
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule() {
        let long = "x".repeat(256);
        for id in ["a/b", "..", ".", "a b", "a\n", "é", "a,b", long.as_str()] {
            let error = Id::new(id).unwrap_err();
            assert_eq!(error.to_string(), "invalid container ID format", "{id:?}");
        }
        assert_eq!(
            Id::new("").unwrap_err().to_string(),
            "container id cannot be empty"
        );
        for id in ["a", "...", "A_b+c-d.e", &long[1..]] {
            assert_eq!(Id::new(id).unwrap().as_str(), id);
        }
    }
}
