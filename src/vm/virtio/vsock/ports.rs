//! Ports of the host that the guest can connect to.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::spec::HostPort;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Ports(HashMap<u32, Port>);

#[derive(Debug)]
enum Port {
    /// None once it was given away.
    Once(Option<UnixStream>),
    Path(PathBuf),
}

impl Ports {
    /// Takes the ports of a spec; the streams become non-blocking.
    pub fn new(host_ports: Vec<(u32, HostPort)>) -> io::Result<Self> {
        let mut ports = HashMap::new();
        for (number, port) in host_ports {
            let port = match port {
                HostPort::Once(stream) => {
                    stream.set_nonblocking(true)?;
                    Port::Once(Some(stream))
                }
                HostPort::Path(path) => Port::Path(path),
            };
            ports.insert(number, port);
        }
        Ok(Self(ports))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn contains(&self, number: u32) -> bool {
        self.0.contains_key(&number)
    }

    /// The stream for a new connection to port `number`, non-blocking, or none if
    /// nobody answers there.
    pub fn open(&mut self, number: u32) -> Option<UnixStream> {
        match self.0.get_mut(&number)? {
            Port::Once(stream) => stream.take(),
            Port::Path(path) => dial(path)
                .inspect_err(|error| log::debug!("vsock: port {number}: {error}"))
                .ok(),
        }
    }
}

/// Connects without ever waiting: a listener whose queue is full refuses.
fn dial(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_stream_is_given_away_once() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut ports = Ports::new(vec![(7, HostPort::Once(ours))]).unwrap();
        assert!(ports.open(7).is_some());
        assert!(ports.open(7).is_none());
        assert!(ports.open(8).is_none());
        assert!(ports.contains(7), "the number stays taken");
    }

    #[test]
    fn a_path_is_dialled_each_time_and_never_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let mut ports = Ports::new(vec![(7, HostPort::Path(path.clone()))]).unwrap();
        assert!(ports.open(7).is_none(), "nobody listens");
        let listener = UnixListener::bind(&path).unwrap();
        assert!(ports.open(7).is_some());
        listener.accept().unwrap();
        let queued: Vec<_> = std::iter::from_fn(|| ports.open(7)).take(10_000).collect();
        assert!(queued.len() < 10_000, "a full queue refuses");
    }
}
