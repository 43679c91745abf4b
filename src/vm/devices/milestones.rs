//! The port to which our guest kernel writes how far it is (guest/kernel/patches).

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::ending::{Ending, Outcome};
use crate::trace::Timeline;

/// One byte, write-only. Unused on PCs; other hypervisors ignore the write.
pub const MILESTONE_PORT: u64 = 0x764d;

/// Written by the kernel's panic().
const PANIC: u8 = 0xff;

/// Name of each milestone, as the kernel patch numbers them.
const NAMES: [&str; 8] = [
    "kernel: first C code",
    "kernel: start_kernel",
    "kernel: memory set up",
    "kernel: interrupts on",
    "kernel: initcalls begin",
    "kernel: initramfs unpacked",
    "kernel: initcalls done",
    "kernel: init runs",
];

/// Passes milestones on to the timeline, and a panic on to the outcome.
pub struct Milestones {
    timeline: Timeline,
    outcome: Arc<Outcome>,
}

impl Milestones {
    /// The device.
    pub fn new(timeline: Timeline, outcome: Arc<Outcome>) -> Self {
        Self { timeline, outcome }
    }
}

impl BusDevice for Milestones {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}

    fn write(&self, _offset: u64, data: &[u8]) {
        match data {
            [PANIC] => self.outcome.end(Ending::Panicked),
            [n] => {
                if let Some(name) = NAMES.get(usize::from(*n)) {
                    self.timeline.mark(*name);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milestones_are_marked_and_a_panic_ends_the_machine() {
        let timeline = Timeline::new(std::time::Instant::now());
        let outcome = Arc::new(Outcome::new().unwrap());
        let device = Milestones::new(timeline.clone(), outcome.clone());
        device.write(0, &[1]);
        device.write(0, &[200]);
        device.write(0, &[0, 0]);
        assert_eq!(timeline.marks().len(), 1);
        assert_eq!(outcome.ending(), None);
        device.write(0, &[PANIC]);
        assert_eq!(outcome.ending(), Some(&Ending::Panicked));
    }
}
