//! The monitor: the process that a container is on the host. It holds the machine
//! and serves those who ask for something.

pub mod client;
pub mod messages;
