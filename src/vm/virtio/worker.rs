//! The device behind a transport, as its event loop sees it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::device::{Active, Device, DeviceError, OWN_DATA_FIRST};
use super::interrupt::Interrupt;
use super::state::DeviceState;

/// A driver can break its device as often as it likes: that many failures of a
/// device are warnings, the rest is for debugging only.
const WARNINGS_MAX: u32 = 8;

/// Owns the device and calls it when something has happened: on the event loop's
/// thread as a subscriber, on a vCPU's thread for activation, reset and config
/// space.
pub struct Worker {
    device: Box<dyn Device>,
    notify: Arc<[EventFd]>,
    interrupt: Arc<Interrupt>,
    active: bool,
    /// The event loop did not take its descriptors: it will never work.
    deaf: bool,
    failures: u32,
}

impl Worker {
    pub(super) fn new(
        device: Box<dyn Device>,
        notify: Arc<[EventFd]>,
        interrupt: Arc<Interrupt>,
    ) -> Self {
        Self {
            device,
            notify,
            interrupt,
            active: false,
            deaf: false,
            failures: 0,
        }
    }

    /// The driver set DRIVER_OK. On failure DEVICE_NEEDS_RESET is set.
    pub(super) fn activate(&mut self, active: Active) {
        let waiting: Vec<bool> = active
            .queues
            .iter()
            .map(|q| is_waiting(q, &active))
            .collect();
        if self.deaf {
            return self.fail_deaf();
        }
        if let Err(error) = self.device.activate(active) {
            return self.fail(&error);
        }
        self.active = true;
        // A notification that came before DRIVER_OK, or before the machine was
        // frozen, was dropped: look once where there is something.
        for (eventfd, _) in self.notify.iter().zip(waiting).filter(|(_, waits)| *waits) {
            let _ = eventfd.write(1);
        }
    }

    fn fail_deaf(&mut self) {
        self.fail(&DeviceError::Host {
            what: "watching its events",
            source: std::io::Error::other("refused when the event loop started"),
        });
    }

    /// Drops whatever the driver has given to the device.
    pub(super) fn reset(&mut self) {
        self.active = false;
        self.device.reset();
    }

    /// Sets DEVICE_NEEDS_RESET; the device lets go of the queues at once.
    pub(super) fn fail(&mut self, error: &dyn std::error::Error) {
        self.failures = self.failures.saturating_add(1);
        let level = if self.failures <= WARNINGS_MAX {
            log::Level::Warn
        } else {
            log::Level::Debug
        };
        log::log!(
            level,
            "{} needs reset: {}",
            self.device.name(),
            chain(error)
        );
        self.reset();
        self.interrupt.mark_needs_reset();
    }

    /// The device's name, for errors.
    pub(super) fn name(&self) -> &'static str {
        self.device.name()
    }

    /// What is saved of the device, and how far each of its queues is; the latter
    /// only while it is active.
    pub(super) fn freeze(&self) -> Result<(DeviceState, Vec<Position>), &'static str> {
        let queues = self
            .device
            .active()
            .map_or(&[][..], |active| &active.queues);
        let positions = queues.iter().map(Position::of).collect();
        Ok((self.device.freeze()?, positions))
    }

    /// Takes over what [`Self::freeze`] gave; [`Self::activate`] follows if the
    /// device was active.
    pub(super) fn thaw(&mut self, state: DeviceState) -> Result<(), DeviceError> {
        self.device.thaw(state)
    }

    /// Whether the device has its queues.
    pub(super) fn is_active(&self) -> bool {
        self.active
    }

    pub(super) fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.device.read_config(offset, data);
    }

    pub(super) fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.device.write_config(offset, data);
    }

    fn queue_event(&mut self, index: usize) -> Result<(), DeviceError> {
        let Some(eventfd) = self.notify.get(index) else {
            return Ok(());
        };
        // Only resets the counter; empty if somebody else was faster.
        let _ = eventfd.read();
        if self.active {
            self.device.queue_event(index)?;
        }
        Ok(())
    }
}

/// How far the device is in a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Index of the next entry of the available ring.
    pub next_avail: u16,
    /// Index of the next entry of the used ring.
    pub next_used: u16,
}

impl Position {
    fn of(queue: &Queue) -> Self {
        Self {
            next_avail: queue.next_avail(),
            next_used: queue.next_used(),
        }
    }
}

impl MutEventSubscriber for Worker {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let data = events.data();
        let result = if data < OWN_DATA_FIRST {
            self.queue_event(data as usize)
        } else {
            self.device.own_event(events, ops)
        };
        match result {
            Ok(()) => {}
            Err(error) if self.active => self.fail(&error),
            Err(error) => log::warn!("{}: {}", self.device.name(), chain(&error)),
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        for (eventfd, index) in self.notify.iter().zip(0..) {
            if let Err(error) = ops.add(Events::with_data(eventfd, index, EventSet::IN)) {
                log::error!("{}: queue {index}: {error}", self.device.name());
                self.deaf = true;
            }
        }
        if let Err(error) = self.device.register(ops) {
            log::error!("{}: {}", self.device.name(), chain(&error));
            self.deaf = true;
        }
        // The guest may have been faster.
        if self.deaf && self.active {
            self.fail_deaf();
        }
    }
}

/// Whether the driver has added to a queue what the device has not taken. If that
/// cannot be told, the device shall find out.
fn is_waiting(queue: &Queue, active: &Active) -> bool {
    let added = queue.avail_idx(&active.memory, Ordering::Acquire);
    queue.ready() && added.map_or(true, |added| added.0 != queue.next_avail())
}

/// An error and its sources in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
