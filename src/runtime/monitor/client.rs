//! A verb's end of the monitor's socket.

use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use vmrun_protocol::frame::{self, FrameError};

use super::messages::{
    Call, MAX_DESCRIPTORS, MAX_TO_CLIENT_BYTES, MAX_TO_MONITOR_BYTES, Refusal, Reply, Status,
};

/// For what the monitor answers itself.
const OWN_DEADLINE: Duration = Duration::from_secs(10);

/// For what the guest has a part in: more than the monitor gives the guest.
const GUEST_DEADLINE: Duration = Duration::from_secs(120);

/// Why the monitor could not be asked, or what it said.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no monitor any more, or it ended meanwhile.
    #[error("container not running")]
    NotRunning,
    /// It says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No answer in time.
    #[error("the container's monitor does not answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The connection.
    #[error("cannot talk to the container's monitor")]
    Talk(#[source] FrameError),
    /// It says something else.
    #[error("the container's monitor says something unexpected")]
    Unexpected,
}

/// A connection to a monitor.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connects to the socket at `path`.
    pub(crate) fn connect(path: &Path) -> Result<Self, ClientError> {
        match UnixStream::connect(path) {
            Ok(stream) => Ok(Self { stream }),
            Err(e) if is_gone(&e) => Err(ClientError::NotRunning),
            Err(e) => Err(ClientError::Talk(FrameError::Io(e))),
        }
    }

    /// Readable when [`Self::receive`] has something, and at the monitor's end.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Says `call`.
    pub fn send(&mut self, call: &Call) -> Result<(), ClientError> {
        let sent = frame::write(&mut self.stream, call, MAX_TO_MONITOR_BYTES);
        sent.map_err(talk_error)
    }

    /// Says `call` and waits for the first reply, within a deadline. A refusal is an
    /// error.
    pub fn ask(&mut self, call: &Call) -> Result<Reply, ClientError> {
        self.ask_with_descriptors(call).map(|(reply, _)| reply)
    }

    /// The same, with what came along.
    pub fn ask_with_descriptors(
        &mut self,
        call: &Call,
    ) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        let deadline = match call {
            Call::Status | Call::Kill { .. } => OWN_DEADLINE,
            _ => GUEST_DEADLINE,
        };
        self.send(call)?;
        self.limit(Some(deadline))?;
        let reply = self.receive_with_descriptors();
        self.limit(None)?;
        match reply {
            Err(ClientError::Talk(FrameError::Io(e))) if e.kind() == io::ErrorKind::WouldBlock => {
                Err(ClientError::Silent(deadline))
            }
            other => other,
        }
    }

    /// Says `call`, which is answered by [`Reply::Done`].
    pub fn order(&mut self, call: &Call) -> Result<(), ClientError> {
        match self.ask(call)? {
            Reply::Done => Ok(()),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// What the container is doing.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        match self.ask(&Call::Status)? {
            Reply::Status(status) => Ok(status),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Waits for the next reply. A refusal is an error.
    pub fn receive(&mut self) -> Result<Reply, ClientError> {
        self.receive_with_descriptors().map(|(reply, _)| reply)
    }

    /// The same, with what came along.
    pub fn receive_with_descriptors(&mut self) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        let mut receiver = Receiver {
            stream: &self.stream,
            descriptors: Vec::new(),
        };
        let reply = frame::read(&mut receiver, MAX_TO_CLIENT_BYTES).map_err(talk_error)?;
        match reply {
            Reply::Refused(refusal) => Err(refusal.into()),
            reply => Ok((reply, receiver.descriptors)),
        }
    }

    fn limit(&self, deadline: Option<Duration>) -> Result<(), ClientError> {
        let set = self.stream.set_read_timeout(deadline);
        set.map_err(|e| ClientError::Talk(FrameError::Io(e)))
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
    )
}

fn talk_error(error: FrameError) -> ClientError {
    match error {
        FrameError::Closed => ClientError::NotRunning,
        FrameError::Io(e) if is_gone(&e) => ClientError::NotRunning,
        other => ClientError::Talk(other),
    }
}

/// Reads, and keeps the descriptors that come along.
struct Receiver<'a> {
    stream: &'a UnixStream,
    descriptors: Vec<OwnedFd>,
}

impl Read for Receiver<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut buffers = [IoSliceMut::new(buffer)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(self.stream, &mut buffers, &mut ancillary, flags)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        // Nobody sends more than fit into one message's space.
        if self.descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::Error::other("too many descriptors"));
        }
        Ok(received.bytes)
    }
}
