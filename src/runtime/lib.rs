//! A container's life on top of a machine: bundle, plan, agent session, stdio.
//!
//! [`create::bring_up`] and [`monitor::Life`] are the whole path in order, on both
//! sides of the fork; every step is a file of its own.

pub mod bundle;
pub mod check;
pub mod console;
pub mod control;
pub mod create;
pub mod error;
pub mod events;
pub mod exec;
mod fatal;
pub mod guest_image;
mod handover;
pub mod hooks;
pub mod host_cgroup;
pub mod machine;
pub mod monitor;
mod mount_points;
mod namespace;
pub mod pausing;
pub mod pid_file;
pub mod plan;
pub mod processes;
pub mod pump;
pub mod run;
pub mod session;
mod signal_name;
pub mod signals;
pub mod start;
pub mod state;
pub mod state_json;
pub mod stdio;
pub mod template;
pub mod terminal;
pub mod update;
mod user;
pub mod verbs;

pub use create::{CreateRequest, Telling, create};
pub use error::Error;
pub use run::{RunRequest, run};
pub use start::MachineRequest;
pub use vmrun_oci as oci;
pub use vmrun_oci::version::SPEC as OCI_SPEC_VERSION;
pub use vmrun_vm::spec::BootProtocol;
pub use vmrun_vm::trace::Timeline;
