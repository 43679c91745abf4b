//! The device as a guest's kernel drives it, and as a hostile one does.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::spec::DriveSpec;
use crate::virtio::device::{Active, Device};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::state::DeviceState;
use crate::virtio::testing::{Buffer, GuestQueue, WRITE, memory};

const RAM_LEN: u64 = 1 << 20;
const HEADER: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const STATUS: u64 = 0x1_1000;
const SECTORS: u64 = 64;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// The device has not written a status.
const NONE: u8 = 0xee;

struct Guest {
    blk: Blk,
    image: File,
    memory: GuestMemoryMmap,
    queue: GuestQueue,
    interrupt: Arc<Interrupt>,
}

impl Guest {
    /// A drive of [`SECTORS`] sectors, each filled with its number.
    fn new(read_only: bool) -> Self {
        let image = tempfile::tempfile().unwrap();
        for sector in 0..SECTORS {
            image
                .write_all_at(&[sector as u8; 512], sector * 512)
                .unwrap();
        }
        Self::with(image, read_only, 0)
    }

    fn with(image: File, read_only: bool, features: u64) -> Self {
        let file = image.try_clone().unwrap();
        let mut blk = Blk::new(3, DriveSpec { file, read_only }).unwrap();
        let memory = memory(RAM_LEN as usize);
        let queue = GuestQueue::new(&memory, 0, 16);
        let interrupt = Arc::new(Interrupt::new().unwrap());
        blk.activate(Active {
            features,
            memory: memory.clone(),
            queues: vec![queue.device_queue(false)],
            interrupt: interrupt.clone(),
        })
        .unwrap();
        Self {
            blk,
            image,
            memory,
            queue,
            interrupt,
        }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }

    fn header(&self, kind: u32, sector: u64) {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.put(HEADER, &header);
        self.put(STATUS, &[NONE]);
    }

    /// Sends a chain; returns the status at its usual place and the used length.
    fn send(&mut self, chain: &[Buffer]) -> (u8, u32) {
        self.queue.add(chain);
        self.blk.queue_event(0).unwrap();
        let (_, len) = self.queue.next_used().expect("the chain is used");
        (self.bytes(STATUS, 1)[0], len)
    }

    /// A request in three descriptors.
    fn request(&mut self, kind: u32, sector: u64, data: Buffer) -> (u8, u32) {
        self.header(kind, sector);
        self.send(&[(HEADER, 16, 0), data, (STATUS, 1, WRITE)])
    }

    fn flush(&mut self) -> (u8, u32) {
        self.header(FLUSH, 0);
        self.send(&[(HEADER, 16, 0), (STATUS, 1, WRITE)])
    }

    fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let bytes: Vec<u8> = ranges
            .iter()
            .flat_map(|(sector, count, flags)| {
                [
                    &sector.to_le_bytes()[..],
                    &count.to_le_bytes(),
                    &flags.to_le_bytes(),
                ]
                .concat()
            })
            .collect();
        self.put(DATA, &bytes);
        self.request(kind, 0, (DATA, bytes.len() as u32, 0)).0
    }

    fn sector(&self, sector: u64) -> [u8; 512] {
        let mut bytes = [0; 512];
        self.image.read_exact_at(&mut bytes, sector * 512).unwrap();
        bytes
    }

    /// Nothing on the drive has changed.
    fn intact(&self) -> bool {
        (0..SECTORS).all(|sector| self.sector(sector) == [sector as u8; 512])
    }
}

fn feature(blk: &Blk, bit: u32) -> bool {
    blk.features() & 1 << bit != 0
}

