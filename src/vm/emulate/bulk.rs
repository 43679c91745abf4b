//! Copying and filling memory on the guest's behalf.
//!
//! Where ring 0 is emulated, an exit costs as much as some fifteen instructions,
//! and copying a page 60 times as much. Our kernel (`vmm_copy` on its command
//! line) therefore offers longer pieces by an OUT to one of two ports, operands
//! in the registers of REP MOVSB and REP STOSB. Its page tables are walked as for
//! any access from ring 0. What cannot be accessed so is left to the kernel's own
//! code, which takes the page fault.

use kvm_bindings::kvm_regs;
use kvm_ioctls::VcpuFd;
use vm_memory::volatile_memory::VolatileSlice;
use vm_memory::{GuestAddress, GuestMemory};

use super::EmulateError;
use super::cpu::Cpu;
use super::instruction::{Stop, mode};
use super::paging::{Access, PAGE, Paging};
use super::vcpu::Vcpu;

/// An OUT to it copies RCX bytes from RSI to RDI.
pub const COPY_PORT: u16 = 0x764e;
/// An OUT to it fills RCX bytes at RDI with AL.
pub const FILL_PORT: u16 = 0x764f;

/// Bytes done in one exit, so that the vCPU's thread comes back in milliseconds.
const MAX_BYTES: u64 = 16 << 20;

/// What is put into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bulk {
    /// What RSI points to.
    Copy,
    /// This byte.
    Fill(u8),
}

impl Bulk {
    /// What an OUT of `data` to `port` asks for, if anything.
    pub fn asked(port: u16, data: &[u8]) -> Option<Self> {
        match (port, data) {
            (COPY_PORT, [_]) => Some(Self::Copy),
            (FILL_PORT, [value]) => Some(Self::Fill(*value)),
            _ => None,
        }
    }
}

/// Does as much of `bulk` as the guest's page tables allow, and moves RDI, RSI and
/// RCX on by that. Does nothing outside of 64-bit code at ring 0.
pub fn bulk<M: GuestMemory>(vcpu: &mut VcpuFd, memory: &M, bulk: Bulk) -> Result<(), EmulateError> {
    bulk_on(&mut Vcpu::new(vcpu), memory, bulk)
}

pub(super) fn bulk_on(
    cpu: &mut impl Cpu,
    memory: &impl GuestMemory,
    bulk: Bulk,
) -> Result<(), EmulateError> {
    let mut regs = cpu.regs()?;
    let sregs = cpu.sregs()?;
    if mode(&sregs) != (true, 0) {
        return Ok(());
    }
    let paging = Paging::new(&sregs, regs.rflags);
    let mut left = regs.rcx.min(MAX_BYTES);
    while left > 0 {
        let Some(done) = piece(&paging, memory, bulk, &regs, left) else {
            break;
        };
        regs.rdi = regs.rdi.wrapping_add(done);
        if bulk == Bulk::Copy {
            regs.rsi = regs.rsi.wrapping_add(done);
        }
        regs.rcx -= done;
        left -= done;
    }
    cpu.set_regs(&regs)
}

/// Up to `left` bytes, as far as the pages of both operands reach; how many, or
/// `None` if one of them is not accessible.
fn piece(
    paging: &Paging,
    memory: &impl GuestMemory,
    bulk: Bulk,
    regs: &kvm_regs,
    left: u64,
) -> Option<u64> {
    let in_page = |linear: u64| PAGE - linear % PAGE;
    match bulk {
        Bulk::Fill(value) => {
            let length = left.min(in_page(regs.rdi));
            let target = slice(paging, memory, regs.rdi, length, Access::Write)?;
            fill(&target, value);
            Some(length)
        }
        Bulk::Copy => {
            let length = left.min(in_page(regs.rdi)).min(in_page(regs.rsi));
            let source = slice(paging, memory, regs.rsi, length, Access::Read)?;
            let target = slice(paging, memory, regs.rdi, length, Access::Write)?;
            source.copy_to_volatile_slice(target);
            Some(length)
        }
    }
}

/// `length` bytes at `linear`, which lie in one page.
fn slice<'m, M: GuestMemory>(
    paging: &Paging,
    memory: &'m M,
    linear: u64,
    length: u64,
    access: Access,
) -> Option<VolatileSlice<'m, vm_memory::bitmap::MS<'m, M>>> {
    if !paging.is_canonical(linear) {
        return None;
    }
    let physical = match paging.translate(memory, linear, access) {
        Ok(physical) => physical,
        // Not RAM: what the access meets there is for KVM to say.
        Err(Stop::Fault(_) | Stop::Error(_)) => return None,
    };
    memory
        .get_slice(GuestAddress(physical), length as usize)
        .ok()
}

fn fill<B: vm_memory::bitmap::BitmapSlice>(target: &VolatileSlice<'_, B>, value: u8) {
    let page = [value; PAGE as usize];
    // No longer than a page, see `piece`.
    target.copy_from(&page[..target.len()]);
}
