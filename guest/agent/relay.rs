//! Moves the bytes of one stream between a host connection and the container's
//! pipe or terminal. Nothing blocks; a side that is full stops the reading of
//! the other one.
//!
//! One-way streams end with either side. The host never half-closes an output
//! stream: an end of file from there means that nobody reads any more (with
//! vsock the two cannot be told apart before the next write).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::{Errno, read, write};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::pipe::{SpliceFlags, fcntl_setpipe_size, splice};
use vmrun_protocol::message::{ProcessId, Stream};

/// Most bytes moved at once.
pub const CHUNK_BYTES: usize = 256 << 10;
/// A pipe that was read or filled this much at once (the kernel's default size)
/// carries bulk data and is made larger, which saves switches between processes.
const BULK_BYTES: usize = 64 << 10;
/// Size of such a pipe.
const BULK_PIPE_BYTES: usize = CHUNK_BYTES;

/// How far one direction got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// Some bytes went through.
    Moved,
    /// The source has nothing now.
    Dry,
    /// The sink takes nothing now.
    Full,
    /// Over, for good.
    Ended,
}

/// One direction of a stream.
#[derive(Debug, Default)]
struct Direction {
    /// Read and not yet written.
    pending: Vec<u8>,
    /// Wait for the sink rather than for the source.
    full: bool,
}

/// What to wait for on both sides of a relay; empty: not at all, not even for a
/// hang-up.
pub struct Interest {
    /// Of the connection.
    pub socket: Option<PollFlags>,
    /// Of the pipe or terminal.
    pub local: Option<PollFlags>,
}

/// One stream of one process.
#[derive(Debug)]
pub struct Relay {
    process: ProcessId,
    stream: Stream,
    socket: OwnedFd,
    local: OwnedFd,
    input: Option<Direction>,
    output: Option<Direction>,
    /// splice(2) moves the input without a copy through this process; not every
    /// pair of descriptors can.
    spliced: bool,
    enlarged: bool,
}

impl Relay {
    /// A relay of `stream` between the host's `socket` and `local`, the agent's
    /// end of the pipe or the terminal's master side; both non-blocking.
    pub fn new(process: ProcessId, stream: Stream, socket: OwnedFd, local: OwnedFd) -> Self {
        let input = matches!(stream, Stream::Stdin | Stream::Terminal);
        let output = stream != Stream::Stdin;
        Self {
            process,
            stream,
            socket,
            local,
            input: input.then(Direction::default),
            output: output.then(Direction::default),
            spliced: stream == Stream::Stdin,
            enlarged: stream == Stream::Terminal,
        }
    }

    /// Whose stream it is.
    pub fn process(&self) -> ProcessId {
        self.process
    }

