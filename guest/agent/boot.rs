//! From the kernel's hands to the first request: greets the host, then makes the
//! file system tree that containers are made from.

use std::fs::File;
use std::io::{BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, open, statat, unlinkat};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, chroot, fchdir, set_dumpable_behavior};
use vmrun_protocol::frame::{self, FrameError, MAX_TO_GUEST_BYTES, MAX_TO_HOST_BYTES};
use vmrun_protocol::message::{Failure, Hello, Renewal, Report, Task, Welcome};
use vmrun_protocol::{CONTROL_PORT, FS_TAG, STREAM_PORT, VERSION};

use crate::prepared::Prepared;
use crate::renewal::{self, Generator};
use crate::root_fs::SHARE;
use crate::serve::Channels;
use crate::{inside, mounts, sys};

/// Stream connections that wait to be accepted while a container is made, or
/// something is set up for many processes.
const BACKLOG: i32 = 256;

/// What no export is called: their names have no capitals. The kernel remembers
/// that it is not there.
const NO_EXPORT: &str = "REHEARSAL";

/// How long the kernel gets to free objects and to let its workers and timers run:
/// some of its ticks, which come every 10 ms.
const SETTLE: Duration = Duration::from_millis(200);

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
    /// What every container needs cannot be made ahead.
    #[error("prepare for containers: {} (errno {})", .0.what, .0.errno)]
    Prepare(Failure),
    /// The host spoke to a machine that is to become a template.
    #[error("the host spoke after this machine was frozen")]
    Thawed,
    /// A machine made from a template was to become one itself.
    #[error("the host asked to freeze a machine made from a template")]
    FrozenTwice,
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
///
/// In a machine that is to become a template this returns in those made from it,
/// where there is a [`Prepared`] process.
pub fn boot() -> Result<(Channels, Option<Prepared>), BootError> {
    standard_streams().tried("open /dev/null")?;
    let signals = sys::block_signals().tried("block signals")?;
    // No container process may look into this one, or at its file.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).tried("make undumpable")?;
    let listener = sys::vsock_listen(STREAM_PORT, BACKLOG).tried("listen on vsock")?;
    let generator = Generator::open().tried("open /dev/urandom")?;
    let mut control = greet()?;
    own_root()?;
    share()?;
    let (control, prepared) = match welcome(&mut control)? {
        Task::Start(renewal) => {
            renew(&generator, renewal)?;
            (control, None)
        }
        Task::Freeze => {
            let prepared = freeze(control, signals.as_fd())?;
            (start_anew(&generator)?, Some(prepared))
        }
    };
    let channels = Channels {
        control: BufReader::new(control),
        listener,
        signals,
    };
    Ok((channels, prepared))
}

/// Connects to the host and says hello.
fn greet() -> Result<File, BootError> {
    let mut control: File = sys::vsock_connect(CONTROL_PORT)
        .tried("connect by vsock")?
        .into();
    let hello = Hello {
        version: VERSION,
        kernel_release: kernel_release(),
    };
    frame::write(&mut control, &hello, MAX_TO_HOST_BYTES).map_err(BootError::Handshake)?;
    Ok(control)
}

fn welcome(control: &mut File) -> Result<Task, BootError> {
    let welcome: Welcome =
        frame::read(control, MAX_TO_GUEST_BYTES).map_err(BootError::Handshake)?;
    if welcome.version != VERSION {
        return Err(BootError::Version {
            host: welcome.version,
        });
    }
    Ok(welcome.task)
}

fn renew(generator: &Generator, renewal: Renewal) -> Result<(), BootError> {
    renewal::apply(generator, renewal).map_err(|(what, source)| BootError::System { what, source })
}

/// Prepares what is the same for every container, and stops: the machine is saved
/// while this waits for the connection to end. It does in the machines made from
/// it, whose vsock device has no connections: its driver resets them all (virtio
/// 1.2, 5.10.6.7). The listening socket is not connected, and stays.
fn freeze(mut control: File, signals: BorrowedFd<'_>) -> Result<Prepared, BootError> {
    // The first is for practice: what the kernel keeps for reuse of a process that
    // is gone, and of a look-up in the share, serves those to come.
    Prepared::make(true).map_err(BootError::Prepare)?.discard();
    let _ = statat(CWD, format!("/{SHARE}/{NO_EXPORT}"), AtFlags::empty());
    let prepared = Prepared::make(true).map_err(BootError::Prepare)?;
    sys::take_signal(signals);
    sys::populate_memory().tried("populate memory")?;
    // The kernel gets time for what it has put off, so that it is done once and not
    // in every machine made from this one.
    std::thread::sleep(SETTLE);
    frame::write(&mut control, &Report::Frozen, MAX_TO_HOST_BYTES).map_err(BootError::Handshake)?;
    match control.read(&mut [0]) {
        Ok(1..) => Err(BootError::Thawed),
        // However it is told, the connection is over.
        Ok(0) | Err(_) => Ok(prepared),
    }
}

/// The first steps in a machine made from a template.
fn start_anew(generator: &Generator) -> Result<File, BootError> {
    let mut control = greet()?;
    match welcome(&mut control)? {
        Task::Start(renewal) => renew(generator, renewal)?,
        Task::Freeze => return Err(BootError::FrozenTwice),
    }
    Ok(control)
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
