//! Requests that no kernel makes. Each is answered or dropped, nothing panics, and
//! nothing grows by a number that the guest wrote.

use fuse_backend_rs::abi::fuse_abi::*;
use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;
use vm_memory::ByteValued;

use super::client::{Guest, nul};
use super::*;
use crate::virtio::device::Device;
use crate::virtio::testing::WRITE;

fn share() -> (tempfile::TempDir, Guest, u64) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "file").unwrap();
    std::fs::create_dir(folder.path().join("dir")).unwrap();
    let path = folder.path().join("file");
    let fs = device_with(
        vec![
            export("root", folder.path(), false),
            export("m0", &path, false),
        ],
        64,
    );
    let mut guest = Guest::new(fs);
    guest.init();
    let root = guest.walk("root").unwrap();
    (folder, guest, root)
}

/// Gives modes back that the guest may have taken away, also from a monitor that is
/// not root.
fn mend(folder: &tempfile::TempDir) {
    let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode;
    std::fs::set_permissions(folder.path(), mode(0o755)).unwrap();
    // It may be gone by now.
    let _ = std::fs::set_permissions(folder.path().join("file"), mode(0o644));
}

/// The device still serves.
fn alive(guest: &mut Guest) {
    let node = guest.walk("root/file").unwrap();
    let fh = guest.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(node, fh, 0, 9).unwrap(), b"file");
    guest.release(node, fh).unwrap();
    guest.forget(node, 1);
}

fn error_of(reply: &[u8]) -> i32 {
    assert_eq!(reply.len(), 16);
    -i32::from_le_bytes(reply[4..8].try_into().unwrap())
}

#[test]
fn short_headers_are_dropped() {
    let (_folder, mut guest, _) = share();
    let header = guest.header(Opcode::Statfs as u32, 1, 40);
    for len in 0..40 {
        if len > 0 {
            assert!(guest.raw(&header.as_slice()[..len], 64).is_empty());
        }
    }
    alive(&mut guest);
}

#[test]
fn a_length_that_is_not_the_chains_is_an_error() {
    let (_folder, mut guest, root) = share();
    for len in [
        0,
        39,
        41,
        100,
        1 << 20,
        (1 << 20) + 4096,
        (1 << 20) + 4097,
        u32::MAX,
    ] {
        for opcode in [
            Opcode::Lookup,
            Opcode::Mkdir,
            Opcode::Setxattr,
            Opcode::Symlink,
            Opcode::Write,
        ] {
            let header = InHeader {
                len,
                ..guest.header(opcode as u32, root, 0)
            };
            let request = [header.as_slice(), b"x\0"].concat();
            let reply = guest.raw(&request, 512);
            assert!(error_of(&reply) > 0, "{opcode:?} {len}");
        }
    }
    alive(&mut guest);
}

#[test]
fn every_opcode_with_any_short_body_is_answered() {
    let (folder, mut guest, root) = share();
    for opcode in (0..64).chain([4096, u32::MAX]) {
        if opcode == Opcode::Destroy as u32 {
            continue;
        }
        for len in [0, 1, 3, 7, 8, 15, 16, 24, 40, 63, 64, 128] {
            for byte in [0, 1, b'a', 0xff] {
                for node in [0, 1, root, root + 1, u64::MAX] {
                    let header = guest.header(opcode, node, 40 + len);
                    let request = [header.as_slice(), &vec![byte; len]].concat();
                    guest.raw(&request, 256);
                    guest.raw(&request, 16);
                    guest.raw(&request, 3);
                    guest.raw(&request, 0);
                }
            }
        }
    }
    mend(&folder);
    alive(&mut guest);
    assert!(guest.fs.share_held() <= 64);
}

#[test]
fn forged_nodes_are_not_found() {
    let (_folder, mut guest, root) = share();
    for node in [
        0,
        2,
        3,
        1 << 55,
        root + 1,
        3 << 56 | 1,
        0xff << 56 | 1,
        u64::MAX,
        root & !1,
    ] {
        let error = guest.getattr(node).unwrap_err();
        assert!(
            [libc::ENOENT, libc::EBADF].contains(&error),
            "{node:x}: {error}"
        );
        assert!(guest.lookup(node, "file").is_err());
        assert!(guest.open(node, libc::O_RDONLY).is_err());
        assert!(guest.create(node, "x", libc::O_RDWR, 0o600).is_err());
        assert!(guest.list_some(node, 0, 4096).is_err());
        assert!(guest.link(node, root, "x").is_err());
        assert!(guest.rename(node, "a", root, "b").is_err());
        guest.forget(node, 1);
    }
    // A handle of one inode is none of another's.
    let file = guest.walk("root/file").unwrap();
    let fh = guest.open(file, libc::O_RDWR).unwrap();
    assert_eq!(guest.read(root, fh, 0, 9).unwrap_err(), libc::EBADF);
    let m0 = guest.walk("m0").unwrap();
    assert_eq!(guest.read(m0, fh, 0, 9).unwrap_err(), libc::EBADF);
    assert_eq!(guest.write(file, fh + 1, 0, b"x").unwrap_err(), libc::EBADF);
}

