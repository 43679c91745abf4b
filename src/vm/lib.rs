//! The machine: memory, vCPUs, devices and a Linux kernel on KVM. It knows
//! neither containers nor OCI.
//!
//! [`spec`] says what is asked for; [`machine::Machine`] is the live object.

pub mod accelerate;
pub mod boot;
pub mod bus;
pub mod cpu;
pub mod devices;
pub mod emulate;
pub mod ending;
pub mod event_loop;
mod heap;
pub mod interpret;
pub mod kick;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod probe;
pub mod profile;
mod slots;
pub mod snapshot;
pub mod spec;
pub mod trace;
pub mod virtio;
