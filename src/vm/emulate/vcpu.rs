//! A vCPU of KVM.
//!
//! A request to KVM costs 5 to 10 us on software hosts, as much as a dozen
//! emulated instructions; registers in the page shared with KVM cost next to
//! nothing (KVM_CAP_SYNC_REGS).

#![allow(unsafe_code)]

use kvm_bindings::{
    KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, Xsave, kvm_regs, kvm_sregs,
    kvm_sync_regs, kvm_vcpu_events, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, SyncReg, VcpuFd};

use super::EmulateError;
use super::cpu::{Cpu, Exception};
use super::xsave::XsaveLayout;

/// Bytes of `struct kvm_xsave` without its flexible part.
const XSAVE_FIXED: usize = size_of::<kvm_xsave>();

/// What is shared with KVM.
const SHARED: u32 = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS;

/// Lets KVM leave the vCPU's registers in the page it shares with this process on
/// each exit, which makes [`super::complete`] cheaper. To be called once per
/// vCPU, if at all; does nothing where KVM cannot. From then on what `complete`
/// changed takes effect with the next KVM_RUN and not before.
pub fn share_registers(kvm: &Kvm, vcpu: &mut VcpuFd) {
    let offered = kvm.check_extension_int(Cap::SyncRegs);
    if u32::try_from(offered).is_ok_and(|offered| offered & SHARED == SHARED) {
        vcpu.set_sync_valid_reg(SyncReg::Register);
        vcpu.set_sync_valid_reg(SyncReg::SystemRegister);
        vcpu.set_sync_valid_reg(SyncReg::VcpuEvents);
    }
}

/// Whether [`share_registers`] has had an effect.
pub fn shares_registers(vcpu: &mut VcpuFd) -> bool {
    vcpu.get_kvm_run().kvm_valid_regs & u64::from(SHARED) == u64::from(SHARED)
}

/// The registers that KVM has left in the shared page.
///
/// KVM adds the interrupt that it is delivering to `sregs.interrupt_bitmap` there and
/// never takes one out. Given back, each would be delivered once more, at every entry.
pub fn shared_registers(vcpu: &VcpuFd) -> kvm_sync_regs {
    let mut shared = vcpu.sync_regs();
    shared.sregs.interrupt_bitmap = delivering(&shared.events);
    shared
}

/// The external interrupt that is on its way, as KVM_GET_SREGS has it.
fn delivering(events: &kvm_vcpu_events) -> [u64; 4] {
    let mut bitmap = [0; 4];
    let interrupt = events.interrupt;
    let word = bitmap.get_mut(usize::from(interrupt.nr / 64));
    if let Some(word) = word.filter(|_| interrupt.injected != 0 && interrupt.soft == 0) {
        *word = 1 << (interrupt.nr % 64);
    }
    bitmap
}

/// A vCPU that KVM_RUN just came back from.
pub(super) struct Vcpu<'a> {
    fd: &'a mut VcpuFd,
    /// The shared page has its registers.
    shared: bool,
}

impl<'a> Vcpu<'a> {
    pub(super) fn new(fd: &'a mut VcpuFd) -> Self {
        let shared = fd.get_kvm_run().kvm_valid_regs & u64::from(SHARED) == u64::from(SHARED);
        Self { fd, shared }
    }

    /// Why KVM stopped with an internal error. Valid only after such an exit.
    pub(super) fn suberror(&mut self) -> u32 {
        // SAFETY: every variant of the union is plain data, so that any bytes are a
        // valid value; after KVM_EXIT_INTERNAL_ERROR this is the one filled in.
        unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror }
    }

    fn events(&self) -> Result<kvm_vcpu_events, EmulateError> {
        if self.shared {
            return Ok(shared_registers(self.fd).events);
        }
        self.fd.get_vcpu_events().map_err(refused("read events"))
    }

    fn set_events(&mut self, events: kvm_vcpu_events) -> Result<(), EmulateError> {
        if self.shared {
            self.fd.sync_regs_mut().events = events;
            self.fd.set_sync_dirty_reg(SyncReg::VcpuEvents);
            return Ok(());
        }
        self.fd
            .set_vcpu_events(&events)
            .map_err(refused("inject an exception"))
    }
}