#[test]
fn forgetting_too_often_forgets_once() {
    let (folder, mut guest, root) = share();
    let idle = open_below(folder.path());
    let node = guest.walk("root/file").unwrap();
    assert_eq!(guest.walk("root/file").unwrap(), node);
    guest.forget(node, 1);
    guest.getattr(node).unwrap();
    guest.forget(node, u64::MAX);
    guest.forget(node, u64::MAX);
    assert_eq!(guest.getattr(node).unwrap_err(), libc::EBADF);
    assert_eq!(open_below(folder.path()), idle);
    assert_eq!(guest.fs.share_held(), 0);
    // The export itself stays, and so does what is open.
    guest.forget(root, u64::MAX);
    guest.forget(1, u64::MAX);
    let node = guest.walk("root/file").unwrap();
    let fh = guest.open(node, libc::O_RDONLY).unwrap();
    guest.forget(node, 1);
    assert_eq!(guest.read(node, fh, 0, 9).unwrap(), b"file");
    guest.release(node, fh).unwrap();
    assert_eq!(guest.fs.share_held(), 0);
}

#[test]
fn batch_forget_counts_are_not_believed() {
    let (_folder, mut guest, _) = share();
    let node = guest.walk("root/file").unwrap();
    let one = ForgetOne {
        nodeid: node,
        nlookup: 1,
    };
    for count in [0, 2, 65_000, 65_536, 1 << 28, u32::MAX] {
        let header = guest.header(Opcode::BatchForget as u32, 0, 64);
        let args = BatchForgetIn { count, dummy: 0 };
        let request = [header.as_slice(), args.as_slice(), one.as_slice()].concat();
        assert!(guest.raw(&request, 0).is_empty());
    }
    guest.getattr(node).unwrap();
    let header = guest.header(Opcode::BatchForget as u32, 0, 64);
    let args = BatchForgetIn { count: 1, dummy: 0 };
    guest.raw(
        &[header.as_slice(), args.as_slice(), one.as_slice()].concat(),
        0,
    );
    assert_eq!(guest.getattr(node).unwrap_err(), libc::EBADF);
}

#[test]
fn sizes_are_bounded_by_the_chain_and_by_us() {
    let (_folder, mut guest, root) = share();
    let node = guest.walk("root/file").unwrap();
    let fh = guest.open(node, libc::O_RDWR).unwrap();
    for size in [4113, 1 << 20, u32::MAX] {
        let read = ReadIn {
            fh,
            size,
            ..ReadIn::default()
        };
        guest
            .call(Opcode::Read, node, &[read.as_slice()], 4096)
            .unwrap_err();
        guest
            .call(Opcode::Readdirplus, root, &[read.as_slice()], 4096)
            .unwrap_err();
        guest
            .call(Opcode::Readdir, root, &[read.as_slice()], 4096)
            .unwrap_err();
        // More is promised than is there.
        let write = WriteIn {
            fh,
            size,
            ..WriteIn::default()
        };
        let out: WriteOut = guest
            .get(Opcode::Write, node, &[write.as_slice(), b"FILE"])
            .unwrap();
        assert_eq!(out.size, 4);
        let xattr = GetxattrIn { size, padding: 0 };
        let _ = guest.call(
            Opcode::Getxattr,
            node,
            &[xattr.as_slice(), &nul("user.a")],
            64,
        );
        let _ = guest.call(Opcode::Listxattr, node, &[xattr.as_slice()], 64);
        let ioctl = IoctlIn {
            fh,
            in_size: size,
            out_size: size,
            ..IoctlIn::default()
        };
        guest
            .call(Opcode::Ioctl, node, &[ioctl.as_slice()], 64)
            .unwrap_err();
    }
    let far = ReadIn {
        fh,
        offset: u64::MAX,
        size: 16,
        ..ReadIn::default()
    };
    guest
        .call(Opcode::Read, node, &[far.as_slice()], 16)
        .unwrap_err();
    let _ = guest.call(Opcode::Readdirplus, root, &[far.as_slice()], 16);
    let far = ReadIn {
        offset: 12345,
        size: 4096,
        ..ReadIn::default()
    };
    let _ = guest.call(Opcode::Readdirplus, root, &[far.as_slice()], 4096);
    assert_eq!(
        guest.write(node, fh, u64::MAX, b"x").unwrap_err(),
        libc::EINVAL
    );
}

