//! The share: its exports and its session with the guest.

use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use fuse_backend_rs::api::filesystem::{FsOptions, ROOT_ID};

use super::budget::Budget;
use super::export::{Export, INDEX_SHIFT};
use super::owner::Owner;
use super::{FsError, errno};
use crate::spec::FsExport;

/// What is asked of the guest's FUSE client, as far as it can.
///
/// No WRITEBACK_CACHE: a reader on the host sees what was written. No
/// ZERO_MESSAGE_OPEN: each read and write would open the file again. No locks, no
/// ACLs: the guest's kernel keeps locks itself. No DAX.
const OPTIONS: FsOptions = FsOptions::ASYNC_READ
    .union(FsOptions::PARALLEL_DIROPS)
    .union(FsOptions::BIG_WRITES)
    .union(FsOptions::MAX_PAGES)
    .union(FsOptions::ASYNC_DIO)
    .union(FsOptions::AUTO_INVAL_DATA)
    .union(FsOptions::ATOMIC_O_TRUNC)
    .union(FsOptions::CACHE_SYMLINKS)
    .union(FsOptions::DO_READDIRPLUS)
    .union(FsOptions::READDIRPLUS_AUTO)
    .union(FsOptions::ZERO_MESSAGE_OPENDIR)
    .union(FsOptions::HANDLE_KILLPRIV_V2);

/// The exports of a share, to which more can be added while a guest uses it.
#[derive(Clone)]
pub struct Exports(pub(super) Arc<Share>);

impl Exports {
    /// Adds an export. The guest finds it by name at the share's top from now on.
    pub fn add(&self, export: FsExport) -> Result<(), FsError> {
        self.0.add(export)
    }
}

/// All that the FUSE server serves.
pub(super) struct Share {
    pub owner: Owner,
    budget: Arc<Budget>,
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    /// The export with index `n` is at `n - 1`.
    exports: Vec<Arc<Export>>,
    /// Agreed with the guest, between its INIT and DESTROY.
    agreed: Option<FsOptions>,
}

/// Where a node id points.
pub(super) enum Place {
    /// The share's top.
    Top,
    /// An inode of an export.
    Inside(Arc<Export>, u64),
}

impl Share {
    pub fn new(owner: Owner, budget: Budget) -> Self {
        Self {
            owner,
            budget: Arc::new(budget),
            state: RwLock::default(),
        }
    }

    pub fn add(&self, spec: FsExport) -> Result<(), FsError> {
        let mut state = self.write();
        if state.exports.iter().any(|export| export.name == spec.name) {
            return Err(FsError::Exists(spec.name));
        }
        let index = u8::try_from(state.exports.len() + 1).map_err(|_| FsError::Full)?;
        let export = Export::new(index, spec, self.owner, self.budget.clone())?;
        if let Some(agreed) = state.agreed {
            export.fs.init(agreed).map_err(|source| FsError::Host {
                what: "starting an export",
                source,
            })?;
        }
        state.exports.push(Arc::new(export));
        Ok(())
    }

    /// INIT: once per session.
    pub fn begin_session(&self, capable: FsOptions) -> io::Result<FsOptions> {
        let mut state = self.write();
        if state.agreed.is_some() {
            return Err(errno(libc::EINVAL));
        }
        let agreed = OPTIONS & capable;
        for export in &state.exports {
            export.fs.init(agreed)?;
        }
        state.agreed = Some(agreed);
        Ok(agreed)
    }

    /// DESTROY, or the guest is gone.
    pub fn end_session(&self) {
        let mut state = self.write();
        // A driver resets a device that it has not used yet, too.
        if state.agreed.take().is_some() || self.budget.used() > 0 {
            for export in &state.exports {
                export.end_session();
            }
        }
    }

    /// Whether `option` was agreed with the guest.
    pub fn agreed(&self, option: FsOptions) -> bool {
        self.session().is_some_and(|agreed| agreed.contains(option))
    }

    /// What was agreed with the guest, while there is a session.
    pub fn session(&self) -> Option<FsOptions> {
        self.read().agreed
    }

    /// Descriptors that the guest makes the host hold.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.budget.used()
    }

    /// Finds where `node` points. Whether the inode exists is for its export to say.
    pub fn place(&self, node: u64) -> io::Result<Place> {
        let (index, inode) = (
            (node >> INDEX_SHIFT) as usize,
            node & !(0xff << INDEX_SHIFT),
        );
        match index.checked_sub(1) {
            None if inode == ROOT_ID => Ok(Place::Top),
            None => Err(errno(libc::ENOENT)),
            Some(at) => {
                let state = self.read();
                let export = state.exports.get(at).ok_or_else(|| errno(libc::ENOENT))?;
                Ok(Place::Inside(export.clone(), inode))
            }
        }
    }

    /// For what the top does not have. Not ENOSYS, which makes the guest's kernel
    /// never ask again, for no export.
    pub fn inside(&self, node: u64) -> io::Result<(Arc<Export>, u64)> {
        match self.place(node)? {
            Place::Inside(export, inode) => Ok((export, inode)),
            Place::Top => Err(errno(libc::EOPNOTSUPP)),
        }
    }

    /// For changes: refused at the top and in read-only exports.
    pub fn writable(&self, node: u64) -> io::Result<(Arc<Export>, u64)> {
        match self.place(node)? {
            Place::Inside(export, inode) if !export.read_only => Ok((export, inode)),
            _ => Err(errno(libc::EROFS)),
        }
    }

    /// For changes to two nodes, which must be in one export.
    pub fn both_writable(&self, one: u64, other: u64) -> io::Result<(Arc<Export>, u64, u64)> {
        let (export, one) = self.writable(one)?;
        let (same, other) = self.writable(other)?;
        if Arc::ptr_eq(&export, &same) {
            Ok((export, one, other))
        } else {
            Err(errno(libc::EXDEV))
        }
    }

    /// The exports from `offset` on.
    pub fn exports_from(&self, offset: u64) -> Vec<Arc<Export>> {
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        self.read().exports.iter().skip(skip).cloned().collect()
    }

    /// The export with that name.
    pub fn find(&self, name: &[u8]) -> Option<Arc<Export>> {
        let state = self.read();
        state
            .exports
            .iter()
            .find(|export| export.name.as_bytes() == name)
            .cloned()
    }

    // A panic while the lock is held would be a bug, and ends the process in a
    // release; there is nothing half-done in the state either way.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}
