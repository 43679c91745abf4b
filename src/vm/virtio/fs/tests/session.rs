//! Config space, the session, exports that are added later.

use fuse_backend_rs::abi::fuse_abi::*;
use vm_memory::ByteValued;

use super::client::Guest;
use super::*;
use crate::virtio::device::Device;
use crate::virtio::fs::FsError;
use crate::virtio::testing::WRITE;

#[test]
fn config_has_the_tag_and_one_queue() {
    let fs = device(vec![]);
    let mut config = [0xff; 44];
    fs.read_config(0, &mut config);
    assert_eq!(&config[..5], b"share");
    assert_eq!(config[5..36], [0; 31]);
    assert_eq!(config[36..], [1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    let mut byte = [7];
    fs.read_config(usize::MAX, &mut byte);
    assert_eq!(byte, [7]);
}

#[test]
fn what_cannot_be_offered_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let try_new = |tag: &str, names: &[&str]| {
        let exports = names
            .iter()
            .map(|name| export(name, folder.path(), false))
            .collect();
        Fs::new(FsSpec {
            tag: tag.into(),
            exports,
        })
        .err()
    };
    assert!(try_new(&"x".repeat(36), &["root", "m0"]).is_none());
    assert!(matches!(
        try_new(&"x".repeat(37), &[]),
        Some(FsError::Tag(_))
    ));
    assert!(matches!(try_new("", &[]), Some(FsError::Tag(_))));
    for name in ["", "a/b", "..", "Root", "a b", &"a".repeat(65)] {
        assert!(
            matches!(try_new("t", &[name]), Some(FsError::Name(_))),
            "{name}"
        );
    }
    assert!(matches!(
        try_new("t", &["a", "a"]),
        Some(FsError::Exists(_))
    ));

    let link = folder.path().join("link");
    std::os::unix::fs::symlink("/etc", &link).unwrap();
    let spec = FsSpec {
        tag: "t".into(),
        exports: vec![export("a", &link, false)],
    };
    assert!(matches!(Fs::new(spec).err(), Some(FsError::Kind(_))));
}

#[test]
fn init_agrees_on_what_is_wanted_only() {
    let folder = tempfile::tempdir().unwrap();
    let mut guest = Guest::new(device(vec![export("root", folder.path(), false)]));
    let out = guest.init();
    assert_eq!((out.major, out.max_write, out.max_pages), (7, 1 << 20, 256));
    let options = FsOptions::from_bits_truncate(out.flags.into());
    for wanted in [
        FsOptions::AUTO_INVAL_DATA,
        FsOptions::DO_READDIRPLUS,
        FsOptions::PARALLEL_DIROPS,
        FsOptions::HANDLE_KILLPRIV_V2,
        FsOptions::ZERO_MESSAGE_OPENDIR,
    ] {
        assert!(options.contains(wanted), "{wanted:?}");
    }
    for unwanted in [
        FsOptions::WRITEBACK_CACHE,
        FsOptions::ZERO_MESSAGE_OPEN,
        FsOptions::POSIX_LOCKS,
        FsOptions::FLOCK_LOCKS,
        FsOptions::POSIX_ACL,
        FsOptions::EXPORT_SUPPORT,
        FsOptions::HAS_IOCTL_DIR,
        FsOptions::MAP_ALIGNMENT,
        FsOptions::DONT_MASK,
    ] {
        assert!(!options.intersects(unwanted), "{unwanted:?}");
    }
}

#[test]
fn init_twice_is_an_error_and_destroy_starts_again() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a"), "a").unwrap();
    let mut guest = Guest::new(device(vec![export("root", folder.path(), false)]));
    guest.init();
    let args = InitIn {
        major: 7,
        minor: 36,
        max_readahead: 0,
        flags: 0,
    };
    let again = guest.call(Opcode::Init, 0, &[args.as_slice()], 64);
    assert_eq!(again.unwrap_err(), libc::EINVAL);

    let node = guest.walk("root/a").unwrap();
    guest.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(guest.fs.share_held(), 2);
    // DESTROY's reply is not counted as used, which nobody reads.
    guest.raw(
        guest
            .header(Opcode::Destroy as u32, 0, 40)
            .as_slice()
            .to_vec()
            .as_slice(),
        16,
    );
    assert_eq!(guest.fs.share_held(), 0);
    guest.init();
    assert_eq!(guest.getattr(node).unwrap_err(), libc::EBADF);
    guest.walk("root/a").unwrap();
}

#[test]
fn a_reset_closes_what_the_guest_held() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a"), "a").unwrap();
    let mut guest = Guest::new(device(vec![export("root", folder.path(), false)]));
    let idle = open_below(folder.path());
    guest.init();
    let node = guest.walk("root/a").unwrap();
    guest.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(open_below(folder.path()), idle + 2);
    guest.fs.reset();
    assert_eq!(open_below(folder.path()), idle);
    assert_eq!(guest.fs.share_held(), 0);
    guest.activate(0);
    guest.init();
    assert_eq!(guest.list(guest_root()), ["root"]);
    guest.walk("root/a").unwrap();
}

