//! What the host holds to, whatever the guest's kernel has checked or not. Flags
//! are Linux's for x86-64: guest and host agree on them.

use std::ffi::CStr;
use std::io;

use super::errno;

/// Largest value or list of extended attributes, the kernel's XATTR_SIZE_MAX.
pub(super) const XATTR_SIZE_MAX: u32 = 64 << 10;

/// Flags of a file status that reach the host. The rest is dropped: O_PATH and
/// O_TMPFILE mean something else than opening a file, O_DIRECT would ask for
/// aligned guest memory, O_NOATIME and O_ASYNC are the host's business.
const STATUS_FLAGS: u32 = (libc::O_ACCMODE | libc::O_APPEND | libc::O_SYNC | libc::O_DSYNC) as u32;

/// A name that a well-behaved kernel sends: one component, never `.` or `..`.
pub(super) fn check_name(name: &CStr) -> io::Result<()> {
    match name.to_bytes() {
        b"" => Err(errno(libc::ENOENT)),
        b"." | b".." => Err(errno(libc::EINVAL)),
        bytes if bytes.contains(&b'/') => Err(errno(libc::EINVAL)),
        bytes if bytes.len() > libc::NAME_MAX as usize => Err(errno(libc::ENAMETOOLONG)),
        _ => Ok(()),
    }
}

const O_TRUNC: u32 = libc::O_TRUNC as u32;

/// The flags an existing file is opened with.
pub(super) fn open_flags(flags: u32, read_only: bool) -> io::Result<u32> {
    let access = (flags & libc::O_ACCMODE as u32) as i32;
    let writes = access != libc::O_RDONLY || flags & O_TRUNC != 0;
    match access {
        libc::O_RDONLY | libc::O_WRONLY | libc::O_RDWR if writes && read_only => {
            Err(errno(libc::EROFS))
        }
        libc::O_RDONLY | libc::O_WRONLY | libc::O_RDWR => Ok(status_flags(flags) | flags & O_TRUNC),
        _ => Err(errno(libc::EINVAL)),
    }
}

/// The flags a file is created with.
pub(super) fn create_flags(flags: u32) -> io::Result<u32> {
    Ok(open_flags(flags, false)? | flags & libc::O_EXCL as u32)
}

/// The flags of an open file that come with each read and write.
pub(super) fn status_flags(flags: u32) -> u32 {
    flags & STATUS_FLAGS
}

/// The mode that a node is made with: the guest makes its own device nodes in its
/// own memory, on the host there is only overlayfs' mark of a removed entry,
/// which is no device.
pub(super) fn node_mode(mode: u32, umask: u32, device: u32) -> io::Result<u32> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK => {}
        libc::S_IFCHR if device == 0 => {}
        _ => return Err(errno(libc::EPERM)),
    }
    Ok(mode & !(umask & 0o777))
}

/// Extended attributes that the guest has: `user.*` and file capabilities.
/// `trusted.*` and the rest of `security.*` steer the host's own kernel, ACLs
/// would be enforced on the host only.
pub(super) fn xattr_is_served(name: &[u8]) -> bool {
    name == b"security.capability" || name.strip_prefix(b"user.").is_some_and(|n| !n.is_empty())
}

/// Leaves the names that are served in a list of NUL-terminated names.
pub(super) fn served_xattrs(list: &[u8]) -> Vec<u8> {
    list.split_inclusive(|byte| *byte == 0)
        .filter(|name| xattr_is_served(name.strip_suffix(&[0]).unwrap_or(name)))
        .flatten()
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
        result.unwrap_err().raw_os_error().unwrap()
    }

    #[test]
    fn names_are_single_components() {
        assert!(check_name(c"a").is_ok());
        assert!(check_name(c"...").is_ok());
        assert!(check_name(c"..a").is_ok());
        for name in [c".", c"..", c"a/b", c"/", c"../a"] {
            assert_eq!(code(check_name(name)), libc::EINVAL);
        }
        assert_eq!(code(check_name(c"")), libc::ENOENT);
        let long = std::ffi::CString::new(vec![b'a'; 256]).unwrap();
        assert_eq!(code(check_name(&long)), libc::ENAMETOOLONG);
    }

    #[test]
    fn only_plain_opens_reach_the_host() {
        let strange = libc::O_PATH
            | libc::O_TMPFILE
            | libc::O_CREAT
            | libc::O_DIRECT
            | libc::O_NOFOLLOW
            | libc::O_NOATIME
            | libc::O_ASYNC;
        let flags = (libc::O_RDWR | libc::O_APPEND | libc::O_TRUNC | strange) as u32;
        let kept = (libc::O_RDWR | libc::O_APPEND | libc::O_TRUNC) as u32;
        assert_eq!(open_flags(flags, false).unwrap(), kept);
        assert_eq!(code(open_flags(3, false)), libc::EINVAL);
        let excl = create_flags((libc::O_WRONLY | libc::O_EXCL | libc::O_PATH) as u32).unwrap();
        assert_eq!(excl, (libc::O_WRONLY | libc::O_EXCL) as u32);
    }

    #[test]
    fn a_read_only_export_opens_for_reading_only() {
        assert_eq!(open_flags(libc::O_RDONLY as u32, true).unwrap(), 0);
        for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
            assert_eq!(code(open_flags(flags as u32, true)), libc::EROFS);
        }
    }

    #[test]
    fn a_umask_cannot_turn_a_mode_into_a_device() {
        assert_eq!(
            node_mode(libc::S_IFIFO | 0o666, 0o22, 0).unwrap(),
            libc::S_IFIFO | 0o644
        );
        assert_eq!(node_mode(libc::S_IFCHR, 0, 0).unwrap(), libc::S_IFCHR);
        assert_eq!(code(node_mode(libc::S_IFCHR, 0, 0x101)), libc::EPERM);
        assert_eq!(code(node_mode(libc::S_IFBLK, 0, 0)), libc::EPERM);
        assert_eq!(code(node_mode(libc::S_IFLNK, 0, 0)), libc::EPERM);
        // S_IFSOCK without its top bit would be S_IFDIR.
        let mode = node_mode(libc::S_IFSOCK, 0o100000, 0).unwrap();
        assert_eq!(mode, libc::S_IFSOCK);
    }

    #[test]
    fn xattrs_of_the_host_are_hidden() {
        let list = b"user.a\0trusted.overlay.opaque\0security.capability\0\
            security.selinux\0system.posix_acl_access\0user.\0";
        assert_eq!(served_xattrs(list), b"user.a\0security.capability\0");
        assert_eq!(served_xattrs(b""), b"");
    }
}
