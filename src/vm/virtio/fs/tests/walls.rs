//! The guest reaches nothing outside its exports, and the host nothing for it.

use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuse_backend_rs::abi::fuse_abi::*;
use vm_memory::ByteValued;

use super::client::{
    FATTR_ATIME, FATTR_GID, FATTR_MODE, FATTR_MTIME, FATTR_SIZE, FATTR_UID, Guest, nul,
};
use super::*;

/// `outside` has a secret, `inside` is exported.
struct Wall {
    _top: tempfile::TempDir,
    outside: std::path::PathBuf,
    inside: std::path::PathBuf,
    guest: Guest,
    root: u64,
}

fn wall(read_only: bool) -> Wall {
    let top = tempfile::tempdir().unwrap();
    let (outside, inside) = (top.path().join("outside"), top.path().join("inside"));
    std::fs::create_dir(&outside).unwrap();
    std::fs::create_dir(&inside).unwrap();
    std::fs::write(outside.join("secret"), "secret").unwrap();
    std::fs::write(inside.join("file"), "file").unwrap();
    let mut guest = Guest::new(device(vec![export("root", &inside, read_only)]));
    guest.init();
    let root = guest.walk("root").unwrap();
    Wall {
        _top: top,
        outside,
        inside,
        guest,
        root,
    }
}

#[test]
fn dots_and_slashes_lead_nowhere() {
    let Wall {
        _top,
        mut guest,
        root,
        ..
    } = wall(false);
    let below = guest.mkdir(root, "below").unwrap().nodeid;
    for parent in [root, below] {
        for name in [
            "..",
            ".",
            "/",
            "../outside/secret",
            "below/..",
            "/etc/passwd",
        ] {
            assert_eq!(
                guest.lookup(parent, name).unwrap_err(),
                libc::EINVAL,
                "{name}"
            );
            assert_eq!(guest.mkdir(parent, name).unwrap_err(), libc::EINVAL);
            assert_eq!(
                guest.create(parent, name, libc::O_RDWR, 0o600).unwrap_err(),
                libc::EINVAL
            );
            assert_eq!(guest.symlink(parent, name, "x").unwrap_err(), libc::EINVAL);
            assert_eq!(
                guest.mknod(parent, name, libc::S_IFREG, 0).unwrap_err(),
                libc::EINVAL
            );
            assert_eq!(
                guest.remove(Opcode::Unlink, parent, name).unwrap_err(),
                libc::EINVAL
            );
            assert_eq!(
                guest.remove(Opcode::Rmdir, parent, name).unwrap_err(),
                libc::EINVAL
            );
            assert_eq!(
                guest.rename(parent, name, root, "x").unwrap_err(),
                libc::EINVAL
            );
            assert_eq!(
                guest.rename(root, "file", parent, name).unwrap_err(),
                libc::EINVAL
            );
        }
    }
    assert_eq!(guest.lookup(root, "").unwrap_err(), libc::ENOENT);
    assert_eq!(
        guest.lookup(root, &"a".repeat(5000)).unwrap_err(),
        libc::ENAMETOOLONG
    );
    // What is behind a NUL does not exist.
    assert_eq!(guest.lookup(root, "file\0/../../etc").unwrap().attr.size, 4);
}

#[test]
fn the_folder_served_is_the_one_that_was_opened() {
    let Wall {
        _top,
        mut guest,
        root,
        inside,
        outside,
        ..
    } = wall(false);
    let moved = inside.with_file_name("moved");
    std::fs::rename(&inside, &moved).unwrap();
    symlink(&outside, &inside).unwrap();
    assert_eq!(guest.lookup(root, "secret").unwrap_err(), libc::ENOENT);
    guest.lookup(root, "file").unwrap();
    // Also when the guest mounts again.
    guest.raw(
        guest
            .header(Opcode::Destroy as u32, 0, 40)
            .as_slice()
            .to_vec()
            .as_slice(),
        16,
    );
    guest.init();
    guest.walk("root/file").unwrap();
    assert_eq!(guest.walk("root/secret").unwrap_err(), libc::ENOENT);
}

