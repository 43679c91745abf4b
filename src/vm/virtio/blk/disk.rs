//! The host's side of a drive.

use std::fs::File;
use std::io;

use fuse_backend_rs::file_buf::FileVolatileSlice;
use fuse_backend_rs::file_traits::FileReadWriteVolatile;
use rustix::fs::{FallocateFlags, FileType, SeekFrom, fallocate, fdatasync, fstat, seek};

use super::BlkError;
use super::buffers::Buffers;
use crate::spec::DriveSpec;

/// Bytes of a sector: virtio counts in these whatever the drive.
pub(super) const SECTOR_SIZE: u64 = 512;

/// Buffers of one preadv or pwritev, Linux's UIO_MAXIOV.
const IOV_MAX: usize = 1024;

/// An open drive.
#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    /// Fixed when the machine is built.
    pub capacity_sectors: u64,
    pub read_only: bool,
    /// Ranges can be freed, and then read as zeroes.
    pub can_discard: bool,
}

impl Disk {
    /// Takes a drive over; `index` is for errors.
    pub fn new(index: usize, spec: DriveSpec) -> Result<Self, BlkError> {
        let DriveSpec { file, read_only } = spec;
        let host = |what| {
            move |source: rustix::io::Errno| BlkError::Host {
                index,
                what,
                source: source.into(),
            }
        };
        let stat = fstat(&file).map_err(host("looking at the file"))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::BlockDevice) {
            return Err(BlkError::Kind(index));
        }
        // The length of a block device is not in its stat.
        let len = seek(&file, SeekFrom::End(0)).map_err(host("finding the length"))?;
        let can_discard = !read_only
            && kind == FileType::RegularFile
            && fallocate(&file, PUNCH, len, SECTOR_SIZE).is_ok();
        Ok(Self {
            file,
            capacity_sectors: len / SECTOR_SIZE,
            read_only,
            can_discard,
        })
    }

    /// Checks a range; returns its start in bytes.
    pub fn range(&self, sector: u64, len: u64) -> Option<u64> {
        let end = sector.checked_add(len.div_ceil(SECTOR_SIZE))?;
        if end > self.capacity_sectors {
            return None;
        }
        sector.checked_mul(SECTOR_SIZE)
    }

    /// Fills `data` from `offset` on.
    pub fn read(&mut self, data: Buffers, offset: u64) -> io::Result<()> {
        let file = &mut self.file;
        transfer(data, offset, |slices, at| {
            file.read_vectored_at_volatile(slices, at)
        })
    }

    /// Writes `data` at `offset`.
    pub fn write(&mut self, data: Buffers, offset: u64) -> io::Result<()> {
        let file = &mut self.file;
        transfer(data, offset, |slices, at| {
            file.write_vectored_at_volatile(slices, at)
        })
    }

    /// What was written is on the medium.
    pub fn flush(&self) -> io::Result<()> {
        Ok(fdatasync(&self.file)?)
    }

    /// Frees a range.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        Ok(fallocate(&self.file, PUNCH, offset, len)?)
    }

    /// Makes a range read as zeroes, keeping its space where the host can.
    pub fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let zero = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);
        match fallocate(&self.file, zero, offset, len) {
            Err(rustix::io::Errno::OPNOTSUPP) => self.discard(offset, len),
            result => Ok(result?),
        }
    }
}

const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

fn transfer(
    mut data: Buffers,
    mut offset: u64,
    mut call: impl FnMut(&[FileVolatileSlice], u64) -> io::Result<usize>,
) -> io::Result<()> {
    while data.len() > 0 {
        let result = call(&data.slices(IOV_MAX), offset);
        match result {
            // The file is shorter than it was.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                data.advance(count);
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
