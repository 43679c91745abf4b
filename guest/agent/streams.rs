//! Joins the host's stream connections with the agent's ends of a process's
//! streams, in whatever order the two appear, and relays them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use vmrun_protocol::frame;
use vmrun_protocol::message::{INIT, ProcessId, Stream, StreamHeader};

use crate::execs::PROCESSES_MAX;
use crate::relay::{CHUNK_BYTES, Relay};
use crate::sys;

/// Bytes in front of a frame's payload, its length.
const LENGTH_BYTES: usize = 4;
/// Connections that wait for their header or their process, at most: three for each
/// process that there may be.
const WAITING_MAX: usize = 3 * (PROCESSES_MAX + 1);

/// A connection whose header is still being read.
struct Greeting {
    socket: OwnedFd,
    received: Vec<u8>,
}

/// All streams.
#[derive(Default)]
pub struct Streams {
    greetings: Vec<Greeting>,
    /// Connections of streams that do not exist yet: the container's first process may
    /// come after them.
    connected: Vec<(StreamHeader, OwnedFd)>,
    /// Streams that the host has not connected yet.
    expected: Vec<(StreamHeader, OwnedFd)>,
    relays: Vec<Relay>,
    /// Filled by the first relay that moves something.
    buffer: Vec<u8>,
}

impl Streams {
    /// Takes a connection from `listener`, if it is the host's.
    pub fn accept(&mut self, listener: BorrowedFd<'_>) {
        if let Ok(Some(socket)) = sys::accept_from_host(listener)
            && self.greetings.len() < WAITING_MAX
        {
            let received = Vec::new();
            self.greetings.push(Greeting { socket, received });
            self.read_headers();
        }
    }

    /// The agent's end of a stream exists from now on.
    pub fn expect(&mut self, process: ProcessId, stream: Stream, local: OwnedFd) {
        self.expected
            .push((StreamHeader { process, stream }, local));
        self.join();
    }

    /// Whether every stream of `process` is connected.
    pub fn complete(&self, process: ProcessId) -> bool {
        self.expected
            .iter()
            .all(|(header, _)| header.process != process)
    }

    /// Forgets everything about `process`, closing both sides.
    pub fn close(&mut self, process: ProcessId) {
        self.connected
            .retain(|(header, _)| header.process != process);
        self.expected
            .retain(|(header, _)| header.process != process);
        self.relays.retain(|relay| relay.process() != process);
    }

    /// Passes on what is left of `process`, of which no writer lives any more.
    /// False once everything has been handed to the host.
    pub fn drain(&mut self, process: ProcessId) -> bool {
        let buffer = chunk(&mut self.buffer);
        self.relays
            .retain_mut(|relay| relay.process() != process || relay.drain(buffer));
        self.relays.iter().any(|relay| relay.process() == process)
    }

    /// Descriptors to poll, in the order in which [`Self::handle`] takes what
    /// happened on them.
    pub fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let greetings = self.greetings.iter();
        let greetings = greetings.map(|greeting| (greeting.socket.as_fd(), PollFlags::IN));
        let relays = self.relays.iter().flat_map(|relay| {
            let interest = relay.interest();
            let socket = interest.socket.map(|flags| (relay.socket(), flags));
            let local = interest.local.map(|flags| (relay.local(), flags));
            socket.into_iter().chain(local)
        });
        greetings.chain(relays)
    }

    /// Acts on what happened to the descriptors of [`Self::interests`]; nothing
    /// may have changed in between.
    pub fn handle(&mut self, events: &[PollFlags]) {
        let mut events = events.iter().copied();
        let greetings = events.by_ref().take(self.greetings.len());
        let greeted = greetings.fold(PollFlags::empty(), |all, event| all | event);
        let buffer = &mut self.buffer;
        self.relays.retain_mut(|relay| {
            let interest = relay.interest();
            let mut next = |wanted: Option<PollFlags>| {
                let event = wanted.and_then(|_| events.next());
                event.unwrap_or(PollFlags::empty())
            };
            let (socket, local) = (next(interest.socket), next(interest.local));
            (socket | local).is_empty() || relay.handle(socket, local, chunk(buffer))
        });
        if !greeted.is_empty() {
            self.read_headers();
        }
    }

    /// Reads what has come of the headers, and joins the streams they name.
    fn read_headers(&mut self) {
        let connected = &mut self.connected;
        let finished = self.greetings.extract_if(.., |greeting| greeting.advance());
        for greeting in finished {
            let read = frame::read(&mut greeting.received.as_slice(), StreamHeader::MAX_BYTES);
            if let Ok(header) = read
                && connected.len() < WAITING_MAX
            {
                connected.push((header, greeting.socket));
            }
        }
        self.join();
    }

    fn join(&mut self) {
        for (header, socket) in std::mem::take(&mut self.connected) {
            match self.expected.iter().position(|(other, _)| *other == header) {
                Some(index) => {
                    let (_, local) = self.expected.swap_remove(index);
                    let relay = Relay::new(header.process, header.stream, socket, local);
                    self.relays.push(relay);
                }
                None if header.process == INIT => self.connected.push((header, socket)),
                // That process is gone: those streams exist before they are connected.
                None => {}
            }
        }
    }
}

