//! What is asked of a machine. Plain data; nothing here is live.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// A machine to be built.
#[derive(Debug)]
pub struct MachineSpec {
    /// Guest kernel: an uncompressed x86-64 `vmlinux`.
    pub kernel: PathBuf,
    /// Initial RAM file system with `/init`, or none.
    pub initramfs: Option<PathBuf>,
    /// How the kernel is entered.
    pub boot_protocol: BootProtocol,
    /// Added behind the kernel parameters that the machine itself needs.
    pub kernel_params: Vec<String>,
    /// Guest RAM in MiB.
    pub mem_size_mib: u32,
    /// Number of vCPUs, at least 1.
    pub vcpu_count: u8,
    /// virtio-fs device.
    pub fs: Option<FsSpec>,
    /// virtio-vsock device.
    pub vsock: Option<VsockSpec>,
    /// virtio-blk devices, `vda` first.
    pub drives: Vec<DriveSpec>,
    /// virtio-rng device. The guest's generator is seeded at boot without it.
    pub rng: bool,
    /// virtio-console: what the guest writes to hvc0 goes here. No device if none.
    pub console: Option<File>,
    /// 8250 UART at 0x3f8 for early debugging: its output goes here.
    pub serial: Option<File>,
    /// Samples of the guest's instruction pointer go here at the end, see
    /// [`crate::profile`].
    pub profile: Option<File>,
}

/// How the kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BootProtocol {
    /// 64-bit entry with `boot_params`, Documentation/x86/boot.rst.
    #[default]
    Linux64,
    /// 32-bit PVH entry with `hvm_start_info`, Xen's docs/misc/pvh.pandoc.
    Pvh,
}

/// The virtio-fs device: one share, at whose top each export is an entry.
#[derive(Debug)]
pub struct FsSpec {
    /// Name by which the guest mounts the share, at most 36 bytes.
    pub tag: String,
    /// The exports.
    pub exports: Vec<FsExport>,
}

/// One folder or single file of the host that the guest may see.
#[derive(Debug)]
pub struct FsExport {
    /// Entry at the top of the share, `[a-z0-9]+`.
    pub name: String,
    /// The folder or file, opened with `O_PATH` once, when it was validated;
    /// never looked up by name again.
    pub source: OwnedFd,
    /// Writes are refused on the host with EROFS, whatever the guest does.
    pub read_only: bool,
    /// Others change it while the guest runs: the guest asks for names and
    /// attributes each time, so it sees what they write at once.
    pub live: bool,
}

/// The virtio-vsock device.
#[derive(Debug)]
pub struct VsockSpec {
    /// Context id of the guest, at least 3.
    pub guest_cid: u64,
    /// What answers when the guest connects to a port of the host (context id
    /// 2). A connect to any other port is reset.
    pub host_ports: Vec<(u32, HostPort)>,
}

/// What stands behind a port of the host.
#[derive(Debug)]
pub enum HostPort {
    /// The first connect gets this stream; later ones are reset.
    Once(UnixStream),
    /// Each connect is passed on to this unix socket.
    Path(PathBuf),
}

/// One virtio-blk device.
#[derive(Debug)]
pub struct DriveSpec {
    /// Raw image or block device; its length in whole 512-byte sectors is the capacity.
    pub file: File,
    /// The device offers VIRTIO_BLK_F_RO and refuses writes.
    pub read_only: bool,
}
