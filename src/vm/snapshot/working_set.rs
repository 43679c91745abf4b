//! The file `working-set`: pages that a machine needs soon after it was restored.

use std::io::Write;
use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

use super::files::{self, WORKING_SET};
use super::{SnapshotError, host, sealed};

/// Pages that a machine has touched since it was restored, as runs, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkingSet {
    /// Checksum of the `memory` that it belongs to.
    memory: [u8; 32],
    runs: Vec<Run>,
}

/// Pages that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Run {
    /// The first, counted from the start of `memory`.
    pub first_page: u32,
    /// How many.
    pub pages: u32,
    /// Whether they were written, too.
    pub written: bool,
}

impl WorkingSet {
    /// Writes it beside the template's other files, for the next
    /// [`Template::open`](super::Template::open). It replaces one that is there.
    pub fn write(&self, folder: BorrowedFd) -> Result<(), SnapshotError> {
        let bytes = sealed::seal(self)
            .map_err(|error| host("encode the working set")(std::io::Error::other(error)))?;
        let _ = rustix::fs::unlinkat(folder, WORKING_SET, rustix::fs::AtFlags::empty());
        let mut file = files::create(folder, WORKING_SET)?;
        file.write_all(&bytes)
            .map_err(host("write the working set"))
    }
}
