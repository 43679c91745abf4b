//! Templates: a machine that has booted, frozen into a folder, from which any
//! number of machines go on.
//!
//! ```text
//! <folder>/memory       guest RAM, sparse: zero pages are holes
//! <folder>/state        vCPUs, interrupt controllers, clock, devices; and what
//!                       `memory` was when it was sealed
//! <folder>/working-set  optional: pages that a machine needs first
//! ```
//! [`RunningMachine::freeze`](crate::machine::RunningMachine::freeze) writes the
//! first two, `state` last: a folder without it is no template.
//! [`Template::open`] checks them, and
//! [`Machine::restore`](crate::machine::Machine::restore) makes a machine of one,
//! paused where the other was stopped. Any number of machines share the pages of
//! `memory` that they have not written.
//!
//! `state` and `working-set` are read whole and begin with magic, version, length
//! and checksum (`sealed`). `memory` is too large to be read at each start: it is
//! taken as unchanged while it is the same inode with the same times as when it
//! was sealed, and compared by content otherwise. All files belong to the
//! effective user and nobody else may open them. So a file that was damaged by
//! accident is found; whoever can write as that user can replace the machine, as
//! they could replace the kernel.

mod files;
mod memory_file;
mod page_map;
mod prefetch;
mod sealed;
mod template;
mod working_set;

use std::io;

use crate::cpu::CpuError;
use crate::ending::Ending;
use crate::kvm::KvmError;
use crate::slots::Unsaved;
use crate::virtio::mmio::StateError;

pub use files::owner;
pub(crate) use memory_file::Untouched;
pub(crate) use prefetch::prefetch;
pub use template::Template;
pub(crate) use template::{MachineState, write};
pub use working_set::WorkingSet;

/// Version of the files. A template of any other version is refused. To be raised
/// with every change to what is saved, in whichever device.
pub const FORMAT_VERSION: u32 = 1;

/// Why a machine cannot be frozen, or a template not be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The machine ended before it could be frozen.
    #[error("{0}")]
    Ended(Ending),
    /// A device holds what cannot be saved.
    #[error("{device}: {why}")]
    Device {
        /// The device's name.
        device: &'static str,
        /// What it holds.
        why: &'static str,
    },
    /// The folder holds no template, or one that was never completed.
    #[error("there is no '{file}'")]
    Missing {
        /// The file that is not there.
        file: &'static str,
    },
    /// A file is not what was written: damaged, truncated, or something else.
    #[error("'{file}' is damaged: {what}")]
    Damaged {
        /// The file.
        file: &'static str,
        /// How it shows.
        what: String,
    },
    /// Written by another version of vmrun.
    #[error("'{file}' has format version {found}, not {FORMAT_VERSION}")]
    Version {
        /// The file.
        file: &'static str,
        /// The version.
        found: u32,
    },
    /// A file that somebody else owns or may open.
    #[error("'{file}' is foreign: {what}")]
    Foreign {
        /// The file.
        file: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The template is sound, but of another machine or host than this one.
    #[error("the template does not fit: {0}")]
    Misfit(String),
    /// KVM does not take the saved state of the vCPUs or its own devices.
    #[error("the template's processors cannot be restored")]
    Refused(#[source] CpuError),
    /// A device does not take its saved state.
    #[error("a device of the template cannot be restored")]
    Devices(#[source] StateError),
    /// The vCPUs cannot be saved.
    #[error(transparent)]
    Cpu(CpuError),
    /// KVM's devices cannot be saved.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The host refused something else.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl SnapshotError {
    /// Whether the files are at fault, so that the template is to be made anew:
    /// not there, damaged, foreign, of another version, or of another host.
    pub fn is_unusable(&self) -> bool {
        match self {
            Self::Missing { .. }
            | Self::Damaged { .. }
            | Self::Version { .. }
            | Self::Foreign { .. }
            | Self::Misfit(_)
            | Self::Refused(_) => true,
            Self::Devices(source) => !source.is_of_the_host(),
            Self::Ended(_)
            | Self::Device { .. }
            | Self::Cpu(_)
            | Self::Kvm(_)
            | Self::Host { .. } => false,
        }
    }
}

impl From<Unsaved> for SnapshotError {
    fn from(Unsaved { device, why }: Unsaved) -> Self {
        Self::Device { device, why }
    }
}

fn host<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> SnapshotError {
    move |source| SnapshotError::Host {
        what,
        source: source.into(),
    }
}

fn damaged(file: &'static str, what: &str) -> SnapshotError {
    SnapshotError::Damaged {
        file,
        what: what.to_owned(),
    }
}

#[cfg(test)]
mod tests;
