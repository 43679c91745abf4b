//! One export: what serves it, and what the guest holds of it.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fuse_backend_rs::api::filesystem::{Context, Entry, FileSystem, ROOT_ID};
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};
use libc::stat64;
use rustix::fs::{FileType, Stat, fstat};

use super::budget::Budget;
use super::owner::Owner;
use super::single_file::SingleFile;
use super::thread::keeping_umask;
use super::{FILE_TIMEOUT, FsError, NAME_TIMEOUT, errno};
use crate::spec::FsExport;

/// A node id has the index of its export in the upper byte, 0 for the share's top.
pub(super) const INDEX_SHIFT: u32 = 56;

/// Longest name of an export.
const NAME_LEN_MAX: usize = 64;

type Backend = dyn FileSystem<Inode = u64, Handle = u64> + Send + Sync;

/// A folder or file of the host that the guest may see.
pub(super) struct Export {
    /// Entry at the top of the share.
    pub name: String,
    /// Writes are refused.
    pub read_only: bool,
    /// Folder or file.
    pub is_folder: bool,
    /// Serves it. Inodes are its own, [`ROOT_ID`] is the export itself.
    pub fs: Box<Backend>,
    caching: Caching,
    index: u8,
    owner: Owner,
    budget: Arc<Budget>,
    held: Mutex<Held>,
    /// The passthrough goes back to it through /proc when the guest unmounts.
    _source: Option<OwnedFd>,
}

/// How long the guest may go on without asking again.
#[derive(Clone, Copy)]
struct Caching {
    /// Names, and attributes of folders.
    names: Duration,
    /// Other attributes.
    files: Duration,
}

/// Of an export that hardly anybody else changes.
const ALONE: Caching = Caching {
    names: NAME_TIMEOUT,
    files: FILE_TIMEOUT,
};

/// Of one that others change.
const LIVE: Caching = Caching {
    names: Duration::ZERO,
    files: Duration::ZERO,
};

impl Caching {
    fn of(self, attr: &stat64) -> Duration {
        match attr.st_mode & libc::S_IFMT {
            libc::S_IFDIR => self.names,
            _ => self.files,
        }
    }
}

/// What the guest holds, each a descriptor of this process.
#[derive(Default)]
struct Held {
    /// How often each inode was handed out and not forgotten.
    inodes: HashMap<u64, u64>,
    /// Open files and folders.
    handles: usize,
}

