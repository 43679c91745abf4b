//! A vCPU of KVM.

#![allow(unsafe_code)]

use kvm_bindings::{Xsave, kvm_regs, kvm_sregs, kvm_xsave};
use kvm_ioctls::VcpuFd;

use super::EmulateError;
use super::cpu::{Cpu, Exception};
use super::xsave::XsaveLayout;

/// Bytes of `struct kvm_xsave` without its flexible part.
const XSAVE_FIXED: usize = size_of::<kvm_xsave>();

/// Why KVM stopped with an internal error. Valid only after such an exit.
pub(super) fn suberror(vcpu: &mut VcpuFd) -> u32 {
    // SAFETY: every variant of the union is plain data, so that any bytes are a
    // valid value; after KVM_EXIT_INTERNAL_ERROR this is the one filled in.
    unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror }
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

impl Cpu for VcpuFd {
    fn regs(&self) -> Result<kvm_regs, EmulateError> {
        self.get_regs().map_err(refused("read registers"))
    }

    fn set_regs(&mut self, regs: &kvm_regs) -> Result<(), EmulateError> {
        VcpuFd::set_regs(self, regs).map_err(refused("set registers"))
    }

    fn sregs(&self) -> Result<kvm_sregs, EmulateError> {
        self.get_sregs().map_err(refused("read control registers"))
    }

    fn set_sregs(&mut self, sregs: &kvm_sregs) -> Result<(), EmulateError> {
        VcpuFd::set_sregs(self, sregs).map_err(refused("set control registers"))
    }

    fn xcr0(&self) -> Result<u64, EmulateError> {
        let xcrs = self.get_xcrs().map_err(refused("read XCR0"))?;
        let count = xcrs.nr_xcrs as usize;
        let xcr0 = xcrs.xcrs.iter().take(count).find(|xcr| xcr.xcr == 0);
        // x87 is always enabled (SDM vol. 1, 13.3).
        Ok(xcr0.map_or(1, |xcr| xcr.value))
    }

    fn fpu_state(&self) -> Result<Vec<u8>, EmulateError> {
        let mut state = buffer()?;
        if state.as_slice().is_empty() {
            let fixed = self.get_xsave().map_err(refused("read the FPU state"))?;
            return Ok(fixed.region.iter().flat_map(|w| w.to_le_bytes()).collect());
        }
        // SAFETY: `buffer` is as large as the processor's whole state.
        unsafe { self.get_xsave2(&mut state) }.map_err(refused("read the FPU state"))?;
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
        unsafe { self.set_xsave2(&state) }.map_err(refused("set the FPU state"))
    }

    fn raise(&mut self, exception: Exception) -> Result<(), EmulateError> {
        let mut events = self.get_vcpu_events().map_err(refused("read events"))?;
        // Only what is not behind a flag: an NMI that arrives right now must not
        // be overwritten.
        events.flags = 0;
        events.exception.injected = 1;
        events.exception.pending = 0;
        events.exception.nr = exception.vector;
        events.exception.has_error_code = exception.error_code.is_some().into();
        events.exception.error_code = exception.error_code.unwrap_or(0);
        self.set_vcpu_events(&events)
            .map_err(refused("inject an exception"))
    }
}

fn fill(words: &mut [u32], bytes: &[u8]) {
    for (word, chunk) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*chunk);
    }
}
