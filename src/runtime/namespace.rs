//! The host's network namespace of a container: engines find it by the monitor's
//! pid, before the container runs.
#![allow(unsafe_code)]

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::Error;

/// Moves this process, which has one thread, into the network namespace at `path`, or
/// into a new one. Without the right to have a new one it stays where it is: no
/// network of the host gets into a machine.
pub fn enter_network(path: Option<&Path>) -> Result<(), Error> {
    match path {
        Some(path) => join(path),
        None => unshare_network(),
    }
}

fn join(path: &Path) -> Result<(), Error> {
    let failed = |e: Errno| Error::Path {
        property: "linux.namespaces: network".to_owned(),
        path: path.to_owned(),
        source: e.into(),
    };
    // Whatever the path leads to: setns takes nothing but a namespace of this type.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let namespace = openat(CWD, path, flags, Mode::empty()).map_err(failed)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).map_err(failed)
}

fn unshare_network() -> Result<(), Error> {
    // SAFETY: only the network namespace changes; no descriptor and no memory is
    // unshared.
    match unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
        Err(Errno::PERM) => {
            log::debug!("no network namespace of its own on the host: no right to make one");
            Ok(())
        }
        other => other.map_err(Error::host("make a network namespace")),
    }
}
