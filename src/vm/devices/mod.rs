//! Devices of a PC that a guest needs before it has virtio.

mod milestones;
mod reset;
mod serial;

pub use milestones::{MILESTONE_PORT, Milestones};
pub use reset::{RESET_PORT, RESET_PORTS, Reset};
pub use serial::{SERIAL_PORT, SERIAL_PORTS, SerialConsole};
