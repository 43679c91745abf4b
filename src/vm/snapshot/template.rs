//! A template that was found sound.

use std::fs::File;
use std::os::fd::BorrowedFd;

use super::files::{self, STATE};
use super::memory_file::{self, MemoryRecord};
use super::{SnapshotError, WorkingSet, sealed};

/// A template, checked and open: its folder may be removed meanwhile.
#[derive(Debug)]
pub struct Template {
    memory: File,
    record: MemoryRecord,
    working_set: Option<WorkingSet>,
}

impl Template {
    /// Opens and checks the template in `folder`.
    /// [`SnapshotError::is_unusable`] tells whether to make it anew.
    pub fn open(folder: BorrowedFd) -> Result<Self, SnapshotError> {
        let record: MemoryRecord = sealed::unseal(STATE, &files::read(folder, STATE)?)?;
        let memory = memory_file::open(folder, &record)?;
        Ok(Self {
            memory,
            record,
            working_set: None,
        })
    }

    /// The pages that a machine needs first, if they were recorded and their file
    /// is sound; otherwise see [`RunningMachine::touched`](crate::machine::RunningMachine::touched).
    pub fn working_set(&self) -> Option<&WorkingSet> {
        self.working_set.as_ref()
    }
}
