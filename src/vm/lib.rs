//! The machine: memory, vCPUs, devices and a Linux kernel on KVM. It knows
//! neither containers nor OCI.
//!
//! [`spec`] says what is asked for; [`machine::Machine`] is the live object.

pub mod bus;
pub mod spec;
pub mod virtio;
