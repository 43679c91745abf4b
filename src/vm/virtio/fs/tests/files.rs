//! What a container does with its files.

use fuse_backend_rs::abi::fuse_abi::*;
use vm_memory::ByteValued;

use super::client::{FATTR_GID, FATTR_MODE, FATTR_MTIME, FATTR_SIZE, FATTR_UID, Guest, nul};
use super::*;
use crate::virtio::fs::{FILE_TIMEOUT, NAME_TIMEOUT};

fn share() -> (tempfile::TempDir, Guest, u64) {
    let folder = tempfile::tempdir().unwrap();
    let mut guest = Guest::new(device(vec![export("root", folder.path(), false)]));
    guest.init();
    let root = guest.walk("root").unwrap();
    (folder, guest, root)
}

#[test]
fn creates_writes_reads() {
    let (folder, mut guest, root) = share();
    let (entry, fh) = guest.create(root, "file", libc::O_RDWR, 0o640).unwrap();
    assert_eq!(entry.attr.mode, libc::S_IFREG | 0o640);
    assert_eq!(entry.attr.ino, entry.nodeid);
    assert_eq!(
        guest.write(entry.nodeid, fh, 0, b"hello world").unwrap(),
        11
    );
    assert_eq!(guest.write(entry.nodeid, fh, 6, b"there").unwrap(), 5);
    // No write-back cache: the host sees it.
    assert_eq!(read_back(&folder.path().join("file")), "hello there");
    assert_eq!(guest.read(entry.nodeid, fh, 6, 100).unwrap(), b"there");
    assert_eq!(guest.read(entry.nodeid, fh, 100, 100).unwrap(), b"");
    guest.release(entry.nodeid, fh).unwrap();
    assert_eq!(guest.release(entry.nodeid, fh).unwrap_err(), libc::EBADF);
    assert_eq!(guest.read(entry.nodeid, fh, 0, 1).unwrap_err(), libc::EBADF);
}

#[test]
fn a_whole_megabyte_goes_in_one_request() {
    let (folder, mut guest, root) = share();
    let data: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251) as u8).collect();
    let (entry, fh) = guest.create(root, "big", libc::O_RDWR, 0o600).unwrap();
    assert_eq!(guest.write(entry.nodeid, fh, 0, &data).unwrap(), 1 << 20);
    assert!(std::fs::read(folder.path().join("big")).unwrap() == data);
    assert!(guest.read(entry.nodeid, fh, 0, 1 << 20).unwrap() == data);
}

#[test]
fn appends_and_truncates_on_open() {
    let (folder, mut guest, root) = share();
    std::fs::write(folder.path().join("log"), "one").unwrap();
    let node = guest.walk("root/log").unwrap();
    let fh = guest.open(node, libc::O_WRONLY | libc::O_APPEND).unwrap();
    let args = WriteIn {
        fh,
        size: 3,
        flags: (libc::O_WRONLY | libc::O_APPEND) as u32,
        ..WriteIn::default()
    };
    guest
        .get::<WriteOut>(Opcode::Write, node, &[args.as_slice(), b"two"])
        .unwrap();
    assert_eq!(read_back(&folder.path().join("log")), "onetwo");
    guest.open(node, libc::O_WRONLY | libc::O_TRUNC).unwrap();
    assert_eq!(read_back(&folder.path().join("log")), "");
    guest.remove(Opcode::Unlink, root, "log").unwrap();
    assert!(!folder.path().join("log").exists());
    // What is open stays.
    assert_eq!(guest.getattr(node).unwrap().nlink, 0);
}

#[test]
fn timeouts_are_those_of_the_decision() {
    let (folder, mut guest, root) = share();
    std::fs::write(folder.path().join("a"), "").unwrap();
    let file = guest.lookup(root, "a").unwrap();
    assert_eq!(file.entry_valid, NAME_TIMEOUT.as_secs());
    assert_eq!(file.attr_valid, FILE_TIMEOUT.as_secs());
    let folder = guest.mkdir(root, "d").unwrap();
    assert_eq!(folder.attr_valid, NAME_TIMEOUT.as_secs());
    let args = GetattrIn::default();
    let out: AttrOut = guest
        .get(Opcode::Getattr, folder.nodeid, &[args.as_slice()])
        .unwrap();
    assert_eq!(out.attr_valid, NAME_TIMEOUT.as_secs());
    // Pages may be kept: stale ones are found by their attributes.
    let args = OpenIn::default();
    let open: OpenOut = guest
        .get(Opcode::Open, file.nodeid, &[args.as_slice()])
        .unwrap();
    assert_eq!(open.open_flags, OpenOptions::KEEP_CACHE.bits());
}

#[test]
fn nothing_is_remembered_of_what_others_change() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a"), "").unwrap();
    let live = |path| FsExport {
        live: true,
        ..export("m0", path, false)
    };
    let mut guest = Guest::new(device(vec![live(folder.path())]));
    guest.init();
    let root = guest.walk("m0").unwrap();
    let made = guest.mkdir(root, "d").unwrap();
    for entry in [guest.lookup(root, "a").unwrap(), made] {
        assert_eq!((entry.entry_valid, entry.attr_valid), (0, 0));
        let args = GetattrIn::default();
        let out: AttrOut = guest
            .get(Opcode::Getattr, entry.nodeid, &[args.as_slice()])
            .unwrap();
        assert_eq!(out.attr_valid, 0);
    }
}

