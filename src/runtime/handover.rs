//! `--pidfd-socket`: a descriptor of the container's process for who asks for it.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::Error;

/// Sends `pidfd` to the socket at `path`, as runc has it.
pub fn send_pidfd(path: &Path, pidfd: BorrowedFd) -> Result<(), Error> {
    const NAME: &[u8] = b"pidfd";
    let send = || {
        let stream = UnixStream::connect(path)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [pidfd];
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        let flags = SendFlags::NOSIGNAL;
        sendmsg(&stream, &[IoSlice::new(NAME)], &mut ancillary, flags)?;
        Ok::<_, io::Error>(())
    };
    send().map_err(|source| Error::PidfdSocket {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let error = send_pidfd(&folder.path().join("none"), rustix::stdio::stdin()).unwrap_err();
        assert!(error.to_string().starts_with("pidfd socket \""), "{error}");
    }

    #[test]
    fn the_descriptor_arrives() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        send_pidfd(&path, rustix::stdio::stdin()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = rustix::net::RecvAncillaryBuffer::new(&mut space);
        let mut buffer = [0; 16];
        let mut buffers = [std::io::IoSliceMut::new(&mut buffer)];
        let flags = rustix::net::RecvFlags::empty();
        let received = rustix::net::recvmsg(&stream, &mut buffers, &mut ancillary, flags).unwrap();
        assert_eq!(&buffer[..received.bytes], b"pidfd");
        assert_eq!(ancillary.drain().count(), 1);
    }
}
