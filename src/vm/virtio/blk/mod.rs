//! virtio-blk (virtio 1.2, 5.2): a raw image or a block device of the host.
//!
//! The image is never looked into: whatever a guest writes to its first sector, it
//! stays raw. Requests are read straight into and written straight from guest
//! memory and complete one after the other on the event loop's thread, so nothing
//! of a request outlives it.

mod buffers;
mod device;
mod disk;
mod request;
#[cfg(test)]
mod tests;

use std::io;

pub use device::{Blk, BlkState};

use super::device::DeviceError;

/// Why a drive cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum BlkError {
    /// Not something with sectors.
    #[error("drive {0} is neither a regular file nor a block device")]
    Kind(usize),
    /// The device itself cannot be made.
    #[error("virtio-blk")]
    Device(#[from] DeviceError),
    /// The host refused something.
    #[error("drive {index}: {what}")]
    Host {
        /// Which drive, from 0.
        index: usize,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}
