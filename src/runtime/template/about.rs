//! What a template says of itself, for those who look after them: a start does
//! not read it.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::key::Inputs;
use super::store::{read_small, write_small};

/// Name of the file in a template's folder.
const FILE: &str = "about";

/// What a template was made of, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Seconds since 1970, UTC.
    pub made_s: u64,
    /// What went in.
    pub inputs: Inputs,
}

impl About {
    /// A template that is made now.
    pub fn now(inputs: Inputs) -> Self {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            made_s: since_1970.unwrap_or_default().as_secs(),
            inputs,
        }
    }

    /// Writes it into the template's folder.
    pub fn write(&self, folder: BorrowedFd) -> io::Result<()> {
        write_small(folder, FILE, &serde_json::to_vec(self)?)
    }

    /// Reads it from there.
    pub fn read(folder: BorrowedFd) -> io::Result<Self> {
        Ok(serde_json::from_slice(&read_small(folder, FILE)?)?)
    }
}