fn guest_root() -> u64 {
    1
}

#[test]
fn the_top_lists_exports_and_is_read_only() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let mut guest = Guest::new(device(vec![
        export("root", folder.path(), false),
        export("m0", &folder.path().join("file"), false),
    ]));
    guest.init();
    assert_eq!(guest.list(1), ["m0", "root"]);
    assert_eq!(guest.list_some(1, u64::MAX, 4096).unwrap().len(), 0);
    let list = guest.list_some(1, 0, 4096).unwrap();
    assert_eq!(list[0].attr.mode & libc::S_IFMT, libc::S_IFDIR);
    assert_eq!(list[1].attr.mode & libc::S_IFMT, libc::S_IFREG);
    assert_eq!(guest.getattr(1).unwrap().mode, libc::S_IFDIR | 0o555);
    assert_eq!(guest.lookup(1, "other").unwrap_err(), libc::ENOENT);
    assert_eq!(guest.lookup(1, "..").unwrap_err(), libc::EINVAL);

    assert_eq!(guest.mkdir(1, "x").unwrap_err(), libc::EROFS);
    assert_eq!(
        guest.create(1, "x", libc::O_RDWR, 0o644).unwrap_err(),
        libc::EROFS
    );
    assert_eq!(
        guest.remove(Opcode::Rmdir, 1, "root").unwrap_err(),
        libc::EROFS
    );
    assert_eq!(guest.rename(1, "root", 1, "x").unwrap_err(), libc::EROFS);
    assert_eq!(
        guest.setattr(1, SetattrIn::default()).unwrap_err(),
        libc::EROFS
    );
    // Not ENOSYS: Linux would not ask for any file any more.
    assert_eq!(guest.getxattr(1, "user.a").unwrap_err(), libc::EOPNOTSUPP);
    let sync = FsyncIn::default();
    guest
        .call(Opcode::Fsyncdir, 1, &[sync.as_slice()], 0)
        .unwrap();
    guest.get::<Kstatfs>(Opcode::Statfs, 1, &[]).unwrap();
}

#[test]
fn an_export_added_later_is_found() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(two.path().join("a"), "a").unwrap();
    let fs = device(vec![export("root", one.path(), false)]);
    let exports = fs.exports();
    let mut guest = Guest::new(fs);
    guest.init();
    assert_eq!(guest.lookup(1, "c1").unwrap_err(), libc::ENOENT);
    exports.add(export("c1", two.path(), true)).unwrap();
    let node = guest.walk("c1/a").unwrap();
    assert_eq!(guest.open(node, libc::O_RDWR).unwrap_err(), libc::EROFS);
    assert!(exports.add(export("c1", one.path(), true)).is_err());

    let root = guest.walk("root").unwrap();
    let c1 = guest.walk("c1").unwrap();
    assert_eq!(guest.rename(root, "x", c1, "x").unwrap_err(), libc::EROFS);
    assert_eq!(guest.link(node, root, "x").unwrap_err(), libc::EROFS);
}

#[test]
fn a_share_is_full_after_255_exports() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("f"), "").unwrap();
    let fs = device(vec![]);
    for i in 0..255 {
        let path = folder.path().join("f");
        fs.exports()
            .add(export(&format!("m{i}"), &path, false))
            .unwrap();
    }
    let one_more = fs.exports().add(export("m255", folder.path(), false));
    assert!(matches!(one_more, Err(FsError::Full)));
    let mut guest = Guest::new(fs);
    assert_eq!(guest.walk("m254").unwrap(), 255 << 56 | 1);
    guest.getattr(255 << 56 | 1).unwrap();
}

#[test]
fn a_batch_is_one_interrupt_and_event_idx_can_suppress_it() {
    let folder = tempfile::tempdir().unwrap();
    let event_idx = 1 << 29;
    let mut guest = Guest::with_features(
        device(vec![export("root", folder.path(), false)]),
        event_idx,
    );
    let header = guest.header(Opcode::Statfs as u32, 1, 40);
    guest.memory_write(0x10_0000, header.as_slice());
    let add = |guest: &mut Guest| {
        guest
            .queue
            .add(&[(0x10_0000, 40, 0), (0x20_0000, 128, WRITE)]);
    };
    for _ in 0..5 {
        add(&mut guest);
    }
    guest.fs.queue_event(1).unwrap();
    assert_eq!(guest.queue.drain_used().len(), 5);
    assert_eq!(guest.interrupt.eventfd().read().unwrap(), 1);

    guest.queue.set_used_event(100);
    add(&mut guest);
    guest.fs.queue_event(1).unwrap();
    assert_eq!(guest.queue.drain_used().len(), 1);
    assert!(guest.interrupt.eventfd().read().is_err());
}

#[test]
fn an_unready_or_unknown_queue_is_left_alone() {
    let mut fs = device(vec![]);
    fs.queue_event(0).unwrap();
    let mut guest = Guest::new(fs);
    guest.fs.queue_event(7).unwrap();
    guest.queue.set_avail_idx(65);
    assert!(guest.fs.queue_event(1).is_err());
}
