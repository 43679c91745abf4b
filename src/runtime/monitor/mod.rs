//! The monitor: the process that a container is on the host. It holds the machine
//! and serves those who ask for something.

mod asks;
pub mod client;
mod door;
mod ending;
mod execs;
mod life;
pub mod messages;
mod poll;
mod progress;
mod serve;
mod spawn;
mod state;

pub use life::{Life, Stdout};
pub use progress::FromMonitor;
pub use spawn::{Spawned, spawn};
pub use state::{Event, State, Wrong};

#[cfg(test)]
mod tests;
