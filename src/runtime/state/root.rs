//! The root folder: ids are reserved and found here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use rustix::fs::{CWD, Dir, FlockOperation, Mode, OFlags, flock, mkdirat, openat};
use rustix::io::Errno;

use super::container::{Container, socket_path};
use super::{Id, Record, StateError, files};
use crate::user::own_uid;

/// The folder that holds those of all containers.
#[derive(Debug)]
pub struct Root {
    folder: Arc<OwnedFd>,
    path: PathBuf,
}

impl Root {
    /// Opens the folder, made first if it is not there: 0700, of this user.
    pub fn make(path: &Path) -> Result<Self, StateError> {
        // Nearly always it is there.
        if let Some(root) = Self::open(path)? {
            return Ok(root);
        }
        let mut builder = fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(path);
        made.map_err(|source| StateError::Root {
            path: path.to_owned(),
            source,
        })?;
        Self::open(path)?.ok_or_else(|| StateError::Root {
            path: path.to_owned(),
            source: io::ErrorKind::NotFound.into(),
        })
    }

    /// Opens the folder, if it is there.
    pub fn open(path: &Path) -> Result<Option<Self>, StateError> {
        let error = |source| StateError::Root {
            path: path.to_owned(),
            source,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = match openat(CWD, path, flags, Mode::empty()) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(error(e.into())),
        };
        check_owner(&folder).map_err(error)?;
        Ok(Some(Self {
            folder: Arc::new(folder),
            path: path.to_owned(),
        }))
    }

    /// Takes `id`, which nobody else may have.
    pub fn reserve(&self, id: &Id) -> Result<Reserved, StateError> {
        match mkdirat(&self.folder, id.as_str(), Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(StateError::Exists),
            Err(e) => return Err(self.folder_error(id, "make its folder", e)),
        }
        let folder = self.locked(id)?.ok_or(StateError::Exists)?;
        Ok(Reserved {
            root: self.folder.clone(),
            folder,
            id: id.clone(),
        })
    }

    /// The container with this id.
    pub fn container(&self, id: &Id) -> Result<Container, StateError> {
        let folder = match files::open_folder(&self.folder, id.as_str()) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Err(StateError::Unknown),
            Err(e) => return Err(self.folder_error(id, "open its folder", e)),
        };
        Container::read(folder, id)
    }

    /// The ids that are taken, in order.
    pub fn ids(&self) -> Result<Vec<Id>, StateError> {
        let error = |e: Errno| StateError::Root {
            path: self.path.clone(),
            source: e.into(),
        };
        let mut ids = Vec::new();
        for entry in Dir::read_from(&self.folder).map_err(error)? {
            let entry = entry.map_err(error)?;
            ids.extend(
                entry
                    .file_name()
                    .to_str()
                    .ok()
                    .and_then(|n| Id::new(n).ok()),
            );
        }
        ids.sort();
        Ok(ids)
    }

    /// Keeps everybody else from removing `container`, until the result is dropped.
    /// Nothing if somebody has removed it already.
    pub fn claim<'a>(&'a self, container: &'a Container) -> Result<Option<Claim<'a>>, StateError> {
        let id = container.id();
        let locked = self.lock(id, container.folder())?;
        let claim = Claim {
            root: self,
            container,
        };
        Ok(locked.then_some(claim))
    }

    /// Removes what a `create` that was killed has left: a folder without a record.
    /// Says whether there was one.
    pub fn remove_broken(&self, id: &Id) -> Result<bool, StateError> {
        let Some(folder) = self.locked(id)? else {
            return Ok(false);
        };
        match files::read(&folder, files::RECORD) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.remove_folder(id, &folder).map(|()| true)
            }
            _ => Ok(false),
        }
    }

    fn remove_folder(&self, id: &Id, folder: impl AsFd) -> Result<(), StateError> {
        files::remove_folder(&self.folder, id.as_str(), folder)
            .map_err(|e| self.folder_error(id, "remove its folder", e))
    }

    /// The folder of `id`, locked, if there is one.
    fn locked(&self, id: &Id) -> Result<Option<OwnedFd>, StateError> {
        let folder = match files::open_folder(&self.folder, id.as_str()) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(self.folder_error(id, "open its folder", e)),
        };
        Ok(self.lock(id, folder.as_fd())?.then_some(folder))
    }

    /// Locks `folder`; says whether it still is that of `id`.
    fn lock(&self, id: &Id, folder: BorrowedFd) -> Result<bool, StateError> {
        rustix::io::retry_on_intr(|| flock(folder, FlockOperation::LockExclusive))
            .map_err(|e| self.folder_error(id, "lock its folder", e))?;
        Ok(files::is_linked(&self.folder, id.as_str(), folder))
    }

    fn folder_error(&self, id: &Id, what: &'static str, error: Errno) -> StateError {
        StateError::Folder {
            id: id.to_string(),
            what,
            source: error.into(),
        }
    }
}

