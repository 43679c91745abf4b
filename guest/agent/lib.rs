//! PID 1 of the guest: runs the container that the host asks for.
//!
//! One thread, one poll loop, one fork per container, two per further process. Where ring 0 is emulated
//! each system call costs hundreds of microseconds, so file systems are mounted
//! through descriptors that are resolved once, nothing is mounted that is not
//! needed, and the container's first process is cloned straight into all of its
//! namespaces.
//!
//! In a machine that is to become a template, [`boot`] makes such a process ahead
//! ([`prepared`]) before the machine is frozen; a plan that it fits only needs what
//! is left of it.
//!
//! Path of a container: [`serve`] takes the request, [`container`] makes cgroup,
//! pipes and process, [`steps`] (pure) says what the process ([`child`]) does to
//! itself, [`program`] runs what was asked for; [`streams`] carries its bytes.
//!
//! Path of a further process: [`execs`] keeps all of them, [`exec`] is one, as far as
//! it has come; [`joining`] is what it does itself. [`questions`] are answered from the
//! container's [`cgroup`], of which [`watch`] also has the events.

mod attributes;
pub mod boot;
mod cgroup;
mod cgroup_events;
mod cgroup_files;
mod child;
mod clocks;
pub mod container;
mod copy_up;
mod credentials;
mod device_filter;
mod exec;
mod execs;
mod failure;
mod handshake;
mod hooks;
mod inside;
mod joining;
mod mounts;
pub mod prepared;
mod process_steps;
mod processes;
mod procfs;
mod program;
mod questions;
mod relay;
mod remainder;
mod renewal;
mod root_fs;
pub mod serve;
pub mod steps;
mod streams;
pub mod sys;
mod terminal;
mod user_namespace;
mod users;
mod usual;
mod waiting;
mod watch;
