//! The two places at which KVM_RUN comes back: the entry into the guest's kernel, and
//! the instruction behind one that was left to KVM (linux/kvm.h,
//! KVM_GUESTDBG_USE_HW_BP). Setting them costs a request to KVM, so they stay
//! where they are as long as that does no harm.

use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, kvm_guest_debug,
};
use kvm_ioctls::VcpuFd;

use super::privileged::Next;
use super::{AccelerateError, refused};

/// DR7.GE, and the G bits of DR0 and DR1; executed, one byte (SDM vol. 3, 18.2.4).
const GLOBAL_EXACT: u64 = 1 << 9;
const ENABLE: [u64; 2] = [1 << 1, 1 << 3];

/// What KVM was told, and what it is to be told.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Set {
    entry: Option<u64>,
    stop: Option<u64>,
    single_step: bool,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Breakpoints {
    told: Set,
    entry: Option<u64>,
}

impl Breakpoints {
    /// Where the guest's kernel is entered.
    pub fn set_entry(&mut self, address: u64) {
        self.entry = Some(address);
    }

    /// KVM is going to run from `rip`, and shall come back as `next` says.
    pub fn stop_at(&mut self, vcpu: &VcpuFd, rip: u64, next: Next) -> Result<(), AccelerateError> {
        let mut wanted = Set {
            // Where it begins it must not stop at once.
            entry: self.entry.filter(|entry| *entry != rip),
            stop: self.told.stop.filter(|stop| *stop != rip),
            single_step: false,
        };
        match next {
            Next::Entry => {}
            Next::Here => wanted.stop = Some(rip),
            Next::At(address) => wanted.stop = Some(address),
            Next::Step => wanted.single_step = true,
        }
        self.tell(vcpu, wanted)
    }

    /// No breakpoints, as if there had been none.
    pub fn clear(&mut self, vcpu: &VcpuFd) -> Result<(), AccelerateError> {
        self.tell(vcpu, Set::default())
    }

    fn tell(&mut self, vcpu: &VcpuFd, wanted: Set) -> Result<(), AccelerateError> {
        if wanted == self.told {
            return Ok(());
        }
        let mut debug = kvm_guest_debug::default();
        let places = [wanted.entry, wanted.stop];
        for (index, place) in places.into_iter().enumerate() {
            if let Some(address) = place {
                debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
                debug.arch.debugreg[index] = address;
                debug.arch.debugreg[7] |= GLOBAL_EXACT | ENABLE[index];
            }
        }
        if wanted.single_step {
            debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
        }
        vcpu.set_guest_debug(&debug)
            .map_err(refused("set breakpoints"))?;
        self.told = wanted;
        Ok(())
    }
}
