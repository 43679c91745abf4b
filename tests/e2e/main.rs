//! End to end: every test starts the real vmrun, and nearly every one a machine. A
//! test is a promise; those of one container share its run. What the OCI
//! specification says is also put to runc, to prove that the test is right.
//!
//! `scripts/test` builds what is needed and runs them.

mod harness;

mod bad_input;
mod confined;
mod debian;
mod exec;
mod exits;
mod flags;
mod hooks;
mod host_cgroup;
mod install;
mod leftovers;
mod lifecycle;
mod limits;
mod machine_ends;
mod mounts;
mod process;
mod registers;
mod root_fs;
mod streams;
mod templates;
mod terminal;
mod traps;
mod usage;
mod vsock;
