//! Virtio devices (virtio 1.2) behind the MMIO transport.

pub mod device;
pub mod interrupt;
pub mod mmio;
#[cfg(test)]
pub(crate) mod testing;
pub mod worker;
