//! The machine's cgroup on the host: what `linux.cgroupsPath` names, on cgroup v1,
//! v2 and hybrids of both.
//!
//! Three steps, so that nothing is made that no record knows of: [`HostCgroup::plan`]
//! looks and decides; the result is kept in the container's state; then
//! [`HostCgroup::enter`], in the monitor and before its first thread, makes the
//! folders, writes the limits and moves the process in. [`HostCgroup::remove`] kills
//! what is left in there and removes what was made, whatever of it exists; folders
//! that were there before stay.
//!
//! Limits are the container's and what its machine needs beside it. Processes of
//! `exec` are in the guest's cgroup; on the host they only are relays, which stay
//! in their caller's. Devices (cgroup v1) are left as the parent has them: the
//! container's devices are the guest's, and the monitor needs /dev/kvm.

mod folder;
mod layout;
mod limits;
mod place;
mod statistics;
mod systemd;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmrun_oci::host_limits::HostLimits;

use folder::Folder;
use layout::Layout;
pub use limits::{MEMORY_OVERHEAD_MIB, PIDS_OVERHEAD};
pub use statistics::{BlockDevice, HostStatistics};
use systemd::Unit;

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Driver {
    /// vmrun, in the file system.
    #[default]
    Cgroupfs,
    /// systemd (`--systemd-cgroup`).
    Systemd,
}

/// What a container's cgroup is to be.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The container's id, which names the cgroup where no path is given.
    pub id: &'a str,
    /// `linux.cgroupsPath`. Absolute: from the top of each hierarchy; else from the
    /// caller's own cgroup, as runc has it. `slice:prefix:name` for systemd.
    pub path: Option<&'a str>,
    /// Who makes it.
    pub driver: Driver,
    /// Added to the memory limit: [`MEMORY_OVERHEAD_MIB`] if not asked otherwise.
    pub overhead_mib: u64,
}

