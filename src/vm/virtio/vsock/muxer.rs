//! All connections of a device: who they belong to, and whose turn it is.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use virtio_vsock::packet::VsockPacket;
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::{Connection, Fate, reset_header};
use super::ports::Ports;
use super::wire::{HOST_CID, Header, Key, OP_REQUEST, OP_RST, TYPE_STREAM};

/// Connections at a time, open, half open or with data left for the host. Bounds
/// descriptors, and memory to that times the window.
pub(super) const CONNECTIONS_MAX: usize = 256;

/// RSTs that wait for buffers of the guest. A guest that earns more without
/// taking them does not get the rest.
const RESETS_MAX: usize = 256;

/// Streams looked at per wake-up; the others come with the next.
const EVENTS_MAX: usize = 64;

/// Port numbers for connections that the host opens, above those that people use.
const HOST_PORT_FIRST: u32 = 1 << 30;

/// See the module's text.
pub(super) struct Muxer {
    guest_cid: u64,
    ports: Ports,
    /// Watches all streams, edge-triggered, with the connection's id as data. An
    /// epoll of its own: it can be changed from any thread, as a reset needs it.
    epoll: Epoll,
    connections: HashMap<u64, Connection>,
    /// Those that the guest knows.
    ids: HashMap<Key, u64>,
    next_id: u64,
    next_host_port: u32,
    /// Connections that may have something for the guest, each once, in turn.
    ready: VecDeque<u64>,
    /// Connections that are to be refused, and the type in question.
    resets: VecDeque<(Key, u16)>,
}

impl Muxer {
    pub fn new(guest_cid: u64, ports: Ports) -> io::Result<Self> {
        Ok(Self {
            guest_cid,
            ports,
            epoll: Epoll::new()?,
            connections: HashMap::new(),
            ids: HashMap::new(),
            next_id: 0,
            next_host_port: HOST_PORT_FIRST,
            ready: VecDeque::new(),
            resets: VecDeque::new(),
        })
    }

    pub fn guest_cid(&self) -> u64 {
        self.guest_cid
    }

    /// Readable when [`Self::poll`] has something to do.
    pub fn epoll(&self) -> &impl AsRawFd {
        &self.epoll
    }

    /// Forgets all connections; the hosts' ends see their streams close.
    pub fn clear(&mut self) {
        self.connections.clear();
        self.ids.clear();
        self.ready.clear();
        self.resets.clear();
    }

