//! The promises of `confined.rs`, kept with a first process that was made ahead.

#[path = "confined.rs"]
mod confined;
