//! Guest RAM by frame: where each lies in this process, and what is known of it.

#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{Address, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};

/// Bytes in a page of the smallest size.
pub(super) const PAGE: u64 = 4096;

/// The frame's code was decoded.
pub(super) const CODE: u8 = 0x80;
/// Level (1 to 4) of a frame that holds page tables of ring 3; 0 is none.
pub(super) const LEVEL: u8 = 0x07;

/// One mapping of guest RAM.
struct Region {
    first_frame: u64,
    frames: u64,
    host: NonNull<u8>,
    /// A byte of [`CODE`] and [`LEVEL`] a frame.
    marks: Vec<u8>,
}

/// All of guest RAM, for one vCPU.
pub(super) struct Ram {
    regions: Vec<Region>,
    /// Keeps the mappings there.
    _memory: GuestMemoryMmap,
}

// SAFETY: the pointers are to shared mappings of guest RAM, which `_memory` keeps
// mapped, and which any thread may access as raw memory.
unsafe impl Send for Ram {}

impl Ram {
    pub fn new(memory: &GuestMemoryMmap) -> Self {
        let region = |region: &vm_memory::GuestRegionMmap| {
            let host = region.get_host_address(MemoryRegionAddress(0)).ok()?;
            let frames = region.len() / PAGE;
            Some(Region {
                first_frame: region.start_addr().raw_value() / PAGE,
                frames,
                host: NonNull::new(host)?,
                marks: vec![0; usize::try_from(frames).ok()?],
            })
        };
        Self {
            regions: memory.iter().filter_map(region).collect(),
            _memory: memory.clone(),
        }
    }

    fn region(&self, frame: u64) -> Option<&Region> {
        let holds = |region: &&Region| frame.wrapping_sub(region.first_frame) < region.frames;
        self.regions.iter().find(holds)
    }

    /// The 4096 bytes of `frame` in this process.
    pub fn page(&self, frame: u64) -> Option<NonNull<u8>> {
        let region = self.region(frame)?;
        let offset = (frame - region.first_frame) * PAGE;
        // SAFETY: `frame` lies in the region, which is mapped as a whole.
        Some(unsafe { region.host.add(offset as usize) })
    }

    /// What is known of `frame`.
    pub fn marks(&self, frame: u64) -> u8 {
        self.region(frame).map_or(0, |region| {
            region.marks[(frame - region.first_frame) as usize]
        })
    }

    /// Notes what is known of `frame`; nothing where there is no RAM.
    pub fn set_marks(&mut self, frame: u64, marks: u8) {
        let holds = |region: &&mut Region| frame.wrapping_sub(region.first_frame) < region.frames;
        if let Some(region) = self.regions.iter_mut().find(holds) {
            region.marks[(frame - region.first_frame) as usize] = marks;
        }
    }

    /// The aligned 8 bytes at guest-physical `address`, an entry of a page table.
    pub fn entry(&self, address: u64) -> Option<&AtomicU64> {
        let page = self.page(address / PAGE)?;
        // SAFETY: within the page, aligned to 8, and mapped as long as `self`; the
        // guest's own accesses are as good as atomic ones.
        Some(unsafe {
            AtomicU64::from_ptr(page.add(((address % PAGE) & !7) as usize).cast().as_ptr())
        })
    }

    /// Value of [`Self::entry`].
    pub fn load(&self, address: u64) -> Option<u64> {
        Some(self.entry(address)?.load(Ordering::Acquire))
    }
}
