//! Events of the transport (virtio 1.2, 5.10.6.7), of which there is one.

use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

/// struct virtio_vsock_event: le32 id, VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// How [`transport_reset`] ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sent {
    /// The guest has the event. Otherwise call again when it notifies.
    pub done: bool,
    /// It wants an interrupt.
    pub notify: bool,
}

/// Puts the event into the guest's next buffer that takes it.
pub(super) fn transport_reset(queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<Sent, Error> {
    let mut done = false;
    let mut used = false;
    // Not without end, for a guest that goes on adding useless ones: it notifies.
    for _ in 0..=queue.size() {
        let Some(mut chain) = queue.iter(memory)?.next() else {
            if queue.enable_notification(memory)? {
                continue;
            }
            break;
        };
        let head = chain.head_index();
        let buffer = chain.next().filter(|buffer| {
            buffer.is_write_only() && buffer.len() as usize >= TRANSPORT_RESET.len()
        });
        done = buffer
            .is_some_and(|buffer| memory.write_slice(&TRANSPORT_RESET, buffer.addr()).is_ok());
        let written = if done { TRANSPORT_RESET.len() } else { 0 };
        queue.add_used(memory, head, written as u32)?;
        used = true;
        if done {
            break;
        }
    }
    Ok(Sent {
        done,
        notify: used && queue.needs_notification(memory)?,
    })
}
