//! Listing templates, and removing those that are of no use.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::fstat;
use vmrun_vm::snapshot::{FORMAT_VERSION, Template};

use super::about::About;
use super::digests::Digests;
use super::key::{Inputs, cpu_digest};
use super::lock::Lock;
use super::store::{Name, Store, StoreError, stored_bytes};

/// A template as `vmrun template list` shows it.
#[derive(Debug)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// What it is made of, if that can be read.
    pub inputs: Option<Inputs>,
    /// When it was made, as it says itself.
    pub made: Option<SystemTime>,
    /// When a start used it last.
    pub used: Option<SystemTime>,
    /// Bytes that it takes on the disk.
    pub stored_bytes: u64,
    /// Why no start will use it.
    pub stale: Option<String>,
}

/// What became of a template that was to be removed.
#[derive(Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is gone.
    Removed,
    /// There is none of this name.
    Unknown,
    /// Somebody makes it at this moment.
    Busy,
}

/// All templates in `folder`; nothing if there is no such folder.
pub fn list(folder: &Path) -> Result<Vec<Row>, StoreError> {
    let Some(store) = existing(folder)? else {
        return Ok(Vec::new());
    };
    let mut digests = Digests::load(&store);
    let listing = store.list()?;
    let names = listing.templates.iter();
    Ok(names
        .filter_map(|name| row(&store, name, &mut digests))
        .collect())
}

/// Removes the template `name`, which may be in use: what is open stays whole.
pub fn remove(folder: &Path, name: &str) -> Result<Removal, StoreError> {
    let (Some(store), Some(name)) = (existing(folder)?, Name::parse(name)) else {
        return Ok(Removal::Unknown);
    };
    let Some(mut lock) = Lock::try_take(&store, &name)? else {
        return Ok(Removal::Busy);
    };
    if store.find(&name)?.is_none() {
        return Ok(Removal::Unknown);
    }
    lock.remove()?;
    Ok(Removal::Removed)
}

/// Removes templates of no use (or `all`), and what killed makers have left.
/// Returns what was removed.
pub fn prune(folder: &Path, all: bool) -> Result<Vec<Row>, StoreError> {
    let Some(store) = existing(folder)? else {
        return Ok(Vec::new());
    };
    sweep(&store)?;
    let mut removed = Vec::new();
    for row in list(folder)? {
        if !all && row.stale.is_none() {
            continue;
        }
        match remove(folder, &row.name) {
            Ok(Removal::Removed) => removed.push(row),
            // What is not ours stays, and stays in the list.
            Ok(_) | Err(StoreError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(removed)
}

/// Removes what killed makers have left: drafts that nobody holds the lock of.
pub(super) fn sweep(store: &Store) -> Result<(), StoreError> {
    for name in store.list()?.drafts {
        drop(Lock::try_take(store, &name)?);
    }
    Ok(())
}

fn existing(folder: &Path) -> Result<Option<Store>, StoreError> {
    match folder.try_exists() {
        Ok(false) => Ok(None),
        _ => Store::open(folder).map(Some),
    }
}

/// Nothing, if it is gone by now.
fn row(store: &Store, name: &Name, digests: &mut Digests) -> Option<Row> {
    let mut row = Row {
        name: name.to_string(),
        inputs: None,
        made: None,
        used: None,
        stored_bytes: 0,
        stale: None,
    };
    let folder = match store.find(name) {
        Ok(Some(folder)) => folder,
        Ok(None) => return None,
        Err(error) => {
            row.stale = Some(error.to_string());
            return Some(row);
        }
    };
    row.stored_bytes = stored_bytes(folder.as_fd()).unwrap_or(0);
    row.used = fstat(&folder).ok().and_then(|s| since_1970(s.st_mtime));
    row.stale = match About::read(folder.as_fd()) {
        Ok(about) => {
            row.made = i64::try_from(about.made_s).ok().and_then(since_1970);
            let sound = || Template::open(folder.as_fd()).err().map(|e| e.to_string());
            let stale = why_stale(name, &about.inputs, digests).or_else(sound);
            row.inputs = Some(about.inputs);
            stale
        }
        Err(error) => Some(format!("its description cannot be read: {error}")),
    };
    Some(row)
}

fn since_1970(seconds: i64) -> Option<SystemTime> {
    let since = Duration::from_secs(u64::try_from(seconds).ok()?);
    SystemTime::UNIX_EPOCH.checked_add(since)
}

fn why_stale(name: &Name, inputs: &Inputs, digests: &mut Digests) -> Option<String> {
    if !name.is_of(inputs.key()) {
        return Some("its description is of another template".to_owned());
    }
    if inputs.format != FORMAT_VERSION {
        return Some(format!("format {}, not {FORMAT_VERSION}", inputs.format));
    }
    if inputs.cpu != cpu_digest() {
        return Some("made on another processor".to_owned());
    }
    inputs.files().into_iter().find_map(|file| {
        let path = &file.path;
        match digests.of(path) {
            Ok(digest) if digest == file.digest => None,
            Ok(_) => Some(format!("{path:?} has changed")),
            Err(error) => Some(format!("{path:?}: {error}")),
        }
    })
}

#[cfg(test)]
#[path = "upkeep_tests.rs"]
mod tests;
