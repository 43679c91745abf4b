//! Templates: machines that have booted once, from which starts go on.
//!
//! [`key`] names a template by all that goes in, [`store`] keeps them in a folder,
//! [`lock`] lets one process make each, [`make`] does it, and [`upkeep`] is for
//! those who look after them. [`obtain`] is what a start does.

mod about;
mod digests;
mod key;
mod lock;
mod make;
pub mod notices;
mod place;
mod store;
pub mod upkeep;

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Timespec, Timestamps, UTIME_NOW, futimens};
use vmrun_vm::snapshot::{SnapshotError, Template};

use crate::Error;
use crate::guest_image::{self, GuestImage};
use crate::machine::{self, HostKind};
use crate::plan::{self, AskedShape, Shape};
use crate::session::draw_random;
use crate::signals::Signals;
use digests::Digests;
use key::Inputs;
use lock::{Lock, WaitError};
pub use notices::{Notices, Ongoing};
pub use place::{FOLDER_VARIABLE, folder, is_root};
pub use store::POOL_MAX;
use store::{Name, Store, StoreError};

/// Where and how to use templates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateUse {
    /// Their folder; none if there is no place for one.
    pub folder: Option<std::path::PathBuf>,
    /// How many there are of each kind, at least 1: a start takes any of them.
    pub pool: u8,
}

/// Why there is no template to start from.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// A signal came, or the machine does not boot.
    #[error(transparent)]
    Start(#[from] Error),
    /// Nobody said where, and there is no usual place.
    #[error("no folder for templates: HOME is not set")]
    NoPlace,
    /// The folder of the templates.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file that goes into the template.
    #[error("cannot read what a template is made of")]
    Inputs(#[source] io::Error),
    /// The machine could not be frozen.
    #[error("cannot freeze the machine")]
    Freeze(#[source] SnapshotError),
    /// Nor described.
    #[error("cannot describe the template")]
    About(#[source] io::Error),
    /// The template that was just made, or one that the host cannot read.
    #[error("cannot open template {name}")]
    Open {
        /// Its name.
        name: String,
        /// Why not.
        source: SnapshotError,
    },
}

impl From<WaitError> for Unavailable {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::Store(error) => Self::Store(error),
            WaitError::Run(error) => Self::Start(error),
        }
    }
}

/// What making a template needs beside its inputs.
#[derive(Clone, Copy)]
pub struct Workshop<'a> {
    /// A signal ends it.
    pub signals: &'a Signals,
    /// Tells the user.
    pub notices: &'a dyn Notices,
}

/// A template to start from.
pub struct Found {
    /// The template, open.
    pub template: Template,
    /// Its name.
    pub name: String,
    folder: OwnedFd,
}

impl Found {
    /// The template, and where it is from.
    pub fn split(self) -> (Template, Origin) {
        let origin = Origin {
            is_learnt: self.template.working_set().is_some(),
            folder: self.folder,
        };
        (self.template, origin)
    }
}

/// Where a machine is from.
pub struct Origin {
    folder: OwnedFd,
    is_learnt: bool,
}

impl Origin {
    /// Notes that `machine`, which is from there, has come so far: which pages it has
    /// touched, if nobody has noted that yet.
    pub fn served(self, machine: &vmrun_vm::machine::RunningMachine) {
        note_use(&self.folder);
        if self.is_learnt {
            return;
        }
        let kept = machine
            .touched()
            .and_then(|set| set.write(self.folder.as_fd()));
        if let Err(error) = kept {
            log::debug!("the working set is not kept: {error}");
        }
    }
}

/// What a machine is to be.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// Its size.
    pub shape: Shape,
    /// What it boots.
    pub image: &'a GuestImage,
    /// Where.
    pub host: HostKind,
}

/// The template that fits; made first if it is not there.
pub fn obtain(
    usage: &TemplateUse,
    wanted: Wanted,
    workshop: Workshop,
) -> Result<Found, Unavailable> {
    let store = open_store(usage)?;
    let inputs = gather(&store, wanted)?;
    let index = any_of(usage.pool)?;
    let name = Name::new(inputs.key(), index);
    obtain_named(&store, &name, &inputs, wanted, workshop).map(|(found, _)| found)
}

