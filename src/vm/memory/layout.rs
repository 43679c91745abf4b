//! The map of guest-physical addresses, in one table.
//!
//! | from | what |
//! |---|---|
//! | `0x0000_0500` | GDT ([`GDT`]) |
//! | `0x0000_7000` | boot_params or hvm_start_info ([`BOOT_INFO`]) |
//! | `0x0000_8000` | PVH memory map and module list ([`PVH_MEMMAP`], [`PVH_MODULES`]) |
//! | `0x0000_9000` | page tables of the 64-bit entry ([`PML4`], [`PDPT`], [`PD`]) |
//! | `0x0000_f000` | setup_data with the RNG seed ([`SETUP_DATA`]) |
//! | `0x0002_0000` | kernel command line ([`CMDLINE`]) |
//! | `0x0009_fc00` | MP table ([`MP_TABLE`]), reserved in e820 |
//! | `0x0010_0000` | RAM: kernel where it was linked, initramfs at the top |
//! | `0xd000_0000` | end of low RAM ([`LOW_RAM_END`]); virtio-mmio windows ([`MMIO_START`]) |
//! | `0xfec0_0000` | IOAPIC, LAPIC at `0xfee0_0000`, both in KVM |
//! | `0xfffb_c000` | KVM's identity-map page and TSS ([`KVM_TSS`]) |
//! | `0x1_0000_0000` | RAM beyond ([`HIGH_RAM_START`]) |

/// GDT that the 64-bit and PVH entries start with; Linux loads its own soon.
pub const GDT: u64 = 0x500;
/// `boot_params` (4 KiB) or `hvm_start_info`.
pub const BOOT_INFO: u64 = 0x7000;
/// `hvm_memmap_table_entry` array.
pub const PVH_MEMMAP: u64 = 0x8000;
/// `hvm_modlist_entry`.
pub const PVH_MODULES: u64 = 0x8800;
/// Top page table: one entry.
pub const PML4: u64 = 0x9000;
/// Second page table: one entry.
pub const PDPT: u64 = 0xa000;
/// Third page table: 512 pages of 2 MiB, the first GiB one to one.
pub const PD: u64 = 0xb000;
/// `setup_data` list of one entry.
pub const SETUP_DATA: u64 = 0xf000;
/// Kernel command line, NUL-terminated.
pub const CMDLINE: u64 = 0x2_0000;
/// COMMAND_LINE_SIZE of x86 Linux, with the NUL.
pub const CMDLINE_MAX_BYTES: usize = 2048;
/// Last KiB of the 640 KiB of base memory: one of the three places where Linux
/// looks for an MP table (MultiProcessor Specification 1.4, section 4).
pub const MP_TABLE: u64 = 0x9_fc00;
/// End of base memory.
pub const BASE_RAM_END: u64 = 0xa_0000;
/// RAM that the kernel may be loaded to.
pub const HIMEM_START: u64 = 0x10_0000;
/// RAM below 4 GiB ends here; 768 MiB are left for devices.
pub const LOW_RAM_END: u64 = 0xd000_0000;
/// First virtio-mmio window.
pub const MMIO_START: u64 = 0xd000_0000;
/// Size of one virtio-mmio window.
pub const MMIO_WINDOW: u64 = 0x1000;
/// Where KVM may put its three-page TSS (Linux, virt/kvm/api.rst
/// KVM_SET_TSS_ADDR); only Intel CPUs without unrestricted guests use it.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// RAM above the device window.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;
/// IOAPIC, in KVM.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APIC, in KVM.
pub const LAPIC: u32 = 0xfee0_0000;
/// First interrupt line for virtio devices. 0-4 are the timer, keyboard,
/// cascade and UARTs of a PC; the IOAPIC has 24 lines.
pub const VIRTIO_GSI_FIRST: u32 = 5;
/// Last line of the IOAPIC.
pub const GSI_LAST: u32 = 23;
/// Interrupt line of the UART.
pub const SERIAL_GSI: u32 = 4;
