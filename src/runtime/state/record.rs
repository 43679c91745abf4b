//! What is kept of a container: never its status, which is asked for.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmrun_oci::hooks::HostHooks;

use super::id::Id;
use super::process::ProcessName;
use crate::host_cgroup::HostCgroup;

/// Version of [`Record`] and of the messages of the monitor's socket.
pub const VERSION: u32 = 1;

/// `state.json` in the container's folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// [`VERSION`] of who wrote it.
    pub version: u32,
    /// The container's id.
    pub id: Id,
    /// Its monitor: the process that callers know as the container.
    pub monitor: ProcessName,
    /// Folder of the bundle, absolute.
    pub bundle: PathBuf,
    /// Root file system, absolute.
    pub rootfs: PathBuf,
    /// When it was created, in nanoseconds since 1970, UTC.
    pub created_ns: u64,
    /// `annotations` of config.json.
    pub annotations: BTreeMap<String, String>,
    /// Who created it.
    pub owner_uid: u32,
    /// Its cgroups on the host, if it has any of its own.
    pub cgroup: Option<HostCgroup>,
    /// Hooks on the host, for those that run later.
    pub hooks: HostHooks,
}
