//! Loading the vmlinux.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use linux_loader::loader::{Elf, KernelLoader, KernelLoaderResult, PvhBootCapability};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::mapped_file::MappedFile;
use super::{BootError, too_little_memory};
use crate::memory::layout::HIMEM_START;
use crate::memory::low_ram_end;
use crate::spec::BootProtocol;

/// Kept free behind the loaded image for the kernel's zero-initialised data and
/// its first page tables, which the ELF loader does not report.
const ZERO_DATA_RESERVE: u64 = 8 << 20;

/// A kernel in guest memory.
pub struct Loaded {
    /// First instruction.
    pub entry: u64,
    /// First address that may hold something else.
    pub end: u64,
}

/// Loads the kernel at the addresses it was linked for.
pub fn load(
    memory: &GuestMemoryMmap,
    path: &Path,
    protocol: BootProtocol,
) -> Result<Loaded, BootError> {
    let read_error = |source| BootError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(read_error)?;
    if is_bzimage(&file) {
        return Err(BootError::BzImage {
            path: path.to_owned(),
        });
    }
    let mut file = MappedFile::new(file).map_err(read_error)?;
    let loaded = Elf::load(memory, None, &mut file, Some(GuestAddress(HIMEM_START)))
        .map_err(|source| elf_error(memory, path, file.len(), source))?;
    let end = loaded.kernel_end.saturating_add(ZERO_DATA_RESERVE);
    if end > low_ram_end(memory) {
        return Err(too_little_memory(memory, end));
    }
    Ok(Loaded {
        entry: entry(&loaded, path, protocol)?,
        end,
    })
}

fn entry(
    loaded: &KernelLoaderResult,
    path: &Path,
    protocol: BootProtocol,
) -> Result<u64, BootError> {
    match (protocol, loaded.pvh_boot_cap) {
        (BootProtocol::Linux64, _) => Ok(loaded.kernel_load.0),
        (BootProtocol::Pvh, PvhBootCapability::PvhEntryPresent(entry)) => Ok(entry.0),
        (BootProtocol::Pvh, _) => Err(BootError::NoPvhEntry {
            path: path.to_owned(),
        }),
    }
}

/// The loader does not tell a segment that misses RAM from one that misses in
/// the file; RAM below the image's usual place is the case that users meet.
fn elf_error(
    memory: &GuestMemoryMmap,
    path: &Path,
    size: u64,
    source: linux_loader::loader::Error,
) -> BootError {
    use linux_loader::loader::{Error, elf::Error as ElfError};
    /// CONFIG_PHYSICAL_START of x86 by default.
    const LINK_ADDRESS: u64 = 16 << 20;
    let needed = LINK_ADDRESS + size + ZERO_DATA_RESERVE;
    if source == Error::Elf(ElfError::ReadKernelImage) && low_ram_end(memory) < needed {
        return too_little_memory(memory, needed);
    }
    BootError::NotElf {
        path: path.to_owned(),
        source,
    }
}

/// `HdrS` at 0x202, Documentation/x86/boot.rst.
fn is_bzimage(file: &File) -> bool {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0x202).is_ok() && &magic == b"HdrS"
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn load_bytes(bytes: &[u8]) -> String {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let memory = crate::memory::allocate(32).unwrap();
        match load(&memory, file.path(), BootProtocol::Linux64) {
            Ok(_) => panic!("loaded"),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn bzimage_is_named() {
        let mut image = vec![0; 0x210];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(load_bytes(&image).contains("is a bzImage"));
    }

    #[test]
    fn anything_else_is_not_a_kernel() {
        assert!(load_bytes(b"#!/bin/sh\n").contains("is not an x86-64 ELF kernel"));
        assert!(load_bytes(b"").contains("is not an x86-64 ELF kernel"));
    }
}
