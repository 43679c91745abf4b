//! Virtio devices of a machine: one MMIO window and interrupt line each, in a
//! fixed order, and the event loops they run on.

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use crate::boot::MmioDevice;
use crate::bus::{Bus, Overlap};
use crate::ending::{Ending, Outcome};
use crate::event_loop::{EventLoop, LoopError, Subscriber};
use crate::kvm::{KvmError, Vm};
use crate::memory::layout::{GSI_LAST, MMIO_START, MMIO_WINDOW, VIRTIO_GSI_FIRST};
use crate::spec::MachineSpec;
use crate::virtio::blk::{Blk, BlkError};
use crate::virtio::console::Console;
use crate::virtio::device::{Device, DeviceError};
use crate::virtio::fs::{Fs, FsError};
use crate::virtio::mmio::{MmioTransport, StateError, TransportError, TransportState};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{Vsock, VsockHandle};

/// Offset of QueueNotify in a window, virtio 1.2 table 4.1.
const QUEUE_NOTIFY: u64 = 0x50;

/// A virtio device could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SlotsError {
    /// Every interrupt line is taken.
    #[error("more than {max} virtio devices")]
    TooMany {
        /// How many there can be.
        max: u32,
    },
    /// The device itself.
    #[error("virtio device")]
    Device(#[from] DeviceError),
    /// The file system device.
    #[error("virtio-fs")]
    Fs(#[from] FsError),
    /// A block device.
    #[error("virtio-blk")]
    Blk(#[from] BlkError),
    /// Its transport.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// KVM refused to connect it.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Other devices were saved.
    #[error("{saved} virtio devices were saved, and {asked} are there")]
    Count {
        /// In the saved state.
        saved: usize,
        /// In the spec.
        asked: usize,
    },
    /// A device cannot go on from what was saved.
    #[error(transparent)]
    State(#[from] StateError),
    /// Windows overlap.
    #[error(transparent)]
    Bus(#[from] Overlap),
}

/// The devices of a machine. Dropping it stops their event loops.
pub struct Devices {
    // Dropped first.
    loops: Vec<EventLoop>,
    /// Loops that are still to be started.
    waiting: Vec<NamedLoop>,
    transports: Vec<Arc<MmioTransport>>,
}

/// Name of an event loop, and what runs on it.
type NamedLoop = (&'static str, Vec<Subscriber>);

impl Devices {
    /// Starts the event loops. One that dies ends the machine. What the guest asks
    /// for before waits in the eventfds, so vCPUs may run already.
    pub fn start(&mut self, outcome: &Arc<Outcome>) -> Result<(), LoopError> {
        for (name, subscribers) in self.waiting.drain(..) {
            let outcome = outcome.clone();
            let on_death = move |e: LoopError| outcome.end(Ending::Failed(e.to_string()));
            self.loops
                .push(EventLoop::spawn(name, subscribers, on_death)?);
        }
        Ok(())
    }

    /// Stops the event loops, once no vCPU runs any more, and tells the state of all
    /// devices in the order of their windows.
    pub fn freeze(&mut self) -> Result<Vec<TransportState>, Unsaved> {
        self.loops.clear();
        let freeze = |transport: &Arc<MmioTransport>| {
            transport.freeze().map_err(|why| Unsaved {
                device: transport.device_name(),
                why,
            })
        };
        self.transports.iter().map(freeze).collect()
    }
}

/// A device that cannot be saved.
#[derive(Debug)]
pub struct Unsaved {
    /// Its name.
    pub device: &'static str,
    /// What it holds.
    pub why: &'static str,
}

/// Devices added so far.
#[derive(Default)]
pub struct Slots {
    transports: Vec<Arc<MmioTransport>>,
    windows: Vec<MmioDevice>,
    loops: Vec<NamedLoop>,
}

impl Slots {
    /// Adds what `spec` asks for, and takes it out of `spec`. What may wait for
    /// the host's disks has a loop of its own.
    pub fn add_devices(
        &mut self,
        vm: &Vm,
        memory: &GuestMemoryMmap,
        spec: &mut MachineSpec,
    ) -> Result<Option<VsockHandle>, SlotsError> {
        const IO: &str = "io";
        const FILES: &str = "files";
        let mut handle = None;
        let mut add = |event_loop, device| self.add(vm, memory, event_loop, device);
        if let Some(vsock) = spec.vsock.take() {
            let (device, vsock_handle) = Vsock::new(vsock)?;
            add(IO, Box::new(device))?;
            handle = Some(vsock_handle);
        }
        if let Some(fs) = spec.fs.take() {
            add(FILES, Box::new(Fs::new(fs)?))?;
        }
        for (index, drive) in spec.drives.drain(..).enumerate() {
            add(FILES, Box::new(Blk::new(index, drive)?))?;
        }
        if spec.rng {
            add(IO, Box::new(Rng::new()?))?;
        }
        if let Some(sink) = spec.console.take() {
            add(IO, Box::new(Console::new(sink)?))?;
        }
        Ok(handle)
    }

    fn add(
        &mut self,
        vm: &Vm,
        memory: &GuestMemoryMmap,
        event_loop: &'static str,
        device: Box<dyn Device>,
    ) -> Result<(), SlotsError> {
        let window = next_window(self.windows.len())?;
        let transport = MmioTransport::new(device, memory.clone())?;
        vm.connect_interrupt(transport.interrupt_eventfd(), window.gsi)?;
        for (queue, event) in (0..).zip(transport.notify_eventfds()) {
            vm.connect_doorbell(event, window.base + QUEUE_NOTIFY, queue)?;
        }
        self.run_on(event_loop, transport.subscriber());
        self.transports.push(Arc::new(transport));
        self.windows.push(window);
        Ok(())
    }

    fn run_on(&mut self, name: &'static str, subscriber: Subscriber) {
        match self.loops.iter_mut().find(|(n, _)| *n == name) {
            Some((_, subscribers)) => subscribers.push(subscriber),
            None => self.loops.push((name, vec![subscriber])),
        }
    }

    /// The windows, as the kernel is to be told.
    pub fn windows(&self) -> &[MmioDevice] {
        &self.windows
    }

    /// Brings each device to its saved state, in the order of their windows. Guest
    /// RAM, vCPUs and interrupt controllers must have been restored.
    pub fn thaw(&self, states: Vec<TransportState>) -> Result<(), SlotsError> {
        if states.len() != self.transports.len() {
            return Err(SlotsError::Count {
                saved: states.len(),
                asked: self.transports.len(),
            });
        }
        for (transport, state) in self.transports.iter().zip(states) {
            transport.thaw(state)?;
        }
        Ok(())
    }

    /// The bus that the devices are on, and the devices themselves.
    pub fn finish(self) -> Result<(Bus, Devices), SlotsError> {
        let mut bus = Bus::default();
        for (transport, window) in self.transports.iter().zip(&self.windows) {
            bus.insert(window.base, MMIO_WINDOW, transport.clone())?;
        }
        let devices = Devices {
            loops: Vec::new(),
            waiting: self.loops,
            transports: self.transports,
        };
        Ok((bus, devices))
    }
}

fn next_window(taken: usize) -> Result<MmioDevice, SlotsError> {
    let max = GSI_LAST - VIRTIO_GSI_FIRST + 1;
    let slot = u32::try_from(taken)
        .ok()
        .filter(|slot| *slot < max)
        .ok_or(SlotsError::TooMany { max })?;
    Ok(MmioDevice {
        base: MMIO_START + u64::from(slot) * MMIO_WINDOW,
        gsi: VIRTIO_GSI_FIRST + slot,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_follow_each_other_until_lines_run_out() {
        assert_eq!(
            next_window(0).unwrap(),
            MmioDevice {
                base: 0xd000_0000,
                gsi: 5
            }
        );
        assert_eq!(
            next_window(18).unwrap(),
            MmioDevice {
                base: 0xd001_2000,
                gsi: 23
            }
        );
        assert!(matches!(
            next_window(19),
            Err(SlotsError::TooMany { max: 19 })
        ));
    }
}
