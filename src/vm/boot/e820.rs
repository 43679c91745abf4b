//! The memory map that the guest is told.

use vm_memory::{GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

use crate::memory::layout;

/// One range of the map; types are those of ACPI 6.5, table 15-374.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub start: u64,
    pub len: u64,
    pub kind: u32,
}

/// Address range memory.
pub const RAM: u32 = 1;
/// Address range reserved.
pub const RESERVED: u32 = 2;

/// RAM without the MP table's KiB and the legacy hole below 1 MiB.
pub fn map(memory: &GuestMemoryMmap) -> Vec<Range> {
    let range = |start: u64, end: u64, kind| Range {
        start,
        len: end - start,
        kind,
    };
    let mut map = vec![
        range(0, layout::MP_TABLE, RAM),
        range(layout::MP_TABLE, layout::BASE_RAM_END, RESERVED),
    ];
    for region in memory.iter() {
        let start = region.start_addr().0.max(layout::HIMEM_START);
        let end = region.start_addr().0 + region.len();
        if end > start {
            map.push(range(start, end, RAM));
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_split_at_the_hole_and_the_device_window() {
        let memory =
            GuestMemoryMmap::from_ranges(&[(vm_memory::GuestAddress(0), 16 << 20)]).unwrap();
        let map = map(&memory);
        assert_eq!(map.len(), 3);
        assert_eq!(
            map[2],
            Range {
                start: 1 << 20,
                len: 15 << 20,
                kind: RAM
            }
        );
        assert!(map.windows(2).all(|w| w[0].start + w[0].len <= w[1].start));
    }
}
