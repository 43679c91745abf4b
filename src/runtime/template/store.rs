//! The folder of the templates, ours alone.
//!
//! | name | is |
//! |---|---|
//! | `KEY`, `KEY.1`, ... | a template: a folder of files |
//! | `.NAME.tmp` | the draft: the template NAME while it is made or removed |
//! | `digests` | see [`super::digests`] |
//!
//! A template appears and disappears by one rename. Whoever makes or removes it
//! holds a lock (flock(2)) on the draft's folder, see [`super::lock`]; the kernel
//! frees the lock of whoever is killed, and the draft is a left-over then.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, Stat, flock, fstat, openat, renameat,
    unlinkat,
};
use rustix::io::Errno;

use super::key::Key;

/// Most templates of one key.
pub const POOL_MAX: u8 = 16;

/// Largest small file that is read whole, in bytes.
const SMALL_MAX_BYTES: u64 = 256 << 10;

/// Access of folders and files: nobody else's.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: Mode = Mode::from_raw_mode(0o600);

/// The folder of the templates, or something in it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It could be somebody else's: it is neither used nor changed.
    #[error("{path:?} is refused: {why}")]
    Refused {
        /// What.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The host does not let us.
    #[error("cannot {what} {path:?}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Name of a template: its key, and its number in a pool.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// The template `index` of those with this key; the first is 0.
    pub fn new(key: Key, index: u8) -> Self {
        match index {
            0 => Self(key.to_string()),
            n => Self(format!("{key}.{n}")),
        }
    }

    /// A name that [`Self::new`] makes.
    pub fn parse(text: &str) -> Option<Self> {
        let (key, index) = match text.split_once('.') {
            Some((key, index)) => (key, Some(index)),
            None => (text, None),
        };
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let is_key = key.len() == 2 * Key::BYTES && key.bytes().all(hex);
        let is_index = |text: &str| (1..POOL_MAX).any(|n| n.to_string() == text);
        (is_key && index.is_none_or(is_index)).then(|| Self(text.to_owned()))
    }

    /// Whether this is the name of a template with `key`.
    pub fn is_of(&self, key: Key) -> bool {
        self.0.split('.').next() == Some(key.to_string().as_str())
    }

    pub(super) fn draft(&self) -> String {
        format!(".{self}.tmp")
    }

    /// The name whose draft this is.
    fn of_draft(file: &str) -> Option<Self> {
        Self::parse(file.strip_prefix('.')?.strip_suffix(".tmp")?)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The folder of the templates, open.
#[derive(Debug)]
pub struct Store {
    folder: OwnedFd,
    path: PathBuf,
}

/// What is in the folder.
#[derive(Debug, Default)]
pub struct Listing {
    /// Templates, in order.
    pub templates: Vec<Name>,
    /// Names of which there is a draft.
    pub drafts: Vec<Name>,
}

impl Store {
    /// Opens the folder at `path`, which is made if it is not there.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |what| {
            move |source| StoreError::Io {
                what,
                path: path.to_owned(),
                source,
            }
        };
        let folder = match open_folder(rustix::fs::CWD, path) {
            Err(Errno::NOENT) => {
                let mut builder = DirBuilder::new();
                builder.recursive(true).mode(FOLDER_MODE);
                builder.create(path).map_err(failed("make the folder"))?;
                open_folder(rustix::fs::CWD, path)
            }
            opened => opened,
        };
        let folder = checked(folder, path)?;
        let folder = folder.ok_or_else(|| failed("open")(Errno::NOENT.into()))?;
        Ok(Self {
            folder,
            path: path.to_owned(),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// The folder of the template `name`, if it is there. Work on from the
    /// descriptor: the name may be gone, or another's, at any moment.
    pub fn find(&self, name: &Name) -> Result<Option<OwnedFd>, StoreError> {
        let path = self.path.join(&name.0);
        checked(open_folder(self.fd(), name.0.as_str()), &path)
    }

    /// Templates and drafts.
    pub fn list(&self) -> Result<Listing, StoreError> {
        let mut listing = Listing::default();
        for file in names_in(self.fd()).map_err(|e| self.failed("list", "", e))? {
            let Ok(file) = file.into_string() else {
                continue;
            };
            if let Some(name) = Name::parse(&file) {
                listing.templates.push(name);
            } else if let Some(name) = Name::of_draft(&file) {
                listing.drafts.push(name);
            }
        }
        listing.templates.sort();
        Ok(listing)
    }

    /// A small file of the folder itself, whole.
    pub fn read(&self, file: &str) -> io::Result<Vec<u8>> {
        read_small(self.fd(), file)
    }

    /// Replaces a small file of the folder itself in one step, unless somebody
    /// else is at it.
    pub fn replace(&self, file: &str, bytes: &[u8]) -> io::Result<()> {
        let draft = format!(".{file}.tmp");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = openat(self.fd(), &draft, flags, FILE_MODE)?;
        flock(&opened, FlockOperation::NonBlockingLockExclusive)?;
        let named = rustix::fs::statat(self.fd(), &draft, AtFlags::SYMLINK_NOFOLLOW)?;
        if named.st_ino != fstat(&opened)?.st_ino {
            return Err(Errno::BUSY.into());
        }
        let mut opened = File::from(opened);
        // What a writer that was killed has left.
        opened.set_len(0)?;
        opened.write_all(bytes)?;
        Ok(renameat(self.fd(), &draft, self.fd(), file)?)
    }

    /// The folder in which `name` is or was made; made if it is not there.
    pub(super) fn open_draft(&self, name: &Name) -> Result<OwnedFd, StoreError> {
        let draft = name.draft();
        loop {
            match rustix::fs::mkdirat(self.fd(), &draft, Mode::from_raw_mode(FOLDER_MODE)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(self.failed("make the folder", &draft, e)),
            }
            match open_folder(self.fd(), draft.as_str()) {
                // Its maker was quick.
                Err(Errno::NOENT) => {}
                opened => return opened.map_err(|e| self.failed("open", &draft, e)),
            }
        }
    }

    /// Whether `folder` is the draft of `name`: it may have become the template.
    pub(super) fn is_draft(&self, name: &Name, folder: &OwnedFd) -> Result<bool, StoreError> {
        let draft = name.draft();
        let failed = |e| self.failed("look at", &draft, e);
        let ours = fstat(folder).map_err(failed)?;
        match rustix::fs::statat(self.fd(), &draft, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) => Ok(named.st_ino == ours.st_ino),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(failed(e)),
        }
    }

    /// The draft `folder` becomes the template. Needs the name's lock.
    pub(super) fn publish(&self, name: &Name, folder: BorrowedFd) -> Result<(), StoreError> {
        let draft = name.draft();
        let failed = |what| move |e: Errno| self.failed(what, &name.draft(), e);
        let files = names_in(folder).map_err(failed("list"))?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for file in files {
            openat(folder, &*file, flags, Mode::empty())
                .and_then(rustix::fs::fsync)
                .map_err(failed("write"))?;
        }
        rustix::fs::fsync(folder).map_err(failed("write"))?;
        renameat(self.fd(), &draft, self.fd(), &name.0).map_err(failed("rename"))?;
        rustix::fs::fsync(self.fd()).map_err(failed("write"))
    }

    /// The template takes the place of its draft, which is empty. Needs the name's
    /// lock.
    pub(super) fn withdraw(&self, name: &Name) -> Result<(), StoreError> {
        renameat(self.fd(), &name.0, self.fd(), name.draft())
            .map_err(|e| self.failed("remove", &name.0, e))
    }

    /// Removes the draft, which is empty. Needs the name's lock.
    pub(super) fn remove_draft(&self, name: &Name) -> Result<(), StoreError> {
        let draft = name.draft();
        unlinkat(self.fd(), &draft, AtFlags::REMOVEDIR)
            .map_err(|e| self.failed("remove", &draft, e))
    }

    pub(super) fn failed(&self, what: &'static str, file: &str, error: Errno) -> StoreError {
        let path = match file {
            "" => self.path.clone(),
            file => self.path.join(file),
        };
        StoreError::Io {
            what,
            path,
            source: error.into(),
        }
    }
}

/// Opens a folder without following a link at its end.
fn open_folder(at: BorrowedFd, path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, path, flags, Mode::empty())
}

/// The opened folder if it is ours alone, or nothing if it is not there.
fn checked(opened: Result<OwnedFd, Errno>, path: &Path) -> Result<Option<OwnedFd>, StoreError> {
    let failed = |e: Errno| StoreError::Io {
        what: "open",
        path: path.to_owned(),
        source: e.into(),
    };
    let refused = |why| StoreError::Refused {
        path: path.to_owned(),
        why,
    };
    let folder = match opened {
        Ok(folder) => folder,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::NOTDIR | Errno::LOOP) => return Err(refused("not a folder".to_owned())),
        Err(e) => return Err(failed(e)),
    };
    match not_ours(&fstat(&folder).map_err(failed)?) {
        None => Ok(Some(folder)),
        Some(why) => Err(refused(why)),
    }
}

