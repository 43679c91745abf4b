//! Which pages of this process's memory are there (Linux,
//! admin-guide/mm/pagemap.rst).

use std::fs::File;
use std::os::unix::fs::FileExt;

use vm_memory::{GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

use super::memory_file::PAGE;
use super::{SnapshotError, host};

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

/// /proc/self/pagemap.
pub(super) struct PageMap(File);

impl PageMap {
    pub fn open() -> Result<Self, SnapshotError> {
        File::open("/proc/self/pagemap")
            .map(Self)
            .map_err(host("open the page map"))
    }

    /// For each page of `len_bytes` bytes from `offset` in the region on, whether it
    /// is mapped, or was and is in the swap. Of anonymous memory, all others are zero.
    pub fn there(
        &self,
        region: &GuestRegionMmap,
        offset: u64,
        len_bytes: u64,
    ) -> Result<impl Iterator<Item = bool> + use<>, SnapshotError> {
        const ENTRY: u64 = size_of::<u64>() as u64;
        let address = region
            .get_host_address(MemoryRegionAddress(offset))
            .map_err(|source| host("find guest memory")(std::io::Error::other(source)))?;
        let mut entries = vec![0; (len_bytes / PAGE as u64 * ENTRY) as usize];
        self.0
            .read_exact_at(&mut entries, address as u64 / PAGE as u64 * ENTRY)
            .map_err(host("read the page map"))?;
        let entries = entries.as_chunks().0.to_vec();
        let there = |entry| u64::from_ne_bytes(entry) & (PRESENT | SWAPPED) != 0;
        Ok(entries.into_iter().map(there))
    }
}
