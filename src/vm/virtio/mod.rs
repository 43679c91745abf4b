//! Virtio devices (virtio 1.2) behind the MMIO transport.

pub mod blk;
pub mod console;
pub mod device;
mod drain;
pub mod fs;
pub mod interrupt;
pub mod mmio;
pub mod rng;
pub mod state;
#[cfg(test)]
pub(crate) mod testing;
pub mod vsock;
pub mod worker;
