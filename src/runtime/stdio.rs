//! The container's streams: one vsock connection and one thread for each, so
//! that none waits for another.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::pipe::{PipeFlags, pipe_with};
use vmrun_protocol::message::{ProcessId, Stream, StreamHeader};
use vmrun_protocol::{STREAM_PORT, frame};

use crate::Error;
use crate::machine::Guest;
use crate::pump::{End, pump};
use crate::signals::Signals;

/// A relay needs little: its buffer is on the heap.
const STACK_BYTES: usize = 128 << 10;

/// The host's ends.
#[derive(Debug)]
pub struct HostStreams {
    /// Read for the container.
    pub stdin: OwnedFd,
    /// Gets the container's output.
    pub stdout: OwnedFd,
    /// Gets the container's errors; unused with a terminal.
    pub stderr: OwnedFd,
}

impl HostStreams {
    /// Those of this process.
    pub fn own() -> Result<Self, Error> {
        let dup = |fd: BorrowedFd| {
            fcntl_dupfd_cloexec(fd, 3).map_err(Error::host("duplicate the standard streams"))
        };
        Ok(Self {
            stdin: dup(rustix::stdio::stdin())?,
            stdout: dup(rustix::stdio::stdout())?,
            stderr: dup(rustix::stdio::stderr())?,
        })
    }
}

/// The guest's ends, connected.
#[derive(Debug)]
pub enum GuestStreams {
    /// Of a process with a terminal.
    Terminal(UnixStream),
    /// Of one without.
    #[allow(missing_docs, reason = "each is the stream it names")]
    Three {
        stdin: UnixStream,
        stdout: UnixStream,
        stderr: UnixStream,
    },
}

impl GuestStreams {
    /// Opens those of `process`.
    pub fn open(guest: &impl Guest, process: ProcessId, has_terminal: bool) -> Result<Self, Error> {
        let open = |stream| {
            open(guest, StreamHeader { process, stream }).map_err(Error::host("open a stream"))
        };
        Ok(if has_terminal {
            Self::Terminal(open(Stream::Terminal)?)
        } else {
            Self::Three {
                stdin: open(Stream::Stdin)?,
                stdout: open(Stream::Stdout)?,
                stderr: open(Stream::Stderr)?,
            }
        })
    }

    /// Whether they are a terminal.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// As descriptors: the terminal's, or those of stdin, stdout and stderr.
    pub fn into_descriptors(self) -> Vec<OwnedFd> {
        match self {
            Self::Terminal(stream) => vec![stream.into()],
            Self::Three {
                stdin,
                stdout,
                stderr,
            } => vec![stdin.into(), stdout.into(), stderr.into()],
        }
    }

    /// From what [`Self::into_descriptors`] made, if it is that.
    pub fn from_descriptors(descriptors: Vec<OwnedFd>) -> Option<Self> {
        let mut streams = descriptors.into_iter().map(UnixStream::from);
        let first = streams.next()?;
        let rest = (streams.next(), streams.next(), streams.next());
        match rest {
            (None, None, None) => Some(Self::Terminal(first)),
            (Some(stdout), Some(stderr), None) => Some(Self::Three {
                stdin: first,
                stdout,
                stderr,
            }),
            _ => None,
        }
    }
}

/// The relays of one process.
#[derive(Debug)]
pub struct Relays {
    /// Hangs up when the last output relay has ended.
    outputs: OwnedFd,
}

impl Relays {
    /// Opens the streams of `process` in the guest and starts to relay them.
    pub fn start(
        guest: &impl Guest,
        process: ProcessId,
        has_terminal: bool,
        host: HostStreams,
    ) -> Result<Self, Error> {
        Self::over(GuestStreams::open(guest, process, has_terminal)?, host)
    }

    /// Starts to relay `guest`'s streams.
    pub fn over(guest: GuestStreams, host: HostStreams) -> Result<Self, Error> {
        let (outputs, alive) = pipe_with(PipeFlags::CLOEXEC).map_err(Error::host("make a pipe"))?;
        let also_alive = alive.try_clone().map_err(Error::host("duplicate a pipe"))?;
        match guest {
            GuestStreams::Terminal(stream) => {
                let input = stream
                    .try_clone()
                    .map_err(Error::host("duplicate a stream"))?;
                spawn("terminal in", move || relay_input(host.stdin, input))?;
                spawn("terminal out", move || {
                    relay_output(stream, host.stdout, alive)
                })?;
            }
            GuestStreams::Three {
                stdin,
                stdout,
                stderr,
            } => {
                spawn("stdin", move || relay_input(host.stdin, stdin))?;
                spawn("stdout", move || relay_output(stdout, host.stdout, alive))?;
                spawn("stderr", move || {
                    relay_output(stderr, host.stderr, also_alive)
                })?;
            }
        }
        Ok(Self { outputs })
    }

    /// Waits until all output has been written. The streams have ended before, so
    /// only a slow reader on the host can take time; a signal ends the wait.
    pub fn finish(self, signals: &Signals) -> Result<(), Error> {
        loop {
            let mut fds = [
                PollFd::new(&self.outputs, PollFlags::IN),
                PollFd::from_borrowed_fd(signals.fd(), PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Error::host("wait for the output")(error)),
            }
            if !fds[0].revents().is_empty() {
                return Ok(());
            }
            if std::iter::from_fn(|| signals.take()).any(|s| s.ends_start().is_some()) {
                return Ok(());
            }
        }
    }

    /// Hangs up when all output has been written. Only to be polled.
    pub fn outputs_fd(&self) -> BorrowedFd<'_> {
        self.outputs.as_fd()
    }
}

