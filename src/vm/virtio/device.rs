//! What the transport asks of every virtio device.

use std::sync::Arc;

use event_manager::{EventOps, Events};
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

use super::interrupt::Interrupt;
use super::state::DeviceState;

/// Why a device cannot go on. The transport then sets DEVICE_NEEDS_RESET
/// (virtio 1.2, 2.1.1) and no longer calls it until the driver resets it.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver broke the rules of the queue or of the device.
    #[error("{0}")]
    Driver(String),
    /// A queue cannot be walked.
    #[error("queue {index}")]
    Queue {
        /// Which queue.
        index: usize,
        /// Why.
        source: virtio_queue::Error,
    },
    /// A saved state that this device cannot be in.
    #[error("the saved state is of another device")]
    State,
    /// The host refused something the device needs.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// What a device gets when the driver sets DRIVER_OK. Nothing in it changes
/// until the next reset: the transport ignores writes to queue registers then.
pub struct Active {
    /// Feature bits that both sides agreed on.
    pub features: u64,
    /// Guest RAM.
    pub memory: GuestMemoryMmap,
    /// One per entry of [`Device::queue_max_sizes`]; a queue that the driver left
    /// alone is not ready. Rings were checked to lie in guest RAM.
    pub queues: Vec<Queue>,
    /// Raises the device's interrupt.
    pub interrupt: Arc<Interrupt>,
}

/// A virtio device. It is called from its event loop's thread, except for
/// activation, reset and config access, which come from a vCPU's thread under
/// the same lock.
pub trait Device: Send {
    /// Device id, virtio 1.2 section 5.
    fn id(&self) -> u32;

    /// Short name for logs (`vsock`).
    fn name(&self) -> &'static str;

    /// Feature bits offered, without VIRTIO_F_VERSION_1, which the transport adds.
    fn features(&self) -> u64;

    /// Maximal size of each queue, a power of two.
    fn queue_max_sizes(&self) -> &[u16];

    /// Fills `data` from the device's config space at `offset`; what lies behind
    /// its end is left as it is (zero).
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// Writes to the config space. Most devices have nothing to write.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}

    /// The driver is ready.
    fn activate(&mut self, active: Active) -> Result<(), DeviceError>;

    /// The driver resets the device: drop [`Active`], forget all connections.
    fn reset(&mut self);

    /// What [`Self::activate`] gave, until the next reset.
    fn active(&self) -> Option<&Active>;

    /// What there is to save beyond queues and features, for a machine that has
    /// stopped; or what the device holds that cannot be saved.
    fn freeze(&self) -> Result<DeviceState, &'static str>;

    /// Takes over what [`Self::freeze`] gave, in a machine that has not run yet;
    /// [`Self::activate`] follows if the device was active.
    fn thaw(&mut self, state: DeviceState) -> Result<(), DeviceError>;

    /// The driver has notified queue `index`; only called while active.
    fn queue_event(&mut self, index: usize) -> Result<(), DeviceError>;

    /// Registers file descriptors of the device's own, once, when its event
    /// loop starts. `Events::data` below [`OWN_DATA_FIRST`] is the transport's.
    /// After a failure the device is never activated.
    fn register(&mut self, _ops: &mut EventOps) -> Result<(), DeviceError> {
        Ok(())
    }

    /// An event of a file descriptor that the device registered itself. May
    /// come while the device is not active.
    fn own_event(&mut self, _events: Events, _ops: &mut EventOps) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// First `Events::data` value that a device may use for its own descriptors.
pub const OWN_DATA_FIRST: u32 = 64;
