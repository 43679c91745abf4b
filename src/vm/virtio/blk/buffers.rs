//! The buffers of a request: slices of guest RAM, however the driver has cut them.

use std::collections::VecDeque;

use fuse_backend_rs::file_buf::FileVolatileSlice;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemory, GuestMemoryMmap, VolatileSlice};

/// A sequence of bytes in guest RAM. Every slice was checked to lie in it.
#[derive(Debug, Default)]
pub(super) struct Buffers<'m>(VecDeque<VolatileSlice<'m>>);

impl<'m> Buffers<'m> {
    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|slice| slice.len() as u64).sum()
    }

    /// Copies as much as fits to `to` and goes on behind it. Returns how much.
    pub fn read(&mut self, to: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(slice) = self.0.front()
            && let Some(rest) = to.get_mut(done..).filter(|rest| !rest.is_empty())
        {
            let count = slice.copy_to(rest);
            done += count;
            self.advance(count);
        }
        done
    }

    /// Copies as much as fits of `from` and goes on behind it. Returns how much.
    pub fn write(&mut self, from: &[u8]) -> usize {
        let mut done = 0;
        while let Some(slice) = self.0.front()
            && let Some(rest) = from.get(done..).filter(|rest| !rest.is_empty())
        {
            // Fails for a slice of no bytes only.
            let count = slice.write(rest, 0).unwrap_or(0);
            done += count;
            self.advance(count);
        }
        done
    }

    /// Goes on `count` bytes later.
    pub fn advance(&mut self, mut count: usize) {
        while let Some(slice) = self.0.pop_front() {
            match slice.offset(count) {
                Ok(rest) if !rest.is_empty() => {
                    self.0.push_front(rest);
                    return;
                }
                _ => count = count.saturating_sub(slice.len()),
            }
        }
    }

    /// Takes the last byte away.
    pub fn take_last(&mut self) -> Option<Buffers<'m>> {
        while let Some(slice) = self.0.pop_back() {
            let Some(last) = slice.len().checked_sub(1) else {
                continue;
            };
            let status = slice.offset(last).ok()?;
            self.0.push_back(slice.subslice(0, last).ok()?);
            return Some(Buffers([status].into()));
        }
        None
    }

    /// The first `max` slices, for preadv and pwritev.
    pub fn slices(&self, max: usize) -> Vec<FileVolatileSlice<'_>> {
        let some = self.0.iter().filter(|slice| !slice.is_empty()).take(max);
        some.map(FileVolatileSlice::from_volatile_slice).collect()
    }
}

/// A request's two halves.
#[derive(Debug, Default)]
pub(super) struct Halves<'m> {
    /// What the driver has written.
    pub readable: Buffers<'m>,
    /// What is for the device to write.
    pub writable: Buffers<'m>,
    /// Whether the chain is as it should be: all of it in RAM, first what can be
    /// read, then what can be written.
    pub legal: bool,
}

impl<'m> Halves<'m> {
    /// Walks a chain once; each descriptor is looked at in one copy.
    pub fn of(memory: &'m GuestMemoryMmap, chain: DescriptorChain<&GuestMemoryMmap>) -> Self {
        let mut halves = Halves {
            legal: true,
            ..Halves::default()
        };
        for descriptor in chain {
            let Ok(slice) = memory.get_slice(descriptor.addr(), descriptor.len() as usize) else {
                halves.legal = false;
                continue;
            };
            if descriptor.is_write_only() {
                halves.writable.0.push_back(slice);
            } else {
                halves.legal &= halves.writable.0.is_empty();
                halves.readable.0.push_back(slice);
            }
        }
        halves
    }
}