#[test]
fn hard_links_are_one_inode() {
    let (_folder, mut guest, root) = share();
    let (entry, _) = guest.create(root, "a", libc::O_RDWR, 0o644).unwrap();
    let linked = guest.link(entry.nodeid, root, "b");
    if !is_root() && matches!(linked, Err(libc::ENOENT)) {
        // Before Linux 6.10 linkat by descriptor needs CAP_DAC_READ_SEARCH.
        return;
    }
    let linked = linked.unwrap();
    assert_eq!(linked.nodeid, entry.nodeid);
    assert_eq!(linked.attr.ino, entry.attr.ino);
    assert_eq!(linked.attr.nlink, 2);
}

#[test]
fn inode_numbers_are_the_same_however_they_are_asked_for() {
    let (folder, mut guest, root) = share();
    std::fs::write(folder.path().join("a"), "").unwrap();
    let entry = guest.lookup(root, "a").unwrap();
    assert_eq!(guest.getattr(entry.nodeid).unwrap().ino, entry.attr.ino);
    let listed = &guest.list_some(root, 0, 4096).unwrap()[0];
    assert_eq!(
        (listed.node, listed.attr.ino),
        (entry.nodeid, entry.attr.ino)
    );
    // The plain READDIR has the number in the dirent itself.
    let args = ReadIn {
        size: 4096,
        ..ReadIn::default()
    };
    let plain = guest
        .call(Opcode::Readdir, root, &[args.as_slice()], 4096)
        .unwrap();
    assert_eq!(plain[..8], entry.attr.ino.to_le_bytes());
}

#[test]
fn lists_a_large_folder_completely() {
    let (folder, mut guest, root) = share();
    let mut names: Vec<_> = (0..500).map(|i| format!("file-{i:04}")).collect();
    for name in &names {
        std::fs::write(folder.path().join(name), "").unwrap();
    }
    names.sort();
    assert_eq!(guest.list(root), names);
    assert_eq!(guest.fs.share_held(), 0);
    let empty = guest.mkdir(root, "empty").unwrap();
    assert_eq!(guest.list(empty.nodeid), Vec::<String>::new());
}

#[test]
fn folders_links_and_renames() {
    let (folder, mut guest, root) = share();
    let a = guest.mkdir(root, "a").unwrap();
    let link = guest.symlink(a.nodeid, "link", "../target").unwrap();
    assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(
        guest
            .call(Opcode::Readlink, link.nodeid, &[], 4096)
            .unwrap(),
        b"../target"
    );
    guest
        .mknod(a.nodeid, "fifo", libc::S_IFIFO | 0o600, 0)
        .unwrap();
    guest.rename(a.nodeid, "link", root, "moved").unwrap();
    assert_eq!(
        std::fs::read_link(folder.path().join("moved")).unwrap(),
        Path::new("../target")
    );
    assert_eq!(
        guest.remove(Opcode::Rmdir, root, "a").unwrap_err(),
        libc::ENOTEMPTY
    );
    guest.remove(Opcode::Unlink, a.nodeid, "fifo").unwrap();
    guest.remove(Opcode::Rmdir, root, "a").unwrap();

    std::fs::write(folder.path().join("x"), "x").unwrap();
    std::fs::write(folder.path().join("y"), "y").unwrap();
    let args = Rename2In {
        newdir: root,
        flags: libc::RENAME_EXCHANGE,
        padding: 0,
    };
    guest
        .call(
            Opcode::Rename2,
            root,
            &[args.as_slice(), &nul("x"), &nul("y")],
            0,
        )
        .unwrap();
    assert_eq!(read_back(&folder.path().join("x")), "y");
}

#[test]
fn attributes_are_set() {
    let (folder, mut guest, root) = share();
    std::fs::write(folder.path().join("a"), "12345").unwrap();
    let node = guest.lookup(root, "a").unwrap().nodeid;
    let args = SetattrIn {
        valid: FATTR_MODE | FATTR_SIZE | FATTR_MTIME,
        mode: 0o1751,
        size: 2,
        mtime: 1_000_000,
        mtimensec: 5,
        ..SetattrIn::default()
    };
    let attr = guest.setattr(node, args).unwrap();
    assert_eq!((attr.mode & 0o7777, attr.size), (0o1751, 2));
    assert_eq!((attr.mtime, attr.mtimensec), (1_000_000, 5));
    let args = SetattrIn {
        valid: FATTR_SIZE,
        size: u64::MAX,
        ..SetattrIn::default()
    };
    assert_eq!(guest.setattr(node, args).unwrap_err(), libc::EINVAL);
}

