//! From the kernel's hands to the first request: greets the host, then makes the
//! file system tree that containers are made from.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, open, unlinkat};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, chroot, fchdir, set_dumpable_behavior};
use vmrun_protocol::frame::{self, FrameError, MAX_TO_GUEST_BYTES, MAX_TO_HOST_BYTES};
use vmrun_protocol::message::{Hello, Task, Welcome};
use vmrun_protocol::{CONTROL_PORT, FS_TAG, STREAM_PORT, VERSION};

use crate::root_fs::SHARE;
use crate::serve::Channels;
use crate::{inside, mounts, renewal, sys};

/// Stream connections that wait to be accepted while a container is made.
const BACKLOG: i32 = 16;

/// Why the agent cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel lacks something or the machine has no such device.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: Errno,
    },
    /// The host did not answer as it must.
    #[error("handshake with the host")]
    Handshake(#[source] FrameError),
    /// Agent and host are of different builds.
    #[error("the host speaks protocol version {host}, this agent {VERSION}")]
    Version {
        /// The host's.
        host: u32,
    },
}

trait Tried<T> {
    fn tried(self, what: &'static str) -> Result<T, BootError>;
}

impl<T> Tried<T> for Result<T, Errno> {
    fn tried(self, what: &'static str) -> Result<T, BootError> {
        self.map_err(|source| BootError::System { what, source })
    }
}

/// Brings the agent to where it can serve. The greeting goes out first, so that
/// the host's answer travels while file systems are mounted.
pub fn boot() -> Result<Channels, BootError> {
    standard_streams().tried("open /dev/null")?;
    let signals = sys::block_signals().tried("block signals")?;
    // No container process may look into this one, or at its file.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).tried("make undumpable")?;
    let listener = sys::vsock_listen(STREAM_PORT, BACKLOG).tried("listen on vsock")?;
    let mut control: File = sys::vsock_connect(CONTROL_PORT)
        .tried("connect by vsock")?
        .into();
    let hello = Hello {
        version: VERSION,
        kernel_release: kernel_release(),
    };
    frame::write(&mut control, &hello, MAX_TO_HOST_BYTES).map_err(BootError::Handshake)?;
    own_root()?;
    share()?;
    let welcome: Welcome =
        frame::read(&mut control, MAX_TO_GUEST_BYTES).map_err(BootError::Handshake)?;
    if welcome.version != VERSION {
        return Err(BootError::Version {
            host: welcome.version,
        });
    }
    match welcome.task {
        Task::Start(renewal) => {
            renewal::apply(renewal).map_err(|(what, source)| BootError::System { what, source })?
        }
        Task::Freeze => return Err(Errno::NOSYS).tried("become a template"),
    }
    Ok(Channels {
        control,
        listener,
        signals,
    })
}

fn standard_streams() -> rustix::io::Result<()> {
    let null: OwnedFd = open("/dev/null", OFlags::RDWR, Mode::empty())?;
    sys::occupy_standard_streams(null.as_fd())?;
    if null.as_raw_fd() < 3 {
        // It is one of the standard streams now.
        std::mem::forget(null);
    }
    Ok(())
}

fn kernel_release() -> String {
    let name = rustix::system::uname();
    name.release().to_string_lossy().into_owned()
}

/// Puts a mount of the initial file system on top of itself and makes it the
/// root: pivot_root cannot replace the initial mount. It is read-only and no
/// longer has the agent's program, so nothing that escapes to it finds, or can
/// change, anything.
fn own_root() -> Result<(), BootError> {
    match unlinkat(CWD, "/init", AtFlags::empty()) {
        // The kernel was told another name.
        Err(Errno::NOENT) => {}
        removed => removed.tried("remove /init")?,
    }
    let initial = inside::own_folder("/").tried("open /")?;
    mounts::make_readonly(initial.as_fd()).tried("make / read-only")?;
    let root = mounts::clone_tree(initial.as_fd(), b"", false).tried("bind /")?;
    mounts::attach(root.as_fd(), initial.as_fd()).tried("mount /")?;
    fchdir(&root).tried("enter /")?;
    chroot(".").tried("change the root")
}

/// Mounts the host's exports. Device nodes in them have no effect: containers
/// get theirs from the agent.
fn share() -> Result<(), BootError> {
    let what = "mount virtio-fs";
    let made = mounts::new_file_system("virtiofs", FS_TAG.as_bytes(), b"", libc::MS_NODEV);
    let target = inside::own_folder(SHARE).tried(what)?;
    mounts::attach(made.tried(what)?.as_fd(), target.as_fd()).tried(what)
}
