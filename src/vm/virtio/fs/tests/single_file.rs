//! A file as an export.

use fuse_backend_rs::abi::fuse_abi::*;
use vm_memory::ByteValued;

use super::client::{FATTR_MODE, FATTR_MTIME, FATTR_SIZE, FATTR_UID, Guest};
use super::*;

fn share(read_only: bool) -> (tempfile::TempDir, Guest, u64) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), "secret").unwrap();
    std::fs::write(folder.path().join("conf"), "one").unwrap();
    let path = folder.path().join("conf");
    let mut guest = Guest::new(device(vec![export("m0", &path, read_only)]));
    guest.init();
    let node = guest.walk("m0").unwrap();
    (folder, guest, node)
}

#[test]
fn is_live_when_rewritten_in_place_and_pinned_when_replaced() {
    let (folder, mut guest, node) = share(true);
    let fh = guest.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(node, fh, 0, 100).unwrap(), b"one");
    std::fs::write(folder.path().join("conf"), "longer").unwrap();
    assert_eq!(guest.lookup(1, "m0").unwrap().attr.size, 6);
    assert_eq!(guest.getattr(node).unwrap().size, 6);
    assert_eq!(guest.read(node, fh, 0, 100).unwrap(), b"longer");

    // Neither another file of that name nor a link to a secret is ever served.
    std::fs::remove_file(folder.path().join("conf")).unwrap();
    std::os::unix::fs::symlink("secret", folder.path().join("conf")).unwrap();
    let again = guest.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(node, again, 0, 100).unwrap(), b"longer");
    assert_eq!(guest.lookup(1, "m0").unwrap().attr.nlink, 0);
    guest.release(node, fh).unwrap();
    assert_eq!(guest.release(node, fh).unwrap_err(), libc::EBADF);
}

#[test]
fn has_no_siblings() {
    let (_folder, mut guest, node) = share(false);
    for name in ["secret", "conf", "m0"] {
        assert_eq!(guest.lookup(node, name).unwrap_err(), libc::ENOTDIR);
    }
    assert!(guest.mkdir(node, "d").is_err());
    assert!(guest.create(node, "f", libc::O_RDWR, 0o600).is_err());
    assert!(guest.symlink(node, "s", "t").is_err());
    assert!(guest.link(node, node, "l").is_err());
    assert!(guest.rename(node, "conf", node, "x").is_err());
    assert!(guest.remove(Opcode::Unlink, node, "conf").is_err());
    assert!(guest.list_some(node, 0, 4096).is_err());
    assert_eq!(guest.getattr(node + 1).unwrap_err(), libc::EBADF);
}

#[test]
fn is_written_and_changed() {
    let (folder, mut guest, node) = share(false);
    let fh = guest.open(node, libc::O_RDWR | libc::O_TRUNC).unwrap();
    assert_eq!(guest.write(node, fh, 0, b"abcdef").unwrap(), 6);
    let args = SetattrIn {
        valid: FATTR_SIZE | FATTR_MODE,
        size: 3,
        mode: 0o600,
        ..SetattrIn::default()
    };
    let attr = guest.setattr(node, args).unwrap();
    assert_eq!((attr.size, attr.mode), (3, libc::S_IFREG | 0o600));
    let args = SetattrIn {
        valid: FATTR_MTIME,
        mtime: 77,
        ..SetattrIn::default()
    };
    assert_eq!(guest.setattr(node, args).unwrap().mtime, 77);
    let args = SetattrIn {
        valid: FATTR_UID,
        uid: u32::MAX,
        ..SetattrIn::default()
    };
    assert_eq!(guest.setattr(node, args).unwrap_err(), libc::EINVAL);
    assert_eq!(read_back(&folder.path().join("conf")), "abc");
    let sync = FsyncIn {
        fh,
        ..FsyncIn::default()
    };
    guest
        .call(Opcode::Fsync, node, &[sync.as_slice()], 0)
        .unwrap();
    let flush = FlushIn {
        fh,
        ..FlushIn::default()
    };
    guest
        .call(Opcode::Flush, node, &[flush.as_slice()], 0)
        .unwrap();
    let seek = LseekIn {
        fh,
        offset: 0,
        whence: libc::SEEK_HOLE as u32,
        padding: 0,
    };
    assert_eq!(
        guest
            .get::<LseekOut>(Opcode::Lseek, node, &[seek.as_slice()])
            .unwrap()
            .offset,
        3
    );
    assert_eq!(
        guest
            .get::<Kstatfs>(Opcode::Statfs, node, &[])
            .unwrap()
            .namelen,
        255
    );
}

#[test]
fn attributes_are_kept() {
    let (_folder, mut guest, node) = share(false);
    match guest.setxattr(node, "user.a", b"1") {
        Err(libc::EOPNOTSUPP) => return, // not on this file system
        result => result.unwrap(),
    }
    assert_eq!(guest.getxattr(node, "user.a").unwrap(), b"1");
    assert_eq!(guest.listxattr(node).unwrap(), b"user.a\0");
}

#[test]
fn read_only_is_held_by_the_host() {
    let (folder, mut guest, node) = share(true);
    let fh = guest.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(guest.write(node, fh, 0, b"x").unwrap_err(), libc::EROFS);
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_TRUNC] {
        assert_eq!(guest.open(node, flags).unwrap_err(), libc::EROFS);
    }
    let args = SetattrIn {
        valid: FATTR_SIZE,
        ..SetattrIn::default()
    };
    assert_eq!(guest.setattr(node, args).unwrap_err(), libc::EROFS);
    assert_eq!(
        guest.setxattr(node, "user.a", b"1").unwrap_err(),
        libc::EROFS
    );
    assert_eq!(read_back(&folder.path().join("conf")), "one");
}
