//! Registers of the boot vCPU at the kernel's first instruction.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::CpuError;
use crate::boot::Entry;
use crate::kvm::failed;
use crate::memory::layout;
use crate::spec::BootProtocol;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 is always set.
const RFLAGS: u64 = 2;

/// GDT slots of the Linux boot protocol: __BOOT_CS and __BOOT_DS; the TSS behind.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;
/// Segment types, Intel SDM vol. 3A table 3-1 and 3-2.
const CODE_EXECUTE_READ: u8 = 0xb;
const DATA_READ_WRITE: u8 = 0x3;
const TSS_BUSY: u8 = 0xb;

/// Page-table entry bits, Intel SDM vol. 3A section 4.5.
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
const LARGE_PAGE_BYTES: u64 = 2 << 20;

pub fn set(vcpu: &VcpuFd, entry: Entry, memory: &GuestMemoryMmap) -> Result<(), CpuError> {
    let mut sregs = vcpu.get_sregs().map_err(failed("read special registers"))?;
    let long_mode = entry.protocol == BootProtocol::Linux64;
    if long_mode {
        write_page_tables(memory).map_err(CpuError::Tables)?;
        enter_long_mode(&mut sregs);
    } else {
        sregs.cr0 = CR0_PE | CR0_ET;
    }
    set_segments(&mut sregs, long_mode);
    write_gdt(memory, &mut sregs).map_err(CpuError::Tables)?;
    vcpu.set_sregs(&sregs)
        .map_err(failed("set special registers"))?;
    vcpu.set_regs(&general(entry))
        .map_err(failed("set registers"))
        .map_err(CpuError::from)
}

/// Linux64: RSI holds boot_params. PVH: EBX holds hvm_start_info.
fn general(entry: Entry) -> kvm_regs {
    let mut regs = kvm_regs {
        rip: entry.address,
        rflags: RFLAGS,
        ..Default::default()
    };
    match entry.protocol {
        BootProtocol::Linux64 => regs.rsi = layout::BOOT_INFO,
        BootProtocol::Pvh => regs.rbx = layout::BOOT_INFO,
    }
    regs
}

fn enter_long_mode(sregs: &mut kvm_sregs) {
    sregs.cr3 = layout::PML4;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 |= CR0_PE | CR0_ET | CR0_PG;
    sregs.efer |= EFER_LME | EFER_LMA;
}

/// The first GiB, one to one.
fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), vm_memory::GuestMemoryError> {
    memory.write_obj(layout::PDPT | PRESENT_WRITABLE, GuestAddress(layout::PML4))?;
    memory.write_obj(layout::PD | PRESENT_WRITABLE, GuestAddress(layout::PDPT))?;
    let pages: Vec<u8> = (0..512)
        .flat_map(|i| ((i * LARGE_PAGE_BYTES) | PRESENT_WRITABLE | LARGE_PAGE).to_le_bytes())
        .collect();
    memory.write_slice(&pages, GuestAddress(layout::PD))
}

fn set_segments(sregs: &mut kvm_sregs, long_mode: bool) {
    let code = kvm_segment {
        l: u8::from(long_mode),
        db: u8::from(!long_mode),
        ..segment(CODE_SELECTOR, CODE_EXECUTE_READ)
    };
    let data = kvm_segment {
        db: 1,
        ..segment(DATA_SELECTOR, DATA_READ_WRITE)
    };
    sregs.cs = code;
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.tr = kvm_segment {
        limit: 0x67,
        s: 0,
        g: 0,
        ..segment(TSS_SELECTOR, TSS_BUSY)
    };
}

/// A flat 4 GiB segment at ring 0.
fn segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

fn write_gdt(
    memory: &GuestMemoryMmap,
    sregs: &mut kvm_sregs,
) -> Result<(), vm_memory::GuestMemoryError> {
    let table = [
        0,
        0,
        descriptor(&sregs.cs),
        descriptor(&sregs.ds),
        descriptor(&sregs.tr),
    ];
    for (i, entry) in table.iter().enumerate() {
        memory.write_obj(*entry, GuestAddress(layout::GDT + 8 * i as u64))?;
    }
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = (size_of_val(&table) - 1) as u16;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    Ok(())
}

/// Segment descriptor, Intel SDM vol. 3A figure 3-8; base is 0.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = if segment.g == 1 {
        segment.limit >> 12
    } else {
        segment.limit
    };
    let access = segment.type_ | segment.s << 4 | segment.present << 7;
    let flags = segment.l << 1 | segment.db << 2 | segment.g << 3;
    u64::from(limit & 0xffff)
        | u64::from(access) << 40
        | u64::from(limit >> 16 & 0xf) << 48
        | u64::from(flags) << 52
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_linux() {
        let mut sregs = kvm_sregs::default();
        set_segments(&mut sregs, true);
        // GDT_ENTRY(0xa09b, 0, 0xfffff) and GDT_ENTRY(0xc093, 0, 0xfffff).
        assert_eq!(descriptor(&sregs.cs), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&sregs.ds), 0x00cf_9300_0000_ffff);
        set_segments(&mut sregs, false);
        assert_eq!(descriptor(&sregs.cs), 0x00cf_9b00_0000_ffff);
    }

    #[test]
    fn boot_information_goes_where_the_protocol_says() {
        let regs = |protocol| {
            general(Entry {
                address: 0x100_0000,
                protocol,
            })
        };
        assert_eq!(regs(BootProtocol::Linux64).rsi, layout::BOOT_INFO);
        assert_eq!(regs(BootProtocol::Pvh).rbx, layout::BOOT_INFO);
        assert_eq!(regs(BootProtocol::Pvh).rip, 0x100_0000);
    }

    #[test]
    fn page_tables_map_the_first_gib() {
        let memory = crate::memory::allocate(16).unwrap();
        write_page_tables(&memory).unwrap();
        let last: u64 = memory.read_obj(GuestAddress(layout::PD + 511 * 8)).unwrap();
        assert_eq!(last, (511 * LARGE_PAGE_BYTES) | 0x83);
    }
}
