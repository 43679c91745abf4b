//! Connections that the host opens to the guest.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use super::super::drain::Wake;

/// Connections that wait for the device to take note of them.
const WAITING_MAX: usize = 256;

/// Opens connections to the guest, from any thread.
#[derive(Clone, Debug)]
pub struct VsockHandle {
    requests: SyncSender<HostConnect>,
    wake: Arc<Wake>,
}

/// A connection that the host wants.
#[derive(Debug)]
pub(super) struct HostConnect {
    pub guest_port: u32,
    /// The device's end, non-blocking.
    pub stream: UnixStream,
}

impl VsockHandle {
    pub(super) fn new(wake: Wake) -> (Self, Receiver<HostConnect>) {
        let (requests, receiver) = sync_channel(WAITING_MAX);
        let wake = Arc::new(wake);
        (Self { requests, wake }, receiver)
    }

    /// A stream to `guest_port`, at once: what is written before the guest has
    /// accepted waits in the socket. If the guest refuses, or is gone, the
    /// stream ends. A guest that has not started its driver yet is waited for.
    ///
    /// Fails with [`io::ErrorKind::WouldBlock`] while too many connections wait
    /// for the guest, and with [`io::ErrorKind::NotConnected`] when the device is
    /// gone.
    pub fn connect(&self, guest_port: u32) -> io::Result<UnixStream> {
        let (ours, stream) = UnixStream::pair()?;
        stream.set_nonblocking(true)?;
        let request = HostConnect { guest_port, stream };
        self.requests
            .try_send(request)
            .map_err(|error| match error {
                TrySendError::Full(_) => io::ErrorKind::WouldBlock,
                TrySendError::Disconnected(_) => io::ErrorKind::NotConnected,
            })?;
        self.wake.request();
        Ok(ours)
    }
}