    /// Looks at streams that have become ready.
    pub fn poll(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::default(); EVENTS_MAX];
        let count = match self.epoll.wait(0, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            result => result?,
        };
        for event in events.iter().take(count) {
            let id = event.data();
            if let Some(connection) = self.connections.get_mut(&id) {
                let fate = connection.wake(event.event_set());
                self.settle(id, fate);
            }
        }
        Ok(())
    }

    /// A packet of the guest.
    pub fn receive<B: BitmapSlice>(
        &mut self,
        header: &Header,
        data: Option<&VolatileSlice<'_, B>>,
    ) {
        // Nobody else is reachable here, and nobody else can have sent it.
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            return;
        }
        let key = Key {
            host_port: header.dst_port,
            guest_port: header.src_port,
        };
        if header.type_ != TYPE_STREAM {
            if header.op != OP_RST {
                self.refuse(key, header.type_);
            }
            return;
        }
        let known = self.ids.get(&key).copied();
        let connection = known.and_then(|id| Some((id, self.connections.get_mut(&id)?)));
        match (connection, header.op) {
            (Some((id, connection)), OP_RST) => {
                let fate = connection.orphan();
                self.settle(id, fate);
            }
            (Some((id, connection)), _) => {
                let fate = connection.receive(header, data);
                self.settle(id, fate);
            }
            (None, OP_REQUEST) => self.open(key, header),
            (None, OP_RST) => {}
            (None, _) => self.refuse(key, TYPE_STREAM),
        }
    }

    /// The host wants to talk to a port of the guest.
    pub fn connect(&mut self, guest_port: u32, stream: UnixStream) {
        if !self.has_room() {
            return;
        }
        let Some(host_port) = self.free_host_port(guest_port) else {
            return;
        };
        let key = Key {
            host_port,
            guest_port,
        };
        self.insert(Connection::requested(key, stream));
    }

    /// The guest wants to talk to a port of the host.
    fn open(&mut self, key: Key, request: &Header) {
        let stream = self.has_room().then(|| self.ports.open(key.host_port));
        match stream.flatten() {
            Some(stream) => self.insert(Connection::accepted(key, stream, request)),
            None => self.refuse(key, TYPE_STREAM),
        }
    }

    fn insert(&mut self, connection: Connection) {
        let id = self.next_id;
        // Does not wrap in the life of a machine.
        self.next_id += 1;
        let key = connection.key;
        let interest =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(interest, id);
        let fd = connection.stream.as_raw_fd();
        if let Err(error) = self.epoll.ctl(ControlOperation::Add, fd, event) {
            log::warn!("vsock: epoll: {error}");
            return self.refuse(key, TYPE_STREAM);
        }
        self.connections.insert(id, connection);
        self.ids.insert(key, id);
        self.settle(id, Fate::Keep);
    }

    /// Whether there is room for one more, if need be in place of one that the
    /// host is through with.
    fn has_room(&mut self) -> bool {
        if self.connections.len() < CONNECTIONS_MAX {
            return true;
        }
        let closing = self.connections.iter().find(|(_, c)| c.is_closing());
        let Some(id) = closing.map(|(&id, _)| id) else {
            return false;
        };
        self.settle(id, Fate::Reset);
        true
    }

    fn free_host_port(&mut self, guest_port: u32) -> Option<u32> {
        for _ in 0..=CONNECTIONS_MAX + self.ports.len() {
            let host_port = self.next_host_port;
            self.next_host_port = host_port.wrapping_add(1).max(HOST_PORT_FIRST);
            let key = Key {
                host_port,
                guest_port,
            };
            if !self.ids.contains_key(&key) && !self.ports.contains(host_port) {
                return Some(host_port);
            }
        }
        None
    }

    /// Does what has become due for a connection after something happened to it.
    fn settle(&mut self, id: u64, fate: Fate) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let key = connection.key;
        if fate != Fate::Keep || connection.is_orphaned() {
            // The guest may have a new connection by that name already.
            if self.ids.get(&key) == Some(&id) {
                self.ids.remove(&key);
            }
        }
        if fate == Fate::Keep {
            if connection.has_packet() && !connection.queued {
                connection.queued = true;
                self.ready.push_back(id);
            }
            return;
        }
        if connection.queued {
            self.ready.retain(|&queued| queued != id);
        }
        // Closes the stream, which takes it out of the epoll.
        self.connections.remove(&id);
        if fate == Fate::Reset {
            self.refuse(key, TYPE_STREAM);
        }
    }

    fn refuse(&mut self, key: Key, type_: u16) {
        if self.resets.len() < RESETS_MAX {
            self.resets.push_back((key, type_));
        }
    }

    /// Whether there may be packets for the guest.
    pub fn has_packets(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Puts the next packet for the guest into `packet`, one connection after the
    /// other; returns its payload's length, or none if there is nothing to send.
    pub fn fill<B: BitmapSlice>(&mut self, packet: &mut VsockPacket<'_, B>) -> Option<u32> {
        if let Some((key, type_)) = self.resets.pop_front() {
            let header = reset_header(key, type_, self.guest_cid);
            // Cannot fail: the length is right.
            packet.set_header_from_raw(&header.to_bytes()).ok()?;
            return Some(0);
        }
        while let Some(id) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            connection.queued = false;
            let filled = connection.fill(packet, self.guest_cid);
            self.settle(id, Fate::Keep);
            if filled.is_some() {
                return filled;
            }
        }
        None
    }

    #[cfg(test)]
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.connections.len(), self.ready.len(), self.resets.len())
    }
}
