//! One request: a descriptor chain through the FUSE server.

use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::{InHeader, OutHeader};
use fuse_backend_rs::api::server::{MAX_BUFFER_SIZE, Server};
use fuse_backend_rs::transport::{Reader, VirtioFsWriter};
use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryMmap;

use super::share::Share;

/// Most bytes that either half of a chain may have: what INIT grants for data, and
/// a page for headers. The server allocates up to that for names and arguments.
const CHAIN_SIZE_MAX: usize = MAX_BUFFER_SIZE as usize + 4096;

/// Serves one request; returns the number of bytes written into the chain. A chain
/// that is not in guest RAM, or has no room for a reply, is used with nothing
/// written.
pub(super) fn serve(
    server: &Server<Arc<Share>>,
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
) -> u32 {
    let reader = Reader::from_descriptor_chain(memory, chain.clone());
    let (Ok(reader), Ok(writer)) = (reader, VirtioFsWriter::new(memory, chain)) else {
        return 0;
    };
    // Both were made from a copy of their descriptors: from here on their sizes
    // are what is checked.
    let fits =
        reader.available_bytes() <= CHAIN_SIZE_MAX && writer.available_bytes() <= CHAIN_SIZE_MAX;
    let (mut head, reply) = (reader.clone(), writer.clone());
    if !fits {
        return refuse(&mut head, reply, libc::E2BIG);
    }
    match server.handle_message(reader, writer.into(), None, None) {
        Ok(len) => len as u32,
        Err(error) => {
            log::debug!("fs: {error}");
            refuse(&mut head, reply, libc::EINVAL)
        }
    }
}

/// Answers with an error what the server could not make sense of; it has looked at
/// its own copy of the header, this one only tells which request is meant.
fn refuse(head: &mut Reader, mut reply: VirtioFsWriter, code: i32) -> u32 {
    let Ok(request) = head.read_obj::<InHeader>() else {
        return 0;
    };
    let len = size_of::<OutHeader>() as u32;
    let header = OutHeader {
        len,
        error: -code,
        unique: request.unique,
    };
    match reply.write_obj(header) {
        Ok(()) => len,
        Err(_) => 0,
    }
}
