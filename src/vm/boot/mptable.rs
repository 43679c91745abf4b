//! MP table (Intel MultiProcessor Specification 1.4): tells the guest its CPUs
//! and interrupt lines without ACPI.

use vm_memory::GuestMemoryMmap;

use super::{BootError, write};
use crate::memory::layout;

/// APIC version of an integrated APIC, as KVM's.
const APIC_VERSION: u8 = 0x14;
const SPEC_REVISION: u8 = 4;
const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IOAPIC: u8 = 2;
const ENTRY_IO_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;
const CPU_ENABLED: u8 = 1;
const CPU_BOOT: u8 = 2;
const INT: u8 = 0;
const NMI: u8 = 1;
const EXTINT: u8 = 3;
const FLOATING_POINTER_BYTES: u64 = 16;
/// The table ends where base memory ends.
const MAX_BYTES: usize = (layout::BASE_RAM_END - layout::MP_TABLE) as usize;
/// So that header, CPUs, bus, IOAPIC and 24 + 2 interrupts fit into [`MAX_BYTES`].
pub const MAX_CPUS: u8 = 32;

/// Writes floating pointer and table to [`layout::MP_TABLE`].
pub fn write_table(memory: &GuestMemoryMmap, vcpu_count: u8) -> Result<(), BootError> {
    let bytes = table(vcpu_count);
    debug_assert!(bytes.len() <= MAX_BYTES);
    write(memory, "MP table", layout::MP_TABLE, &bytes)
}

fn table(vcpu_count: u8) -> Vec<u8> {
    let mut entries = Vec::new();
    for id in 0..vcpu_count {
        let flags = CPU_ENABLED | if id == 0 { CPU_BOOT } else { 0 };
        entries.extend([ENTRY_PROCESSOR, id, APIC_VERSION, flags]);
        // Signature and features; Linux reads CPUID instead.
        entries.extend([0; 16]);
    }
    entries.extend([ENTRY_BUS, 0]);
    entries.extend(b"ISA   ");
    let ioapic_id = vcpu_count;
    entries.extend([ENTRY_IOAPIC, ioapic_id, APIC_VERSION, 1]);
    entries.extend(layout::IOAPIC.to_le_bytes());
    for line in 0..=layout::GSI_LAST as u8 {
        // ISA defaults: edge, active high.
        entries.extend([ENTRY_IO_INTERRUPT, INT, 0, 0, 0, line, ioapic_id, line]);
    }
    entries.extend([ENTRY_LOCAL_INTERRUPT, EXTINT, 0, 0, 0, 0, 0, 0]);
    entries.extend([ENTRY_LOCAL_INTERRUPT, NMI, 0, 0, 0, 0, 0xff, 1]);
    let count = u16::from(vcpu_count) + 2 + layout::GSI_LAST as u16 + 1 + 2;

    let mut bytes = floating_pointer();
    bytes.extend(header(&entries, count));
    bytes.extend(entries);
    bytes
}

/// Section 4.1: right in front of the configuration table.
fn floating_pointer() -> Vec<u8> {
    let mut bytes = b"_MP_".to_vec();
    bytes.extend(((layout::MP_TABLE + FLOATING_POINTER_BYTES) as u32).to_le_bytes());
    bytes.extend([1, SPEC_REVISION, 0, 0, 0, 0, 0, 0]);
    bytes[10] = checksum(&bytes);
    bytes
}

/// Section 4.2.
fn header(entries: &[u8], count: u16) -> Vec<u8> {
    const HEADER_BYTES: usize = 44;
    let mut bytes = b"PCMP".to_vec();
    bytes.extend(((HEADER_BYTES + entries.len()) as u16).to_le_bytes());
    bytes.extend([SPEC_REVISION, 0]);
    bytes.extend(b"VMRUN   MICROVM     ");
    bytes.extend([0; 6]);
    bytes.extend(count.to_le_bytes());
    bytes.extend(layout::LAPIC.to_le_bytes());
    bytes.extend([0; 4]);
    let sum = checksum(&[&bytes, entries].concat());
    bytes[7] = sum;
    bytes
}

/// What makes all bytes sum up to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_zero_and_lengths_agree() {
        for vcpus in [1, 2, MAX_CPUS] {
            let bytes = table(vcpus);
            assert!(bytes.len() <= MAX_BYTES, "{}", bytes.len());
            let (pointer, config) = bytes.split_at(16);
            assert_eq!(checksum(pointer), 0);
            assert_eq!(checksum(config), 0);
            assert_eq!(
                u16::from_le_bytes([config[4], config[5]]) as usize,
                config.len()
            );
        }
    }

    #[test]
    fn every_processor_has_an_entry() {
        let bytes = table(3);
        let entries = &bytes[16 + 44..];
        let ids: Vec<u8> = entries.chunks(20).take(3).map(|e| e[1]).collect();
        assert_eq!(ids, [0, 1, 2]);
    }
}