/// What was decided about templates that are made ahead.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// Size of the machine.
    pub shape: AskedShape,
    /// Folder of the guest image.
    pub guest_dir: std::path::PathBuf,
    /// Where, and how many.
    pub templates: TemplateUse,
}

/// Makes those of the pool that are not there: names, and whether they were made.
pub fn create(
    request: &CreateRequest,
    notices: &dyn Notices,
) -> Result<Vec<(String, bool)>, Unavailable> {
    let signals = &Signals::block().map_err(Error::host("receive signals"))?;
    let shape = plan::shape(request.shape, None, machine::host_mem_mib())?;
    let image = &guest_image::find(&request.guest_dir, None, None, shape.vcpu_count)?;
    let host = machine::host_kind()?;
    let wanted = Wanted { shape, image, host };
    let workshop = Workshop { signals, notices };
    let store = open_store(&request.templates)?;
    let inputs = gather(&store, wanted)?;
    let mut names = Vec::new();
    for index in 0..request.templates.pool {
        let name = Name::new(inputs.key(), index);
        let (found, made) = obtain_named(&store, &name, &inputs, wanted, workshop)?;
        names.push((found.name, made));
    }
    Ok(names)
}

fn open_store(usage: &TemplateUse) -> Result<Store, Unavailable> {
    let folder = usage.folder.as_deref().ok_or(Unavailable::NoPlace)?;
    Ok(Store::open(folder)?)
}

fn gather(store: &Store, wanted: Wanted) -> Result<Inputs, Unavailable> {
    let mut digests = Digests::load(store);
    let inputs = Inputs::gather(wanted.shape, wanted.image, wanted.host, &mut digests)
        .map_err(Unavailable::Inputs)?;
    digests.save(store);
    Ok(inputs)
}

/// The template and whether it was made just now.
fn obtain_named(
    store: &Store,
    name: &Name,
    inputs: &Inputs,
    wanted: Wanted,
    workshop: Workshop,
) -> Result<(Found, bool), Unavailable> {
    // Whatever is wrong without the lock may be somebody who makes or removes it.
    if let Ok(Some(found)) = open(store, name) {
        return Ok((found, false));
    }
    let mut waiting = None;
    let shape = inputs.shape();
    let mut lock = Lock::take(store, name, workshop.signals, || {
        let line = format!("waiting for a machine template ({shape}) that another start makes");
        waiting = Some(workshop.notices.begin(&line));
    })?;
    drop(waiting);
    match open(store, name) {
        Ok(Some(found)) => return Ok((found, false)),
        Ok(None) => {}
        Err(Unavailable::Open { source, .. }) if source.is_unusable() => {
            let line = format!("template {name} is not used and made again: {source}");
            workshop.notices.warn(&line);
            lock.remove()?;
        }
        Err(error) => return Err(error),
    }
    upkeep::sweep(store)?;
    let line = format!("making a machine template ({shape}): once per shape");
    let making = workshop.notices.begin(&line);
    make::make(workshop, inputs, wanted, lock.begin()?)?;
    lock.publish()?;
    drop(making);
    let made = open(store, name)?.ok_or_else(|| Unavailable::Open {
        name: name.to_string(),
        source: SnapshotError::Missing { file: "state" },
    })?;
    Ok((made, true))
}

fn open(store: &Store, name: &Name) -> Result<Option<Found>, Unavailable> {
    let Some(folder) = store.find(name)? else {
        return Ok(None);
    };
    let template = Template::open(folder.as_fd()).map_err(|source| Unavailable::Open {
        name: name.to_string(),
        source,
    })?;
    Ok(Some(Found {
        template,
        name: name.to_string(),
        folder,
    }))
}

/// The folder's time tells when a template was used last.
fn note_use(folder: &OwnedFd) {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: now,
    };
    // On a read-only file system nobody removes the unused ones either.
    let _ = futimens(folder, &times);
}

fn any_of(pool: u8) -> Result<u8, Error> {
    if pool <= 1 {
        return Ok(0);
    }
    let mut byte = [0; 1];
    draw_random(&mut byte)?;
    Ok(byte[0] % pool)
}
