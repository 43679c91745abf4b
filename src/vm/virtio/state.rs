//! What is saved of a device beyond its transport: a type of each device's own.

use serde::{Deserialize, Serialize};

use super::blk::BlkState;
use super::fs::FsState;

/// State of one device, see [`Device::freeze`](super::device::Device::freeze).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// Connections do not survive, and the context id is the restored machine's.
    Vsock,
    /// The share's session.
    Fs(FsState),
    /// What the drive must be.
    Blk(BlkState),
    /// A request is served at once: there is nothing to keep.
    Rng,
    /// Output is written at once, and input there is none.
    Console,
}