#[test]
fn config_and_features_tell_the_drive() {
    let guest = Guest::new(false);
    let mut config = [0xff; 64];
    guest.blk.read_config(0, &mut config);
    assert_eq!(config[..8], SECTORS.to_le_bytes());
    assert_eq!(config[8..12], [0; 4]);
    assert_eq!(config[12..16], 254u32.to_le_bytes());
    assert_eq!(config[20..24], 512u32.to_le_bytes());
    assert_eq!(config[60..], [0xff; 4]);
    let mut part = [0; 4];
    guest.blk.read_config(12, &mut part);
    assert_eq!(part, 254u32.to_le_bytes());
    guest.blk.read_config(usize::MAX, &mut part);
    assert!(feature(&guest.blk, 9) && !feature(&guest.blk, 5));
    assert!(feature(&guest.blk, 13) && feature(&guest.blk, 14));
    let guest = Guest::new(true);
    assert!(feature(&guest.blk, 5) && !feature(&guest.blk, 13) && !feature(&guest.blk, 14));
}

#[test]
fn the_rest_of_a_sector_does_not_count() {
    let image = tempfile::tempfile().unwrap();
    image.set_len(3 * 512 + 511).unwrap();
    let mut guest = Guest::with(image, false, 0);
    let mut capacity = [0; 8];
    guest.blk.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 3);
    assert_eq!(guest.request(IN, 3, (DATA, 512, WRITE)), (IOERR, 1));
    assert_eq!(guest.image.metadata().unwrap().len(), 3 * 512 + 511);
}

#[test]
fn a_folder_or_a_pipe_is_no_drive() {
    let (pipe, _) = std::io::pipe().unwrap();
    let pipe: std::os::fd::OwnedFd = pipe.into();
    for file in [File::open("/").unwrap(), pipe.into()] {
        let result = Blk::new(
            0,
            DriveSpec {
                file,
                read_only: true,
            },
        );
        assert!(matches!(result.err(), Some(BlkError::Kind(0))));
    }
}

#[test]
fn reads_and_writes() {
    let mut guest = Guest::new(false);
    assert_eq!(guest.request(IN, 5, (DATA, 1024, WRITE)), (OK, 1025));
    assert_eq!(guest.bytes(DATA, 1024), [[5; 512], [6; 512]].concat());
    guest.put(DATA, &[0xaa; 512]);
    assert_eq!(guest.request(OUT, 63, (DATA, 512, 0)), (OK, 1));
    assert_eq!(guest.sector(63), [0xaa; 512]);
    assert_eq!(guest.sector(62), [62; 512]);
    assert_eq!(guest.flush(), (OK, 1));
    assert_eq!(guest.interrupt.eventfd().read().unwrap(), 3);
}

#[test]
fn descriptors_may_be_cut_anywhere() {
    let mut guest = Guest::new(false);
    guest.header(IN, 7);
    let chain = [
        (HEADER, 3, 0),
        (HEADER + 3, 13, 0),
        (DATA, 1, WRITE),
        (DATA + 0x1000, 0, WRITE),
        (DATA + 1, 500, WRITE),
        (DATA + 501, 11, WRITE),
        (STATUS, 1, WRITE),
    ];
    assert_eq!(guest.send(&chain), (OK, 513));
    assert_eq!(guest.bytes(DATA, 512), [7; 512]);

    // Header and data in one, data and status in one.
    guest.header(OUT, 9);
    guest.put(HEADER + 16, &[0xbb; 512]);
    assert_eq!(guest.send(&[(HEADER, 528, 0), (STATUS, 1, WRITE)]), (OK, 1));
    assert_eq!(guest.sector(9), [0xbb; 512]);
    guest.header(IN, 9);
    guest.put(DATA + 512, &[NONE]);
    guest.send(&[(HEADER, 16, 0), (DATA, 513, WRITE)]);
    assert_eq!(guest.bytes(DATA, 513), [&[0xbb; 512][..], &[OK]].concat());
}

