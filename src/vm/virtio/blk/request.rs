//! One request (virtio 1.2, 5.2.6).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryMmap;

use super::buffers::{Buffers, Halves};
use super::disk::{Disk, SECTOR_SIZE};

/// Most data of one request. Linux asks for 1.25 MiB unless it is told otherwise.
const DATA_LEN_MAX: u64 = 64 << 20;

/// Most ranges of one discard or write-zeroes.
pub(super) const RANGES_MAX: u32 = 16;

/// Most sectors of one of them: 1 GiB.
pub(super) const RANGE_SECTORS_MAX: u32 = 1 << 21;

/// Bytes of the drive's name that GET_ID returns.
pub(super) const ID_LEN: usize = 20;

/// Bytes of struct virtio_blk_discard_write_zeroes.
const RANGE_LEN: usize = 16;

/// What a driver did wrong or the host refused; the guest sees the status only.
#[derive(Debug, PartialEq, Eq)]
enum Refused {
    Io,
    Unsupported,
}

/// Serves one request; returns the number of bytes written, which is 0 when there
/// is no room for as much as the status.
pub(super) fn serve(
    disk: &mut Disk,
    id: &[u8; ID_LEN],
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
) -> u32 {
    let mut halves = Halves::of(memory, chain);
    let Some(mut status) = halves.writable.take_last() else {
        return 0;
    };
    let (code, written) = match execute(disk, id, halves) {
        Ok(written) => (VIRTIO_BLK_S_OK, written),
        Err(Refused::Io) => (VIRTIO_BLK_S_IOERR, 0),
        Err(Refused::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
    };
    status.write(&[code as u8]);
    written + 1
}

/// Returns how much data was written into the chain.
fn execute(disk: &mut Disk, id: &[u8; ID_LEN], halves: Halves) -> Result<u32, Refused> {
    let Halves {
        mut readable,
        mut writable,
        legal,
    } = halves;
    let mut header = [0; 16];
    if !legal || readable.read(&mut header) != header.len() {
        return Err(Refused::Io);
    }
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    match u32::from_le_bytes([t0, t1, t2, t3]) {
        VIRTIO_BLK_T_IN => {
            let (offset, len) = sectors(disk, sector, &writable)?;
            disk.read(writable, offset)
                .map_err(|error| failed("reading", error))?;
            Ok(len)
        }
        VIRTIO_BLK_T_OUT if disk.read_only => Err(Refused::Io),
        VIRTIO_BLK_T_OUT => {
            let (offset, _) = sectors(disk, sector, &readable)?;
            disk.write(readable, offset)
                .map_err(|error| failed("writing", error))?;
            Ok(0)
        }
        VIRTIO_BLK_T_FLUSH if disk.read_only => Ok(0),
        VIRTIO_BLK_T_FLUSH => {
            disk.flush().map_err(|error| failed("flushing", error))?;
            Ok(0)
        }
        VIRTIO_BLK_T_GET_ID => Ok(writable.write(id) as u32),
        VIRTIO_BLK_T_DISCARD if disk.can_discard => ranges(disk, readable, false),
        VIRTIO_BLK_T_WRITE_ZEROES if disk.can_discard => ranges(disk, readable, true),
        _ => Err(Refused::Unsupported),
    }
}

/// Where data of a read or write is in the file, and how much.
fn sectors(disk: &Disk, sector: u64, data: &Buffers) -> Result<(u64, u32), Refused> {
    let len = data.len();
    if len > DATA_LEN_MAX || !len.is_multiple_of(SECTOR_SIZE) {
        return Err(Refused::Io);
    }
    let offset = disk.range(sector, len).ok_or(Refused::Io)?;
    Ok((offset, len as u32))
}

/// DISCARD, or WRITE_ZEROES if `zero`. All ranges are checked before the first is
/// touched.
fn ranges(disk: &Disk, mut data: Buffers, zero: bool) -> Result<u32, Refused> {
    let len = data.len();
    if len == 0
        || len > u64::from(RANGES_MAX) * RANGE_LEN as u64
        || !len.is_multiple_of(RANGE_LEN as u64)
    {
        return Err(Refused::Io);
    }
    let mut bytes = [0; RANGES_MAX as usize * RANGE_LEN];
    let filled = data.read(&mut bytes);
    let mut todo = Vec::with_capacity(RANGES_MAX as usize);
    for range in bytes[..filled].as_chunks::<RANGE_LEN>().0 {
        todo.push(parse_range(disk, range, zero)?);
    }
    for (offset, len, unmap) in todo {
        let result = match zero && !unmap {
            _ if len == 0 => Ok(()),
            true => disk.zero(offset, len),
            false => disk.discard(offset, len),
        };
        result.map_err(|error| failed("freeing", error))?;
    }
    Ok(0)
}

/// Offset and length in bytes, and whether the space may be given up.
fn parse_range(
    disk: &Disk,
    range: &[u8; RANGE_LEN],
    zero: bool,
) -> Result<(u64, u64, bool), Refused> {
    let [sector @ .., n0, n1, n2, n3, f0, f1, f2, f3] = *range;
    let sector = u64::from_le_bytes(sector);
    let count = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes([f0, f1, f2, f3]);
    let known = if zero {
        VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
    } else {
        0
    };
    if flags & !known != 0 {
        return Err(Refused::Unsupported);
    }
    if count > RANGE_SECTORS_MAX {
        return Err(Refused::Io);
    }
    let len = u64::from(count) * SECTOR_SIZE;
    let offset = disk.range(sector, len).ok_or(Refused::Io)?;
    Ok((offset, len, flags != 0))
}

fn failed(what: &str, error: std::io::Error) -> Refused {
    log::debug!("blk: {what}: {error}");
    Refused::Io
}
