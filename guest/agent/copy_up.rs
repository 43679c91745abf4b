//! `tmpcopyup`: a tmpfs that begins with what the image has where it is mounted.
//!
//! The image is the container's and hostile: nothing is followed, special files are
//! not opened, and how much is copied is capped.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fchmod, fchown, fstat, mkdirat,
    openat, readlinkat, statat, symlinkat,
};
use rustix::io::{Errno, Result};

/// Deepest folder that is copied: each level holds two descriptors.
const MAX_DEPTH: usize = 64;

/// Most files, folders and links that are copied.
const MAX_ENTRIES: usize = 65_536;

/// Copies folders, regular files and links of the folder `from` into `to`, with
/// owners and modes. The folder itself gives its own to `to` where `options`, those
/// of the tmpfs, say nothing about them.
pub fn copy_up(from: BorrowedFd<'_>, to: BorrowedFd<'_>, options: &[u8]) -> Result<()> {
    let folder = open_folder(from, ".")?;
    let mut left = MAX_ENTRIES;
    copy_entries(&folder, to, MAX_DEPTH, &mut left)?;
    let stat = fstat(&folder)?;
    let says = |name: &[u8]| options.split(|b| *b == b',').any(|o| o.starts_with(name));
    let keep = |said: bool, id: u32| if said { u32::MAX } else { id };
    let (uid, gid) = (
        keep(says(b"uid="), stat.st_uid),
        keep(says(b"gid="), stat.st_gid),
    );
    // A mount is no open file: it is named by what is in it.
    let to = open_folder(to, ".")?;
    fchown(
        &to,
        owner(uid).map(Uid::from_raw),
        owner(gid).map(Gid::from_raw),
    )?;
    if !says(b"mode=") {
        fchmod(&to, mode(&stat))?;
    }
    Ok(())
}

/// The id, unless it is the one that means none.
fn owner(id: u32) -> Option<u32> {
    (id != u32::MAX).then_some(id)
}

fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

fn open_folder(at: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

fn copy_entries(from: &OwnedFd, to: BorrowedFd<'_>, depth: usize, left: &mut usize) -> Result<()> {
    let depth = depth.checked_sub(1).ok_or(Errno::NAMETOOLONG)?;
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        *left = left.checked_sub(1).ok_or(Errno::TOOBIG)?;
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let below = open_folder(from, name)?;
                mkdirat(to, name, Mode::RWXU)?;
                let made = open_folder(to, name)?;
                copy_entries(&below, made.as_fd(), depth, left)?;
                own(made.as_fd(), &stat)?;
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let source = openat(from, name, flags, Mode::empty())?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let made = openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
                let (mut source, mut made) = (File::from(source), File::from(made));
                std::io::copy(&mut source, &mut made).map_err(errno)?;
                own(made.as_fd(), &stat)?;
            }
            FileType::Symlink => {
                let target = readlinkat(from, name, Vec::new())?;
                symlinkat(&target, to, name)?;
                let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
                chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            // In an image they are left-overs, and nobody waits at them.
            _ => {}
        }
    }
    Ok(())
}

/// The owner first: changing it takes set-id bits away.
fn own(made: BorrowedFd<'_>, stat: &Stat) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchown(made, Some(uid), Some(gid))?;
    fchmod(made, mode(stat))
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    fn copied(from: &Path, to: &Path, options: &[u8]) -> Result<()> {
        let open = |path: &Path| File::open(path).unwrap();
        copy_up(open(from).as_fd(), open(to).as_fd(), options)
    }

    #[test]
    fn files_folders_and_links_with_their_modes() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (from, to) = (from.path(), to.path());
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::write(from.join("a/b/file"), vec![7; 300_000]).unwrap();
        fs::set_permissions(from.join("a/b/file"), Permissions::from_mode(0o4751)).unwrap();
        fs::set_permissions(from.join("a"), Permissions::from_mode(0o1777)).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        symlink("nothing", from.join("a/dangling")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            from.join("fifo"),
            FileType::Fifo,
            Mode::RWXU,
            0,
        )
        .unwrap();
        fs::set_permissions(from, Permissions::from_mode(0o751)).unwrap();
        copied(from, to, b"size=1m").unwrap();
        let mode = |path: &str| fs::symlink_metadata(to.join(path)).unwrap().mode() & 0o7777;
        assert_eq!(fs::read(to.join("a/b/file")).unwrap(), vec![7; 300_000]);
        assert_eq!(
            (mode("a/b/file"), mode("a"), mode("")),
            (0o4751, 0o1777, 0o751)
        );
        assert_eq!(
            fs::read_link(to.join("link")).unwrap(),
            Path::new("/etc/passwd")
        );
        assert_eq!(
            fs::read_link(to.join("a/dangling")).unwrap(),
            Path::new("nothing")
        );
        assert!(!to.join("fifo").exists());
    }

    #[test]
    fn a_mode_that_is_asked_for_stays() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::set_permissions(to.path(), Permissions::from_mode(0o1777)).unwrap();
        copied(from.path(), to.path(), b"size=1m,mode=1777").unwrap();
        assert_eq!(fs::metadata(to.path()).unwrap().mode() & 0o7777, 0o1777);
    }

    #[test]
    fn depth_is_capped() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(from.path().join("d/".repeat(MAX_DEPTH))).unwrap();
        let result = copied(from.path(), to.path(), b"");
        assert_eq!(result, Err(Errno::NAMETOOLONG));
    }
}
