//! Bundles, runtimes under a time limit, terminals, and a place in which
//! everything that is left behind can be seen.

mod bundle;
mod capture;
mod container;
mod engine;
mod host;
mod launch;
mod program;
pub mod running;
mod sandbox;
mod terminal;

pub use bundle::Bundle;
pub use container::Container;
pub use engine::Engine;
pub use host::{TEMPLATE_DIR, guest_dir, template_dir, vmrun};
pub use launch::{Launch, Runtime, unique_id};
pub use program::{assembled, compiled};
pub use running::{Finished, Sections};
pub use sandbox::{Sandbox, Sandboxed};
pub use terminal::Terminal;