    /// The host's side.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The container's side.
    pub fn local(&self) -> BorrowedFd<'_> {
        self.local.as_fd()
    }

    /// What to wait for.
    pub fn interest(&self) -> Interest {
        let mut socket = PollFlags::empty();
        let mut local = PollFlags::empty();
        if let Some(input) = &self.input {
            if input.full {
                local |= PollFlags::OUT;
            } else {
                socket |= PollFlags::IN;
            }
        }
        if let Some(output) = &self.output {
            if output.full {
                socket |= PollFlags::OUT;
            } else {
                local |= PollFlags::IN;
            }
        }
        // One-way streams also end with the side that is not waited for. (The
        // writer of a pipe always learns that its reader is gone.)
        match self.stream {
            Stream::Stdin => Interest {
                socket: (!socket.is_empty()).then_some(socket),
                local: Some(local),
            },
            Stream::Stdout | Stream::Stderr => Interest {
                socket: Some(socket | PollFlags::RDHUP),
                local: (!local.is_empty()).then_some(local),
            },
            Stream::Terminal => Interest {
                socket: (!socket.is_empty()).then_some(socket),
                local: (!local.is_empty()).then_some(local),
            },
        }
    }

    /// Something happened on a side. Returns false when the stream is over.
    pub fn handle(&mut self, socket: PollFlags, local: PollFlags, buffer: &mut [u8]) -> bool {
        let gone = PollFlags::HUP | PollFlags::ERR;
        match self.stream {
            // Nobody reads the container's stdin any more.
            Stream::Stdin if local.intersects(PollFlags::ERR) => return false,
            // Nobody reads the output any more: the writer gets SIGPIPE.
            Stream::Stdout | Stream::Stderr if socket.intersects(gone | PollFlags::RDHUP) => {
                return false;
            }
            _ => {}
        }
        let input_ready = match &self.input {
            Some(input) if input.full => local.intersects(gone | PollFlags::OUT),
            Some(_) => socket.intersects(gone | PollFlags::IN),
            None => false,
        };
        if input_ready && self.move_input(buffer) == Flow::Ended {
            self.input = None;
        }
        let output_ready = match &self.output {
            Some(output) if output.full => socket.intersects(gone | PollFlags::OUT),
            Some(_) => local.intersects(gone | PollFlags::IN),
            None => false,
        };
        if output_ready && self.move_output(buffer) == Flow::Ended {
            self.output = None;
        }
        match self.stream {
            Stream::Stdin => self.input.is_some(),
            // A terminal lives as long as somebody can see it.
            _ => self.output.is_some(),
        }
    }

    /// All processes that could write are gone: passes on what is left. Returns
    /// false once everything has been handed to the host.
    pub fn drain(&mut self, buffer: &mut [u8]) -> bool {
        self.input = None;
        while self.output.is_some() {
            match self.move_output(buffer) {
                Flow::Moved => {}
                Flow::Full => return true,
                Flow::Dry | Flow::Ended => self.output = None,
            }
        }
        false
    }

    fn move_input(&mut self, buffer: &mut [u8]) -> Flow {
        let Some(input) = &mut self.input else {
            return Flow::Ended;
        };
        let sink_was_full = input.full;
        let flow = if self.spliced {
            match splice_once(&self.socket, &self.local) {
                Ok(flow) => flow,
                Err(Errno::INVAL) => {
                    self.spliced = false;
                    return Flow::Moved;
                }
                // Either side may be the cause: wait for the other one next.
                Err(Errno::AGAIN) if sink_was_full => Flow::Dry,
                Err(Errno::AGAIN) => Flow::Full,
                Err(_) => Flow::Ended,
            }
        } else {
            let receive = |buffer: &mut [u8]| {
                let received = recv(&self.socket, buffer, RecvFlags::DONTWAIT)?;
                Ok(received.0)
            };
            let put = |bytes: &[u8]| write(&self.local, bytes);
            move_once(input, buffer, receive, put).0
        };
        input.full = flow == Flow::Full;
        if flow == Flow::Full && !self.enlarged {
            self.enlarged = true;
            let _ = fcntl_setpipe_size(&self.local, BULK_PIPE_BYTES);
        }
        flow
    }

    fn move_output(&mut self, buffer: &mut [u8]) -> Flow {
        let Some(output) = &mut self.output else {
            return Flow::Ended;
        };
        let take = |buffer: &mut [u8]| read(&self.local, buffer);
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let put = |bytes: &[u8]| send(&self.socket, bytes, flags);
        let (flow, len) = move_once(output, buffer, take, put);
        output.full = flow == Flow::Full;
        if len >= BULK_BYTES && !self.enlarged {
            self.enlarged = true;
            let _ = fcntl_setpipe_size(&self.local, BULK_PIPE_BYTES);
        }
        flow
    }
}

fn splice_once(socket: &OwnedFd, pipe: &OwnedFd) -> rustix::io::Result<Flow> {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    Ok(
        match splice(socket, None, pipe, None, CHUNK_BYTES, flags)? {
            0 => Flow::Ended,
            _ => Flow::Moved,
        },
    )
}

/// Writes what is pending, or reads once and writes that. Also returns how much
/// was read.
fn move_once(
    direction: &mut Direction,
    buffer: &mut [u8],
    take: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
    put: impl Fn(&[u8]) -> rustix::io::Result<usize>,
) -> (Flow, usize) {
    if !direction.pending.is_empty() {
        return match put_all(&direction.pending, &put) {
            Ok(len) if len == direction.pending.len() => {
                direction.pending = Vec::new();
                (Flow::Moved, 0)
            }
            Ok(len) => {
                direction.pending.drain(..len);
                (Flow::Full, 0)
            }
            Err(_) => (Flow::Ended, 0),
        };
    }
    let len = match take(buffer) {
        Ok(0) => return (Flow::Ended, 0),
        Ok(len) => len,
        Err(Errno::AGAIN | Errno::INTR) => return (Flow::Dry, 0),
        Err(_) => return (Flow::Ended, 0),
    };
    let bytes = buffer.get(..len).unwrap_or_default();
    match put_all(bytes, &put) {
        Ok(done) if done == len => (Flow::Moved, len),
        Ok(done) => {
            direction.pending = bytes.get(done..).unwrap_or_default().to_vec();
            (Flow::Full, len)
        }
        Err(_) => (Flow::Ended, len),
    }
}

