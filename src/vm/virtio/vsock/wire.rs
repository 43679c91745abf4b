//! Packet headers of virtio-vsock (virtio 1.2, 5.10.6).

use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};
use vm_memory::bitmap::BitmapSlice;

/// Context id of the host.
pub(super) const HOST_CID: u64 = 2;
/// First context id that a guest may have.
pub(super) const GUEST_CID_FIRST: u64 = 3;

/// VIRTIO_VSOCK_TYPE_STREAM, the only type there is here.
pub(super) const TYPE_STREAM: u16 = 1;

pub(super) const OP_REQUEST: u16 = 1;
pub(super) const OP_RESPONSE: u16 = 2;
pub(super) const OP_RST: u16 = 3;
pub(super) const OP_SHUTDOWN: u16 = 4;
pub(super) const OP_RW: u16 = 5;
pub(super) const OP_CREDIT_UPDATE: u16 = 6;
pub(super) const OP_CREDIT_REQUEST: u16 = 7;

/// VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE: the sender takes no more data.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// VIRTIO_VSOCK_SHUTDOWN_F_SEND: the sender sends no more data.
pub(super) const SHUTDOWN_SEND: u32 = 2;

/// Length of a header.
pub(super) const HEADER_LEN: u32 = PKT_HEADER_SIZE as u32;

/// Payload bytes that a packet may have: what Linux takes and sends at most.
pub(super) const PAYLOAD_MAX: u32 = 64 * 1024;

/// A connection as both sides name it. The context ids are always the host's and
/// the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub host_port: u32,
    pub guest_port: u32,
}

/// A header; a copy, so that the guest cannot change it after it was checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub type_: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    /// The header that `packet` was parsed from.
    pub fn of<B: BitmapSlice>(packet: &VsockPacket<'_, B>) -> Self {
        Self {
            src_cid: packet.src_cid(),
            dst_cid: packet.dst_cid(),
            src_port: packet.src_port(),
            dst_port: packet.dst_port(),
            len: packet.len(),
            type_: packet.type_(),
            op: packet.op(),
            flags: packet.flags(),
            buf_alloc: packet.buf_alloc(),
            fwd_cnt: packet.fwd_cnt(),
        }
    }

    /// As it lies in memory: little-endian, without padding.
    pub fn to_bytes(self) -> [u8; PKT_HEADER_SIZE] {
        let mut bytes = [0; PKT_HEADER_SIZE];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.type_.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}
