//! The promises of `cgroup.rs`, kept with a process that was made ahead.

#[path = "cgroup.rs"]
mod cgroup;
