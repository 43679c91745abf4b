//! State of what KVM emulates beside the vCPUs: PICs, IOAPIC, interval timer,
//! clock.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use serde::{Deserialize, Serialize};

use super::{KvmError, Vm, failed};

const CHIPS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

/// See the module's text.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ChipsState {
    /// In the order of [`CHIPS`].
    chips: [kvm_irqchip; 3],
    pit: kvm_pit_state2,
    /// Nanoseconds of kvmclock.
    clock_ns: u64,
}

impl Vm {
    /// Reads the state; no vCPU may run.
    pub fn chips(&self) -> Result<ChipsState, KvmError> {
        let mut chips = CHIPS.map(|chip_id| kvm_irqchip {
            chip_id,
            ..Default::default()
        });
        for chip in &mut chips {
            self.fd
                .get_irqchip(chip)
                .map_err(failed("read an interrupt controller"))?;
        }
        Ok(ChipsState {
            chips,
            pit: self
                .fd
                .get_pit2()
                .map_err(failed("read the interval timer"))?,
            clock_ns: self.fd.get_clock().map_err(failed("read the clock"))?.clock,
        })
    }

    /// Sets the state; the vCPUs' local APICs must have been set before. The clock
    /// goes on from its saved value, however much time has passed since.
    pub fn set_chips(&self, state: &ChipsState) -> Result<(), KvmError> {
        for (chip, chip_id) in state.chips.iter().zip(CHIPS) {
            let chip = kvm_irqchip { chip_id, ..*chip };
            self.fd
                .set_irqchip(&chip)
                .map_err(failed("set an interrupt controller"))?;
        }
        self.fd
            .set_pit2(&state.pit)
            .map_err(failed("set the interval timer"))?;
        let clock = kvm_clock_data {
            clock: state.clock_ns,
            ..Default::default()
        };
        self.fd.set_clock(&clock).map_err(failed("set the clock"))
    }
}