#[test]
fn ranges_are_checked_before_anything_is_touched() {
    let mut guest = Guest::new(false);
    for sector in [
        SECTORS,
        SECTORS - 1,
        SECTORS + 1,
        u64::MAX,
        u64::MAX - 1,
        1 << 55,
        u64::MAX / 512,
    ] {
        assert_eq!(
            guest.request(IN, sector, (DATA, 1024, WRITE)).0,
            IOERR,
            "{sector}"
        );
        assert_eq!(
            guest.request(OUT, sector, (DATA, 1024, 0)).0,
            IOERR,
            "{sector}"
        );
    }
    for len in [1, 511, 513, 1023] {
        assert_eq!(guest.request(IN, 0, (DATA, len, WRITE)).0, IOERR);
        assert_eq!(guest.request(OUT, 0, (DATA, len, 0)).0, IOERR);
    }
    assert_eq!(guest.request(IN, 0, (DATA, 0, WRITE)), (OK, 1));
    assert!(guest.intact());
    assert_eq!(guest.image.metadata().unwrap().len(), SECTORS * 512);
}

#[test]
fn data_that_leaves_ram_is_refused_as_a_whole() {
    let mut guest = Guest::new(false);
    for (address, len) in [
        (RAM_LEN - 256, 512),
        (RAM_LEN - 1, 512),
        (RAM_LEN, 512),
        (u64::MAX - 255, 512),
        (DATA, 0x8000_0000),
    ] {
        assert_eq!(
            guest.request(IN, 0, (address, len, WRITE)),
            (IOERR, 1),
            "{address:x}"
        );
        assert_eq!(
            guest.request(OUT, 0, (address, len, 0)),
            (IOERR, 1),
            "{address:x}"
        );
    }
    // A chain of more than 4 GiB is cut off where it gets too long, before its status.
    assert_eq!(guest.request(OUT, 0, (DATA, u32::MAX, 0)), (NONE, 0));
    assert!(guest.intact());
    // The last bytes of RAM are RAM.
    assert_eq!(guest.request(IN, 1, (RAM_LEN - 512, 512, WRITE)), (OK, 513));
}

#[test]
fn chains_without_what_they_need() {
    let mut guest = Guest::new(false);
    // No status: nothing is done.
    guest.header(OUT, 0);
    assert_eq!(guest.send(&[(HEADER, 16, 0), (DATA, 512, 0)]), (NONE, 0));
    assert_eq!(
        guest.send(&[(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 1, 0)]),
        (NONE, 0)
    );
    assert_eq!(
        guest.send(&[(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 0, WRITE)]),
        (NONE, 0)
    );
    // Half a header, none, or one for the device to write.
    assert_eq!(
        guest.send(&[(HEADER, 15, 0), (STATUS, 1, WRITE)]),
        (IOERR, 1)
    );
    guest.header(OUT, 0);
    assert_eq!(guest.send(&[(STATUS, 1, WRITE)]), (IOERR, 1));
    guest.header(OUT, 0);
    assert_eq!(
        guest.send(&[(HEADER, 16, WRITE), (DATA, 512, 0), (STATUS, 1, WRITE)]),
        (IOERR, 1)
    );
    // What can be read after what can be written.
    guest.header(IN, 0);
    let chain = [
        (HEADER, 16, 0),
        (DATA, 512, WRITE),
        (DATA, 512, 0),
        (STATUS, 1, WRITE),
    ];
    assert_eq!(guest.send(&chain), (IOERR, 1));
    // The same buffer as data and as status.
    guest.header(IN, 0);
    assert_eq!(
        guest.send(&[(HEADER, 16, 0), (STATUS, 512, WRITE), (STATUS, 1, WRITE)]),
        (OK, 513)
    );
    assert!(guest.intact());
}

