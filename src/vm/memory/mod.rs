//! Guest RAM and the map of guest-physical addresses.

pub mod layout;

use std::fs::File;
use std::sync::Arc;

use vm_memory::mmap::FromRangesError;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion,
};

use layout::{HIGH_RAM_START, LOW_RAM_END};

/// Guest RAM could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// mmap(2) refused.
    #[error("cannot map {mem_size_mib} MiB of guest memory")]
    Map {
        /// What was asked for.
        mem_size_mib: u32,
        /// Why not.
        source: FromRangesError,
    },
}

/// Maps `mem_size_mib` MiB of private, zeroed memory, untouched until used:
/// below [`LOW_RAM_END`], and what does not fit there from [`HIGH_RAM_START`] on.
pub fn allocate(mem_size_mib: u32) -> Result<GuestMemoryMmap, MemoryError> {
    let ranges = ranges(u64::from(mem_size_mib) << 20);
    GuestMemoryMmap::from_ranges(&ranges).map_err(|source| MemoryError::Map {
        mem_size_mib,
        source,
    })
}

/// Maps the memory of a machine that was saved into `file`, one range behind the
/// other; `file` must be that long. What the guest writes stays here, what it does
/// not is shared with everybody who maps the file.
pub fn map(file: Arc<File>, mem_size_mib: u32) -> Result<GuestMemoryMmap, MemoryError> {
    let mut offset = 0;
    let mut regions = Vec::new();
    for (start, len) in ranges(u64::from(mem_size_mib) << 20) {
        let part = FileOffset::from_arc(file.clone(), offset);
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // Without reserving: like other memory of guests, see `allocate`.
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        let region = MmapRegion::build(Some(part), len, prot, flags)
            .map_err(FromRangesError::from)
            .and_then(|mapping| {
                GuestRegionMmap::new(mapping, start).ok_or(FromRangesError::InvalidGuestRegion)
            });
        regions.push(region.map_err(|source| MemoryError::Map {
            mem_size_mib,
            source,
        })?);
        offset += len as u64;
    }
    GuestMemoryMmap::from_regions(regions).map_err(|source| MemoryError::Map {
        mem_size_mib,
        source: source.into(),
    })
}

fn ranges(size: u64) -> Vec<(GuestAddress, usize)> {
    let low = size.min(LOW_RAM_END);
    let mut ranges = vec![(GuestAddress(0), low as usize)];
    if size > low {
        ranges.push((GuestAddress(HIGH_RAM_START), (size - low) as usize));
    }
    ranges
}

/// All of RAM, in MiB.
pub fn size_mib(memory: &GuestMemoryMmap) -> u32 {
    let bytes: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
    (bytes >> 20) as u32
}

/// First address behind the RAM that starts at 0.
pub fn low_ram_end(memory: &GuestMemoryMmap) -> u64 {
    memory
        .find_region(GuestAddress(0))
        .map_or(0, |region| region.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_mapped_around_the_mmio_window_and_never_written() {
        use std::os::unix::fs::FileExt;
        use vm_memory::Bytes;
        let mem_size_mib = (LOW_RAM_END >> 20) as u32 + 1;
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.set_len(u64::from(mem_size_mib) << 20).unwrap();
        file.write_all_at(&[1], LOW_RAM_END - 1).unwrap();
        file.write_all_at(&[2], LOW_RAM_END).unwrap();
        let memory = map(file.clone(), mem_size_mib).unwrap();
        assert_eq!(size_mib(&memory), mem_size_mib);
        let at = |address| memory.read_obj::<u8>(GuestAddress(address)).unwrap();
        assert_eq!((at(LOW_RAM_END - 1), at(HIGH_RAM_START)), (1, 2));
        memory
            .write_obj(9_u8, GuestAddress(HIGH_RAM_START))
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, LOW_RAM_END).unwrap();
        assert_eq!(byte, [2]);
    }

    #[test]
    fn ram_goes_around_the_mmio_window() {
        assert_eq!(ranges(64 << 20), [(GuestAddress(0), 64 << 20)]);
        assert_eq!(
            ranges(LOW_RAM_END + (1 << 20)),
            [
                (GuestAddress(0), LOW_RAM_END as usize),
                (GuestAddress(HIGH_RAM_START), 1 << 20)
            ]
        );
    }
}
