//! What vmrun on the host and its agent in the guest say to each other.
//!
//! One control connection (vsock, opened by the agent to [`CONTROL_PORT`] on
//! the host) carries [`frame`]s of [`message`]s. The bytes of each stdio stream
//! travel on a vsock connection of their own, opened by the host to
//! [`STREAM_PORT`] in the guest, so that the back-pressure and the end of one
//! stream never wait for another.
//!
//! The host never opens a listening port: after the agent's one connection (in a
//! machine made from a template: its new one) every
//! connect from the guest is refused, so nothing in the guest can pose as the agent.

pub mod frame;
pub mod message;
pub mod plan;

/// Version of everything in this crate. Both sides are built from the same
/// source; the handshake only catches a stale guest image.
pub const VERSION: u32 = 4;

/// vsock port on the host (context id 2) that the agent connects to: once, and
/// once more in a machine made from a template.
pub const CONTROL_PORT: u32 = 1024;

/// vsock port in the guest on which the agent accepts stream connections.
pub const STREAM_PORT: u32 = 1024;

/// virtio-fs tag under which the guest finds every exported folder and file.
pub const FS_TAG: &str = "vmrun";

/// Name of the container's root file system at the top of the [`FS_TAG`] share.
pub const ROOT_EXPORT: &str = "root";