#[test]
fn symlinks_are_never_followed_on_the_host() {
    let Wall {
        _top,
        mut guest,
        root,
        inside,
        outside,
        ..
    } = wall(false);
    let secret = outside.join("secret");
    symlink(&secret, inside.join("absolute")).unwrap();
    symlink("../outside/secret", inside.join("relative")).unwrap();
    symlink(&outside, inside.join("folder")).unwrap();
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let before = std::fs::metadata(&secret).unwrap();
    for name in ["absolute", "relative", "folder"] {
        let entry = guest.lookup(root, name).unwrap();
        let node = entry.nodeid;
        assert_eq!(entry.attr.mode & libc::S_IFMT, libc::S_IFLNK);
        for flags in [
            libc::O_RDONLY,
            libc::O_WRONLY,
            libc::O_PATH,
            libc::O_RDONLY | libc::O_DIRECTORY,
        ] {
            assert_eq!(guest.open(node, flags).unwrap_err(), libc::EBADF);
        }
        assert!(guest.lookup(node, "secret").is_err());
        assert!(guest.list_some(node, 0, 4096).is_err());
        assert!(guest.create(node, "x", libc::O_RDWR, 0o600).is_err());
        for args in [
            SetattrIn {
                valid: FATTR_MODE,
                mode: 0o777,
                ..SetattrIn::default()
            },
            SetattrIn {
                valid: FATTR_SIZE,
                size: 0,
                ..SetattrIn::default()
            },
            SetattrIn {
                valid: FATTR_MTIME,
                mtime: 1,
                ..SetattrIn::default()
            },
            SetattrIn {
                valid: FATTR_UID | FATTR_GID,
                uid: 5,
                gid: 5,
                ..SetattrIn::default()
            },
        ] {
            let _ = guest.setattr(node, args);
        }
        let _ = guest.setxattr(node, "user.a", b"x");
        // Creating over it opens nothing behind it, whatever the flags.
        for flags in [
            libc::O_RDWR,
            libc::O_PATH,
            libc::O_PATH | libc::O_DIRECTORY,
            libc::O_EXCL,
        ] {
            assert!(guest.create(root, name, flags, 0o600).is_err(), "{flags:x}");
        }
    }
    let after = std::fs::metadata(&secret).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!(
        (
            before.mode(),
            before.mtime(),
            before.uid(),
            before.len(),
            before.ctime_nsec()
        ),
        (
            after.mode(),
            after.mtime(),
            after.uid(),
            after.len(),
            after.ctime_nsec()
        )
    );
}

#[test]
fn a_host_that_swaps_names_does_not_let_the_guest_out() {
    let Wall {
        _top,
        mut guest,
        root,
        inside,
        outside,
        ..
    } = wall(false);
    std::fs::create_dir(inside.join("dir")).unwrap();
    std::fs::write(inside.join("dir/secret"), "public").unwrap();
    symlink(&outside, inside.join("swap")).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let swapper = std::thread::spawn({
        let (stop, inside) = (stop.clone(), inside.clone());
        move || {
            let folder = File::open(inside).unwrap();
            while !stop.load(Ordering::Relaxed) {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(&folder, "dir", &folder, "swap", exchange).unwrap();
            }
        }
    });
    let mut reached = 0;
    for i in 0..3000 {
        let Ok(dir) = guest.lookup(root, "dir") else {
            continue;
        };
        if let Ok(file) = guest.lookup(dir.nodeid, "secret")
            && let Ok(fh) = guest.open(file.nodeid, libc::O_RDONLY)
        {
            assert_eq!(guest.read(file.nodeid, fh, 0, 100).unwrap(), b"public");
            guest.release(file.nodeid, fh).unwrap();
            reached += 1;
        }
        let _ = guest.create(
            dir.nodeid,
            &format!("new{}", i % 10),
            libc::O_RDWR | libc::O_CREAT,
            0o600,
        );
        let _ = guest.mkdir(dir.nodeid, "made");
        let _ = guest.rename(dir.nodeid, "made", root, "made");
    }
    stop.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    assert!(reached > 0);
    let names: Vec<_> = std::fs::read_dir(&outside)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["secret"]);
}

