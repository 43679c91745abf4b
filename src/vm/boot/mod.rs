//! What lies in guest memory when the first instruction runs: kernel, initramfs,
//! command line and boot information.

mod cmdline;
mod e820;
mod kernel;
mod linux64;
mod mapped_file;
pub(crate) mod mptable;
mod pvh;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub(crate) use cmdline::build as build_cmdline;
pub use cmdline::{CmdlineError, MmioDevice};

use mapped_file::MappedFile;

use crate::memory::{layout, low_ram_end};
use crate::spec::BootProtocol;

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file cannot be opened or read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A compressed kernel.
    #[error(
        "{} is a bzImage; vmrun boots the uncompressed vmlinux that scripts/build-kernel makes",
        path.display()
    )]
    BzImage {
        /// Which file.
        path: PathBuf,
    },
    /// Not a kernel at all.
    #[error("{} is not an x86-64 ELF kernel", path.display())]
    NotElf {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: linux_loader::loader::Error,
    },
    /// The kernel has no PVH entry.
    #[error("{} has no PVH entry (CONFIG_PVH)", path.display())]
    NoPvhEntry {
        /// Which file.
        path: PathBuf,
    },
    /// RAM is too small for kernel and initramfs.
    #[error("{mem_size_mib} MiB of memory are too little: kernel and initramfs need {needed_mib}")]
    TooLittleMemory {
        /// RAM of the machine.
        mem_size_mib: u64,
        /// What would do.
        needed_mib: u64,
    },
    /// The command line does not fit or has characters it cannot have.
    #[error("kernel parameters")]
    Cmdline(#[from] CmdlineError),
    /// A write to guest memory failed.
    #[error("cannot write {what} to guest memory")]
    Write {
        /// What was to be written.
        what: &'static str,
        /// Why.
        source: vm_memory::GuestMemoryError,
    },
}

/// Where and how the boot vCPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// First instruction, guest-physical.
    pub address: u64,
    /// Mode of the CPU at that point.
    pub protocol: BootProtocol,
}

/// What to load.
pub struct BootImages<'a> {
    /// The vmlinux.
    pub kernel: &'a Path,
    /// The initramfs, if any.
    pub initramfs: Option<&'a Path>,
    /// The whole command line.
    pub cmdline: &'a str,
    /// How to enter.
    pub protocol: BootProtocol,
}

/// Where the initramfs lies in guest memory; `size` 0 is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Initramfs {
    address: u64,
    size: u64,
}

/// Loads everything into `memory` and tells where to start.
pub fn load(memory: &GuestMemoryMmap, images: &BootImages) -> Result<Entry, BootError> {
    let kernel = kernel::load(memory, images.kernel, images.protocol)?;
    let initramfs = match images.initramfs {
        Some(path) => load_initramfs(memory, path, kernel.end)?,
        None => Initramfs::default(),
    };
    let mut cmdline = images.cmdline.as_bytes().to_vec();
    cmdline.push(0);
    write(memory, "command line", layout::CMDLINE, &cmdline)?;
    match images.protocol {
        BootProtocol::Linux64 => linux64::write_boot_params(memory, cmdline.len(), initramfs)?,
        BootProtocol::Pvh => pvh::write_start_info(memory, initramfs)?,
    }
    Ok(Entry {
        address: kernel.entry,
        protocol: images.protocol,
    })
}

/// Puts the initramfs at the top of low RAM, page-aligned, behind the kernel.
fn load_initramfs(
    memory: &GuestMemoryMmap,
    path: &Path,
    kernel_end: u64,
) -> Result<Initramfs, BootError> {
    const PAGE: u64 = 4096;
    let read_error = |source| BootError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(read_error)?;
    let mut file = MappedFile::new(file).map_err(read_error)?;
    let size = file.len();
    let ram_end = low_ram_end(memory);
    let address = ram_end.saturating_sub(size) & !(PAGE - 1);
    if size > ram_end || address < kernel_end {
        return Err(too_little_memory(memory, kernel_end.saturating_add(size)));
    }
    memory
        .read_exact_volatile_from(GuestAddress(address), &mut file, size as usize)
        .map_err(|source| BootError::Write {
            what: "initramfs",
            source,
        })?;
    Ok(Initramfs { address, size })
}

fn too_little_memory(memory: &GuestMemoryMmap, needed_bytes: u64) -> BootError {
    BootError::TooLittleMemory {
        mem_size_mib: low_ram_end(memory) >> 20,
        needed_mib: needed_bytes.div_ceil(1 << 20),
    }
}

fn write(
    memory: &GuestMemoryMmap,
    what: &'static str,
    address: u64,
    bytes: &[u8],
) -> Result<(), BootError> {
    memory
        .write_slice(bytes, GuestAddress(address))
        .map_err(|source| BootError::Write { what, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn initramfs(size: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![7; size]).unwrap();
        file
    }

    #[test]
    fn initramfs_goes_to_the_top_of_ram() {
        let memory = crate::memory::allocate(32).unwrap();
        let file = initramfs(5000);
        let at = load_initramfs(&memory, file.path(), 0x20_0000).unwrap();
        assert_eq!(
            at,
            Initramfs {
                address: (32 << 20) - 8192,
                size: 5000
            }
        );
        assert_eq!(
            memory
                .read_obj::<u8>(GuestAddress(at.address + 4999))
                .unwrap(),
            7
        );
    }

    #[test]
    fn initramfs_that_meets_the_kernel_is_refused() {
        let memory = crate::memory::allocate(32).unwrap();
        let file = initramfs(3 << 20);
        let error = load_initramfs(&memory, file.path(), 30 << 20).unwrap_err();
        assert_eq!(
            error.to_string(),
            "32 MiB of memory are too little: kernel and initramfs need 33"
        );
    }
}
