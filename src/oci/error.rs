//! What can be wrong with a config.json, or a part of one.

use std::io;

/// Why a bundle's config.json is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is missing or cannot be read.
    #[error("config.json")]
    Read(#[source] io::Error),
    /// The file is a folder, a device, ...
    #[error("config.json: not a regular file")]
    NotAFile,
    /// The file is larger than vmrun reads.
    #[error("config.json: over the limit of {max_bytes} bytes")]
    TooLarge {
        /// The limit.
        max_bytes: u64,
    },
    /// Not JSON, or a property of the wrong type; the source names line and column.
    #[error("{document}{}", at(.path))]
    Malformed {
        /// Which document it is: `config.json`, `process.json`, ...
        document: &'static str,
        /// JSON path, empty if not known.
        path: String,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A property has a value that cannot be, or that vmrun does not support.
    #[error("{path}: {problem}")]
    Property {
        /// JSON path (`mounts[3].destination`).
        path: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Error {
    /// A [`Error::Property`].
    pub fn property(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Property {
            path: path.into(),
            problem: problem.into(),
        }
    }
}

fn at(path: &str) -> String {
    if path.is_empty() {
        String::new()
    } else {
        format!(": {path}")
    }
}