/// Why what has these attributes could have been written by others.
fn not_ours(stat: &Stat) -> Option<String> {
    const OTHERS: u32 = 0o077;
    if stat.st_uid != vmrun_vm::snapshot::owner() {
        return Some(format!("it belongs to user {}", stat.st_uid));
    }
    let mode = stat.st_mode & 0o7777;
    (mode & OTHERS != 0).then(|| format!("its mode {mode:o} lets others in"))
}

/// Reads a file of at most [`SMALL_MAX_BYTES`].
pub(super) fn read_small(at: BorrowedFd, file: &str) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = File::from(openat(at, file, flags, Mode::empty())?);
    // Enough for most, so that one read gets them whole.
    let mut bytes = Vec::with_capacity(8 << 10);
    opened.take(SMALL_MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes a file that was not there, or anew.
pub(super) fn write_small(at: BorrowedFd, file: &str, bytes: &[u8]) -> io::Result<()> {
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    File::from(openat(at, file, flags, FILE_MODE)?).write_all(bytes)
}

/// What is in a folder but `.` and `..`.
pub(super) fn names_in(folder: BorrowedFd) -> Result<Vec<std::ffi::OsString>, Errno> {
    use std::os::unix::ffi::OsStrExt;
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

/// Removes all files of a folder, and no folders: there are none.
pub(super) fn empty(folder: BorrowedFd) -> Result<(), Errno> {
    for file in names_in(folder)? {
        unlinkat(folder, &*file, AtFlags::empty())?;
    }
    Ok(())
}

/// Bytes that the regular files of a folder take on the disk.
pub(super) fn stored_bytes(folder: BorrowedFd) -> Result<u64, Errno> {
    const BLOCK_BYTES: u64 = 512;
    let mut sum = 0u64;
    for file in names_in(folder)? {
        let stat = rustix::fs::statat(folder, &*file, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            sum = sum.saturating_add((stat.st_blocks as u64).saturating_mul(BLOCK_BYTES));
        }
    }
    Ok(sum)
}

#[cfg(test)]
#[path = "store_tests.rs"]
pub(super) mod tests;
