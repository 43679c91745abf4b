//! virtio-fs (virtio 1.2, 5.11): one share, at whose top each export is an entry.
//!
//! FUSE is parsed and answered by `fuse-backend-rs`; what is here decides what it
//! may do. From the outside in:
//!
//! - [`device`](Fs): queues, interrupts, the thread that serves;
//! - `request`: one descriptor chain, its size capped, handed to the FUSE server;
//! - `filesystem`, `listing`, `top`: every FUSE operation, checked, then passed to an export;
//! - `share`: node ids, exports that come and go, the session;
//! - `export`: one folder (`fuse-backend-rs`' passthrough) or one file
//!   (`single_file`), its inodes and handles counted against a `budget`;
//! - `policy`, `owner`: the rules themselves, pure functions.
//!
//! docs/decisions/0002-virtio-fs-server.md says why it is built like this.

mod budget;
mod device;
mod export;
mod filesystem;
mod listing;
mod owner;
mod policy;
mod request;
mod share;
mod single_file;
mod state;
#[cfg(test)]
mod tests;
mod thread;
mod top;

use std::io;
use std::time::Duration;

pub use device::Fs;
pub use share::Exports;
pub use state::FsState;

use super::device::DeviceError;

/// How long the guest may use a name, or the attributes of a folder, without
/// asking again. Asking costs a guest whose ring 0 is emulated about 8 ms for
/// each component of a path: 20 of them once in 5 s are 3 % of its time, once a
/// second 16 %. What the host renames or removes is seen that much later; what it
/// adds is seen at once, because absent names are not cached.
const NAME_TIMEOUT: Duration = Duration::from_secs(5);

/// The same for attributes of anything else. On the first use after it the guest
/// compares size and time of modification and drops its cached pages when they
/// differ, so this is how late it sees what the host writes into a file.
const FILE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a share cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The tag does not fit into the config space.
    #[error("virtio-fs tag '{0}' must have 1 to 36 bytes")]
    Tag(String),
    /// Not usable as an entry of the share's top.
    #[error("virtio-fs export name '{0}' must be made of a-z and 0-9, 64 characters at most")]
    Name(String),
    /// The name is taken.
    #[error("virtio-fs export '{0}' exists")]
    Exists(String),
    /// All indexes are used.
    #[error("a virtio-fs share has 255 exports at most")]
    Full,
    /// Neither a folder nor a regular file.
    #[error("virtio-fs export '{0}' is neither a folder nor a regular file")]
    Kind(String),
    /// The device itself cannot be made.
    #[error("virtio-fs")]
    Device(#[from] DeviceError),
    /// The host refused something.
    #[error("virtio-fs: {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// An error that the guest sees as this errno.
fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}
