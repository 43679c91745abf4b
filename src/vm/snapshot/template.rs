//! A template: what is in its files, written and found sound.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryMmap;

use super::files::{self, STATE};
use super::memory_file::{self, MemoryRecord, Untouched};
use super::{SnapshotError, WorkingSet, damaged, host, sealed};
use crate::cpu::VcpusState;
use crate::kvm::ChipsState;
use crate::probe::HostKind;
use crate::virtio::mmio::TransportState;

/// All of a machine but its memory.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MachineState {
    pub host: HostKind,
    pub mem_size_mib: u32,
    pub vcpus: VcpusState,
    pub chips: ChipsState,
    /// In the order of their windows.
    pub devices: Vec<TransportState>,
}

/// What the file `state` holds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Saved {
    memory: MemoryRecord,
    machine: MachineState,
}

/// Writes a template: `state` last, which makes it one.
pub(crate) fn write(
    folder: BorrowedFd,
    memory: &GuestMemoryMmap,
    untouched: Untouched,
    machine: MachineState,
) -> Result<(), SnapshotError> {
    let memory = memory_file::write(folder, memory, untouched)?;
    let bytes = sealed::seal(&Saved { memory, machine })
        .map_err(|error| host("encode the state")(io::Error::other(error)))?;
    files::create(folder, STATE)?
        .write_all(&bytes)
        .map_err(host("write the state"))
}

/// A template, checked and open: its folder may be removed meanwhile.
#[derive(Debug)]
pub struct Template {
    memory: File,
    checksum: [u8; 32],
    machine: MachineState,
    working_set: Option<WorkingSet>,
}

/// Where a restored machine's memory comes from.
pub(crate) struct Origin {
    pub memory: Arc<File>,
    pub checksum: [u8; 32],
    pub working_set: Option<WorkingSet>,
}

impl Template {
    /// Opens and checks the template in `folder`.
    /// [`SnapshotError::is_unusable`] tells whether to make it anew.
    pub fn open(folder: BorrowedFd) -> Result<Self, SnapshotError> {
        let Saved {
            memory: record,
            machine,
        } = sealed::unseal(STATE, &files::read(folder, STATE)?)?;
        if record.len_bytes != u64::from(machine.mem_size_mib) << 20 {
            return Err(damaged(STATE, "its memory sizes differ"));
        }
        let working_set = WorkingSet::read(folder, record.content, record.len_bytes)
            // Only a matter of speed, and made anew when it is not there.
            .inspect_err(|error| log::debug!("{error}"))
            .ok();
        Ok(Self {
            memory: memory_file::open(folder, &record)?,
            checksum: record.content,
            machine,
            working_set,
        })
    }

    /// The pages that a machine needs first, if they were recorded and their file
    /// is sound; otherwise they are to be recorded, see
    /// [`RunningMachine::touched`](crate::machine::RunningMachine::touched).
    pub fn working_set(&self) -> Option<&WorkingSet> {
        self.working_set.as_ref()
    }

    pub(crate) fn into_parts(self) -> (Origin, MachineState) {
        let origin = Origin {
            memory: Arc::new(self.memory),
            checksum: self.checksum,
            working_set: self.working_set,
        };
        (origin, self.machine)
    }
}