#[test]
fn device_nodes_are_neither_made_nor_opened() {
    let Wall {
        _top,
        mut guest,
        root,
        inside,
        ..
    } = wall(false);
    assert_eq!(
        guest
            .mknod(root, "chr", libc::S_IFCHR | 0o666, 0x103)
            .unwrap_err(),
        libc::EPERM
    );
    assert_eq!(
        guest
            .mknod(root, "blk", libc::S_IFBLK | 0o666, 0x800)
            .unwrap_err(),
        libc::EPERM
    );
    let args = MknodIn {
        mode: libc::S_IFLNK | 0o666,
        rdev: 0x103,
        umask: 0o100000,
        padding: 0,
    };
    let turned = guest.call(Opcode::Mknod, root, &[args.as_slice(), &nul("lnk")], 128);
    assert_eq!(turned.unwrap_err(), libc::EPERM);
    assert_eq!(guest.list(root), ["file"]);

    let fifo = guest.mknod(root, "fifo", libc::S_IFIFO | 0o666, 0).unwrap();
    assert_eq!(
        guest.open(fifo.nodeid, libc::O_RDWR).unwrap_err(),
        libc::EBADF
    );
    let socket = guest
        .mknod(root, "sock", libc::S_IFSOCK | 0o666, 0)
        .unwrap();
    assert_eq!(
        guest.open(socket.nodeid, libc::O_RDWR).unwrap_err(),
        libc::EBADF
    );
    let whiteout = guest.mknod(root, "gone", libc::S_IFCHR, 0);
    if let Ok(whiteout) = whiteout {
        assert_eq!(
            guest.open(whiteout.nodeid, libc::O_RDWR).unwrap_err(),
            libc::EBADF
        );
    }
    if is_root() {
        use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
        // The host's own node, such as one of a root file system made by hand.
        let null = inside.join("null");
        if mknodat(
            CWD,
            &null,
            FileType::CharacterDevice,
            Mode::RUSR,
            makedev(1, 3),
        )
        .is_ok()
        {
            let entry = guest.lookup(root, "null").unwrap();
            assert_eq!(entry.attr.mode & libc::S_IFMT, libc::S_IFCHR);
            assert_eq!(
                guest.open(entry.nodeid, libc::O_RDONLY).unwrap_err(),
                libc::EBADF
            );
        }
    }
}

#[test]
fn strange_open_flags_do_not_reach_the_host() {
    let Wall {
        _top,
        mut guest,
        root,
        inside,
        ..
    } = wall(false);
    // An unnamed file in an exported folder.
    let opened = guest.open(root, libc::O_TMPFILE | libc::O_RDWR);
    assert_eq!(opened.unwrap_err(), libc::EISDIR);
    let node = guest.walk("root/file").unwrap();
    let fh = guest
        .open(node, libc::O_PATH | libc::O_DIRECT | libc::O_ASYNC)
        .unwrap();
    let args = ReadIn {
        fh,
        size: 16,
        flags: u32::MAX,
        ..ReadIn::default()
    };
    let read = guest
        .call(Opcode::Read, node, &[args.as_slice()], 16)
        .unwrap();
    assert_eq!(read, b"file");
    assert_eq!(guest.open(node, 3).unwrap_err(), libc::EINVAL);
    assert_eq!(std::fs::read_dir(inside).unwrap().count(), 1);
}

