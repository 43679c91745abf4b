//! Guest RAM and the map of guest-physical addresses.

pub mod layout;

use vm_memory::{GuestAddress, GuestMemoryMmap, GuestMemoryRegion};

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
        source: vm_memory::mmap::FromRangesError,
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

fn ranges(size: u64) -> Vec<(GuestAddress, usize)> {
    let low = size.min(LOW_RAM_END);
    let mut ranges = vec![(GuestAddress(0), low as usize)];
    if size > low {
        ranges.push((GuestAddress(HIGH_RAM_START), (size - low) as usize));
    }
    ranges
}

/// First address behind the RAM that starts at 0.
pub fn low_ram_end(memory: &GuestMemoryMmap) -> u64 {
    use vm_memory::GuestMemory;
    memory
        .find_region(GuestAddress(0))
        .map_or(0, |region| region.len())
}

#[cfg(test)]
mod tests {
    use super::*;

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