fn open(guest: &impl Guest, header: StreamHeader) -> io::Result<UnixStream> {
    let mut stream = guest.connect(STREAM_PORT)?;
    frame::write(&mut stream, &header, StreamHeader::MAX_BYTES).map_err(io::Error::other)?;
    Ok(stream)
}

fn spawn(name: &str, relay: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let thread = thread::Builder::new().name(name.to_owned());
    let thread = thread.stack_size(STACK_BYTES).spawn(relay);
    thread.map_err(Error::host("start a thread")).map(drop)
}

/// Host to container. The end of stdin is the half-close of the stream; the rest
/// of the connection stays, because closing it would throw away in the guest
/// what the container has not read yet.
fn relay_input(stdin: OwnedFd, stream: UnixStream) {
    let ended = pump(&stdin, &stream);
    drop(stdin);
    if let Err(error) = &ended {
        log::warn!("standard input: {error}");
    }
    if matches!(ended, Ok(End::Input) | Err(_)) && stream.shutdown(Shutdown::Write).is_ok() {
        wait_for_hang_up(&stream);
    }
}

/// Container to host. Without a reader on the host the container gets none, too.
fn relay_output(stream: UnixStream, to: OwnedFd, alive: OwnedFd) {
    if let Err(error) = pump(&stream, to) {
        log::warn!("standard output: {error}");
    }
    // A half-closed terminal stream is still held by its input relay. Not being
    // connected any more is no failure.
    let _ = stream.shutdown(Shutdown::Both);
    drop(alive);
}

fn wait_for_hang_up(stream: &UnixStream) {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    while poll(&mut fds, None) == Err(Errno::INTR) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::fs::File;
    use std::io::{Read, Write, pipe};

    /// A guest that keeps the other end of every stream.
    #[derive(Default)]
    struct Streams(RefCell<Vec<UnixStream>>);

    impl Guest for Streams {
        fn ended_fd(&self) -> BorrowedFd<'_> {
            rustix::stdio::stdin()
        }

        fn ending(&self) -> Option<String> {
            None
        }

        fn connect(&self, guest_port: u32) -> io::Result<UnixStream> {
            assert_eq!(guest_port, STREAM_PORT);
            let (ours, theirs) = UnixStream::pair()?;
            self.0.borrow_mut().push(theirs);
            Ok(ours)
        }
    }

    impl Streams {
        fn take(&self, stream: Stream) -> UnixStream {
            let mut end = self.0.borrow_mut().remove(0);
            let header: StreamHeader = frame::read(&mut end, StreamHeader::MAX_BYTES).unwrap();
            let process = 7;
            assert_eq!(header, StreamHeader { process, stream });
            end
        }
    }

    struct Host {
        stdin: File,
        stdout: File,
        stderr: File,
    }

    fn host() -> (Host, HostStreams) {
        let (stdin, to_stdin) = pipe().unwrap();
        let (from_stdout, stdout) = pipe().unwrap();
        let (from_stderr, stderr) = pipe().unwrap();
        let file = |fd: OwnedFd| File::from(fd);
        let host = Host {
            stdin: file(to_stdin.into()),
            stdout: file(from_stdout.into()),
            stderr: file(from_stderr.into()),
        };
        let streams = HostStreams {
            stdin: stdin.into(),
            stdout: stdout.into(),
            stderr: stderr.into(),
        };
        (host, streams)
    }

    fn text(mut from: impl Read) -> String {
        let mut text = String::new();
        from.read_to_string(&mut text).unwrap();
        text
    }

    fn wait_for_outputs(relays: &Relays) {
        wait(relays.outputs_fd());
    }

    fn wait(fd: BorrowedFd) {
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::empty())];
        poll(&mut fds, None).unwrap();
    }

    #[test]
    fn three_streams() {
        let guest = Streams::default();
        let (mut host, streams) = host();
        let relays = Relays::start(&guest, 7, false, streams).unwrap();
        let stdin = guest.take(Stream::Stdin);
        let mut stdout = guest.take(Stream::Stdout);
        let mut stderr = guest.take(Stream::Stderr);
        host.stdin.write_all(b"in").unwrap();
        drop(host.stdin);
        assert_eq!(text(&stdin), "in");
        stdout.write_all(b"out").unwrap();
        stderr.write_all(b"err").unwrap();
        drop((stdout, stderr));
        assert_eq!(text(host.stdout), "out");
        assert_eq!(text(host.stderr), "err");
        wait_for_outputs(&relays);
    }

    #[test]
    fn closed_stdout_closes_the_containers() {
        let guest = Streams::default();
        let (host, streams) = host();
        let relays = Relays::start(&guest, 7, false, streams).unwrap();
        let _stdin = guest.take(Stream::Stdin);
        let mut stdout = guest.take(Stream::Stdout);
        drop(host.stdout);
        wait(stdout.as_fd());
        let error = stdout.write_all(b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        // stderr goes on.
        let mut stderr = guest.take(Stream::Stderr);
        stderr.write_all(b"err").unwrap();
        drop(stderr);
        assert_eq!(text(host.stderr), "err");
        wait_for_outputs(&relays);
    }

    #[test]
    fn one_stream_both_ways() {
        let guest = Streams::default();
        let (mut host, streams) = host();
        let relays = Relays::start(&guest, 7, true, streams).unwrap();
        let mut terminal = guest.take(Stream::Terminal);
        host.stdin.write_all(b"ab").unwrap();
        let mut typed = [0; 2];
        terminal.read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"ab");
        terminal.write_all(b"shown").unwrap();
        drop(terminal);
        assert_eq!(text(host.stdout), "shown");
        wait_for_outputs(&relays);
    }
}
