//! One connection between a port of the guest and a stream of the host.
//!
//! ```text
//! guest REQUEST ------------------------> Established
//! host connect --> Requested --RESPONSE-> Established --RST, data left--> Orphaned
//!                      |                      |                               |
//!                     RST          RST, both ends done, violation         delivered
//!                      +------------> gone <--+-------------------------------+
//! ```
//! Half-closes are passed on in both directions: SHUTDOWN with the SEND flag from
//! the guest becomes shutdown(SHUT_WR), with RECEIVE shutdown(SHUT_RD); end of
//! file on the stream becomes SHUTDOWN with SEND, and a host that takes no more
//! becomes SHUTDOWN with RECEIVE.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use virtio_vsock::packet::VsockPacket;
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;
use vmm_sys_util::epoll::EventSet;

use super::to_guest::ToGuest;
use super::to_host::{ToHost, WINDOW};
use super::wire::{
    HOST_CID, Header, Key, OP_CREDIT_REQUEST, OP_CREDIT_UPDATE, OP_REQUEST, OP_RESPONSE, OP_RST,
    OP_RW, OP_SHUTDOWN, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Keep,
    /// It is over, and the guest knows.
    Drop,
    /// It is over, and the guest gets a RST.
    Reset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The host asked; the guest has not answered.
    Requested,
    Established,
    /// The guest has forgotten it, but the stream still has to take data.
    Orphaned,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub key: Key,
    pub stream: UnixStream,
    /// Stands in the muxer's list of those that may have something for the guest.
    pub queued: bool,
    phase: Phase,
    /// REQUEST or RESPONSE, until it was sent.
    opening: Option<u16>,
    to_guest: ToGuest,
    to_host: ToHost,
    /// Flags of the SHUTDOWNs that were sent.
    shutdown_sent: u32,
    /// The host has closed its end entirely.
    host_gone: bool,
}

impl Connection {
    /// The guest asked for it with `request`, and gets it.
    pub fn accepted(key: Key, stream: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(key, stream, Phase::Established, OP_RESPONSE);
        connection
            .to_guest
            .take_credit(request.buf_alloc, request.fwd_cnt);
        connection
    }

    /// The host asks for it.
    pub fn requested(key: Key, stream: UnixStream) -> Self {
        Self::new(key, stream, Phase::Requested, OP_REQUEST)
    }

    fn new(key: Key, stream: UnixStream, phase: Phase, opening: u16) -> Self {
        Self {
            key,
            stream,
            queued: false,
            phase,
            opening: Some(opening),
            to_guest: ToGuest::default(),
            to_host: ToHost::default(),
            shutdown_sent: 0,
            host_gone: false,
        }
    }

    /// A packet of this connection, not a RST.
    pub fn receive<B: BitmapSlice>(
        &mut self,
        header: &Header,
        data: Option<&VolatileSlice<'_, B>>,
    ) -> Fate {
        self.to_guest.take_credit(header.buf_alloc, header.fwd_cnt);
        if self.phase == Phase::Requested {
            let answered = header.op == OP_RESPONSE && self.opening.is_none();
            if !answered {
                return Fate::Reset;
            }
            self.phase = Phase::Established;
            return Fate::Keep;
        }
        match (header.op, data) {
            (OP_RW, None) | (OP_CREDIT_UPDATE, _) => {}
            (OP_RW, Some(data)) => {
                if self.to_host.accept(&self.stream, data).is_err() {
                    return Fate::Reset;
                }
            }
            (OP_CREDIT_REQUEST, _) => self.to_host.ask(),
            (OP_SHUTDOWN, _) => self.shut_down(header.flags),
            _ => return Fate::Reset,
        }
        self.fate()
    }

