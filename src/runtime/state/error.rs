//! Why the state of a container cannot be had. Callers of OCI runtimes look for
//! some of these texts.

use std::io;
use std::path::PathBuf;

/// Something is wrong with the state of a container, or with what holds it.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// No id at all.
    #[error("container id cannot be empty")]
    EmptyId,
    /// Not what an id may be.
    #[error("invalid container ID format")]
    InvalidId,
    /// The id is taken.
    #[error("container with given ID already exists")]
    Exists,
    /// No container has the id.
    #[error("container does not exist")]
    Unknown,
    /// The folder of all states.
    #[error("folder of containers {path:?}")]
    Root {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nobody said where, and there is no usual place.
    #[error("no folder for the state of containers: --root")]
    NoPlace,
    /// A container's own folder or a file in it.
    #[error("container {id}: {what}")]
    Folder {
        /// Whose.
        id: String,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// What is in state.json.
    #[error("container {id}: state.json")]
    Record {
        /// Whose.
        id: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Written by another version of vmrun.
    #[error("container {id}: its state has version {theirs}, vmrun knows {ours}")]
    Version {
        /// Whose.
        id: String,
        /// The file's.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
}
