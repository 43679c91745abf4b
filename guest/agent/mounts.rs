//! Mounting through descriptors: a mount is made detached, then attached to a
//! target that has been resolved before. No path is looked up twice.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, Result};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use vmrun_protocol::plan::{FsType, Mount};

/// mount(2) flags of a mount point, and the `MOUNT_ATTR_*` bit of each.
const ATTRS: [(u64, MountAttrFlags); 8] = [
    (libc::MS_RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
    (libc::MS_NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
    (libc::MS_NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
    (libc::MS_NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
    (libc::MS_NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
    (libc::MS_STRICTATIME, MountAttrFlags::MOUNT_ATTR_STRICTATIME),
    (libc::MS_NODIRATIME, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
    (libc::MS_NOSYMFOLLOW, MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
];

/// `MOUNT_ATTR__ATIME`: the field of the access time mode, to be cleared whole.
const ACCESS_TIME_MODES: u32 = 0x70;

/// mount(2) flags that belong to the file system, and their option.
const FILE_SYSTEM_FLAGS: [(u64, &str); 4] = [
    (libc::MS_SYNCHRONOUS, "sync"),
    (libc::MS_DIRSYNC, "dirsync"),
    (libc::MS_LAZYTIME, "lazytime"),
    (libc::MS_MANDLOCK, "mand"),
];

/// mount(2) flags that ask for what is the case anyway.
const WITHOUT_EFFECT: u64 = libc::MS_RELATIME | libc::MS_SILENT | libc::MS_BIND | libc::MS_REC;

/// Whether every bit of mount(2) `flags` is one that is honoured.
pub fn flags_known(flags: u64) -> bool {
    let attrs = ATTRS.iter().map(|(flag, _)| flag);
    let options = FILE_SYSTEM_FLAGS.iter().map(|(flag, _)| flag);
    let known = attrs.chain(options).fold(WITHOUT_EFFECT, |a, f| a | f);
    flags & !known == 0
}

/// Whether mount(2) `flags` say nothing about the file system itself.
pub fn only_attributes(flags: u64) -> bool {
    let about_it = FILE_SYSTEM_FLAGS.iter().map(|(flag, _)| *flag);
    about_it
        .chain([Mount::COPY_UP])
        .all(|flag| flags & flag == 0)
}

/// The `MOUNT_ATTR_*` bits of mount(2) `flags`.
pub fn attributes(flags: u64) -> MountAttrFlags {
    let set = ATTRS.iter().filter(|(flag, _)| flags & flag != 0);
    let attrs = set.fold(MountAttrFlags::empty(), |all, (_, attr)| all | *attr);
    // The kernel takes one access time mode only; as in mount(2) strict wins.
    if attrs.contains(MountAttrFlags::MOUNT_ATTR_STRICTATIME) {
        attrs - MountAttrFlags::MOUNT_ATTR_NOATIME
    } else {
        attrs
    }
}

/// Name of a file system in the kernel.
pub fn kernel_name(fs_type: FsType) -> &'static str {
    match fs_type {
        FsType::Proc => "proc",
        FsType::Sysfs => "sysfs",
        FsType::Tmpfs => "tmpfs",
        FsType::Devpts => "devpts",
        FsType::Mqueue => "mqueue",
        FsType::Cgroup2 => "cgroup2",
    }
}

/// A new file system, mounted and not yet attached. `flags` are mount(2)'s,
/// `options` comma-separated; `source` is left out when empty.
pub fn new_file_system(name: &str, source: &[u8], options: &[u8], flags: u64) -> Result<OwnedFd> {
    let context = fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC)?;
    if !source.is_empty() {
        fsconfig_set_string(&context, "source", source)?;
    }
    for option in options.split(|b| *b == b',').filter(|o| !o.is_empty()) {
        match option.iter().position(|b| *b == b'=') {
            Some(at) => {
                let (key, value) = option.split_at(at);
                fsconfig_set_string(&context, key, value.get(1..).unwrap_or_default())?;
            }
            None => fsconfig_set_flag(&context, option)?,
        }
    }
    for (_, option) in FILE_SYSTEM_FLAGS.iter().filter(|(f, _)| flags & f != 0) {
        fsconfig_set_flag(&context, *option)?;
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes(flags))
}

/// A detached bind mount of `path` below `folder` (of `folder` itself where the
/// path is empty), with the mounts below it where `recursive`.
pub fn clone_tree(folder: BorrowedFd<'_>, path: &[u8], recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(folder, path, flags)
}

/// Attaches a detached mount on top of `target`.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags)
}

/// Adds the attributes of mount(2) `flags` to a mount; others stay.
pub fn restrict(mount: BorrowedFd<'_>, flags: u64) -> Result<()> {
    let attrs = attributes(flags);
    if attrs.is_empty() {
        return Ok(());
    }
    // An access time mode replaces the present one.
    let modes = MountAttrFlags::from_bits_retain(ACCESS_TIME_MODES);
    let cleared = if attrs.intersects(modes) {
        ACCESS_TIME_MODES
    } else {
        0
    };
    crate::sys::mount_setattr(mount, attrs.bits(), cleared, 0, false)
}

/// Gives a mount exactly the attributes of mount(2) `flags`.
pub fn set_attributes(mount: BorrowedFd<'_>, flags: u64) -> Result<()> {
    let all = ATTRS.iter().map(|(_, attr)| attr.bits());
    let all = all.fold(ACCESS_TIME_MODES, |all, attr| all | attr);
    crate::sys::mount_setattr(mount, attributes(flags).bits(), all, 0, false)
}

/// Makes a mount read-only; its other attributes stay.
pub fn make_readonly(mount: BorrowedFd<'_>) -> Result<()> {
    restrict(mount, libc::MS_RDONLY)
}

/// Applies propagation flags of mount(2): one of `MS_SHARED` and kin, with
/// `MS_REC` also to the mounts below.
pub fn propagate(mount: BorrowedFd<'_>, flags: u64) -> Result<()> {
    let kind = flags & !(libc::MS_REC | libc::MS_SILENT);
    crate::sys::mount_setattr(mount, 0, 0, kind, flags & libc::MS_REC != 0)
}

/// Binds `target` over itself, read-only, keeping the attributes its mount has.
pub fn bind_readonly(target: BorrowedFd<'_>) -> Result<()> {
    let tree = clone_tree(target, b"", true)?;
    make_readonly(tree.as_fd())?;
    attach(tree.as_fd(), target)
}

/// Whether an error says that a path leads to nothing.
pub fn is_missing(errno: Errno) -> bool {
    errno == Errno::NOENT || errno == Errno::NOTDIR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attribute_is_translated() {
        let all = ATTRS.iter().fold(0, |all, (flag, _)| all | flag);
        let attrs = attributes(all & !libc::MS_STRICTATIME);
        assert_eq!(attrs.bits(), 0x0020_0000 | 0x80 | 0x10 | 0x0f);
        assert_eq!(attributes(libc::MS_STRICTATIME).bits(), 0x20);
        assert_eq!(
            attributes(all) & MountAttrFlags::MOUNT_ATTR_NOATIME,
            MountAttrFlags::empty()
        );
    }

    #[test]
    fn only_honoured_flags_are_known() {
        assert!(flags_known(
            libc::MS_NOSUID | libc::MS_RELATIME | libc::MS_SYNCHRONOUS
        ));
        assert!(!flags_known(libc::MS_MOVE));
        assert!(!flags_known(libc::MS_REMOUNT | libc::MS_NOSUID));
        assert!(!flags_known(1 << 40));
    }
}