    /// The guest has sent RST. What it sent before still reaches the host: Linux
    /// gives up a closed socket after some seconds, however slow the reader.
    pub fn orphan(&mut self) -> Fate {
        if self.phase == Phase::Requested {
            return Fate::Drop;
        }
        self.phase = Phase::Orphaned;
        self.opening = None;
        self.shut_down(SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
        self.fate()
    }

    fn shut_down(&mut self, flags: u32) {
        if flags & SHUTDOWN_SEND != 0 {
            self.to_host.finish(&self.stream);
        }
        if flags & SHUTDOWN_RECEIVE != 0 && !self.to_guest.is_deaf() {
            self.to_guest.deafen();
            // Fails only when the other end is gone, which is the same to us.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
    }

    /// The stream is ready.
    pub fn wake(&mut self, events: EventSet) -> Fate {
        let gone = EventSet::HANG_UP | EventSet::ERROR;
        self.host_gone |= events.intersects(gone);
        if events.intersects(gone | EventSet::IN | EventSet::READ_HANG_UP) {
            self.to_guest
                .wake(events.intersects(gone | EventSet::READ_HANG_UP));
        }
        if events.contains(EventSet::OUT) {
            self.to_host.flush(&self.stream);
        }
        self.note_host_gone();
        self.fate()
    }

    /// A host that is gone takes nothing more; what it had written comes first.
    fn note_host_gone(&mut self) {
        let nothing_left = self.to_guest.is_ended() || self.to_guest.is_deaf();
        if self.host_gone && nothing_left {
            self.to_host.give_up();
        }
    }

    /// What should become of it now.
    fn fate(&self) -> Fate {
        let delivered = self.to_host.is_complete();
        match self.phase {
            Phase::Orphaned if delivered => Fate::Drop,
            Phase::Established if delivered && self.to_guest.is_deaf() => Fate::Reset,
            _ => Fate::Keep,
        }
    }

    /// Whether the guest no longer knows it.
    pub fn is_orphaned(&self) -> bool {
        self.phase == Phase::Orphaned
    }

    /// Whether the host is through with it and the guest was told: the first to go
    /// when there are too many.
    pub fn is_closing(&self) -> bool {
        self.shutdown_sent == SHUTDOWN_RECEIVE | SHUTDOWN_SEND
    }

    /// Whether there is something to send to the guest.
    pub fn has_packet(&self) -> bool {
        self.opening.is_some()
            || self.phase == Phase::Established
                && (self.to_guest.can_read()
                    || self.shutdown_owed() != 0
                    || self.to_host.credit_owed())
    }

    /// Puts the next packet for the guest into `packet`; returns its payload's
    /// length, or none if there is nothing to send after all.
    pub fn fill<B: BitmapSlice>(
        &mut self,
        packet: &mut VsockPacket<'_, B>,
        guest_cid: u64,
    ) -> Option<u32> {
        let (op, len) = self.next(packet.data_slice()?)?;
        let flags = if op == OP_SHUTDOWN {
            self.shutdown_owed()
        } else {
            0
        };
        self.shutdown_sent |= flags;
        let header = Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            len,
            type_: TYPE_STREAM,
            op,
            flags,
            buf_alloc: WINDOW,
            fwd_cnt: self.to_host.announce(),
        };
        // Cannot fail: the length is right.
        packet.set_header_from_raw(&header.to_bytes()).ok()?;
        Some(len)
    }

    /// Operation and payload length of the next packet.
    fn next<B: BitmapSlice>(&mut self, data: &VolatileSlice<'_, B>) -> Option<(u16, u32)> {
        if let Some(op) = self.opening.take() {
            return Some((op, 0));
        }
        if self.phase != Phase::Established {
            return None;
        }
        let len = self.to_guest.read(&self.stream, data);
        if len > 0 {
            return Some((OP_RW, len));
        }
        self.note_host_gone();
        if self.shutdown_owed() != 0 {
            return Some((OP_SHUTDOWN, 0));
        }
        self.to_host.credit_owed().then_some((OP_CREDIT_UPDATE, 0))
    }

    /// Flags of the SHUTDOWN that the guest should get.
    fn shutdown_owed(&self) -> u32 {
        let mut flags = 0;
        if self.to_guest.is_ended() || self.host_gone && self.to_guest.is_deaf() {
            flags |= SHUTDOWN_SEND;
        }
        if self.to_host.is_broken() {
            flags |= SHUTDOWN_RECEIVE;
        }
        flags & !self.shutdown_sent
    }
}

/// RST for a connection that there is not.
pub(super) fn reset_header(key: Key, type_: u16, guest_cid: u64) -> Header {
    Header {
        src_cid: HOST_CID,
        dst_cid: guest_cid,
        src_port: key.host_port,
        dst_port: key.guest_port,
        type_,
        op: OP_RST,
        ..Header::default()
    }
}
