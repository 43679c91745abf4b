//! A processor of plain data, and page tables in hand-made guest memory.

mod bulk;
mod fpu;
mod integer;
mod memory;
mod on_kvm;

use kvm_bindings::{kvm_regs, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::cpu::{Cpu, Exception};
use super::xsave::{Component, XsaveLayout};
use super::{Completed, EmulateError, complete_on};

/// Guest RAM.
const RAM: u64 = 0x10_0000;
/// PML4, PDPT, PD and PT, a page each.
const TABLES: u64 = 0x1000;
/// Where instructions are put, linear and physical.
const CODE: u64 = 0x8000;
/// Pages of data, linear and physical.
const DATA: u64 = 0x2_0000;

const P: u64 = 1;
const RW: u64 = 2;
const US: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;

/// RAM whose first 2 MiB of linear addresses go through one PT: all of RAM is
/// mapped one to one, writable, for ring 0.
fn identity() -> GuestMemoryMmap {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
    for level in 0..3 {
        let next = TABLES + 0x1000 * (level + 1);
        put(&memory, TABLES + 0x1000 * level, next | P | RW | US);
    }
    for page in (0..RAM).step_by(0x1000) {
        map(&memory, page, page | P | RW);
    }
    memory
}

/// Sets the PT's entry for the page at `linear`.
fn map(memory: &GuestMemoryMmap, linear: u64, entry: u64) {
    put(memory, entry_address(linear), entry);
}

fn entry_address(linear: u64) -> u64 {
    TABLES + 0x3000 + linear / 0x1000 * 8
}

fn put(memory: &GuestMemoryMmap, address: u64, value: u64) {
    memory.write_obj(value, GuestAddress(address)).unwrap();
}

fn get(memory: &GuestMemoryMmap, address: u64) -> u64 {
    memory.read_obj(GuestAddress(address)).unwrap()
}

fn bytes(memory: &GuestMemoryMmap, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory
        .read_slice(&mut bytes, GuestAddress(address))
        .unwrap();
    bytes
}

/// A processor with x87, SSE, AVX and a made-up component 5 behind a gap.
fn layout() -> XsaveLayout {
    let component = |number, offset, size| Component {
        number,
        offset,
        size,
    };
    XsaveLayout::new(vec![component(2, 576, 256), component(5, 1024, 64)], 0xffff)
}

const XCR0: u64 = 0b10_0111;

#[derive(Clone)]
struct FakeCpu {
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcr0: u64,
    state: Vec<u8>,
    raised: Option<Exception>,
}

impl Cpu for FakeCpu {
    fn regs(&self) -> Result<kvm_regs, EmulateError> {
        Ok(self.regs)
    }
    fn set_regs(&mut self, regs: &kvm_regs) -> Result<(), EmulateError> {
        self.regs = *regs;
        Ok(())
    }
    fn sregs(&self) -> Result<kvm_sregs, EmulateError> {
        Ok(self.sregs)
    }
    fn set_sregs(&mut self, sregs: &kvm_sregs) -> Result<(), EmulateError> {
        self.sregs = *sregs;
        Ok(())
    }
    fn xcr0(&self) -> Result<u64, EmulateError> {
        Ok(self.xcr0)
    }
    fn fpu_state(&self) -> Result<Vec<u8>, EmulateError> {
        Ok(self.state.clone())
    }
    fn set_fpu_state(&mut self, state: &[u8]) -> Result<(), EmulateError> {
        self.state = state.to_vec();
        Ok(())
    }
    fn raise(&mut self, exception: Exception) -> Result<(), EmulateError> {
        self.raised = Some(exception);
        Ok(())
    }
}

/// The processor, its memory, and one instruction at a time.
struct Rig {
    cpu: FakeCpu,
    memory: GuestMemoryMmap,
    layout: XsaveLayout,
}

impl Rig {
    /// 64-bit mode, ring 0, everything switched on; RDI points to [`DATA`], and
    /// EDX:EAX selects all components.
    fn new() -> Self {
        let mut sregs = kvm_sregs {
            cr0: 0x8001_0033,
            cr3: TABLES,
            cr4: 0x0004_0620,
            efer: 0x500,
            ..Default::default()
        };
        sregs.cs.l = 1;
        sregs.cs.selector = 8;
        let regs = kvm_regs {
            rdi: DATA,
            rax: u64::MAX,
            rdx: u64::MAX,
            rflags: 2,
            ..Default::default()
        };
        let layout = layout();
        let cpu = FakeCpu {
            regs,
            sregs,
            xcr0: XCR0,
            state: vec![0; layout.size()],
            raised: None,
        };
        Self {
            cpu,
            memory: identity(),
            layout,
        }
    }

    /// Completes `code` as if KVM had stopped there.
    fn run(&mut self, code: &[u8]) -> Result<Completed, EmulateError> {
        self.run_at(CODE, code)
    }

    fn run_at(&mut self, rip: u64, code: &[u8]) -> Result<Completed, EmulateError> {
        self.memory.write_slice(code, GuestAddress(rip)).unwrap();
        self.cpu.regs.rip = rip;
        complete_on(&mut self.cpu, &self.memory, &self.layout)
    }

    /// `code` is executed, to its end.
    fn retires(&mut self, code: &[u8]) {
        assert_eq!(self.run(code).unwrap(), Completed::Retired);
        assert_eq!(self.cpu.regs.rip, CODE + code.len() as u64);
        assert_eq!(self.cpu.raised, None);
    }

    /// `code` faults, with no other effect than the exception and CR2.
    fn faults(&mut self, code: &[u8], expected: Exception) {
        let before = self.cpu.clone();
        let data = bytes(&self.memory, DATA, 0x4000);
        assert_eq!(self.run(code).unwrap(), Completed::Raised(expected));
        assert_eq!(self.cpu.raised, Some(expected));
        assert_eq!(
            self.cpu.regs,
            kvm_regs {
                rip: CODE,
                ..before.regs
            }
        );
        assert_eq!(self.cpu.state, before.state);
        assert_eq!(bytes(&self.memory, DATA, 0x4000), data);
        let cr2 = expected.cr2.unwrap_or(before.sregs.cr2);
        assert_eq!(
            self.cpu.sregs,
            kvm_sregs {
                cr2,
                ..before.sregs
            }
        );
        self.cpu = before;
    }
}
