//! A guest's driver for the device, with the device's event loop turned by hand.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use event_manager::{
    EventManager, EventOps, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::super::interrupt::Interrupt;
use super::super::super::testing::{Buffer, GuestQueue, WRITE, active, memory};
use super::super::wire::*;
use super::super::*;
use crate::spec::HostPort;

pub const GUEST_CID: u64 = 3;
/// Port of the host in most tests.
pub const PORT: u32 = 1024;
/// Port of the guest in most tests.
pub const OWN_PORT: u32 = 5000;
/// What the guest announces as its buffer.
pub const GUEST_WINDOW: u32 = 64 * 1024;
pub const RAM_LEN: u64 = 0x40_0000;
/// Payload room of each receive buffer, as Linux has it.
pub const RX_DATA: u32 = 4096;

const RX_BUFFERS: u64 = 0x10_0000;
const TX_BUFFERS: u64 = 0x20_0000;
const TX_SLOT: u64 = 0x1_1000;
const TX_SLOTS: u64 = 16;

pub struct OnLoop(pub Vsock);

impl MutEventSubscriber for OnLoop {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        self.0.own_event(events, ops).unwrap();
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.0.register(ops).unwrap();
    }
}

pub struct Guest {
    pub memory: GuestMemoryMmap,
    pub rx: GuestQueue,
    pub tx: GuestQueue,
    pub events: GuestQueue,
    pub handle: VsockHandle,
    pub interrupt: Arc<Interrupt>,
    manager: EventManager<OnLoop>,
    id: SubscriberId,
    tx_slot: u64,
}

impl Guest {
    /// A device with these ports, active, and all receive buffers posted.
    pub fn new(host_ports: Vec<(u32, HostPort)>) -> Self {
        let mut guest = Self::without_buffers(host_ports);
        guest.post(64);
        guest
    }

    pub fn without_buffers(host_ports: Vec<(u32, HostPort)>) -> Self {
        let mut guest = Self::inactive(host_ports);
        guest.activate();
        guest
    }

    pub fn inactive(host_ports: Vec<(u32, HostPort)>) -> Self {
        let guest_cid = GUEST_CID;
        let spec = VsockSpec {
            guest_cid,
            host_ports,
        };
        let (vsock, handle) = Vsock::new(spec).unwrap();
        let mut manager = EventManager::new().unwrap();
        let id = manager.add_subscriber(OnLoop(vsock));
        let memory = memory(RAM_LEN as usize);
        Self {
            rx: GuestQueue::new(&memory, 0x1000, QUEUE_SIZES[0]),
            tx: GuestQueue::new(&memory, 0x3000, QUEUE_SIZES[1]),
            events: GuestQueue::new(&memory, 0x5000, QUEUE_SIZES[2]),
            memory,
            handle,
            interrupt: Arc::new(Interrupt::new().unwrap()),
            manager,
            id,
            tx_slot: 0,
        }
    }

    pub fn activate(&mut self) {
        let (active, interrupt) = active(&self.memory, &[&self.rx, &self.tx, &self.events]);
        self.interrupt = interrupt;
        self.vsock().activate(active).unwrap();
    }

    /// Resets the device and sets its queues up again, empty.
    pub fn restart(&mut self) {
        self.vsock().reset();
        self.rx = GuestQueue::new(&self.memory, 0x1000, QUEUE_SIZES[0]);
        self.tx = GuestQueue::new(&self.memory, 0x3000, QUEUE_SIZES[1]);
        self.activate();
    }

    pub fn vsock(&mut self) -> &mut Vsock {
        &mut self.manager.subscriber_mut(self.id).unwrap().0
    }

    /// Connections, those that wait for their turn, refusals that wait.
    pub fn counts(&mut self) -> (usize, usize, usize) {
        self.vsock().muxer.counts()
    }

    /// Turns the event loop until it would wait; returns how often it woke up.
    pub fn run(&mut self) -> usize {
        let wakes = |guest: &mut Self| guest.manager.run_with_timeout(0).unwrap();
        let mut count = 0;
        while wakes(self) > 0 {
            count += 1;
            assert!(count < 10_000, "busy loop");
        }
        count
    }

    /// Posts that many receive buffers and notifies.
    pub fn post(&mut self, count: usize) {
        for _ in 0..count {
            let slot = self.rx.next_head() / 2;
            let at = RX_BUFFERS + u64::from(slot) * 0x2000;
            self.rx
                .add(&[(at, HEADER_LEN, WRITE), (at + 0x1000, RX_DATA, WRITE)]);
        }
        self.vsock().queue_event(RX).unwrap();
    }

