//! An engine that waits for a container's terminal on a console socket.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{Winsize, tcsetwinsize};

/// The socket.
#[derive(Debug)]
pub struct Engine {
    path: PathBuf,
    listener: UnixListener,
}

impl Engine {
    /// Listens at `path`.
    pub fn listening(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            listener: UnixListener::bind(path).unwrap(),
        }
    }

    /// For `--console-socket`.
    pub fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// The terminal that was sent, its master with some name.
    pub fn accept(&self) -> Master {
        let (stream, _) = self.listener.accept().unwrap();
        let mut name = [0; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut data = [IoSliceMut::new(&mut name)];
        let received = recvmsg(&stream, &mut data, &mut control, RecvFlags::empty()).unwrap();
        assert!(received.bytes > 0, "engines take no message without data");
        let master = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        Master {
            master: master.expect("a descriptor").into(),
            seen: String::new(),
        }
    }
}

/// The engine's side of a container's terminal. Dropping it hangs up.
#[derive(Debug)]
pub struct Master {
    master: File,
    seen: String,
}

impl Master {
    /// Changes its size.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.master, size).unwrap();
    }

    /// Presses keys.
    pub fn type_in(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `text` was shown.
    pub fn wait_for(&mut self, text: &str) {
        const LIMIT: Timespec = Timespec {
            tv_sec: 60,
            tv_nsec: 0,
        };
        let mut piece = [0; 4096];
        while !self.seen.contains(text) {
            let mut fds = [PollFd::new(&self.master, PollFlags::IN)];
            let ready = poll(&mut fds, Some(&LIMIT)).unwrap();
            assert!(ready > 0, "{text:?} never came: {:?}", self.seen);
            let len = self.master.read(&mut piece).unwrap_or(0);
            assert!(len > 0, "{text:?} never came: {:?}", self.seen);
            self.seen += &String::from_utf8_lossy(&piece[..len]);
        }
    }
}
