//! Virtio devices (virtio 1.2) behind the MMIO transport.

pub mod device;