#[test]
fn files_belong_to_who_creates_them() {
    let (folder, mut guest, root) = share();
    std::fs::set_permissions(
        folder.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    (guest.uid, guest.gid) = (1234, 4321);
    // Never refused, also where the ids cannot be had.
    let (entry, _) = guest.create(root, "a", libc::O_RDWR, 0o644).unwrap();
    let made = guest.mkdir(root, "d").unwrap();
    guest.symlink(root, "s", "t").unwrap();
    guest.mknod(root, "n", libc::S_IFREG | 0o600, 0).unwrap();
    let expected = if is_root() { (1234, 4321) } else { (0, 0) };
    assert_eq!((entry.attr.uid, entry.attr.gid), expected);
    assert_eq!((made.attr.uid, made.attr.gid), expected);
    if is_root() {
        let args = SetattrIn {
            valid: FATTR_UID | FATTR_GID,
            uid: 7,
            gid: 8,
            ..SetattrIn::default()
        };
        let attr = guest.setattr(entry.nodeid, args).unwrap();
        assert_eq!((attr.uid, attr.gid), (7, 8));
    }
}

#[test]
fn a_set_group_id_bit_is_not_gained_from_the_monitors_groups() {
    if !is_root() {
        return;
    }
    // As in a shell of root.
    rustix::thread::set_thread_groups(&[rustix::fs::Gid::ROOT]).unwrap();
    let (folder, mut guest, root) = share();
    std::fs::set_permissions(
        folder.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o2777),
    )
    .unwrap();
    (guest.uid, guest.gid) = (1234, 4321);
    let (entry, _) = guest.create(root, "a", libc::O_RDWR, 0o2755).unwrap();
    // The group is the folder's, root, whose member the caller is not.
    assert_eq!((entry.attr.gid, entry.attr.mode & 0o7777), (0, 0o755));
}

#[test]
fn writing_drops_privileges_of_a_program() {
    let (folder, mut guest, root) = share();
    std::fs::write(folder.path().join("su"), "x").unwrap();
    let node = guest.lookup(root, "su").unwrap().nodeid;
    let args = SetattrIn {
        valid: FATTR_MODE,
        mode: 0o4755,
        ..SetattrIn::default()
    };
    guest.setattr(node, args).unwrap();
    let fh = guest.open(node, libc::O_WRONLY).unwrap();
    let args = WriteIn {
        fh,
        size: 1,
        fuse_flags: WRITE_KILL_PRIV,
        ..WriteIn::default()
    };
    guest
        .get::<WriteOut>(Opcode::Write, node, &[args.as_slice(), b"y"])
        .unwrap();
    assert_eq!(guest.getattr(node).unwrap().mode & 0o7777, 0o755);
}

#[test]
fn user_attributes_are_kept_and_the_hosts_are_not_shown() {
    let (folder, mut guest, root) = share();
    let (entry, _) = guest.create(root, "a", libc::O_RDWR, 0o644).unwrap();
    match guest.setxattr(entry.nodeid, "user.color", b"red") {
        Err(libc::EOPNOTSUPP) => return, // not on this file system
        result => result.unwrap(),
    }
    assert_eq!(guest.getxattr(entry.nodeid, "user.color").unwrap(), b"red");
    assert_eq!(
        guest.getxattr(entry.nodeid, "user.none").unwrap_err(),
        libc::ENODATA
    );
    if is_root() {
        let path = folder.path().join("a");
        rustix::fs::setxattr(
            &path,
            "trusted.overlay.opaque",
            b"y",
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
    }
    assert_eq!(guest.listxattr(entry.nodeid).unwrap(), b"user.color\0");
    for name in [
        "trusted.overlay.opaque",
        "security.selinux",
        "system.posix_acl_access",
    ] {
        assert_eq!(
            guest.getxattr(entry.nodeid, name).unwrap_err(),
            libc::ENODATA
        );
        assert_eq!(
            guest.setxattr(entry.nodeid, name, b"x").unwrap_err(),
            libc::EPERM
        );
        let removed = guest.call(Opcode::Removexattr, entry.nodeid, &[&nul(name)], 0);
        assert_eq!(removed.unwrap_err(), libc::EPERM);
    }
    guest
        .call(Opcode::Removexattr, entry.nodeid, &[&nul("user.color")], 0)
        .unwrap();
    assert_eq!(guest.listxattr(entry.nodeid).unwrap(), b"");
}

#[test]
fn holes_are_found_and_punched() {
    let (_folder, mut guest, root) = share();
    let (entry, fh) = guest.create(root, "a", libc::O_RDWR, 0o644).unwrap();
    guest.write(entry.nodeid, fh, 0, &[1; 8192]).unwrap();
    let args = FallocateIn {
        fh,
        offset: 0,
        length: 4096,
        mode: (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32,
        padding: 0,
    };
    guest
        .call(Opcode::Fallocate, entry.nodeid, &[args.as_slice()], 0)
        .unwrap();
    let args = LseekIn {
        fh,
        offset: 0,
        whence: libc::SEEK_DATA as u32,
        padding: 0,
    };
    let out: LseekOut = guest
        .get(Opcode::Lseek, entry.nodeid, &[args.as_slice()])
        .unwrap();
    assert_eq!(out.offset, 4096);
}
