//! Who comes to the monitor's socket: verbs of the same user, each on a connection
//! of its own.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::event::PollFlags;
use vmrun_protocol::message::ProcessId;

use super::messages::{Call, MAX_TO_CLIENT_BYTES, MAX_TO_MONITOR_BYTES, Reply};
use crate::control::{Caps, Control};
use crate::user::own_uid;

/// How many may be there at a time: one for each exec, and some that ask.
const MAX_VISITORS: usize = 256;

const CAPS: Caps = Caps {
    receive_bytes: MAX_TO_MONITOR_BYTES,
    send_bytes: MAX_TO_CLIENT_BYTES,
};

/// Tells visitors apart; never used again.
pub type Key = u64;

/// The socket and who has come.
#[derive(Debug)]
pub struct Door {
    listener: UnixListener,
    visitors: BTreeMap<Key, Visitor>,
    next: Key,
}

#[derive(Debug)]
struct Visitor {
    control: Control,
    /// On the host.
    pid: u32,
    watches: bool,
    /// The process that it runs.
    runs: Option<ProcessId>,
}

/// What a visitor does.
#[derive(Debug)]
pub enum Visit {
    /// It wants something.
    Call(Call),
    /// It has gone; this is the process that it ran.
    Left(Option<ProcessId>),
}

impl Door {
    /// Takes over `listener`.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            visitors: BTreeMap::new(),
            next: 0,
        })
    }

    /// What to poll for before [`Self::let_in`]; nothing while there are too many.
    pub fn listener(&self) -> (BorrowedFd<'_>, PollFlags) {
        let open = self.visitors.len() < MAX_VISITORS;
        let flags = if open {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        (self.listener.as_fd(), flags)
    }

    /// What to poll for before [`Self::listen_to`].
    pub fn visitors(&self) -> impl Iterator<Item = (Key, BorrowedFd<'_>, PollFlags)> {
        let visitors = self.visitors.iter();
        visitors.map(|(key, v)| (*key, v.control.fd(), v.control.interest()))
    }

    /// Lets in who waits and may.
    pub fn let_in(&mut self) {
        while self.visitors.len() < MAX_VISITORS {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    log::warn!("cannot accept a connection: {error}");
                    return;
                }
            };
            let peer = match peer(&stream) {
                Ok(peer) => peer,
                Err(error) => {
                    log::warn!("cannot tell who connects: {error}");
                    continue;
                }
            };
            if peer.uid != 0 && peer.uid != own_uid() {
                log::warn!("a process of user {} was turned away", peer.uid);
                continue;
            }
            let Ok(control) = Control::with_caps(stream, CAPS) else {
                continue;
            };
            let visitor = Visitor {
                control,
                pid: u32::try_from(peer.pid).unwrap_or(0),
                watches: false,
                runs: None,
            };
            self.visitors.insert(self.next, visitor);
            self.next += 1;
        }
    }

    /// What `key` does next, if anything.
    pub fn listen_to(&mut self, key: Key) -> Option<Visit> {
        let visitor = self.visitors.get_mut(&key)?;
        // What came before the end counts.
        let advanced = visitor.control.advance();
        match visitor.control.take_message() {
            Ok(Some(call)) => Some(Visit::Call(call)),
            Ok(None) if advanced.is_ok() => None,
            _ => Some(Visit::Left(self.remove(key))),
        }
    }

    /// Tells `key`, if it is still there. One that does not read is let go; what it
    /// ran is told then.
    #[must_use]
    pub fn tell(&mut self, key: Key, reply: &Reply) -> Option<ProcessId> {
        let visitor = self.visitors.get_mut(&key)?;
        match visitor.control.try_queue(reply) {
            Ok(true) => None,
            _ => self.remove(key),
        }
    }

    /// The same, with descriptors.
    #[must_use]
    pub fn hand(&mut self, key: Key, reply: &Reply, fds: &[BorrowedFd]) -> Option<ProcessId> {
        let visitor = self.visitors.get_mut(&key)?;
        match visitor.control.send_with_descriptors(reply, fds) {
            Ok(()) => None,
            Err(_) => self.remove(key),
        }
    }

    /// From now on `key` is told of each lack of memory.
    pub fn watch(&mut self, key: Key) {
        if let Some(visitor) = self.visitors.get_mut(&key) {
            visitor.watches = true;
        }
    }

    /// Those who [`Self::watch`].
    pub fn watchers(&self) -> Vec<Key> {
        let watching = self.visitors.iter().filter(|(_, v)| v.watches);
        watching.map(|(key, _)| *key).collect()
    }

    /// `key` runs this process from now on, or none.
    pub fn set_runs(&mut self, key: Key, process: Option<ProcessId>) {
        if let Some(visitor) = self.visitors.get_mut(&key) {
            visitor.runs = process;
        }
    }

    /// The process that `key` runs.
    pub fn runs(&self, key: Key) -> Option<ProcessId> {
        self.visitors.get(&key).and_then(|visitor| visitor.runs)
    }

    /// Who runs `process`.
    pub fn who_runs(&self, process: ProcessId) -> Option<Key> {
        let mut visitors = self.visitors.iter();
        let found = visitors.find(|(_, visitor)| visitor.runs == Some(process));
        found.map(|(key, _)| *key)
    }

    /// Processes on the host of those who run something.
    pub fn pids(&self) -> Vec<u32> {
        let running = self.visitors.values().filter(|v| v.runs.is_some());
        running.map(|v| v.pid).filter(|pid| *pid != 0).collect()
    }

    fn remove(&mut self, key: Key) -> Option<ProcessId> {
        self.visitors.remove(&key).and_then(|visitor| visitor.runs)
    }
}

struct Peer {
    pid: i32,
    uid: u32,
}

/// Who has connected. Its pid is 0 if it is in a pid namespace that we do not see,
/// which no safe type of a pid can hold.
fn peer(stream: &UnixStream) -> io::Result<Peer> {
    let mut credentials = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `credentials` has `len` bytes, any of which are a valid value.
    let got = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &mut len,
        )
    };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Peer {
        pid: credentials.pid,
        uid: credentials.uid,
    })
}