#[test]
fn the_same_head_again_is_the_same_request_again() {
    let mut guest = Guest::new(false);
    guest.header(IN, 2);
    let head = guest
        .queue
        .add(&[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    for _ in 0..5 {
        guest.queue.add_head(head);
    }
    guest.blk.queue_event(0).unwrap();
    assert_eq!(guest.queue.drain_used(), [(head, 513); 6]);
    assert_eq!(guest.interrupt.eventfd().read().unwrap(), 1);
    guest.queue.add_head(999);
    assert!(guest.blk.queue_event(0).is_err());
}

#[test]
fn an_available_index_that_jumps_breaks_the_queue() {
    let mut guest = Guest::new(false);
    guest.queue.set_avail_idx(17);
    assert!(guest.blk.queue_event(0).is_err());
    guest.blk.reset();
    guest.blk.queue_event(0).unwrap();
}

#[test]
fn a_read_only_drive_is_not_written() {
    let mut guest = Guest::new(true);
    assert_eq!(guest.request(OUT, 0, (DATA, 512, 0)), (IOERR, 1));
    assert_eq!(guest.ranges(DISCARD, &[(0, 8, 0)]), UNSUPP);
    assert_eq!(guest.ranges(WRITE_ZEROES, &[(0, 8, 0)]), UNSUPP);
    assert_eq!(guest.flush().0, OK);
    assert_eq!(guest.request(IN, 1, (DATA, 512, WRITE)).0, OK);
    assert!(guest.intact());
}

#[test]
fn the_id_is_cut_to_its_buffer() {
    let mut guest = Guest::new(true);
    assert_eq!(guest.request(GET_ID, 0, (DATA, 20, WRITE)), (OK, 21));
    assert_eq!(guest.bytes(DATA, 20), b"vmrun-3\0\0\0\0\0\0\0\0\0\0\0\0\0");
    guest.put(DATA, &[0x55; 32]);
    assert_eq!(guest.request(GET_ID, 0, (DATA, 4, WRITE)), (OK, 5));
    assert_eq!(guest.bytes(DATA, 5), b"vmru\x55");
    assert_eq!(guest.request(GET_ID, 0, (DATA, 32, WRITE)), (OK, 21));
    assert_eq!(guest.bytes(DATA + 20, 1), [0x55]);
    assert_eq!(guest.request(GET_ID, 0, (DATA, 0, WRITE)), (OK, 1));
}

#[test]
fn zeroes_and_discards() {
    let mut guest = Guest::new(false);
    assert_eq!(guest.ranges(WRITE_ZEROES, &[(8, 8, 0), (24, 8, 1)]), OK);
    assert_eq!(guest.ranges(DISCARD, &[(40, 8, 0)]), OK);
    for sector in [8, 15, 24, 31, 40, 47] {
        assert_eq!(guest.sector(sector), [0; 512], "{sector}");
    }
    for sector in [7, 16, 23, 32, 39, 48] {
        assert_eq!(guest.sector(sector), [sector as u8; 512], "{sector}");
    }
    assert_eq!(guest.image.metadata().unwrap().len(), SECTORS * 512);
}

#[test]
fn no_range_is_touched_if_one_is_wrong() {
    let mut guest = Guest::new(false);
    let good = (0, 8, 0);
    for kind in [DISCARD, WRITE_ZEROES] {
        for bad in [
            (SECTORS, 1, 0),
            (u64::MAX, 1, 0),
            (0, u32::MAX, 0),
            (SECTORS - 1, 2, 0),
        ] {
            assert_eq!(guest.ranges(kind, &[good, bad]), IOERR, "{bad:?}");
        }
        assert_eq!(guest.ranges(kind, &[good, (0, 1, 2)]), UNSUPP);
        assert_eq!(guest.ranges(kind, &[]), IOERR);
        assert_eq!(guest.ranges(kind, &[good; 17]), IOERR);
        assert_eq!(guest.request(kind, 0, (DATA, 15, 0)).0, IOERR);
    }
    // A discard does not unmap on demand: it always does.
    assert_eq!(guest.ranges(DISCARD, &[(0, 8, 1)]), UNSUPP);
    assert_eq!(guest.ranges(DISCARD, &[(0, 0, 0)]), OK);
    assert!(guest.intact());
}

#[test]
fn unknown_requests_are_unsupported() {
    let mut guest = Guest::new(false);
    for kind in [2, 3, 5, 6, 7, 9, 10, 12, 14, 16, 1 << 31, u32::MAX] {
        assert_eq!(guest.request(kind, 0, (DATA, 512, WRITE)), (UNSUPP, 1));
    }
    assert!(guest.intact());
}

#[test]
fn an_image_stays_raw_whatever_is_in_it() {
    let mut guest = Guest::new(false);
    // A qcow2 header that names the host's passwd as backing file.
    let mut header = [0; 512];
    header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    header[8..20].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0x70, 0, 0, 0, 11]);
    header[0x70..0x7b].copy_from_slice(b"/etc/passwd");
    guest.put(DATA, &header);
    assert_eq!(guest.request(OUT, 0, (DATA, 512, 0)).0, OK);
    let mut again = Guest::with(guest.image.try_clone().unwrap(), false, 0);
    assert_eq!(again.request(IN, 0, (DATA, 512, WRITE)).0, OK);
    assert_eq!(again.bytes(DATA, 512), header);
    assert_eq!(again.request(IN, 1, (DATA, 512, WRITE)).0, OK);
    assert_eq!(again.bytes(DATA, 512), [1; 512]);
}

