//! The state of containers on this host: a folder for each below the root folder.
//!
//! ```text
//! ROOT/ID/              0700; flock while it is made or removed
//!   state.json          0600, a Record, replaced as a whole
//!   config.json         0600, the bundle's as it was checked
//!   monitor.sock        0600, the monitor listens there
//! ```
//!
//! The folder is what reserves the id. Whatever dies at whatever moment, what is left
//! can be removed by [`Claim::remove`] or [`Root::remove_broken`].

mod container;
mod error;
mod files;
mod id;
mod place;
mod process;
mod record;
mod root;

pub use container::Container;
pub use error::StateError;
pub use id::Id;
pub use place::{folder, own_folder};
pub use process::{ProcessName, has_ended_within};
pub use record::{Record, VERSION};
pub use root::{Claim, Reserved, Root};

/// What a container is doing (runtime.md, "State").
pub use crate::monitor::messages::Status;