/// A container that nobody else removes meanwhile.
#[derive(Debug)]
pub struct Claim<'a> {
    root: &'a Root,
    container: &'a Container,
}

impl Claim<'_> {
    /// Removes all that is kept of the container.
    pub fn remove(self) -> Result<(), StateError> {
        let folder = self.container.folder();
        self.root.remove_folder(self.container.id(), folder)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        // The folder may stay open for longer.
        let _ = flock(self.container.folder(), FlockOperation::Unlock);
    }
}

/// What somebody else can write to may say anything.
fn check_owner(folder: &OwnedFd) -> io::Result<()> {
    let status = rustix::fs::fstat(folder)?;
    if status.st_uid != 0 && status.st_uid != own_uid() {
        let problem = format!("belongs to user {}", status.st_uid);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
    }
    if status.st_mode & 0o022 != 0 {
        let problem = "others may write to it";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
    }
    Ok(())
}

/// An id that is taken, and the lock on its folder. Dropping it gives the lock back
/// and leaves the folder: [`Self::give_up`] removes it.
#[derive(Debug)]
pub struct Reserved {
    root: Arc<OwnedFd>,
    folder: OwnedFd,
    id: Id,
}

impl Reserved {
    /// The id.
    pub fn id(&self) -> &Id {
        &self.id
    }

    /// Keeps the text of the checked config.json.
    pub fn keep_config(&self, text: &[u8]) -> Result<(), StateError> {
        files::write_new(&self.folder, files::CONFIG, text).map_err(self.error("write config.json"))
    }

    /// The socket of the monitor, listening.
    pub fn listen(&self) -> Result<UnixListener, StateError> {
        let listener = UnixListener::bind(socket_path(self.folder.as_fd()))
            .map_err(self.error("make its socket"))?;
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::chmodat(
            &self.folder,
            files::SOCKET,
            mode,
            rustix::fs::AtFlags::empty(),
        )
        .map_err(|e| self.error("protect its socket")(e.into()))?;
        Ok(listener)
    }

    /// Writes the record, in place of an older one.
    pub fn record(&self, record: &Record) -> Result<(), StateError> {
        let text = serde_json::to_vec(record).map_err(|source| StateError::Record {
            id: self.id.to_string(),
            source,
        })?;
        files::replace_record(&self.folder, &text).map_err(self.error("write state.json"))
    }

    /// Gives the lock back: the container can be removed by others now.
    pub fn unlock(&self) {
        // It is ours, so nothing can go wrong. A forked process has the same lock.
        let _ = flock(&self.folder, FlockOperation::Unlock);
    }

    /// Removes the folder: the id is free again. If somebody else has done it, the
    /// folder may be another's.
    pub fn give_up(&self) -> Result<(), StateError> {
        rustix::io::retry_on_intr(|| flock(&self.folder, FlockOperation::LockExclusive))
            .map_err(|e| self.error("lock its folder")(e.into()))?;
        if !files::is_linked(&self.root, self.id.as_str(), &self.folder) {
            return Ok(());
        }
        files::remove_folder(&self.root, self.id.as_str(), &self.folder)
            .map_err(|e| self.error("remove its folder")(e.into()))
    }

    fn error(&self, what: &'static str) -> impl FnOnce(io::Error) -> StateError {
        let id = self.id.to_string();
        move |source| StateError::Folder { id, what, source }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
