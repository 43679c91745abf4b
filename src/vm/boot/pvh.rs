//! `hvm_start_info` of the PVH entry (Xen, docs/misc/pvh.pandoc).

use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, GuestMemoryMmap};

use super::{BootError, Initramfs, e820, write};
use crate::memory::layout;

const MAGIC: u32 = 0x336e_c578;
/// Version 1 has the memory map.
const VERSION: u32 = 1;

/// Writes the start info to [`layout::BOOT_INFO`] and what it points to.
pub fn write_start_info(memory: &GuestMemoryMmap, initramfs: Initramfs) -> Result<(), BootError> {
    let map = e820::map(memory);
    let entry_bytes = size_of::<hvm_memmap_table_entry>() as u64;
    for (i, range) in map.iter().enumerate() {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.len,
            type_: range.kind,
            reserved: 0,
        };
        let address = layout::PVH_MEMMAP + i as u64 * entry_bytes;
        write(memory, "PVH memory map", address, entry.as_slice())?;
    }
    let module = hvm_modlist_entry {
        paddr: initramfs.address,
        size: initramfs.size,
        ..Default::default()
    };
    write(
        memory,
        "PVH module list",
        layout::PVH_MODULES,
        module.as_slice(),
    )?;
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: u32::from(initramfs.size > 0),
        modlist_paddr: layout::PVH_MODULES,
        cmdline_paddr: layout::CMDLINE,
        memmap_paddr: layout::PVH_MEMMAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    write(memory, "hvm_start_info", layout::BOOT_INFO, info.as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn start_info_points_to_map_and_module() {
        let memory = crate::memory::allocate(32).unwrap();
        let initramfs = Initramfs {
            address: 0x180_0000,
            size: 9,
        };
        write_start_info(&memory, initramfs).unwrap();
        let info: hvm_start_info = memory.read_obj(GuestAddress(layout::BOOT_INFO)).unwrap();
        assert_eq!(
            (info.magic, info.nr_modules, info.memmap_entries),
            (MAGIC, 1, 3)
        );
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (0x180_0000, 9));
    }
}
