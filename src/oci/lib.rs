//! config.json of an OCI bundle: read, checked, and turned into Linux's own
//! numbers.
//!
//! Three steps, each in a file of its own: [`load`] reads the file and parses it
//! with `oci-spec`; [`fields`] looks every property up in the one table that says
//! what vmrun does with it; [`container`] resolves the rest into a
//! [`container::Container`], section by section. Whatever is wrong is an
//! [`Error`] that names the JSON path (`process.args: must not be empty`).
//!
//! Only text is looked at here. Paths on the host are opened by the runtime.

pub mod capabilities;
pub mod container;
pub mod devices;
pub mod error;
pub mod exec;
pub mod explain;
pub mod features;
pub mod fields;
pub mod hooks;
pub mod host_limits;
pub mod id_mappings;
pub mod load;
pub mod mount_options;
pub mod mounts;
pub mod namespaces;
pub mod process;
pub mod resources;
pub mod rlimits;
pub mod scheduling;
pub mod seccomp;
mod spelling;
pub mod sysctl;
pub mod text;
pub mod time_offsets;
pub mod unified;
pub mod update;
pub mod version;

pub use container::Container;
pub use error::Error;
pub use exec::{ExecFlags, FurtherProcess};
pub use update::{ResourceUpdate, UpdateFlags};
