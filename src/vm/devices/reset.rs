//! The keyboard controller, as far as Linux's `reboot=k` needs it: command 0xfe
//! to port 0x64 pulls the reset line.

use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::{I8042Device, Trigger};

use crate::bus::BusDevice;
use crate::ending::{Ending, Outcome};

/// First port.
pub const RESET_PORT: u64 = 0x60;
/// Ports 0x60 to 0x64.
pub const RESET_PORTS: u64 = 5;

struct PullReset(Arc<Outcome>);

impl Trigger for PullReset {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.end(Ending::Reset);
        Ok(())
    }
}

/// The controller; a reset is an [`Ending::Reset`].
pub struct Reset(Mutex<I8042Device<PullReset>>);

impl Reset {
    /// The device.
    pub fn new(outcome: Arc<Outcome>) -> Self {
        Self(Mutex::new(I8042Device::new(PullReset(outcome))))
    }
}

impl BusDevice for Reset {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let [byte] = data {
            let mut device = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *byte = device.read(offset as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let [byte] = data {
            let mut device = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Ok(()) = device.write(offset as u8, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_ends_the_machine() {
        let outcome = Arc::new(Outcome::new().unwrap());
        let device = Reset::new(outcome.clone());
        device.write(4, &[0x20]);
        device.write(0, &[0xfe]);
        device.write(4, &[0xfe, 0]);
        assert_eq!(outcome.ending(), None);
        device.write(4, &[0xfe]);
        assert_eq!(outcome.ending(), Some(&Ending::Reset));
    }
}
