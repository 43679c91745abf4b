//! Address spaces: which device answers a port or memory access of the guest.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A device that the guest reaches by loads and stores or by port I/O. Called
/// from vCPU threads, several at a time.
pub trait BusDevice: Send + Sync {
    /// The guest reads `data.len()` bytes (1, 2, 4 or 8) at `offset` from the
    /// device's base. `data` comes in zeroed.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// The guest writes `data` (1, 2, 4 or 8 bytes) at `offset` from the
    /// device's base.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Two devices were given addresses that overlap.
#[derive(Debug, thiserror::Error)]
#[error("device at {base:#x} (length {len:#x}) overlaps another")]
pub struct Overlap {
    base: u64,
    len: u64,
}

/// Devices by address, immutable once the machine runs. Accesses that no device
/// claims read as ones and write nowhere, as on a PC's bus.
#[derive(Default)]
pub struct Bus {
    ranges: BTreeMap<u64, (u64, Arc<dyn BusDevice>)>,
}

impl Bus {
    /// Puts `device` at `base..base + len`.
    pub fn insert(
        &mut self,
        base: u64,
        len: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), Overlap> {
        let end = base.checked_add(len).ok_or(Overlap { base, len })?;
        let before = self.ranges.range(..end).next_back();
        if before.is_some_and(|(&b, (l, _))| b + l > base) {
            return Err(Overlap { base, len });
        }
        self.ranges.insert(base, (len, device));
        Ok(())
    }

    /// Passes a read on; `data` is zeroed first.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((offset, device)) => {
                data.fill(0);
                device.read(offset, data);
            }
            None => data.fill(0xff),
        }
    }

    /// Passes a write on.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }

    /// Whether a device claims the 4 bytes at `address`.
    pub fn has(&self, address: u64) -> bool {
        self.find(address, 4).is_some()
    }

    /// The device that holds the whole access, and the offset in it.
    fn find(&self, address: u64, len: usize) -> Option<(u64, &dyn BusDevice)> {
        let (base, (range, device)) = self.ranges.range(..=address).next_back()?;
        let offset = address - base;
        let fits = offset.checked_add(len as u64)? <= *range;
        fits.then_some((offset, device.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;

    impl BusDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8 + 1);
        }
        fn write(&self, _offset: u64, _data: &[u8]) {}
    }

    fn bus() -> Bus {
        let mut bus = Bus::default();
        bus.insert(0x100, 0x10, Arc::new(Echo)).unwrap();
        bus
    }

    #[test]
    fn access_inside_reaches_the_device() {
        let mut data = [9; 4];
        bus().read(0x104, &mut data);
        assert_eq!(data, [5; 4]);
    }

    #[test]
    fn access_outside_or_across_the_end_reads_ones() {
        for address in [0xff, 0x110, 0x10e, u64::MAX] {
            let mut data = [9; 4];
            bus().read(address, &mut data);
            assert_eq!(data, [0xff; 4], "{address:#x}");
        }
    }

    #[test]
    fn overlaps_are_refused() {
        for (base, len) in [
            (0x100, 1),
            (0xf8, 0x10),
            (0x10f, 8),
            (0xf0, 0x100),
            (u64::MAX, 2),
        ] {
            assert!(
                bus().insert(base, len, Arc::new(Echo)).is_err(),
                "{base:#x}"
            );
        }
        assert!(bus().insert(0x110, 8, Arc::new(Echo)).is_ok());
        assert!(bus().insert(0xf0, 0x10, Arc::new(Echo)).is_ok());
    }
}
