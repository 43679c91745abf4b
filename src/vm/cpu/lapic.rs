//! Local APIC: LINT0 takes the PIC's interrupts, LINT1 NMIs (MultiProcessor
//! Specification 1.4, section 3.6.2.2).

use kvm_bindings::kvm_lapic_state;
use kvm_ioctls::VcpuFd;

use crate::kvm::{KvmError, failed};

/// Register offsets, Intel SDM vol. 3A table 11-1.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
/// Delivery modes, bits 10:8.
const EXTINT: u32 = 0b111 << 8;
const NMI: u32 = 0b100 << 8;
const DELIVERY_MODE: u32 = 0b111 << 8;
/// Bit 16, set after reset.
const MASKED: u32 = 1 << 16;

pub fn set(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let mut state = vcpu.get_lapic().map_err(failed("read the local APIC"))?;
    deliver(&mut state, LVT_LINT0, EXTINT);
    deliver(&mut state, LVT_LINT1, NMI);
    vcpu.set_lapic(&state).map_err(failed("set the local APIC"))
}

fn deliver(state: &mut kvm_lapic_state, register: usize, mode: u32) {
    if let Some(bytes) = state.regs.get_mut(register..register + 4) {
        let mut value = 0;
        for byte in bytes.iter().rev() {
            value = value << 8 | u32::from(*byte as u8);
        }
        value = (value & !(DELIVERY_MODE | MASKED)) | mode;
        for (byte, new) in bytes.iter_mut().zip(value.to_le_bytes()) {
            *byte = new as _;
        }
    }
}