#[test]
fn a_file_that_shrank_is_an_error() {
    let mut guest = Guest::new(false);
    guest.image.set_len(512).unwrap();
    assert_eq!(guest.request(IN, 0, (DATA, 512, WRITE)).0, OK);
    assert_eq!(guest.request(IN, 0, (DATA, 1024, WRITE)), (IOERR, 1));
    assert_eq!(guest.request(IN, 9, (DATA, 512, WRITE)), (IOERR, 1));
}

#[test]
fn a_failing_host_is_an_io_error() {
    let path = tempfile::NamedTempFile::new().unwrap();
    path.as_file().set_len(8 * 512).unwrap();
    // Open for reading only, though writing was asked for.
    let file = File::open(path.path()).unwrap();
    let mut guest = Guest::with(file, false, 0);
    assert!(!feature(&guest.blk, 13));
    assert_eq!(guest.request(OUT, 0, (DATA, 512, 0)), (IOERR, 1));
}

#[test]
fn only_the_same_drive_takes_over_a_saved_state() {
    let blk = |sectors: u64| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(sectors * 512).unwrap();
        let read_only = true;
        Blk::new(0, DriveSpec { file, read_only }).unwrap()
    };
    let state = blk(64).freeze().unwrap();
    assert!(blk(64).thaw(state.clone()).is_ok());
    assert!(blk(65).thaw(state).is_err());
    assert!(blk(64).thaw(DeviceState::Rng).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_chain_is_used_and_nothing_outside_changes(
        kind in prop_oneof![0u32..16, any::<u32>()],
        sector in prop_oneof![0u64..80, any::<u64>()],
        data in prop::collection::vec(any::<u8>(), 64),
        buffers in prop::collection::vec(
            (
                prop_oneof![Just(HEADER), Just(DATA), Just(STATUS), RAM_LEN - 600..RAM_LEN + 10, any::<u64>()],
                prop_oneof![Just(16u32), Just(512), Just(1), 0u32..2000, any::<u32>()],
                prop_oneof![Just(0), Just(WRITE)],
            ),
            1..12,
        ),
    ) {
        let mut guest = Guest::new(false);
        guest.put(DATA, &data);
        guest.header(kind, sector);
        guest.send(&buffers);
        let mut chain = vec![(HEADER, 16, 0)];
        chain.extend(&buffers);
        chain.push((STATUS, 1, WRITE));
        guest.header(kind, sector);
        guest.send(&chain);
        prop_assert_eq!(guest.image.metadata().unwrap().len(), SECTORS * 512);
        // The drive still works.
        guest.put(DATA, &[9; 512]);
        prop_assert_eq!(guest.request(OUT, 9, (DATA, 512, 0)).0, OK);
    }
}