/// Why the host's cgroup is not as asked for.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// /proc/self/mountinfo or /proc/self/cgroup cannot be read.
    #[error("cannot find the host's cgroups")]
    Layout(#[source] io::Error),
    /// No hierarchy is mounted.
    #[error("linux.cgroupsPath: this host has no cgroups")]
    None,
    /// `linux.cgroupsPath` does not fit the driver.
    #[error("linux.cgroupsPath: {0}")]
    Path(String),
    /// `--systemd-cgroup` without systemd.
    #[error("systemd not running on this host, cannot use systemd cgroups manager")]
    NoSystemd,
    /// systemd cannot be asked.
    #[error("cannot talk to systemd")]
    Systemd(#[source] io::Error),
    /// systemd says no.
    #[error("systemd: {0}")]
    SystemdRefused(String),
    /// A folder cannot be made, joined or removed.
    #[error("cannot {doing} cgroup {path:?}")]
    Folder {
        /// What was tried.
        doing: &'static str,
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A limit cannot be set.
    #[error("cannot write {value:?} to {path:?}")]
    Limit {
        /// What was written.
        value: String,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Processes in it cannot be killed.
    #[error("cgroup {path:?}: processes in it do not end")]
    Busy {
        /// The folder.
        path: PathBuf,
    },
}

/// A container's cgroup: one folder in each hierarchy. Kept in the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCgroup {
    folders: Vec<Folder>,
    overhead_mib: u64,
    /// Whether doing without is allowed, where the right is missing.
    optional: bool,
    /// With [`Driver::Systemd`].
    unit: Option<Unit>,
}

impl HostCgroup {
    /// Looks where the cgroup belongs. `None` where none was asked for: the container's
    /// limits hold in the guest, and to join a cgroup v1 costs 20 ms, the kernel's wait
    /// for all its processors.
    pub fn plan(asked: &Asked) -> Result<Option<Self>, CgroupError> {
        if asked.path.is_none() && asked.driver == Driver::Cgroupfs {
            return Ok(None);
        }
        Self::plan_in(&Layout::of_this_host()?, asked)
    }

    fn plan_in(layout: &Layout, asked: &Asked) -> Result<Option<Self>, CgroupError> {
        let is_root = rustix::process::geteuid().is_root();
        let (unit, place) = match asked.driver {
            Driver::Cgroupfs => (None, None),
            Driver::Systemd => {
                let (unit, place) = Unit::plan(asked)?;
                (Some(unit), Some(place))
            }
        };
        if layout.hierarchies.is_empty() {
            return match asked.path {
                Some(_) if is_root => Err(CgroupError::None),
                _ => Ok(None),
            };
        }
        let folders = match &place {
            Some(place) => place::of_unit(layout, place),
            None => place::folders(layout, asked)?,
        };
        Ok(Some(Self {
            folders,
            overhead_mib: asked.overhead_mib,
            optional: !is_root || asked.path.is_none(),
            unit,
        }))
    }

    /// Makes the folders, sets the limits and moves this process in, which has one
    /// thread. Undoes what it did if it fails. Without the right to make cgroups, and
    /// where it was not asked for one by root, it leaves the process where it is: the
    /// limits hold in the guest all the same.
    pub fn enter(&self, limits: &HostLimits) -> Result<(), CgroupError> {
        let entered = self.make(limits).and_then(|()| {
            let _undo = self.write(limits)?;
            self.folders.iter().try_for_each(Folder::join)
        });
        let Err(error) = entered else {
            return Ok(());
        };
        self.remove_folders();
        if self.optional && error.is_lack_of_right() {
            log::debug!(
                "no cgroup of its own on the host: {}",
                crate::error::chain(&error)
            );
            return Ok(());
        }
        Err(error)
    }

    /// What systemd has made is there then, in the hierarchies that it manages.
    fn make(&self, limits: &HostLimits) -> Result<(), CgroupError> {
        if let Some(unit) = &self.unit {
            unit.start(limits, self.overhead_mib)?;
        }
        self.folders.iter().try_for_each(Folder::make)
    }

    /// Moves this process out, to where it may end by itself, and removes what was
    /// made.
    pub fn leave(&self) {
        self.remove_folders();
    }

    fn remove_folders(&self) {
        for folder in &self.folders {
            if let Err(error) = folder.leave().and_then(|()| folder.remove()) {
                log::debug!("{}", crate::error::chain(&error));
            }
        }
    }

    /// Kills what is in it, waits until that is gone, and removes what was made.
    /// Nothing to do is no error.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let mut result = Ok(());
        for folder in &self.folders {
            if let Err(error) = folder.kill().and_then(|()| folder.remove()) {
                result = Err(error);
            }
        }
        result
    }

    /// Changes limits of the running machine. If one fails, those before are set
    /// back. The result sets back all of them.
    pub fn update(&self, limits: &HostLimits) -> Result<Undo, CgroupError> {
        let undo = self.write(limits)?;
        if let Some(unit) = &self.unit
            && let Err(error) = unit.update(limits, self.overhead_mib)
        {
            undo.run();
            return Err(error);
        }
        Ok(undo)
    }

    fn write(&self, limits: &HostLimits) -> Result<Undo, CgroupError> {
        let mut undo = Undo::default();
        for write in limits::writes(&self.folders, limits, self.overhead_mib) {
            match write.apply() {
                Ok(Some(before)) => undo.before.push(before),
                Ok(None) => {}
                Err(error) => {
                    undo.run();
                    return Err(error);
                }
            }
        }
        Ok(undo)
    }

    /// What the host has counted.
    pub fn statistics(&self) -> HostStatistics {
        statistics::read(&self.folders)
    }

    /// Folder of each controller (`""` for the unified hierarchy), for the state.
    pub fn paths(&self) -> impl Iterator<Item = (&str, &std::path::Path)> {
        self.folders.iter().flat_map(Folder::named)
    }
}

impl CgroupError {
    fn is_lack_of_right(&self) -> bool {
        let source = match self {
            Self::Folder { source, .. } | Self::Limit { source, .. } => source,
            _ => return false,
        };
        matches!(
            source.kind(),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
        )
    }
}

/// What limits were before an update.
#[derive(Debug, Default)]
#[must_use]
pub struct Undo {
    before: Vec<limits::Write>,
}

impl Undo {
    /// Sets all of them back, the last first.
    pub fn run(self) {
        for write in self.before.into_iter().rev() {
            if let Err(error) = write.apply() {
                log::warn!("cannot set back: {}", crate::error::chain(&error));
            }
        }
    }
}

#[cfg(test)]
mod tests;
