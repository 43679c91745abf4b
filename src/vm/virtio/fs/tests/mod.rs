//! The device as a guest's kernel drives it, and as a hostile one does.

mod client;
mod files;
mod frozen;
mod hostile;
mod limits;
mod session;
mod single_file;
mod walls;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};

use super::Fs;
use super::budget::Budget;
use super::owner::Owner;
use crate::spec::{FsExport, FsSpec};

/// Opens `path` as the one who validates a bundle does.
fn export(name: &str, path: &Path, read_only: bool) -> FsExport {
    FsExport {
        name: name.into(),
        source: o_path(path),
        read_only,
        live: false,
    }
}

fn o_path(path: &Path) -> OwnedFd {
    open(
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .unwrap()
}

fn device(exports: Vec<FsExport>) -> Fs {
    device_with(exports, 1000)
}

/// Like [`Fs::new`] with at most `limit` descriptors for the guest.
fn device_with(exports: Vec<FsExport>, limit: usize) -> Fs {
    let spec = FsSpec {
        tag: "share".into(),
        exports,
    };
    Fs::with(spec, Owner::of_process(), Budget::new(limit)).unwrap()
}

fn is_root() -> bool {
    Owner::of_process() == Owner::Same
}

/// Descriptors open in this process on files below `folder`.
fn open_below(folder: &Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    links
        .filter_map(|link| std::fs::read_link(link.ok()?.path()).ok())
        .filter(|target| target.starts_with(folder))
        .count()
}

fn read_back(path: &Path) -> String {
    std::io::read_to_string(File::open(path).unwrap()).unwrap()
}
