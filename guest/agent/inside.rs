//! Paths of the container, resolved strictly inside its root: an absolute
//! symlink or `..` ends at the root, magic links of /proc are refused. What is
//! missing is created by the descriptor of its parent folder, never by name.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::{Errno, Result};

/// A folder to create has these permissions.
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o755);
/// A file to create as a mount target has these permissions.
const FILE_MODE: Mode = Mode::from_raw_mode(0o644);

/// What a path leads to, and is created as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A folder.
    Folder,
    /// Anything but a folder.
    File,
}

/// How symlinks on the way are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Symlinks {
    /// Followed inside the root.
    Inside,
    /// None may be there.
    Refused,
}

/// The container's root, or the agent's view of another tree.
pub struct Root {
    folder: OwnedFd,
}

impl Root {
    /// Paths are resolved below `folder`.
    pub fn new(folder: OwnedFd) -> Self {
        Self { folder }
    }

    /// Opens `path`, which must exist. `O_CLOEXEC` and `O_NOCTTY` are added.
    pub fn open(&self, path: &[u8], flags: OFlags, symlinks: Symlinks) -> Result<OwnedFd> {
        let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        if symlinks == Symlinks::Refused {
            resolve |= ResolveFlags::NO_SYMLINKS;
        }
        let path = if path.is_empty() { b"/" } else { path };
        let mut flags = flags | OFlags::CLOEXEC;
        if !flags.contains(OFlags::PATH) {
            flags |= OFlags::NOCTTY;
        }
        loop {
            match openat2(&self.folder, path, flags, Mode::empty(), resolve) {
                // A rename elsewhere made the kernel unsure that `..` stayed inside.
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
    }

    /// A handle (`O_PATH`) of `path`, which must exist.
    pub fn find(&self, path: &[u8], symlinks: Symlinks) -> Result<OwnedFd> {
        self.open(path, OFlags::PATH, symlinks)
    }

    /// A handle (`O_PATH`) of `path`; it and the folders above it are created
    /// where missing.
    pub fn find_or_create(
        &self,
        path: &[u8],
        target: Target,
        symlinks: Symlinks,
    ) -> Result<OwnedFd> {
        match self.find(path, symlinks) {
            Err(Errno::NOENT) => self.create(path, target, symlinks),
            found => found,
        }
    }

    /// Goes up to the deepest folder that exists, then down again, creating.
    fn create(&self, path: &[u8], target: Target, symlinks: Symlinks) -> Result<OwnedFd> {
        let ends = component_ends(path);
        let prefix = |count: usize| match count.checked_sub(1).and_then(|i| ends.get(i)) {
            Some(&(_, end)) => path.get(..end).unwrap_or_default(),
            None => b"/",
        };
        let mut count = ends.len();
        let mut handle = loop {
            count = count.checked_sub(1).ok_or(Errno::NOENT)?;
            match self.find(prefix(count), symlinks) {
                Err(Errno::NOENT) => {}
                found => break found?,
            }
        };
        for (index, &(start, end)) in ends.iter().enumerate().skip(count) {
            let name = path.get(start..end).unwrap_or_default();
            let made = if index + 1 == ends.len() && target == Target::File {
                create_file(handle.as_fd(), name)
            } else {
                mkdirat(&handle, name, FOLDER_MODE)
            };
            match made {
                // `..`, or a symlink that leads to nothing: the look-up tells.
                Err(Errno::EXIST) => {}
                made => made?,
            }
            handle = self.find(prefix(index + 1), symlinks)?;
        }
        Ok(handle)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

/// Start and end of each component of `path`, without empty ones and `.`.
fn component_ends(path: &[u8]) -> Vec<(usize, usize)> {
    let mut ends = Vec::new();
    let mut start = 0;
    for part in path.split(|b| *b == b'/') {
        let end = start + part.len();
        if !part.is_empty() && part != b"." {
            ends.push((start, end));
        }
        start = end + 1;
    }
    ends
}

/// Whether `path` names the root itself, before any symlink is followed.
pub fn is_root(path: &[u8]) -> bool {
    component_ends(path).is_empty()
}

/// Folder part and last name of `path`. None where that is no name of its own.
pub fn split_last(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let &(start, end) = component_ends(path).last()?;
    let (folder, name) = (path.get(..start)?, path.get(start..end)?);
    (name != b"..").then_some((folder, name))
}

fn create_file(folder: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
    openat(folder, name, flags, FILE_MODE).map(drop)
}

/// What kind of file a handle is.
pub fn file_type(handle: BorrowedFd<'_>) -> Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(handle)?.st_mode))
}

/// A handle (`O_PATH`) of a folder of the agent's own.
pub fn own_folder(path: &str) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    fn root(folder: &Path) -> Root {
        Root::new(own_folder(folder.to_str().unwrap()).unwrap())
    }

    #[test]
    fn components_are_split_without_dots() {
        assert_eq!(component_ends(b"/a//./bc/"), [(1, 2), (6, 8)]);
        assert!(is_root(b"/.//"));
        assert!(!is_root(b"/.."));
        assert_eq!(split_last(b"/dev/x/"), Some((&b"/dev/"[..], &b"x"[..])));
        assert_eq!(split_last(b"/dev/.."), None);
        assert_eq!(split_last(b"//"), None);
    }

    #[test]
    fn missing_targets_are_made_inside() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("root");
        fs::create_dir(&inside).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        symlink("/../outside", inside.join("up")).unwrap();
        fs::create_dir(inside.join("outside")).unwrap();
        let root = root(&inside);
        root.find_or_create(b"/up/a/b", Target::Folder, Symlinks::Inside)
            .unwrap();
        assert!(inside.join("outside/a/b").is_dir());
        root.find_or_create(b"/../../c/file", Target::File, Symlinks::Inside)
            .unwrap();
        assert!(inside.join("c/file").is_file());
        assert_eq!(fs::read_dir(dir.path().join("outside")).unwrap().count(), 0);
        root.find_or_create(b"/new/../beside", Target::Folder, Symlinks::Inside)
            .unwrap();
        assert!(inside.join("new").is_dir() && inside.join("beside").is_dir());
        let file = root.find_or_create(b"/c/file/x", Target::File, Symlinks::Inside);
        assert_eq!(file.unwrap_err(), Errno::NOTDIR);
    }

    #[test]
    fn a_dangling_symlink_is_not_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("root");
        fs::create_dir(&inside).unwrap();
        symlink(dir.path().join("made"), inside.join("link")).unwrap();
        let made = root(&inside).find_or_create(b"/link", Target::File, Symlinks::Inside);
        assert_eq!(made.unwrap_err(), Errno::NOENT);
        assert!(!dir.path().join("made").exists());
    }

    #[test]
    fn symlinks_can_be_refused() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/", dir.path().join("proc")).unwrap();
        let root = root(dir.path());
        let found = root.find_or_create(b"/proc", Target::Folder, Symlinks::Refused);
        assert_eq!(found.unwrap_err(), Errno::LOOP);
        assert!(root.find(b"/proc", Symlinks::Inside).is_ok());
    }

    #[test]
    fn magic_links_are_refused() {
        let root = root(Path::new("/"));
        let found = root.find(b"/proc/self/root/etc", Symlinks::Inside);
        assert_eq!(found.unwrap_err(), Errno::LOOP);
    }
}
