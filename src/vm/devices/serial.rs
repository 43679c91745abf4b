//! 16550 UART at 0x3f8, output only: for debugging before virtio works.

use std::fs::File;
use std::sync::{Mutex, PoisonError};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;

/// COM1.
pub const SERIAL_PORT: u64 = 0x3f8;
/// Registers.
pub const SERIAL_PORTS: u64 = 8;

struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = std::io::Error;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.write(1)
    }
}

/// The UART; what the guest sends is written to a file.
pub struct SerialConsole(Mutex<Serial<Interrupt, NoEvents, File>>);

impl SerialConsole {
    /// The device; `interrupt` is its line.
    pub fn new(interrupt: EventFd, out: File) -> Self {
        Self(Mutex::new(Serial::new(Interrupt(interrupt), out)))
    }
}

impl BusDevice for SerialConsole {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let [byte] = data {
            *byte = self
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .read(offset as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let [byte] = data {
            let mut serial = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // A file that takes no more loses debugging output, nothing else.
            let _ = serial.write(offset as u8, *byte);
        }
    }
}
