//! The same on this machine's KVM. Where the processor itself runs ring 0,
//! nothing is completed and the results are the same.

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_dtable, kvm_segment, kvm_xcr};
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::emulate::vcpu::Vcpu;
use crate::emulate::xsave::FpuState;
use crate::emulate::{complete, share_registers};
use crate::probe::bare::BareGuest;

const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const TSS: u64 = 0x7000;
/// A `hlt` for each vector, 16 bytes apart.
const HANDLERS: u64 = 0x9000;
const STACK: u64 = 0xf000;
/// Pages that ring 3 may use.
const USER_CODE: u64 = 0x3_0000;
const USER_DATA: u64 = 0x3_1000;

const KERNEL_CS: u16 = 0x08;
const USER_SS: u64 = 0x1b;
const USER_CS: u64 = 0x23;

const HLT: u8 = 0xf4;
const XSAVE64: [u8; 4] = [0x48, 0x0f, 0xae, 0x27];
const XRSTOR64: [u8; 4] = [0x48, 0x0f, 0xae, 0x2f];

/// How the completions get at the vCPU's registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Registers {
    Requested,
    Shared,
}

/// Each test, with both ways to the registers.
macro_rules! tests {
    ($($name:ident)*) => {
        mod requested {
            $(#[test] fn $name() { super::$name(super::Registers::Requested) })*
        }
        mod shared {
            $(#[test] fn $name() { super::$name(super::Registers::Shared) })*
        }
    };
}

tests! {
    wait_goes_on_behind_it
    breakpoint_and_undefined_instruction_reach_their_handlers
    popcnt_gives_its_result
    registers_survive_xsave_and_xrstor
    xrstor_initialises_what_the_area_does_not_hold
    ring_3_finds_the_registers_that_ring_0_restored
    a_page_fault_tells_the_guest_what_to_repair
    a_misaligned_area_is_a_general_protection_fault
}

/// A guest with descriptor tables and handlers, stopped at [`CODE`].
struct Guest {
    bare: BareGuest,
    memory: GuestMemoryMmap,
}

/// Where the guest halted.
#[derive(Debug, PartialEq, Eq)]
enum Halt {
    /// In the code it was given, RIP behind the `hlt`.
    Code(u64),
    /// In the handler of a vector; what the stack has: error code if there is
    /// one, and RIP.
    Handler(u64, u64, u64),
}

impl Guest {
    fn new(registers: Registers, code: &[u8]) -> Self {
        let memory = identity();
        let kvm = Kvm::new().expect("open /dev/kvm");
        let mut guest = Self {
            bare: BareGuest::new(&kvm, memory.clone(), TABLES).expect("make a guest"),
            memory,
        };
        guest.write_tables();
        let vcpu = &guest.bare.vcpu;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        vcpu.set_cpuid2(&cpuid).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        sregs.gdt = kvm_dtable {
            base: GDT,
            limit: 0x27,
            ..Default::default()
        };
        sregs.idt = kvm_dtable {
            base: IDT,
            limit: 0xfff,
            ..Default::default()
        };
        sregs.tr = kvm_segment {
            base: TSS,
            limit: 0x67,
            type_: 11,
            present: 1,
            ..Default::default()
        };
        // OSFXSR, OSXMMEXCPT, OSXSAVE.
        sregs.cr4 |= 0x4_0600;
        vcpu.set_sregs(&sregs).unwrap();
        let mut xcrs = vcpu.get_xcrs().unwrap();
        xcrs.nr_xcrs = 1;
        xcrs.xcrs[0] = kvm_xcr {
            xcr: 0,
            value: 7,
            ..Default::default()
        };
        vcpu.set_xcrs(&xcrs).unwrap();
        if registers == Registers::Shared {
            share_registers(&kvm, &mut guest.bare.vcpu);
        }
        guest.code(CODE, code);
        guest.bare.start(CODE, STACK).unwrap();
        guest.regs(|regs| regs.rdi = DATA);
        guest.regs(|regs| regs.rax = 7);
        guest
    }

    fn write_tables(&self) {
        let descriptors = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff_u64,
        ];
        for (index, descriptor) in descriptors.into_iter().enumerate() {
            put(&self.memory, GDT + index as u64 * 8, descriptor);
        }
        for vector in 0..32 {
            let handler = HANDLERS + vector * 16;
            // Interrupt gate, ring 0 (SDM vol. 3, 6.14.1); handlers lie below 64 KiB.
            put(
                &self.memory,
                IDT + vector * 16,
                handler | u64::from(KERNEL_CS) << 16 | 0x8e << 40,
            );
            put(&self.memory, IDT + vector * 16 + 8, 0);
            self.code(handler, &[HLT]);
        }
        put(&self.memory, TSS + 4, STACK);
        for page in [USER_CODE, USER_DATA] {
            map(&self.memory, page, page | P | RW | US);
        }
    }

    fn code(&self, address: u64, code: &[u8]) {
        self.memory
            .write_slice(code, GuestAddress(address))
            .unwrap();
    }

    fn regs(&mut self, change: impl Fn(&mut kvm_regs)) {
        let mut regs = self.bare.vcpu.get_regs().unwrap();
        change(&mut regs);
        self.bare.vcpu.set_regs(&regs).unwrap();
    }

    /// Runs until `hlt`, completing what KVM cannot emulate.
    fn run(&mut self) -> Halt {
        for _ in 0..100 {
            match self.bare.vcpu.run().unwrap() {
                VcpuExit::Hlt => return self.halted(),
                VcpuExit::InternalError => {
                    complete(&mut self.bare.vcpu, &self.memory).unwrap();
                }
                other => panic!("unexpected exit {other:?}"),
            }
        }
        panic!("no end");
    }

    fn halted(&self) -> Halt {
        let regs = self.bare.vcpu.get_regs().unwrap();
        if !(HANDLERS..HANDLERS + 0x200).contains(&regs.rip) {
            return Halt::Code(regs.rip);
        }
        let vector = (regs.rip - HANDLERS) / 16;
        let has_error_code = matches!(vector, 8 | 10..=14 | 17);
        let first = get(&self.memory, regs.rsp);
        let second = get(&self.memory, regs.rsp + 8);
        if has_error_code {
            Halt::Handler(vector, first, second)
        } else {
            Halt::Handler(vector, 0, first)
        }
    }

    /// Puts `area` into the vCPU's registers.
    fn load(&mut self, area: &[u8]) {
        let layout = XsaveLayout::host();
        let empty = vec![0; layout.size().max(4096)];
        let mut state = FpuState::new(layout, empty);
        state
            .restore(area, 7, 7, crate::emulate::xsave::Pointers::Wide)
            .unwrap();
        Vcpu::new(&mut self.bare.vcpu)
            .set_fpu_state(&state.into_bytes())
            .unwrap();
    }
}

/// x87, XMM and YMM registers with contents, in the standard format.
fn area(seed: u8) -> Vec<u8> {
    let mut area = vec![0; 832];
    area[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    area[24..28].copy_from_slice(&0x1fa0_u32.to_le_bytes());
    for register in 0..8 {
        area[32 + register * 16..][..10].fill(seed ^ register as u8);
    }
    area[4] = 0xff;
    for (index, byte) in area[160..416].iter_mut().enumerate() {
        *byte = seed.wrapping_add(index as u8);
    }
    area[512] = 7;
    for (index, byte) in area[576..].iter_mut().enumerate() {
        *byte = seed.wrapping_mul(3).wrapping_add(index as u8);
    }
    area
}

/// The parts of an area that hold registers, without MXCSR_MASK and pointers.
fn contents(area: &[u8]) -> Vec<&[u8]> {
    vec![
        &area[..6],
        &area[24..28],
        &area[32..416],
        &area[512..520],
        &area[576..832],
    ]
}

fn wait_goes_on_behind_it(registers: Registers) {
    assert_eq!(
        Guest::new(registers, &[0x9b, HLT]).run(),
        Halt::Code(CODE + 2)
    );
}

fn breakpoint_and_undefined_instruction_reach_their_handlers(registers: Registers) {
    assert_eq!(
        Guest::new(registers, &[0xcc, HLT]).run(),
        Halt::Handler(3, 0, CODE + 1)
    );
    assert_eq!(
        Guest::new(registers, &[0x0f, 0x0b, HLT]).run(),
        Halt::Handler(6, 0, CODE)
    );
}

fn popcnt_gives_its_result(registers: Registers) {
    let mut guest = Guest::new(registers, &[0xf3, 0x48, 0x0f, 0xb8, 0xc3, HLT]);
    guest.regs(|regs| regs.rbx = 0x8000_0000_0000_0013);
    assert_eq!(guest.run(), Halt::Code(CODE + 6));
    assert_eq!(guest.bare.vcpu.get_regs().unwrap().rax, 4);
}

fn registers_survive_xsave_and_xrstor(registers: Registers) {
    let code = [&XSAVE64[..], &[HLT], &XRSTOR64, &[HLT], &XSAVE64, &[HLT]].concat();
    let mut guest = Guest::new(registers, &code);
    // Across a page, and the second page lies elsewhere.
    let linear = DATA + 0x1000 - 640;
    map(&guest.memory, DATA + 0x1000, (DATA + 0x3000) | P | RW);
    guest.regs(|regs| regs.rdi = linear);
    guest.load(&area(0x21));
    assert_eq!(guest.run(), Halt::Code(CODE + 5));
    let mut saved = bytes(&guest.memory, linear, 640);
    saved.extend(bytes(&guest.memory, DATA + 0x3000, 192));
    assert_eq!(contents(&saved), contents(&area(0x21)));
    guest.load(&area(0x84));
    assert_eq!(guest.run(), Halt::Code(CODE + 10));
    guest.regs(|regs| regs.rdi = DATA + 0x4000);
    assert_eq!(guest.run(), Halt::Code(CODE + 15));
    let again = bytes(&guest.memory, DATA + 0x4000, 832);
    assert_eq!(contents(&again), contents(&area(0x21)));
}

fn xrstor_initialises_what_the_area_does_not_hold(registers: Registers) {
    let mut guest = Guest::new(registers, &[&XRSTOR64[..], &XSAVE64, &[HLT]].concat());
    let mut held = area(0x21);
    held[512] = 2;
    guest.code(DATA, &held);
    guest.load(&area(0x84));
    assert_eq!(guest.run(), Halt::Code(CODE + 9));
    let saved = bytes(&guest.memory, DATA, 832);
    assert_eq!(saved[160..416], held[160..416]);
    assert_eq!(saved[576..832], [0; 256]);
    assert_eq!(saved[512] & 4, 0);
    assert_eq!(saved[..2], [0x7f, 0x03]);
    assert_eq!(saved[32..160], [0; 128]);
}

fn ring_3_finds_the_registers_that_ring_0_restored(registers: Registers) {
    let ring0 = [&XRSTOR64[..], &[0x48, 0xcf]].concat(); // iretq
    let mut guest = Guest::new(registers, &ring0);
    let ring3 = [
        &[0xc5, 0xfe, 0x7f, 0x06][..],   // vmovdqu [rsi], ymm0
        &[0xc5, 0x7e, 0x7f, 0x7e, 0x20], // vmovdqu [rsi + 32], ymm15
        &[0xc5, 0xfe, 0x6f, 0x4e, 0x40], // vmovdqu ymm1, [rsi + 64]
        &[HLT],
    ]
    .concat();
    guest.code(USER_CODE, &ring3);
    guest.code(USER_DATA + 64, &[0x99; 32]);
    let held = area(0x21);
    guest.code(DATA, &held);
    for (slot, value) in [USER_CODE, USER_CS, 2, USER_DATA + 0x800, USER_SS]
        .into_iter()
        .enumerate()
    {
        put(&guest.memory, STACK - 40 + slot as u64 * 8, value);
    }
    guest.regs(|regs| {
        regs.rsp = STACK - 40;
        regs.rsi = USER_DATA;
    });
    // The privileged hlt ends it.
    assert_eq!(guest.run(), Halt::Handler(13, 0, USER_CODE + 14));
    let ymm = |low: usize, high: usize| [&held[low..low + 16], &held[high..high + 16]].concat();
    assert_eq!(bytes(&guest.memory, USER_DATA, 32), ymm(160, 576));
    assert_eq!(
        bytes(&guest.memory, USER_DATA + 32, 32),
        ymm(160 + 240, 576 + 240)
    );
    // And ring 0 finds what ring 3 computed.
    guest.code(CODE, &[&XSAVE64[..], &[HLT]].concat());
    guest.regs(|regs| {
        regs.rip = CODE;
        regs.rax = 7;
    });
    assert_eq!(guest.run(), Halt::Code(CODE + 5));
    assert_eq!(bytes(&guest.memory, DATA + 176, 16), [0x99; 16]);
    assert_eq!(bytes(&guest.memory, DATA + 592, 16), [0x99; 16]);
    assert_eq!(bytes(&guest.memory, DATA + 400, 16), held[400..416]);
}

fn a_page_fault_tells_the_guest_what_to_repair(registers: Registers) {
    let mut guest = Guest::new(registers, &[&XSAVE64[..], &[HLT]].concat());
    let linear = DATA + 0x1000 - 64;
    guest.regs(|regs| regs.rdi = linear);
    for (entry, error) in [(0, 2), ((DATA + 0x1000) | P, 3)] {
        map(&guest.memory, DATA + 0x1000, entry);
        guest.regs(|regs| {
            regs.rip = CODE;
            regs.rsp = STACK;
        });
        assert_eq!(guest.run(), Halt::Handler(14, error, CODE));
        assert_eq!(guest.bare.vcpu.get_sregs().unwrap().cr2, DATA + 0x1000);
        assert_eq!(bytes(&guest.memory, linear, 64), [0; 64]);
    }
    map(&guest.memory, DATA + 0x1000, (DATA + 0x1000) | P | RW);
    guest.load(&area(0x21));
    guest.regs(|regs| regs.rip = CODE);
    assert_eq!(guest.run(), Halt::Code(CODE + 5));
    let saved = bytes(&guest.memory, linear, 832);
    assert_eq!(contents(&saved), contents(&area(0x21)));
}

fn a_misaligned_area_is_a_general_protection_fault(registers: Registers) {
    let mut guest = Guest::new(registers, &XRSTOR64);
    guest.regs(|regs| regs.rdi += 8);
    assert_eq!(guest.run(), Halt::Handler(13, 0, CODE));
}
