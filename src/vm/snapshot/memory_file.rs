//! The file `memory`: guest RAM, one region behind the other, zero pages left out.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, Stat, fstat, seek};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use vm_memory::{Bytes, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};

use super::files::{self, MEMORY};
use super::page_map::PageMap;
use super::{SnapshotError, damaged, host};

/// Bytes of a page, of the guest and of the host.
pub(super) const PAGE: usize = 4096;

/// Bytes looked at in one go.
const CHUNK: usize = 256 * 1024;

/// What `memory` was when it was sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MemoryRecord {
    /// Its length, which is the size of guest RAM.
    pub len_bytes: u64,
    /// The file itself. As long as it is this one, with these times, its content
    /// is taken as unchanged.
    stat: StatRecord,
    /// SHA-256 over offset (64 bits, little-endian) and bytes of each page that is
    /// not zero.
    pub content: [u8; 32],
}

/// Which file, and when it was last changed: content or owner, by whichever means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StatRecord {
    dev: u64,
    ino: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl StatRecord {
    fn of(stat: &Stat) -> Self {
        Self {
            dev: stat.st_dev,
            ino: stat.st_ino,
            mtime: (stat.st_mtime, stat.st_mtime_nsec as i64),
            ctime: (stat.st_ctime, stat.st_ctime_nsec as i64),
        }
    }
}

/// Where the pages of a machine's memory come from that it has not touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Untouched {
    /// From nowhere: they are zero.
    Zero,
    /// From a template's file.
    Mapped,
}

/// Writes guest RAM, which nobody changes meanwhile, into a new file.
pub(super) fn write(
    folder: BorrowedFd,
    memory: &GuestMemoryMmap,
    untouched: Untouched,
) -> Result<MemoryRecord, SnapshotError> {
    let file = files::create(folder, MEMORY)?;
    let len_bytes = memory.iter().map(GuestMemoryRegion::len).sum();
    file.set_len(len_bytes)
        .map_err(host("make room for guest memory"))?;
    let map = match untouched {
        Untouched::Zero => Some(PageMap::open()?),
        Untouched::Mapped => None,
    };
    let mut content = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut region_at = 0;
    for region in memory.iter() {
        for done in (0..region.len()).step_by(CHUNK) {
            let len = (region.len() - done).min(CHUNK as u64);
            if let Some(map) = &map
                && !map.there(region, done, len)?.any(|there| there)
            {
                continue;
            }
            let chunk = &mut chunk[..len as usize];
            // Cannot fail: inside of the region.
            let _ = region.read_slice(chunk, MemoryRegionAddress(done));
            write_chunk(&file, chunk, region_at + done, &mut content)?;
        }
        region_at += region.len();
    }
    let stat = fstat(&file).map_err(host("look at a file of the template"))?;
    Ok(MemoryRecord {
        len_bytes,
        stat: StatRecord::of(&stat),
        content: content.finalize().into(),
    })
}

fn write_chunk(
    file: &File,
    chunk: &[u8],
    at: u64,
    content: &mut Sha256,
) -> Result<(), SnapshotError> {
    add_pages(chunk, at, content);
    for (start, end) in filled_runs(chunk) {
        file.write_all_at(&chunk[start..end], at + start as u64)
            .map_err(host("write guest memory"))?;
    }
    Ok(())
}

/// Adds a chunk of whole pages, which is at `at` in the file, to its checksum.
fn add_pages(chunk: &[u8], at: u64, content: &mut Sha256) {
    let offsets = (at..).step_by(PAGE);
    for (page, offset) in chunk.chunks(PAGE).zip(offsets).filter(|(p, _)| !is_zero(p)) {
        content.update(offset.to_le_bytes());
        content.update(page);
    }
}

/// Start and end of each run of pages that are not all zero.
fn filled_runs(chunk: &[u8]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let pages = chunk.chunks(PAGE).zip((0..).step_by(PAGE));
    for (page, start) in pages.filter(|(page, _)| !is_zero(page)) {
        match runs.last_mut() {
            Some((_, end)) if *end == start => *end += page.len(),
            _ => runs.push((start, start + page.len())),
        }
    }
    runs
}

fn is_zero(page: &[u8]) -> bool {
    // Words first: this looks at all of guest RAM.
    let (words, rest) = page.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|&byte| byte == 0)
}