#[test]
fn a_chain_beyond_the_largest_request_is_refused() {
    let (_folder, mut guest, root) = share();
    let node = guest.walk("root/file").unwrap();
    let args = IoctlIn {
        in_size: 4 << 20,
        ..IoctlIn::default()
    };
    let header = guest.header(Opcode::Ioctl as u32, node, 0);
    guest.memory_write(0x10_0000, &[header.as_slice(), args.as_slice()].concat());
    // The same megabyte, four times.
    let mut chain = vec![(0x10_0000, 1 << 20, 0); 4];
    chain.push((0x28_0000, 16, WRITE));
    guest.queue.add(&chain);
    guest.fs.queue_event(1).unwrap();
    assert_eq!(guest.queue.next_used().unwrap().1, 16);

    let read = ReadIn {
        size: 3 << 20,
        ..ReadIn::default()
    };
    let header = guest.header(Opcode::Readdirplus as u32, root, 80);
    guest.memory_write(0x10_0000, &[header.as_slice(), read.as_slice()].concat());
    guest.queue.add(&[
        (0x10_0000, 80, 0),
        (0x20_0000, 1 << 20, WRITE),
        (0x20_0000, 1 << 20, WRITE),
        (0x20_0000, 1 << 20, WRITE),
    ]);
    guest.fs.queue_event(1).unwrap();
    assert_eq!(guest.queue.next_used().unwrap().1, 16);
    alive(&mut guest);
}

#[test]
fn buffers_outside_of_ram_are_not_touched() {
    let (_folder, mut guest, _) = share();
    let end = 4u64 << 20;
    let header = guest.header(Opcode::Statfs as u32, 1, 40);
    guest.memory_write(0x10_0000, header.as_slice());
    guest.memory_write(end - 40, header.as_slice());
    for (address, len) in [
        (end - 1, 40),
        (end, 40),
        (u64::MAX, 40),
        (u64::MAX - 39, 40),
        (0x1000, u32::MAX),
    ] {
        guest
            .queue
            .add(&[(address, len, 0), (0x20_0000, 128, WRITE)]);
        guest
            .queue
            .add(&[(0x10_0000, 40, 0), (address, len, WRITE)]);
    }
    // The last bytes of RAM are fine.
    guest
        .queue
        .add(&[(end - 40, 40, 0), (0x20_0000, 128, WRITE)]);
    guest.fs.queue_event(1).unwrap();
    let used = guest.queue.drain_used();
    assert_eq!(used.len(), 11);
    assert!(used[..10].iter().all(|(_, len)| *len == 0));
    assert_eq!(used[10].1, 16 + 80);
}

#[test]
fn looped_and_shuffled_chains_end() {
    let (_folder, mut guest, _) = share();
    let header = guest.header(Opcode::Statfs as u32, 1, 40);
    guest.memory_write(0x10_0000, header.as_slice());
    const NEXT: u16 = 1;
    guest
        .queue
        .write_descriptor(60, Descriptor::new(0x10_0000, 40, NEXT, 60));
    guest.queue.add_head(60);
    guest
        .queue
        .write_descriptor(61, Descriptor::new(0x20_0000, 128, NEXT | WRITE, 62));
    guest
        .queue
        .write_descriptor(62, Descriptor::new(0x10_0000, 40, NEXT, 999));
    guest.queue.add_head(61);
    guest.queue.add_head(61);
    guest.fs.queue_event(1).unwrap();
    assert_eq!(guest.queue.drain_used().len(), 3);
    alive(&mut guest);
}

/// Requests that are nearly right: an opcode that exists, a node that exists, and
/// then noise.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let node = prop_oneof![
        Just(1u64),
        Just(1 << 56 | 1),
        Just(2 << 56 | 1),
        (0u64..4).prop_map(|ino| 1 << 56 | 1 << 47 | ino),
        any::<u64>(),
    ];
    let body = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(b'a')], 0..200),
    ];
    (
        0u32..60,
        node,
        body,
        prop_oneof![4 => Just(None), 1 => any::<u32>().prop_map(Some)],
    )
        .prop_map(|(opcode, nodeid, body, len)| {
            let header = InHeader {
                len: len.unwrap_or(40 + body.len() as u32),
                opcode,
                unique: 1,
                nodeid,
                ..InHeader::default()
            };
            [header.as_slice(), &body].concat()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nearly_right_requests_do_no_harm(requests in prop::collection::vec((request(), 0u32..300), 1..60)) {
        let (folder, mut guest, _) = share();
        for (bytes, room) in requests {
            guest.raw(&bytes, room);
        }
        prop_assert!(guest.fs.share_held() <= 64);
        mend(&folder);
        guest.fs.reset();
        prop_assert_eq!(guest.fs.share_held(), 0);
        guest.activate(0);
        guest.init();
        guest.walk("root").unwrap();
    }

    #[test]
    fn random_bytes_do_no_harm(requests in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..300), 0u32..300), 1..30)) {
        let (_folder, mut guest, _) = share();
        for (bytes, room) in requests {
            guest.raw(&bytes, room);
        }
        alive(&mut guest);
    }
}
