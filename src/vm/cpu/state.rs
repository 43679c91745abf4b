//! State of one vCPU as KVM tells it.

#![allow(unsafe_code)]

use kvm_bindings::{
    Xsave, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::{CpuError, msrs};
use crate::kvm::{KvmError, failed};

/// Words of `struct kvm_xsave` without its flexible part.
const XSAVE_WORDS: usize = size_of::<kvm_xsave>() / size_of::<u32>();

/// See the module's text.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VcpuState {
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: kvm_xcrs,
    /// As long as [`XsaveSize`] says.
    xsave: Vec<u32>,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    debug_regs: kvm_debugregs,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
    /// Frequency of the time stamp counter.
    tsc_khz: u32,
}

impl VcpuState {
    /// Reads all of it. The vCPU must not run, and have nothing pending.
    pub fn read(vcpu: &VcpuFd, size: XsaveSize, msr_indexes: &[u32]) -> Result<Self, CpuError> {
        // Before the registers: KVM may take an INIT or a start-up interrupt into
        // account only now.
        let mp_state = (vcpu.get_mp_state()).map_err(failed("read the multiprocessing state"))?;
        Ok(Self {
            regs: vcpu.get_regs().map_err(failed("read registers"))?,
            sregs: vcpu.get_sregs().map_err(failed("read special registers"))?,
            xcrs: vcpu
                .get_xcrs()
                .map_err(failed("read extended control registers"))?,
            xsave: size.read(vcpu)?,
            lapic: vcpu.get_lapic().map_err(failed("read the local APIC"))?,
            msrs: msrs::read(vcpu, msr_indexes)?,
            debug_regs: vcpu
                .get_debug_regs()
                .map_err(failed("read debug registers"))?,
            events: vcpu
                .get_vcpu_events()
                .map_err(failed("read pending events"))?,
            mp_state,
            tsc_khz: vcpu
                .get_tsc_khz()
                .map_err(failed("read the frequency of the time stamp counter"))?,
        })
    }

    /// Whether `vcpu`'s time stamp counter runs as fast as the saved one did, as far
    /// as a guest can notice: KVM itself tolerates as much.
    pub fn has_frequency_of(&self, vcpu: &VcpuFd) -> Result<bool, KvmError> {
        const TOLERANCE_PPM: u64 = 250;
        let now = vcpu
            .get_tsc_khz()
            .map_err(failed("read the frequency of the time stamp counter"))?;
        let (now, then) = (u64::from(now), u64::from(self.tsc_khz));
        Ok(now.abs_diff(then) <= then * TOLERANCE_PPM / 1_000_000)
    }

    /// Whether the FPU state has the length that KVM takes here.
    pub fn fits(&self, size: XsaveSize) -> bool {
        self.xsave.len() == size.words()
    }

    /// Sets what comes before the interrupt controllers, see
    /// [`Self::write_events`] for the rest. CPUID must have been set.
    ///
    /// The order matters: EFER and CR4 decide what other registers may hold; the
    /// local APIC's mode decides whether a TSC deadline is taken; XCR0 decides
    /// which part of the FPU's state is.
    pub fn write(&self, vcpu: &VcpuFd, size: XsaveSize) -> Result<(), CpuError> {
        vcpu.set_sregs(&self.sregs)
            .map_err(failed("set special registers"))?;
        vcpu.set_lapic(&self.lapic)
            .map_err(failed("set the local APIC"))?;
        msrs::write(vcpu, &self.msrs)?;
        vcpu.set_regs(&self.regs).map_err(failed("set registers"))?;
        vcpu.set_xcrs(&self.xcrs)
            .map_err(failed("set extended control registers"))?;
        size.write(vcpu, &self.xsave)?;
        vcpu.set_debug_regs(&self.debug_regs)
            .map_err(failed("set debug registers"))?;
        Ok(())
    }

    /// Sets what comes behind the interrupt controllers.
    pub fn write_events(&self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        vcpu.set_vcpu_events(&self.events)
            .map_err(failed("set pending events"))?;
        vcpu.set_mp_state(self.mp_state)
            .map_err(failed("set the multiprocessing state"))
    }
}

/// How large KVM's image of the FPU state is on this host.
#[derive(Debug, Clone, Copy)]
pub struct XsaveSize {
    /// Words behind those of `struct kvm_xsave`; none where KVM has no XSAVE2.
    flexible_words: Option<usize>,
}

impl XsaveSize {
    /// Asks KVM.
    pub fn of(vm: &VmFd) -> Self {
        let bytes = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        let words = bytes.div_ceil(size_of::<u32>());
        Self {
            flexible_words: (bytes > 0).then(|| words.saturating_sub(XSAVE_WORDS)),
        }
    }

    fn words(self) -> usize {
        XSAVE_WORDS + self.flexible_words.unwrap_or(0)
    }

    fn read(self, vcpu: &VcpuFd) -> Result<Vec<u32>, KvmError> {
        let refused = failed("read the FPU state");
        let Some(flexible_words) = self.flexible_words else {
            return Ok(vcpu.get_xsave().map_err(refused)?.region.to_vec());
        };
        let mut state = buffer(flexible_words)?;
        // SAFETY: `flexible_words` is what KVM_CAP_XSAVE2 asks for, and this process
        // never enables more of the FPU's features for its guests.
        unsafe { vcpu.get_xsave2(&mut state) }.map_err(refused)?;
        let fixed = &state.as_fam_struct_ref().xsave.region;
        Ok([fixed, state.as_slice()].concat())
    }

    /// `words` must be as many as [`Self::words`].
    fn write(self, vcpu: &VcpuFd, words: &[u32]) -> Result<(), KvmError> {
        let mut state = buffer(self.flexible_words.unwrap_or(0))?;
        let (fixed, flexible) = words.split_at(words.len().min(XSAVE_WORDS));
        // SAFETY: the length of the flexible part stays as it is.
        let whole = unsafe { state.as_mut_fam_struct() };
        copy(&mut whole.xsave.region, fixed);
        copy(state.as_mut_slice(), flexible);
        // SAFETY: as for reading; without XSAVE2 KVM reads the fixed part only.
        unsafe { vcpu.set_xsave2(&state) }.map_err(failed("set the FPU state"))
    }
}

fn buffer(flexible_words: usize) -> Result<Xsave, KvmError> {
    Xsave::new(flexible_words)
        .map_err(|_| failed("hold the FPU state")(kvm_ioctls::Error::new(libc::ENOMEM)))
}

fn copy(to: &mut [u32], from: &[u32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}
