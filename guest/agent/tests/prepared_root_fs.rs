//! The promises of `root_fs.rs`, kept with a process that was made ahead.

#[path = "root_fs.rs"]
mod root_fs;
