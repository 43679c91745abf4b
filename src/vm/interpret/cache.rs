//! Decoded code, by guest frame.

use std::ptr::NonNull;

use super::PAGE_BYTES;
use super::decode::Reader;
use super::op::{Kind, Op};
use super::width::copy_code;

/// Frames that can be cached at once, by their low bits: 8 MiB of code in a
/// row, more than a small kernel has.
const FRAMES: usize = 2048;
/// Operations cached at most (10 MiB), whatever the guest runs.
const MAX_OPS: usize = 400_000;
/// Operations decoded at once: code behind a branch may never run.
const MAX_BLOCK: usize = 32;
/// No instruction is longer (SDM vol. 2, 2.3.11).
pub(super) const MAX_LENGTH: usize = 15;

/// Decoded code by guest frame.
pub struct CodeCache {
    pages: Box<[Option<Box<Page>>]>,
    /// How many of them are there.
    frames: usize,
    /// Operations in all pages.
    ops: usize,
}

impl Default for CodeCache {
    fn default() -> Self {
        Self::new()
    }
}

impl CodeCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self {
            pages: (0..FRAMES).map(|_| None).collect(),
            frames: 0,
            ops: 0,
        }
    }

    /// Forgets the page `frame`: to be called when its bytes change.
    pub fn invalidate(&mut self, frame: u64) {
        let slot = &mut self.pages[slot(frame)];
        if let Some(page) = slot.take_if(|page| page.frame == frame) {
            self.frames -= 1;
            self.ops -= page.ops.len();
        }
    }

    /// Memory that it takes, about.
    pub fn size_bytes(&self) -> usize {
        self.frames * size_of::<Page>() + self.ops * size_of::<Op>()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.pages.fill_with(|| None);
        (self.frames, self.ops) = (0, 0);
    }

    /// The operations of the page `frame` with these bytes, and which of them
    /// is the one at `offset`.
    #[inline]
    pub(super) fn block(
        &mut self,
        frame: u64,
        bytes: NonNull<u8>,
        offset: u16,
    ) -> (&mut Page, usize) {
        let found = match &self.pages[slot(frame)] {
            Some(page) if page.frame == frame => page.find(offset),
            _ => None,
        };
        match found {
            Some(at) => (self.page(frame), at),
            None => self.decode_block(frame, bytes, offset),
        }
    }

    #[cold]
    fn decode_block(&mut self, frame: u64, bytes: NonNull<u8>, offset: u16) -> (&mut Page, usize) {
        if self.ops > MAX_OPS {
            self.clear();
        }
        let before = self.page(frame).ops.len();
        let at = self.page(frame).decode(bytes, offset);
        self.ops += self.page(frame).ops.len() - before;
        (self.page(frame), at)
    }

    /// The page of `frame`, new if need be.
    #[inline]
    fn page(&mut self, frame: u64) -> &mut Page {
        let slot = &mut self.pages[slot(frame)];
        if let Some(other) = slot.take_if(|page| page.frame != frame) {
            self.frames -= 1;
            self.ops -= other.ops.len();
        }
        slot.get_or_insert_with(|| {
            self.frames += 1;
            Box::new(Page::new(frame))
        })
    }
}

fn slot(frame: u64) -> usize {
    frame as usize % FRAMES
}

/// Decoded code of one page, in runs that end in a branch, in what is left to
/// KVM, or in a [`Kind::Link`].
pub(super) struct Page {
    frame: u64,
    /// One more than the index in `ops` of the instruction at each offset; 0
    /// if it was not decoded.
    index: [u16; PAGE_BYTES],
    pub(super) ops: Vec<Op>,
}

impl Page {
    fn new(frame: u64) -> Self {
        Self {
            frame,
            index: [0; PAGE_BYTES],
            ops: Vec::new(),
        }
    }

    /// Where in `ops` the instruction at `offset` is.
    #[inline(always)]
    pub(super) fn find(&self, offset: u16) -> Option<usize> {
        let index = self.index[usize::from(offset) % PAGE_BYTES];
        usize::from(index).checked_sub(1)
    }

    /// Decodes the run of instructions at `offset`; where in `ops` it starts.
    fn decode(&mut self, page: NonNull<u8>, offset: u16) -> usize {
        let mut bytes = [0; MAX_BLOCK * MAX_LENGTH];
        let len = copy_code(page, usize::from(offset), &mut bytes);
        let mut reader = Reader::new(&bytes[..len], offset);
        let first = self.ops.len();
        loop {
            let at = reader.at();
            let known = usize::from(at) == PAGE_BYTES || self.find(at).is_some();
            if known || self.ops.len() - first == MAX_BLOCK {
                self.ops.push(Op {
                    at,
                    next: at,
                    ..Op::new(Kind::Link, 0)
                });
                return first;
            }
            let (op, last) = reader.read();
            self.ops.push(op);
            // At most two operations an offset: 8192.
            self.index[usize::from(at)] = self.ops.len() as u16;
            if last {
                return first;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Box<[u8; PAGE_BYTES]> {
        // nop
        Box::new([0x90; PAGE_BYTES])
    }

    fn bytes(page: &mut [u8; PAGE_BYTES]) -> NonNull<u8> {
        NonNull::from(page).cast()
    }

    #[test]
    fn frames_that_share_a_slot_are_told_apart() {
        let (mut cache, mut first, mut second) = (CodeCache::new(), page(), page());
        second[0] = 0xf4; // hlt
        let other = 5 + FRAMES as u64;
        for _ in 0..3 {
            let (page, at) = cache.block(5, bytes(&mut first), 0);
            assert_eq!((page.frame, page.ops[at].next), (5, 1));
            assert!(page.ops.len() > 2);
            let (page, _) = cache.block(other, bytes(&mut second), 0);
            assert_eq!((page.frame, page.ops.len()), (other, 1));
        }
        cache.invalidate(5);
        assert_eq!(cache.ops, 1);
        cache.invalidate(other);
        assert_eq!(cache.ops, 0);
    }

    #[test]
    fn an_instruction_is_decoded_once() {
        let (mut cache, mut bytes_of) = (CodeCache::new(), page());
        for offset in (0..PAGE_BYTES as u16).rev().chain(0..PAGE_BYTES as u16) {
            let (page, at) = cache.block(1, bytes(&mut bytes_of), offset);
            assert_eq!(page.ops[at].at, offset);
        }
        // Each instruction, and what leads from it to the one that was there before.
        assert_eq!(cache.ops, 2 * PAGE_BYTES);
    }

    #[test]
    fn the_number_of_operations_is_bounded() {
        let (mut cache, mut bytes_of) = (CodeCache::new(), page());
        for frame in 0..200 {
            for offset in 0..PAGE_BYTES as u16 {
                cache.block(frame, bytes(&mut bytes_of), offset);
            }
            let pages = cache.pages.iter().flatten();
            assert_eq!(cache.ops, pages.map(|page| page.ops.len()).sum::<usize>());
            assert!(cache.ops <= MAX_OPS + MAX_BLOCK + 1);
        }
        cache.clear();
        assert_eq!(cache.ops, 0);
    }
}
