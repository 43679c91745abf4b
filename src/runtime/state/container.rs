//! One container's folder, read.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use super::{Id, Record, StateError, Status, VERSION, files};
use crate::monitor::client::{Client, ClientError};

/// A container that exists, whatever it is doing.
#[derive(Debug)]
pub struct Container {
    folder: OwnedFd,
    record: Record,
}

impl Container {
    /// Reads what is in `folder`.
    pub(super) fn read(folder: OwnedFd, id: &Id) -> Result<Self, StateError> {
        let text = files::read(&folder, files::RECORD).map_err(|source| {
            // Not yet, or not any more.
            if source.kind() == io::ErrorKind::NotFound {
                return StateError::Unknown;
            }
            StateError::Folder {
                id: id.to_string(),
                what: "read state.json",
                source,
            }
        })?;
        let malformed = |source| StateError::Record {
            id: id.to_string(),
            source,
        };
        let version: Versioned = serde_json::from_slice(&text).map_err(malformed)?;
        if version.version != VERSION {
            return Err(StateError::Version {
                id: id.to_string(),
                theirs: version.version,
                ours: VERSION,
            });
        }
        let record: Record = serde_json::from_slice(&text).map_err(malformed)?;
        Ok(Self { folder, record })
    }

    pub(super) fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// What is kept of it.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Its id.
    pub fn id(&self) -> &Id {
        &self.record.id
    }

    /// The config.json that it was created from.
    pub fn config(&self) -> Result<Vec<u8>, StateError> {
        files::read(&self.folder, files::CONFIG).map_err(|source| StateError::Folder {
            id: self.record.id.to_string(),
            what: "read config.json",
            source,
        })
    }

    /// Whether its monitor lives, and with it the machine.
    pub fn is_alive(&self) -> bool {
        self.record.monitor.is_alive()
    }

    /// A connection to its monitor, for one verb. If it has ended:
    /// [`ClientError::NotRunning`].
    pub fn connect(&self) -> Result<Client, ClientError> {
        Client::connect(&socket_path(self.folder.as_fd()))
    }

    /// What it is doing: [`Status::Stopped`] if its monitor has ended, else what
    /// that says.
    pub fn status(&self) -> Result<Status, ClientError> {
        if !self.is_alive() {
            return Ok(Status::Stopped);
        }
        match self.connect().and_then(|mut client| client.status()) {
            Err(ClientError::NotRunning) => Ok(Status::Stopped),
            other => other,
        }
    }
}

/// What tells whether the rest can be read.
#[derive(serde::Deserialize)]
struct Versioned {
    version: u32,
}

/// A path to the socket in `folder` that is never longer than an address may be.
pub(super) fn socket_path(folder: BorrowedFd) -> PathBuf {
    let fd = folder.as_raw_fd();
    format!("/proc/self/fd/{fd}/{}", files::SOCKET).into()
}