#[test]
fn a_read_only_export_refuses_every_change() {
    let Wall {
        _top,
        mut guest,
        root,
        inside,
        ..
    } = wall(true);
    let node = guest.walk("root/file").unwrap();
    let fh = guest.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(node, fh, 0, 10).unwrap(), b"file");
    assert_eq!(guest.write(node, fh, 0, b"x").unwrap_err(), libc::EROFS);
    for flags in [
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_TRUNC,
        libc::O_RDWR | libc::O_TMPFILE,
    ] {
        assert_eq!(guest.open(node, flags).unwrap_err(), libc::EROFS);
        assert_eq!(guest.open(root, flags).unwrap_err(), libc::EROFS);
    }
    assert_eq!(
        guest.create(root, "x", libc::O_RDONLY, 0o600).unwrap_err(),
        libc::EROFS
    );
    assert_eq!(
        guest
            .create(root, "file", libc::O_RDONLY, 0o600)
            .unwrap_err(),
        libc::EROFS
    );
    assert_eq!(guest.mkdir(root, "x").unwrap_err(), libc::EROFS);
    assert_eq!(
        guest.mknod(root, "x", libc::S_IFREG, 0).unwrap_err(),
        libc::EROFS
    );
    assert_eq!(
        guest.mknod(root, "x", libc::S_IFCHR, 0).unwrap_err(),
        libc::EROFS
    );
    assert_eq!(guest.symlink(root, "x", "y").unwrap_err(), libc::EROFS);
    assert_eq!(guest.link(node, root, "x").unwrap_err(), libc::EROFS);
    assert_eq!(
        guest.rename(root, "file", root, "x").unwrap_err(),
        libc::EROFS
    );
    assert_eq!(
        guest.remove(Opcode::Unlink, root, "file").unwrap_err(),
        libc::EROFS
    );
    assert_eq!(
        guest.remove(Opcode::Rmdir, root, "file").unwrap_err(),
        libc::EROFS
    );
    assert_eq!(
        guest.setxattr(node, "user.a", b"x").unwrap_err(),
        libc::EROFS
    );
    let removed = guest.call(Opcode::Removexattr, node, &[&nul("user.a")], 0);
    assert_eq!(removed.unwrap_err(), libc::EROFS);
    for valid in [FATTR_MODE, FATTR_UID, FATTR_SIZE, FATTR_ATIME, FATTR_MTIME] {
        let args = SetattrIn {
            valid,
            ..SetattrIn::default()
        };
        assert_eq!(guest.setattr(node, args).unwrap_err(), libc::EROFS);
    }
    let args = FallocateIn {
        fh,
        length: 10,
        ..FallocateIn::default()
    };
    let grown = guest.call(Opcode::Fallocate, node, &[args.as_slice()], 0);
    assert_eq!(grown.unwrap_err(), libc::EROFS);
    let args = AccessIn {
        mask: libc::W_OK as u32,
        padding: 0,
    };
    let access = guest.call(Opcode::Access, node, &[args.as_slice()], 0);
    assert_eq!(access.unwrap_err(), libc::EROFS);
    assert_eq!(read_back(&inside.join("file")), "file");
    assert_eq!(std::fs::read_dir(&inside).unwrap().count(), 1);
}

#[test]
fn ioctls_and_locks_are_not_passed_on() {
    let Wall {
        _top,
        mut guest,
        root,
        ..
    } = wall(false);
    let node = guest.walk("root/file").unwrap();
    let fh = guest.open(node, libc::O_RDWR).unwrap();
    // FS_IOC_SETFLAGS with "immutable".
    let args = IoctlIn {
        fh,
        cmd: 0x4008_6602,
        in_size: 8,
        ..IoctlIn::default()
    };
    let result = guest.call(Opcode::Ioctl, node, &[args.as_slice(), &[0x10; 8]], 64);
    assert_eq!(result.unwrap_err(), libc::ENOTTY);
    let args = LkIn {
        fh,
        ..LkIn::default()
    };
    for opcode in [Opcode::Getlk, Opcode::Setlk, Opcode::Setlkw] {
        let result = guest.call(opcode, node, &[args.as_slice()], 64);
        assert_eq!(result.unwrap_err(), libc::ENOSYS);
    }
    for opcode in [Opcode::SetupMapping, Opcode::RemoveMapping] {
        let result = guest.call(opcode, root, &[&[0; 40]], 64);
        assert_eq!(result.unwrap_err(), libc::EINVAL);
    }
}