/// Writes until everything is written or the sink is full.
fn put_all(
    bytes: &[u8],
    put: &impl Fn(&[u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match put(rest) {
            Ok(len) => done += len,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use rustix::pipe::{PipeFlags, pipe_with};

    fn sockets() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap()
    }

    fn pipes() -> (OwnedFd, OwnedFd) {
        pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap()
    }

    fn read_all(from: &OwnedFd) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = read(from, &mut buffer) {
            all.extend_from_slice(&buffer[..len]);
        }
        all
    }

    #[test]
    fn input_stops_at_a_full_pipe_and_loses_nothing() {
        for spliced in [true, false] {
            let (host, guest) = sockets();
            let (reader, writer) = pipes();
            let mut relay = Relay::new(0, Stream::Stdin, guest, writer);
            relay.spliced = spliced;
            let mut buffer = vec![0; CHUNK_BYTES];
            let mut sent = 0usize;
            let mut got = Vec::new();
            while got.len() < 3 << 20 {
                let chunk: Vec<u8> = (sent..sent + 5000).map(|i| (i % 251) as u8).collect();
                sent += write(&host, &chunk).unwrap_or(0);
                // Both orders of events, as poll would report them.
                assert!(relay.handle(PollFlags::IN, PollFlags::empty(), &mut buffer));
                if relay.interest().local == Some(PollFlags::OUT) {
                    assert_eq!(relay.interest().socket, None);
                    got.extend(read_all(&reader));
                    assert!(relay.handle(PollFlags::empty(), PollFlags::OUT, &mut buffer));
                }
            }
            assert!(got.iter().enumerate().all(|(i, b)| *b == (i % 251) as u8));
        }
    }

    #[test]
    fn the_end_of_input_closes_the_pipe() {
        let (host, guest) = sockets();
        let (reader, writer) = pipes();
        let mut relay = Relay::new(0, Stream::Stdin, guest, writer);
        write(&host, b"last").unwrap();
        drop(host);
        let mut buffer = [0; 16];
        assert!(relay.handle(PollFlags::IN, PollFlags::empty(), &mut buffer));
        assert!(!relay.handle(PollFlags::IN, PollFlags::empty(), &mut buffer));
        drop(relay);
        assert_eq!(read(&reader, &mut buffer), Ok(4));
        assert_eq!(read(&reader, &mut buffer), Ok(0));
    }

    #[test]
    fn output_waits_for_a_slow_host_and_is_drained_in_order() {
        let (host, guest) = sockets();
        let (reader, writer) = pipes();
        let mut relay = Relay::new(0, Stream::Stdout, guest, reader);
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut sent = 0usize;
        while !relay.output.as_ref().unwrap().full {
            let chunk: Vec<u8> = (sent..sent + 4096).map(|i| (i % 253) as u8).collect();
            sent += write(&writer, &chunk).unwrap();
            assert!(relay.handle(PollFlags::empty(), PollFlags::IN, &mut buffer));
        }
        assert_eq!(relay.interest().local, None);
        sent += write(&writer, &[(sent % 253) as u8]).unwrap();
        drop(writer);
        let mut got = Vec::new();
        while relay.drain(&mut buffer) {
            got.extend(read_all(&host));
        }
        got.extend(read_all(&host));
        assert_eq!(got.len(), sent);
        assert!(got.iter().enumerate().all(|(i, b)| *b == (i % 253) as u8));
    }

    #[test]
    fn each_side_learns_that_the_other_is_gone() {
        let mut buffer = [0; 16];
        let (host, guest) = sockets();
        let (reader, writer) = pipes();
        let mut relay = Relay::new(0, Stream::Stdout, guest, reader);
        drop(host);
        assert!(!relay.handle(PollFlags::RDHUP, PollFlags::empty(), &mut buffer));
        drop(relay);
        assert_eq!(write(&writer, b"x"), Err(Errno::PIPE));

        let (_host, guest) = sockets();
        let (reader, writer) = pipes();
        let mut relay = Relay::new(0, Stream::Stdin, guest, writer);
        drop(reader);
        assert!(!relay.handle(PollFlags::empty(), PollFlags::ERR, &mut buffer));
    }
}
