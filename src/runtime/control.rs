//! Connections without blocking, to the agent in the guest and to verbs: who sends
//! half a frame, or reads nothing, holds nobody up.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::event::PollFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::{Serialize, de::DeserializeOwned};
use vmrun_protocol::frame::{self, FrameError, MAX_TO_GUEST_BYTES, MAX_TO_HOST_BYTES};

const HEADER_BYTES: usize = 4;

/// While this much waits to be read by the peer, [`Control::try_queue`] drops.
const BACKLOG_MAX_BYTES: usize = 64 << 10;

/// Longest payloads, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    /// That is received.
    pub receive_bytes: usize,
    /// That is sent.
    pub send_bytes: usize,
}

/// Those of the connection to the agent.
const AGENT: Caps = Caps {
    receive_bytes: MAX_TO_HOST_BYTES,
    send_bytes: MAX_TO_GUEST_BYTES,
};

/// Our end of a connection.
#[derive(Debug)]
pub struct Control {
    stream: UnixStream,
    caps: Caps,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    closed: bool,
}

impl Control {
    /// Takes over `stream`, the host's end of the agent's connection.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        Self::with_caps(stream, AGENT)
    }

    /// Takes over `stream`.
    pub fn with_caps(stream: UnixStream, caps: Caps) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            caps,
            inbox: Vec::new(),
            outbox: Vec::new(),
            closed: false,
        })
    }

    /// The descriptor to poll for [`Self::interest`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// What to poll for before [`Self::advance`] can do something.
    pub fn interest(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        if !self.closed {
            flags |= PollFlags::IN;
        }
        if !self.outbox.is_empty() {
            flags |= PollFlags::OUT;
        }
        flags
    }

    /// Queues `message`; it leaves as fast as the peer reads.
    pub fn queue<T: Serialize>(&mut self, message: &T) -> Result<(), FrameError> {
        frame::write(&mut self.outbox, message, self.caps.send_bytes)?;
        self.send()
    }

    /// Queues `message` unless the peer is far behind; says whether it did.
    pub fn try_queue<T: Serialize>(&mut self, message: &T) -> Result<bool, FrameError> {
        if self.outbox.len() > BACKLOG_MAX_BYTES {
            return Ok(false);
        }
        self.queue(message).map(|()| true)
    }

    /// Sends `message` with descriptors, at once; not if something waits already.
    pub fn send_with_descriptors<T: Serialize>(
        &mut self,
        message: &T,
        descriptors: &[BorrowedFd],
    ) -> Result<(), FrameError> {
        let mut whole = Vec::new();
        frame::write(&mut whole, message, self.caps.send_bytes)?;
        let busy = || FrameError::Io(io::ErrorKind::WouldBlock.into());
        if !self.outbox.is_empty() {
            return Err(busy());
        }
        let mut space =
            vec![MaybeUninit::uninit(); SendAncillaryMessage::ScmRights(descriptors).size()];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        let flags = SendFlags::NOSIGNAL;
        let sent = sendmsg(&self.stream, &[IoSlice::new(&whole)], &mut ancillary, flags)
            .map_err(|e| FrameError::Io(e.into()))?;
        self.outbox.extend_from_slice(&whole[sent..]);
        Ok(())
    }

    /// Sends and receives what is possible now.
    pub fn advance(&mut self) -> Result<(), FrameError> {
        self.send()?;
        self.receive()
    }

    /// The next whole message, if it has arrived. After the end of the connection
    /// and the last message: [`FrameError::Closed`].
    pub fn take_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        if let Some(header) = self.inbox.first_chunk::<HEADER_BYTES>() {
            let len_bytes = u32::from_le_bytes(*header) as usize;
            let whole_bytes = len_bytes.saturating_add(HEADER_BYTES);
            // A length over the cap is refused by `read` as soon as it is there.
            let max_bytes = self.caps.receive_bytes;
            if len_bytes > max_bytes || self.inbox.len() >= whole_bytes {
                let message = frame::read(&mut self.inbox.as_slice(), max_bytes)?;
                self.inbox.drain(..whole_bytes);
                return Ok(Some(message));
            }
        }
        match (self.closed, self.inbox.is_empty()) {
            (false, _) => Ok(None),
            (true, true) => Err(FrameError::Closed),
            (true, false) => Err(FrameError::Io(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    fn send(&mut self) -> Result<(), FrameError> {
        while !self.outbox.is_empty() {
            match self.stream.write(&self.outbox) {
                Ok(sent) => drop(self.outbox.drain(..sent)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // What the peer said last may still be there to be read.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => self.outbox.clear(),
                Err(e) => return Err(FrameError::Io(e)),
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<(), FrameError> {
        let mut piece = [0; 4096];
        while !self.closed && self.inbox.len() < HEADER_BYTES + self.caps.receive_bytes {
            match self.stream.read(&mut piece) {
                Ok(0) => self.closed = true,
                Ok(n) => self.inbox.extend_from_slice(&piece[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => self.closed = true,
                Err(e) => return Err(FrameError::Io(e)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmrun_protocol::message::{INIT, Report, Request};

    fn pair() -> (Control, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Control::new(ours).unwrap(), theirs)
    }

    #[test]
    fn a_message_in_pieces() {
        let (mut control, mut peer) = pair();
        let mut wire = Vec::new();
        frame::write(&mut wire, &Report::Created, 100).unwrap();
        frame::write(&mut wire, &Report::Started, 100).unwrap();
        for byte in wire {
            peer.write_all(&[byte]).unwrap();
            control.advance().unwrap();
        }
        drop(peer);
        control.advance().unwrap();
        assert_eq!(control.take_message().unwrap(), Some(Report::Created));
        assert_eq!(control.take_message().unwrap(), Some(Report::Started));
        assert!(matches!(
            control.take_message::<Report>(),
            Err(FrameError::Closed)
        ));
    }

    #[test]
    fn over_the_cap_is_refused_by_its_header() {
        let (mut control, mut peer) = pair();
        peer.write_all(&[0, 0, 2, 0]).unwrap();
        control.advance().unwrap();
        assert!(matches!(
            control.take_message::<Report>(),
            Err(FrameError::TooLong { .. })
        ));
    }

    #[test]
    fn end_inside_a_message() {
        let (mut control, mut peer) = pair();
        peer.write_all(&[9, 0, 0, 0, 1]).unwrap();
        drop(peer);
        control.advance().unwrap();
        assert!(matches!(
            control.take_message::<Report>(),
            Err(FrameError::Io(_))
        ));
    }

    #[test]
    fn a_guest_that_reads_nothing_blocks_nobody() {
        let (mut control, _peer) = pair();
        let signal = Request::Signal {
            process: INIT,
            signal: 15,
        };
        let sent = (0..1_000_000).take_while(|_| control.try_queue(&signal).unwrap());
        assert!(sent.count() < 1_000_000);
        assert!(control.outbox.len() < 2 * BACKLOG_MAX_BYTES);
        assert!(control.interest().contains(PollFlags::OUT));
    }

    #[test]
    fn a_guest_that_floods_is_read_no_further_than_one_message() {
        let (mut control, mut peer) = pair();
        peer.set_nonblocking(true).unwrap();
        // A header that announces more than will come.
        let flood = vec![0xff; 1 << 20];
        let mut wire = vec![0xff, 0xff, 0, 0];
        wire.extend_from_slice(&flood);
        let mut at = 0;
        while let Ok(n) = peer.write(&wire[at..]) {
            at += n;
            control.advance().unwrap();
            if n == 0 || control.inbox.len() > 2 * MAX_TO_HOST_BYTES {
                break;
            }
        }
        assert!(control.inbox.len() <= HEADER_BYTES + MAX_TO_HOST_BYTES + 4096);
    }
}