/// Opens `memory` and makes sure that it is what was sealed.
pub(super) fn open(folder: BorrowedFd, record: &MemoryRecord) -> Result<File, SnapshotError> {
    let (file, stat) = files::open(folder, MEMORY)?;
    if u64::try_from(stat.st_size) != Ok(record.len_bytes) {
        return Err(damaged(MEMORY, "its length is wrong"));
    }
    if StatRecord::of(&stat) != record.stat && digest(&file, record.len_bytes)? != record.content {
        return Err(damaged(MEMORY, "its content has changed"));
    }
    Ok(file)
}

/// Reads the whole file, but for its holes.
fn digest(file: &File, len_bytes: u64) -> Result<[u8; 32], SnapshotError> {
    let mut content = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    while let Some(data) = next_data(file, at)?.filter(|data| *data < len_bytes) {
        at = data - data % PAGE as u64;
        let len = CHUNK.min((len_bytes - at) as usize);
        let chunk = &mut chunk[..len];
        file.read_exact_at(chunk, at)
            .map_err(host("read guest memory"))?;
        add_pages(chunk, at, &mut content);
        at += len as u64;
    }
    Ok(content.finalize().into())
}

/// The first byte from `at` on that is not in a hole.
fn next_data(file: &File, at: u64) -> Result<Option<u64>, SnapshotError> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        // A file system without holes.
        Err(rustix::io::Errno::INVAL) => Ok(Some(at)),
        Err(error) => Err(host("read guest memory")(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use vm_memory::GuestAddress;

    /// Two regions with a hole between them, and a few bytes in each.
    fn memory() -> GuestMemoryMmap {
        let regions = [
            (GuestAddress(0), 2 * CHUNK),
            (GuestAddress(1 << 32), CHUNK + PAGE),
        ];
        let memory = GuestMemoryMmap::from_ranges(&regions).unwrap();
        for (value, at) in [
            (1_u8, 3),
            (2, 2 * CHUNK as u64 - 1),
            (3, 1 << 32),
            (4, (1 << 32) + CHUNK as u64 + 7),
        ] {
            memory.write_obj(value, GuestAddress(at)).unwrap();
        }
        memory
    }

    #[test]
    fn regions_follow_each_other_and_zero_pages_are_holes() {
        for untouched in [Untouched::Zero, Untouched::Mapped] {
            let folder = tempfile::tempdir().unwrap();
            let folder = File::open(&folder).unwrap();
            let record = write(folder.as_fd(), &memory(), untouched).unwrap();
            let file = open(folder.as_fd(), &record).unwrap();
            let mut expected = vec![0_u8; 3 * CHUNK + PAGE];
            for (value, at) in [
                (1, 3),
                (2, 2 * CHUNK - 1),
                (3, 2 * CHUNK),
                (4, 3 * CHUNK + 7),
            ] {
                expected[at] = value;
            }
            let mut written = vec![0; expected.len() + 1];
            let len = file.read_at(&mut written, 0).unwrap();
            assert!(written[..len] == expected);
            assert_eq!(digest(&file, record.len_bytes).unwrap(), record.content);
            let data = next_data(&file, 4 * PAGE as u64).unwrap().unwrap();
            assert!(data >= PAGE as u64 * 4, "{data}");
            let stat = fstat(&file).unwrap();
            assert!(
                stat.st_blocks * 512 <= 8 * PAGE as i64,
                "{}",
                stat.st_blocks
            );
        }
    }

    #[test]
    fn runs_are_the_pages_that_are_not_zero() {
        let mut chunk = vec![0; 6 * PAGE];
        assert_eq!(filled_runs(&chunk), []);
        for page in [0, 2, 3, 5] {
            chunk[page * PAGE + page] = 1;
        }
        let pages = |from: usize, to: usize| (from * PAGE, to * PAGE);
        assert_eq!(filled_runs(&chunk), [pages(0, 1), pages(2, 4), pages(5, 6)]);
    }

    #[test]
    fn the_place_of_a_page_is_part_of_the_checksum() {
        let of = |at| {
            let mut content = Sha256::new();
            add_pages(&[1; PAGE], at, &mut content);
            content.finalize()
        };
        assert_ne!(of(0), of(PAGE as u64));
    }
}
