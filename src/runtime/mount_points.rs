//! Mount points in a read-only root: the guest cannot make them there, so the
//! host does before, as runc does before it makes the root read-only.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;

const FOLDER: Mode = Mode::from_raw_mode(0o755);
const FILE: Mode = Mode::from_raw_mode(0o644);

/// A place in the container where something will be mounted.
#[derive(Debug, Clone, Copy)]
pub struct MountPoint<'a> {
    /// Absolute path inside the container.
    pub path: &'a [u8],
    /// A folder, or else a file.
    pub is_dir: bool,
}

/// Makes what is missing of `points` below `root`. A point below another one lies
/// in what is mounted there, and is not made.
pub fn make(root: impl AsFd, points: &[MountPoint]) -> io::Result<()> {
    for (i, point) in points.iter().enumerate() {
        let path = Path::new(OsStr::from_bytes(point.path));
        let covered = |p: &MountPoint| {
            let earlier = Path::new(OsStr::from_bytes(p.path));
            p.is_dir && earlier != Path::new("/") && path.starts_with(earlier)
        };
        if !points[..i].iter().any(covered) {
            make_one(&root, path, point.is_dir)?;
        }
    }
    Ok(())
}

/// Every folder on the way is opened below the root by the kernel, so that no
/// link leads out of it, and made through the descriptor of its parent.
fn make_one(root: impl AsFd, path: &Path, is_dir: bool) -> io::Result<()> {
    let names: Vec<&OsStr> = path
        .components()
        .filter_map(|c| match c {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    let Some((last, parents)) = names.split_last() else {
        return Ok(());
    };
    let mut parent = open_inside(&root, Path::new("."), OFlags::DIRECTORY)?;
    let mut so_far = std::path::PathBuf::new();
    for name in parents {
        so_far.push(name);
        parent = folder(&root, &parent, &so_far, name)?;
    }
    so_far.push(last);
    if open_inside(&root, &so_far, OFlags::empty()).is_ok() {
        return Ok(());
    }
    if is_dir {
        folder(&root, &parent, &so_far, last)?;
    } else {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&parent, *last, flags, FILE)?;
    }
    Ok(())
}

fn folder(
    root: impl AsFd,
    parent: impl AsFd,
    path: &Path,
    name: &OsStr,
) -> rustix::io::Result<OwnedFd> {
    match open_inside(&root, path, OFlags::DIRECTORY) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    match mkdirat(parent, name, FOLDER) {
        Ok(()) | Err(Errno::EXIST) => open_inside(root, path, OFlags::DIRECTORY),
        Err(e) => Err(e),
    }
}

fn open_inside(root: impl AsFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
    openat2(root, path, flags, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    fn dir(path: &str) -> MountPoint<'_> {
        MountPoint {
            path: path.as_bytes(),
            is_dir: true,
        }
    }

    fn file(path: &str) -> MountPoint<'_> {
        MountPoint {
            path: path.as_bytes(),
            is_dir: false,
        }
    }

    #[test]
    fn missing_ones_are_made_and_covered_ones_are_not() {
        let root = tempfile::tempdir().unwrap();
        let fd = File::open(root.path()).unwrap();
        let points = [
            dir("/dev"),
            dir("/dev/pts"),
            file("/etc/app/conf"),
            dir("/"),
            dir("/a/b"),
        ];
        for _ in 0..2 {
            make(&fd, &points).unwrap();
        }
        assert!(root.path().join("dev").is_dir());
        assert!(!root.path().join("dev/pts").exists());
        assert!(root.path().join("etc/app/conf").is_file());
        assert!(root.path().join("a/b").is_dir());
    }

    #[test]
    fn links_lead_nowhere_outside() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        symlink(outside.path(), root.path().join("out")).unwrap();
        symlink("/inner", root.path().join("in")).unwrap();
        fs::create_dir(root.path().join("inner")).unwrap();
        let fd = File::open(root.path()).unwrap();
        // The link's target does not exist below the root.
        assert!(make(&fd, &[dir("/out/x")]).is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        make(&fd, &[dir("/in/x")]).unwrap();
        assert!(root.path().join("inner/x").is_dir());
    }
}