impl Export {
    /// Opens nothing by name: the export is what `spec.source` is open on.
    pub fn new(
        index: u8,
        spec: FsExport,
        owner: Owner,
        budget: Arc<Budget>,
    ) -> Result<Self, FsError> {
        let FsExport {
            name,
            source,
            read_only,
            live,
        } = spec;
        let caching = if live { LIVE } else { ALONE };
        let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if name.is_empty() || name.len() > NAME_LEN_MAX || !name.bytes().all(known) {
            return Err(FsError::Name(name));
        }
        let stat = fstat(&source).map_err(|source| FsError::Host {
            what: "looking at an export",
            source: source.into(),
        })?;
        let (fs, source, is_folder): (Box<Backend>, _, _) =
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => (
                    Box::new(folder(&source, &stat, caching)?),
                    Some(source),
                    true,
                ),
                FileType::RegularFile => (Box::new(SingleFile::new(source)), None, false),
                _ => return Err(FsError::Kind(name)),
            };
        Ok(Self {
            name,
            read_only,
            is_folder,
            fs,
            caching,
            index,
            owner,
            budget,
            held: Mutex::default(),
            _source: source,
        })
    }

    /// The node id of one of the export's inodes.
    pub fn node(&self, inode: u64) -> u64 {
        u64::from(self.index) << INDEX_SHIFT | inode
    }

    /// The export itself as an entry of the share's top.
    pub fn root(&self) -> io::Result<Entry> {
        let (attr, _) = self.fs.getattr(&Context::default(), ROOT_ID, None)?;
        let entry = Entry {
            inode: ROOT_ID,
            attr,
            ..Entry::default()
        };
        Ok(self.convert(entry))
    }

    /// Attributes as the guest gets them, and for how long.
    pub fn attributes(&self, inode: u64, mut attr: stat64) -> (stat64, Duration) {
        attr.st_ino = self.node(inode);
        self.owner.to_guest(&mut attr);
        let timeout = self.caching.of(&attr);
        (attr, timeout)
    }

    /// Refuses when there is no room for an inode and a handle, before something
    /// is created that the guest could then not be told about.
    pub fn room(&self) -> io::Result<()> {
        self.budget.room(2)
    }

    /// Counts an entry that goes to the guest; takes the lookup back if it is one
    /// too many.
    pub fn keep(&self, entry: Entry) -> io::Result<Entry> {
        let inode = entry.inode;
        let mut held = self.held();
        match held.inodes.get_mut(&inode) {
            Some(count) => *count = count.saturating_add(1),
            None if inode == ROOT_ID => {}
            None => {
                if let Err(error) = self.budget.take() {
                    self.fs.forget(&Context::default(), inode, 1);
                    return Err(error);
                }
                held.inodes.insert(inode, 1);
            }
        }
        drop(held);
        Ok(self.convert(entry))
    }

    /// The guest forgets an inode `count` times; more often than it got it changes
    /// nothing but that it is forgotten.
    pub fn forget(&self, inode: u64, count: u64) {
        let count = self.uncount(inode, count);
        if count > 0 {
            self.fs.forget(&Context::default(), inode, count);
        }
    }

    /// Like [`Self::forget`] without telling the server of the export. Returns how
    /// often it was forgotten.
    pub fn uncount(&self, inode: u64, count: u64) -> u64 {
        let mut held = self.held();
        let Some(left) = held.inodes.get_mut(&inode) else {
            return 0;
        };
        let count = count.min(*left);
        *left -= count;
        if *left == 0 {
            held.inodes.remove(&inode);
            self.budget.give_back(1);
        }
        count
    }

    /// Counts a handle that goes to the guest, or closes it with `close` if it is
    /// one too many.
    pub fn keep_handle(&self, handle: Option<u64>, close: impl FnOnce(u64)) -> io::Result<()> {
        let Some(handle) = handle else {
            return Ok(());
        };
        self.budget.take().inspect_err(|_| close(handle))?;
        self.held().handles += 1;
        Ok(())
    }

    /// The guest has closed a handle that existed.
    pub fn closed(&self) {
        let mut held = self.held();
        if let Some(handles) = held.handles.checked_sub(1) {
            held.handles = handles;
            self.budget.give_back(1);
        }
    }

    /// The guest unmounts or is gone: closes whatever it held.
    pub fn end_session(&self) {
        keeping_umask(|| self.fs.destroy());
        self.release_all();
    }

    fn release_all(&self) {
        let held = std::mem::take(&mut *self.held());
        self.budget.give_back(held.inodes.len() + held.handles);
    }

    fn convert(&self, mut entry: Entry) -> Entry {
        (entry.attr, entry.attr_timeout) = self.attributes(entry.inode, entry.attr);
        entry.inode = self.node(entry.inode);
        entry.attr_flags = 0;
        entry.entry_timeout = self.caching.names;
        entry
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        self.release_all();
    }
}

fn folder(source: &OwnedFd, stat: &Stat, caching: Caching) -> Result<PassthroughFs, FsError> {
    let config = Config {
        // The last component is the folder itself: it is opened with O_NOFOLLOW,
        // which would otherwise open the link in /proc.
        root_dir: format!("/proc/self/fd/{}/.", source.as_raw_fd()),
        // We check names and start the session.
        do_import: false,
        cache_policy: CachePolicy::Auto,
        entry_timeout: caching.names,
        attr_timeout: caching.files,
        xattr: true,
        killpriv_v2: true,
        no_opendir: true,
        // An inode number names one file for as long as its descriptor is open, and
        // nothing is remembered of those that the guest has forgotten.
        use_host_ino: true,
        inode_file_handles: false,
        allow_direct_io: false,
        ..Config::default()
    };
    let open = || {
        let fs = PassthroughFs::new(config)?;
        fs.import()?;
        same_file(&fs, stat)?;
        Ok(fs)
    };
    keeping_umask(open).map_err(|source| FsError::Host {
        what: "opening an exported folder",
        source,
    })
}

/// What the server has opened is what was validated.
fn same_file(fs: &PassthroughFs, stat: &Stat) -> io::Result<()> {
    let (served, _) = fs.getattr(&Context::default(), ROOT_ID, None)?;
    if (served.st_dev, served.st_ino) == (stat.st_dev, stat.st_ino) {
        Ok(())
    } else {
        Err(errno(libc::ESTALE))
    }
}
