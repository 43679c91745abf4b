//! `boot_params` of the 64-bit entry (Documentation/x86/boot.rst and zero-page.rst).

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{ByteValued, GuestMemoryMmap};

use super::{BootError, Initramfs, e820, write};
use crate::memory::layout;

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// Boot protocol 2.15, the newest of Linux 6.1.
const PROTOCOL_VERSION: u16 = 0x020f;
/// "Undefined" boot loader.
const LOADER_TYPE: u8 = 0xff;
/// Linux reads what lies behind `hdr` only if it trusts the loader's setup.
const LOADED_HIGH: u8 = 1;
/// SETUP_RNG_SEED of Linux's asm/bootparam.h.
const SETUP_RNG_SEED: u32 = 9;
/// Linux credits its pool in full for 32 bytes.
const SEED_BYTES: usize = 32;

/// Writes `boot_params` to [`layout::BOOT_INFO`] and the setup data it points to.
pub fn write_boot_params(
    memory: &GuestMemoryMmap,
    cmdline_bytes: usize,
    initramfs: Initramfs,
) -> Result<(), BootError> {
    write(memory, "RNG seed", layout::SETUP_DATA, &rng_seed()?)?;
    let params = boot_params_for(&e820::map(memory), cmdline_bytes, initramfs);
    write(memory, "boot_params", layout::BOOT_INFO, params.as_slice())
}

fn boot_params_for(map: &[e820::Range], cmdline_bytes: usize, initramfs: Initramfs) -> boot_params {
    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.version = PROTOCOL_VERSION;
    params.hdr.type_of_loader = LOADER_TYPE;
    params.hdr.loadflags = LOADED_HIGH;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.cmdline_size = cmdline_bytes as u32;
    params.hdr.ramdisk_image = initramfs.address as u32;
    params.hdr.ramdisk_size = initramfs.size as u32;
    params.hdr.setup_data = layout::SETUP_DATA;
    for (entry, range) in params.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry {
            addr: range.start,
            size: range.len,
            type_: range.kind,
        };
    }
    params.e820_entries = map.len() as u8;
    params
}

/// `struct setup_data` with fresh random bytes: the guest's generator is ready
/// at once, and no two guests start alike.
fn rng_seed() -> Result<Vec<u8>, BootError> {
    let mut data = Vec::with_capacity(16 + SEED_BYTES);
    data.extend(0u64.to_le_bytes());
    data.extend(SETUP_RNG_SEED.to_le_bytes());
    data.extend((SEED_BYTES as u32).to_le_bytes());
    let mut seed = [0u8; SEED_BYTES];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty()).map_err(|e| {
        BootError::Read {
            path: "the host's random number generator".into(),
            source: e.into(),
        }
    })?;
    data.extend(seed);
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn params_carry_map_cmdline_initramfs_and_seed() {
        let map = [e820::Range {
            start: 0,
            len: 0x1000,
            kind: e820::RAM,
        }];
        let initramfs = Initramfs {
            address: 0x100_0000,
            size: 77,
        };
        let params = boot_params_for(&map, 5, initramfs);
        let bytes = params.as_slice();
        // Offsets from Documentation/x86/zero-page.rst and boot.rst.
        assert_eq!(bytes.len(), 4096);
        assert_eq!(bytes[0x1e8], 1);
        assert_eq!(&bytes[0x202..0x206], b"HdrS");
        assert_eq!(&bytes[0x218..0x21c], &0x100_0000u32.to_le_bytes());
        assert_eq!(&bytes[0x21c..0x220], &77u32.to_le_bytes());
        assert_eq!(
            &bytes[0x228..0x22c],
            &(layout::CMDLINE as u32).to_le_bytes()
        );
        assert_eq!(&bytes[0x250..0x258], &layout::SETUP_DATA.to_le_bytes());
        assert_eq!(&bytes[0x2d8..0x2e0], &0x1000u64.to_le_bytes());
    }

    #[test]
    fn seeds_differ() {
        let (a, b) = (rng_seed().unwrap(), rng_seed().unwrap());
        assert_eq!(a.len(), 48);
        assert_eq!(a[8], 9);
        assert_ne!(a, b);
    }
}
