//! The promises of `exec.rs`, kept with a first process that was made ahead.

#[path = "exec.rs"]
mod exec;
