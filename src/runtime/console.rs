//! The terminal of a container that nobody sits at: a pseudo-terminal of the host
//! whose master goes to the engine over `--console-socket`, as runc sends it.
//!
//! The slave is raw and only carries bytes: the container's real terminal is in the
//! guest, where echo, line editing and signals happen.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::ioctl_tiocsctty;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};
use vmrun_protocol::plan::WindowSize;

use crate::stdio::HostStreams;
use crate::{Error, terminal};

/// What goes with the descriptor: the master's name, as runc has it. Engines only
/// ask that it is not empty.
const MASTER_NAME: &[u8] = b"/dev/ptmx";

/// The console socket cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("console socket {path:?}")]
pub struct SocketError {
    path: PathBuf,
    source: io::Error,
}

/// A connection to the engine that waits for a terminal.
#[derive(Debug)]
pub struct ConsoleSocket {
    path: PathBuf,
    stream: UnixStream,
}

impl ConsoleSocket {
    /// Connects to the socket at `path`, which may be longer than an address.
    pub fn connect(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError {
            path: path.to_owned(),
            source,
        };
        Ok(Self {
            path: path.to_owned(),
            stream: connect(path).map_err(failed)?,
        })
    }

    fn send(&self, master: &OwnedFd) -> Result<(), SocketError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [master.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let data = [IoSlice::new(MASTER_NAME)];
        let flags = SendFlags::NOSIGNAL;
        rustix::io::retry_on_intr(|| sendmsg(&self.stream, &data, &mut control, flags))
            .map(drop)
            .map_err(|e| SocketError {
                path: self.path.clone(),
                source: e.into(),
            })
    }
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    let error = match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => error,
        result => return result,
    };
    // Too long for an address: by way of its folder.
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(error);
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = openat(CWD, folder, flags, Mode::empty())?;
    let folder = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    UnixStream::connect(folder)
}

/// The host's half of a container's terminal.
#[derive(Debug)]
pub struct HostTerminal {
    slave: OwnedFd,
}

impl HostTerminal {
    /// Makes a terminal of this size and gives its master away.
    pub fn open(socket: &ConsoleSocket, size: Option<WindowSize>) -> Result<Self, Error> {
        let (master, slave) = pair().map_err(Error::host("make a terminal"))?;
        if let Some(size) = size.filter(|size| *size != WindowSize::default()) {
            let size = Winsize {
                ws_row: size.rows,
                ws_col: size.columns,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            tcsetwinsize(&slave, size).map_err(Error::host("set the terminal's size"))?;
        }
        socket.send(&master)?;
        Ok(Self { slave })
    }

    /// Makes it the controlling terminal, so that this process gets SIGWINCH for
    /// each new size and SIGHUP once the engine has closed the master. The caller
    /// leads a session without a terminal.
    pub fn make_controlling(&self) -> Result<(), Error> {
        ioctl_tiocsctty(&self.slave).map_err(Error::host("make the terminal the controlling one"))
    }

    /// The size that the engine has set, if it has.
    pub fn size(&self) -> Option<WindowSize> {
        terminal::window_size(&self.slave)
    }

    /// What the relays read and write.
    pub fn streams(&self) -> Result<HostStreams, Error> {
        let dup =
            || fcntl_dupfd_cloexec(&self.slave, 3).map_err(Error::host("duplicate the terminal"));
        Ok(HostStreams {
            stdin: dup()?,
            stdout: dup()?,
            stderr: dup()?,
        })
    }
}

/// Master and raw slave.
fn pair() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    // Not by its name: /dev/pts may be another one.
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    let mut raw = tcgetattr(&slave)?;
    raw.make_raw();
    tcsetattr(&slave, OptionalActions::Now, &raw)?;
    Ok((master, slave))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    use std::fs::File;
    use std::io::{IoSliceMut, Read, Write};
    use std::os::unix::net::UnixListener;

    /// What an engine gets: the name and the master.
    fn receive(stream: &UnixStream) -> (Vec<u8>, File) {
        let mut name = [0; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut data = [IoSliceMut::new(&mut name)];
        let received = recvmsg(stream, &mut data, &mut control, RecvFlags::empty()).unwrap();
        let master = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        (name[..received.bytes].to_vec(), master.unwrap().into())
    }

    fn opened(path: &Path, size: Option<WindowSize>) -> (HostTerminal, File) {
        let listener = UnixListener::bind(path).unwrap();
        let socket = ConsoleSocket::connect(path).unwrap();
        let terminal = HostTerminal::open(&socket, size).unwrap();
        let (name, master) = receive(&listener.accept().unwrap().0);
        assert_eq!(name, b"/dev/ptmx");
        (terminal, master)
    }

    #[test]
    fn bytes_pass_unchanged_both_ways() {
        let folder = tempfile::tempdir().unwrap();
        let (terminal, mut master) = opened(&folder.path().join("s"), None);
        let streams = terminal.streams().unwrap();
        let (mut input, mut output) = (File::from(streams.stdin), File::from(streams.stdout));
        master.write_all(b"\x03\r\n\x04").unwrap();
        let mut typed = [0; 4];
        input.read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"\x03\r\n\x04");
        output.write_all(b"a\n").unwrap();
        let mut shown = [0; 2];
        master.read_exact(&mut shown).unwrap();
        assert_eq!(&shown, b"a\n");
    }

    #[test]
    fn size_is_asked_for_then_the_engines() {
        let folder = tempfile::tempdir().unwrap();
        let size = |rows, columns| WindowSize { rows, columns };
        let (terminal, master) = opened(&folder.path().join("s"), Some(size(24, 80)));
        assert_eq!(terminal.size(), Some(size(24, 80)));
        let larger = Winsize {
            ws_row: 50,
            ws_col: 100,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, larger).unwrap();
        assert_eq!(terminal.size(), Some(size(50, 100)));
        let (terminal, _master) = opened(&folder.path().join("t"), Some(size(0, 0)));
        assert_eq!(terminal.size(), None);
    }

    #[test]
    fn hang_up_is_the_end_of_input() {
        let folder = tempfile::tempdir().unwrap();
        let (terminal, master) = opened(&folder.path().join("s"), None);
        drop(master);
        let mut input = File::from(terminal.streams().unwrap().stdin);
        assert!(matches!(input.read(&mut [0; 8]), Ok(0) | Err(_)));
    }

    #[test]
    fn a_path_longer_than_an_address() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("x".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        let short = folder.path().join("short");
        let listener = UnixListener::bind(&short).unwrap();
        let path = deep.join("s");
        std::fs::rename(&short, &path).unwrap();
        ConsoleSocket::connect(&path).unwrap();
        listener.accept().unwrap();
    }

    #[test]
    fn no_socket_there() {
        let error = ConsoleSocket::connect(Path::new("/nonexistent/s")).unwrap_err();
        assert_eq!(
            crate::error::chain(&error),
            "console socket \"/nonexistent/s\": No such file or directory (os error 2)"
        );
    }
}
