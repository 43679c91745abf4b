//! The promises of `process.rs`, kept with a process that was made ahead.

#[path = "process.rs"]
mod process;