    /// Packets that have arrived; their buffers are not posted again.
    pub fn arrived(&mut self) -> Vec<(Header, Vec<u8>)> {
        self.run();
        let used = self.rx.drain_used();
        used.iter()
            .map(|&(head, len)| self.read_packet(head, len))
            .collect()
    }

    fn read_packet(&self, head: u16, len: u32) -> (Header, Vec<u8>) {
        let at = RX_BUFFERS + u64::from(head / 2) * 0x2000;
        let mut bytes = [0; HEADER_LEN as usize];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        let header = parse(&bytes);
        assert_eq!(len, HEADER_LEN + header.len);
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, GUEST_CID));
        let mut data = vec![0; header.len as usize];
        self.memory
            .read_slice(&mut data, GuestAddress(at + 0x1000))
            .unwrap();
        (header, data)
    }

    /// Packets that have arrived; their buffers are posted again.
    pub fn receive(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut packets = Vec::new();
        loop {
            let more = self.arrived();
            if more.is_empty() {
                return packets;
            }
            let count = more.len();
            packets.extend(more);
            self.post(count);
        }
    }

    /// Operations of the packets that have arrived.
    pub fn receive_ops(&mut self) -> Vec<u16> {
        self.receive().iter().map(|(header, _)| header.op).collect()
    }

    /// Puts a packet into the transmit queue.
    pub fn queue_packet(&mut self, header: Header, data: &[u8]) {
        let at = TX_BUFFERS + self.tx_slot * TX_SLOT;
        self.tx_slot = (self.tx_slot + 1) % TX_SLOTS;
        self.memory
            .write_slice(&header.to_bytes(), GuestAddress(at))
            .unwrap();
        self.memory
            .write_slice(data, GuestAddress(at + 0x1000))
            .unwrap();
        let mut chain: Vec<Buffer> = vec![(at, HEADER_LEN, 0)];
        if !data.is_empty() {
            chain.push((at + 0x1000, data.len() as u32, 0));
        }
        self.tx.add(&chain);
    }

    /// Notifies of the transmit queue; all of it is taken.
    pub fn kick(&mut self) {
        self.vsock().queue_event(TX).unwrap();
        self.run();
        self.tx.drain_used();
    }

    pub fn send_packet(&mut self, header: Header, data: &[u8]) {
        self.queue_packet(header, data);
        self.kick();
    }

    /// Sends a packet of the usual connection.
    pub fn send(&mut self, op: u16) {
        self.send_packet(header(op), &[]);
    }

    pub fn send_data(&mut self, data: &[u8]) {
        self.send_packet(data_header(data.len()), data);
    }

    pub fn shut_down(&mut self, flags: u32) {
        let header = Header {
            flags,
            ..header(OP_SHUTDOWN)
        };
        self.send_packet(header, &[]);
    }

    /// Connects, and checks that it is accepted.
    pub fn connect(&mut self) {
        self.send(OP_REQUEST);
        assert_eq!(self.receive_ops(), [OP_RESPONSE]);
    }
}

/// A header of the usual connection, with plenty of credit.
pub fn header(op: u16) -> Header {
    Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port: OWN_PORT,
        dst_port: PORT,
        type_: TYPE_STREAM,
        op,
        buf_alloc: GUEST_WINDOW,
        ..Header::default()
    }
}

pub fn data_header(len: usize) -> Header {
    Header {
        len: len as u32,
        ..header(OP_RW)
    }
}

fn parse(bytes: &[u8]) -> Header {
    let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    Header {
        src_cid: u64_at(0),
        dst_cid: u64_at(8),
        src_port: u32_at(16),
        dst_port: u32_at(20),
        len: u32_at(24),
        type_: u16_at(28),
        op: u16_at(30),
        flags: u32_at(32),
        buf_alloc: u32_at(36),
        fwd_cnt: u32_at(40),
    }
}

/// Bytes that tell where in a stream they belong.
pub fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len)
        .map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8)
        .collect()
}

/// A guest that has connected to a stream of the host, and the host's end.
pub fn connected() -> (Guest, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut guest = Guest::new(vec![(PORT, HostPort::Once(ours))]);
    guest.connect();
    (guest, theirs)
}

pub fn read_all(stream: &mut UnixStream) -> Vec<u8> {
    let mut data = Vec::new();
    match stream.read_to_end(&mut data) {
        Ok(_) => data,
        Err(error) if error.kind() == ErrorKind::WouldBlock => data,
        Err(error) => panic!("{error}"),
    }
}

pub fn at_end(stream: &mut UnixStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(0))
}

pub fn shutdown_flags(packets: &[(Header, Vec<u8>)]) -> u32 {
    let shutdowns = packets
        .iter()
        .filter(|(header, _)| header.op == OP_SHUTDOWN);
    shutdowns.fold(0, |flags, (header, _)| flags | header.flags)
}