fn refused(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> EmulateError {
    move |source| EmulateError::Kvm { what, source }
}

/// A buffer as large as KVM's idea of the state can be.
///
/// KVM copies what the guest can have enabled, which is at most what the
/// processor has: `XsaveLayout::size` comes from CPUID leaf 0xD, ECX.
fn buffer() -> Result<Xsave, EmulateError> {
    let flexible = XsaveLayout::host().size().saturating_sub(XSAVE_FIXED);
    Xsave::new(flexible.div_ceil(size_of::<u32>()))
        .map_err(|_| refused("hold the FPU state")(kvm_ioctls::Error::new(libc::ENOMEM)))
}

impl Cpu for Vcpu<'_> {
    fn regs(&self) -> Result<kvm_regs, EmulateError> {
        if self.shared {
            return Ok(shared_registers(self.fd).regs);
        }
        self.fd.get_regs().map_err(refused("read registers"))
    }

    fn set_regs(&mut self, regs: &kvm_regs) -> Result<(), EmulateError> {
        if self.shared {
            self.fd.sync_regs_mut().regs = *regs;
            self.fd.set_sync_dirty_reg(SyncReg::Register);
            return Ok(());
        }
        self.fd.set_regs(regs).map_err(refused("set registers"))
    }

    fn sregs(&self) -> Result<kvm_sregs, EmulateError> {
        if self.shared {
            return Ok(shared_registers(self.fd).sregs);
        }
        self.fd
            .get_sregs()
            .map_err(refused("read control registers"))
    }

    fn set_sregs(&mut self, sregs: &kvm_sregs) -> Result<(), EmulateError> {
        if self.shared {
            self.fd.sync_regs_mut().sregs = *sregs;
            self.fd.set_sync_dirty_reg(SyncReg::SystemRegister);
            return Ok(());
        }
        self.fd
            .set_sregs(sregs)
            .map_err(refused("set control registers"))
    }

    fn xcr0(&self) -> Result<u64, EmulateError> {
        let xcrs = self.fd.get_xcrs().map_err(refused("read XCR0"))?;
        let count = xcrs.nr_xcrs as usize;
        let xcr0 = xcrs.xcrs.iter().take(count).find(|xcr| xcr.xcr == 0);
        // x87 is always enabled (SDM vol. 1, 13.3).
        Ok(xcr0.map_or(1, |xcr| xcr.value))
    }

    fn fpu_state(&self) -> Result<Vec<u8>, EmulateError> {
        let mut state = buffer()?;
        if state.as_slice().is_empty() {
            let fixed = self.fd.get_xsave().map_err(refused("read the FPU state"))?;
            return Ok(fixed.region.iter().flat_map(|w| w.to_le_bytes()).collect());
        }
        // SAFETY: `buffer` is as large as the processor's whole state.
        unsafe { self.fd.get_xsave2(&mut state) }.map_err(refused("read the FPU state"))?;
        let fixed = &state.as_fam_struct_ref().xsave.region;
        let words = fixed.iter().chain(state.as_slice());
        Ok(words.flat_map(|word| word.to_le_bytes()).collect())
    }

    fn set_fpu_state(&mut self, bytes: &[u8]) -> Result<(), EmulateError> {
        let mut state = buffer()?;
        let (fixed, flexible) = bytes.split_at(bytes.len().min(XSAVE_FIXED));
        // SAFETY: the length of the flexible part stays as it is.
        let whole = unsafe { state.as_mut_fam_struct() };
        fill(&mut whole.xsave.region, fixed);
        fill(state.as_mut_slice(), flexible);
        // SAFETY: `buffer` is as large as the processor's whole state.
        unsafe { self.fd.set_xsave2(&state) }.map_err(refused("set the FPU state"))
    }

    fn raise(&mut self, exception: Exception) -> Result<(), EmulateError> {
        let mut events = self.events()?;
        // Only what is not behind a flag: an NMI that arrives right now must not
        // be overwritten.
        events.flags = 0;
        events.exception.injected = 1;
        events.exception.pending = 0;
        events.exception.nr = exception.vector;
        events.exception.has_error_code = exception.error_code.is_some().into();
        events.exception.error_code = exception.error_code.unwrap_or(0);
        self.set_events(events)
    }
}

fn fill(words: &mut [u32], bytes: &[u8]) {
    for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_interrupt_that_is_on_its_way_is_given_back() {
        let mut events = kvm_vcpu_events::default();
        events.interrupt.nr = 0x27;
        assert_eq!(delivering(&events), [0; 4]);
        events.interrupt.injected = 1;
        assert_eq!(delivering(&events), [1 << 0x27, 0, 0, 0]);
        events.interrupt.nr = 255;
        assert_eq!(delivering(&events), [0, 0, 0, 1 << 63]);
        events.interrupt.soft = 1;
        assert_eq!(delivering(&events), [0; 4]);
    }
}