/// The buffer, allocated at its first use.
fn chunk(buffer: &mut Vec<u8>) -> &mut [u8] {
    if buffer.is_empty() {
        *buffer = vec![0; CHUNK_BYTES];
    }
    buffer
}

impl Greeting {
    /// Reads on, never beyond the header: the stream's bytes follow. True when
    /// the header is whole, broken or never going to be whole.
    fn advance(&mut self) -> bool {
        loop {
            let have = self.received.len();
            let announced = match self.received.first_chunk::<LENGTH_BYTES>() {
                Some(length) => u32::from_le_bytes(*length) as usize,
                None => StreamHeader::MIN_BYTES,
            };
            let whole = LENGTH_BYTES + announced;
            if announced > StreamHeader::MAX_BYTES || (have >= LENGTH_BYTES && have >= whole) {
                return true;
            }
            let mut buffer = [0; LENGTH_BYTES + StreamHeader::MAX_BYTES];
            let missing = buffer
                .get_mut(..whole.saturating_sub(have))
                .unwrap_or_default();
            match recv(&self.socket, &mut *missing, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return true,
                Ok((len, _)) => {
                    let bytes = missing.get(..len).unwrap_or_default();
                    self.received.extend_from_slice(bytes);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                Err(_) => return true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::{read, write};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use rustix::pipe::{PipeFlags, pipe_with};

    const HEADER: StreamHeader = StreamHeader {
        process: 0,
        stream: Stream::Stdin,
    };

    fn connect(streams: &mut Streams) -> OwnedFd {
        let flags = SocketFlags::NONBLOCK;
        let (host, socket) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let received = Vec::new();
        streams.greetings.push(Greeting { socket, received });
        host
    }

    fn header() -> Vec<u8> {
        let mut bytes = Vec::new();
        frame::write(&mut bytes, &HEADER, StreamHeader::MAX_BYTES).unwrap();
        bytes
    }

    fn all_ready(streams: &mut Streams) {
        let events: Vec<_> = streams.interests().map(|(_, flags)| flags).collect();
        streams.handle(&events);
    }

    #[test]
    fn a_header_may_come_in_pieces_and_data_behind_it_is_kept() {
        let mut streams = Streams::default();
        let host = connect(&mut streams);
        let mut bytes = header();
        bytes.extend(b"data");
        for byte in bytes.chunks(1) {
            write(&host, byte).unwrap();
            all_ready(&mut streams);
        }
        assert_eq!(streams.connected.len(), 1);
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        streams.expect(0, Stream::Stdin, writer);
        assert!(streams.complete(0));
        all_ready(&mut streams);
        let mut buffer = [0; 8];
        assert_eq!(read(&reader, &mut buffer), Ok(4));
        assert_eq!(&buffer[..4], b"data");
    }

    #[test]
    fn the_process_may_come_first() {
        let mut streams = Streams::default();
        let (_reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        streams.expect(0, Stream::Stdin, writer);
        assert!(!streams.complete(0));
        let host = connect(&mut streams);
        write(&host, &header()).unwrap();
        all_ready(&mut streams);
        assert!(streams.complete(0) && streams.relays.len() == 1);
    }

    #[test]
    fn nothing_waits_for_a_further_process_that_is_gone() {
        let mut streams = Streams::default();
        let (_reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        streams.expect(7, Stream::Stdin, writer);
        streams.close(7);
        let host = connect(&mut streams);
        write(&host, &[2, 0, 0, 0, 7, 0]).unwrap();
        all_ready(&mut streams);
        assert!(streams.greetings.is_empty() && streams.connected.is_empty());
        assert_eq!(read(&host, &mut [0]), Ok(0));
    }

    #[test]
    fn broken_headers_are_dropped() {
        let mut streams = Streams::default();
        for bytes in [
            &[255, 255, 255, 255][..],
            &[2, 0, 0, 0, 0, 9],
            &[0, 0, 0, 0],
        ] {
            let host = connect(&mut streams);
            write(&host, bytes).unwrap();
            all_ready(&mut streams);
        }
        let silent = connect(&mut streams);
        drop(silent);
        all_ready(&mut streams);
        assert!(streams.greetings.is_empty() && streams.connected.is_empty());
    }
}
