//! A file that is "read" into guest memory by mapping its pages there.
//!
//! Kernel and initramfs are the same in every machine: mapped privately, their
//! pages are shared with the page cache and every other machine until the guest
//! writes to them, and loading them copies nothing.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

/// Granularity of mmap(2).
const PAGE: usize = 4096;

/// See the module's text. The file must not shrink while the machine lives; it
/// is the operator's, not the guest's.
pub struct MappedFile {
    file: File,
    position: u64,
    len: u64,
}

impl MappedFile {
    /// Starts at the file's first byte.
    pub fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self {
            file,
            position: 0,
            len,
        })
    }

    /// Bytes in the file.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// How much of `wanted` bytes is left.
    fn available(&self, wanted: usize) -> usize {
        let left = self.len.saturating_sub(self.position);
        usize::try_from(left).map_or(wanted, |left| left.min(wanted))
    }

    /// Replaces the whole pages of `target` by the file's pages, and returns how
    /// many bytes that were: none where file and memory are not aligned alike.
    fn map<B: BitmapSlice>(&self, target: &VolatileSlice<B>, len: usize) -> io::Result<usize> {
        let pages = len - len % PAGE;
        let guard = target.ptr_guard_mut();
        let address = guard.as_ptr();
        let aligned =
            address.addr().is_multiple_of(PAGE) && self.position.is_multiple_of(PAGE as u64);
        if pages == 0 || !aligned {
            return Ok(0);
        }
        let offset = libc::off_t::try_from(self.position).map_err(io::Error::other)?;
        // SAFETY: `address..address + pages` lies within `target`, which is mapped
        // memory of the guest that Rust holds no references into; MAP_FIXED puts
        // other pages there with the same access rights.
        let mapped = unsafe {
            libc::mmap(
                address.cast(),
                pages,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                self.file.as_raw_fd(),
                offset,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(pages)
    }
}

impl Read for MappedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buffer, self.position)?;
        self.position += n as u64;
        Ok(n)
    }
}

impl Seek for MappedFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
            SeekFrom::End(delta) => self.len.checked_add_signed(delta),
        };
        self.position = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl ReadVolatile for MappedFile {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        target: &mut VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        let len = self.available(target.len());
        let mapped = self
            .map(target, len)
            .map_err(VolatileMemoryError::IOError)?;
        self.position += mapped as u64;
        let mut done = mapped;
        // The rest of the last page, or all of what cannot be mapped.
        let mut chunk = [0; PAGE];
        while done < len {
            let part = (len - done).min(PAGE);
            self.read_exact(&mut chunk[..part])
                .map_err(VolatileMemoryError::IOError)?;
            target.subslice(done, part)?.copy_from(&chunk[..part]);
            done += part;
        }
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    /// A file whose byte `i` is a function of `i`.
    fn file(len: usize) -> MappedFile {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content(0, len)).unwrap();
        MappedFile::new(file).unwrap()
    }

    fn content(from: usize, len: usize) -> Vec<u8> {
        (from..from + len).map(|i| (i % 251) as u8).collect()
    }

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 * PAGE)]).unwrap()
    }

    fn load(file: &mut MappedFile, from: usize, to: u64, len: usize) -> Vec<u8> {
        let memory = memory();
        file.seek(SeekFrom::Start(from as u64)).unwrap();
        memory
            .read_exact_volatile_from(GuestAddress(to), file, len)
            .unwrap();
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(to)).unwrap();
        bytes
    }

    #[test]
    fn content_arrives_whether_mapped_or_copied() {
        let mut file = file(10 * PAGE + 77);
        for (from, to, len) in [
            (0, 0, 10 * PAGE + 77),
            (PAGE, 2 * PAGE as u64, 3 * PAGE + 5),
            (5, 0, 2 * PAGE),
            (PAGE, 9, 2 * PAGE),
            (0, 0, 9),
        ] {
            assert!(
                load(&mut file, from, to, len) == content(from, len),
                "{from} {to} {len}"
            );
        }
    }

    #[test]
    fn writes_of_the_guest_stay_in_the_guest() {
        let mut file = file(2 * PAGE);
        let memory = memory();
        memory
            .read_exact_volatile_from(GuestAddress(0), &mut file, 2 * PAGE)
            .unwrap();
        memory.write_slice(&[0xee; 8], GuestAddress(100)).unwrap();
        let mut bytes = [0; 8];
        file.file.read_exact_at(&mut bytes, 100).unwrap();
        assert_eq!(bytes.to_vec(), content(100, 8));
    }

    #[test]
    fn neighbours_are_left_alone() {
        let mut file = file(PAGE + 10);
        let memory = memory();
        memory
            .write_slice(&[7; PAGE], GuestAddress(PAGE as u64))
            .unwrap();
        memory
            .read_exact_volatile_from(GuestAddress(0), &mut file, PAGE + 10)
            .unwrap();
        assert_eq!(
            memory
                .read_obj::<u8>(GuestAddress(PAGE as u64 + 10))
                .unwrap(),
            7
        );
    }

    #[test]
    fn a_short_file_is_an_error() {
        let mut file = file(PAGE);
        let memory = memory();
        assert!(
            memory
                .read_exact_volatile_from(GuestAddress(0), &mut file, PAGE + 1)
                .is_err()
        );
    }
}
