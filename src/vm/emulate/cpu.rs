//! The vCPU as the completions see it, so that tests can bring their own.

use kvm_bindings::{kvm_regs, kvm_sregs};

use super::EmulateError;

/// Registers and exceptions of one stopped vCPU.
pub(super) trait Cpu {
    /// General registers, RIP and RFLAGS.
    fn regs(&self) -> Result<kvm_regs, EmulateError>;
    /// Replaces them and drops an exception that is queued but not yet delivered.
    fn set_regs(&mut self, regs: &kvm_regs) -> Result<(), EmulateError>;
    /// Segments and control registers.
    fn sregs(&self) -> Result<kvm_sregs, EmulateError>;
    /// Replaces them.
    fn set_sregs(&mut self, sregs: &kvm_sregs) -> Result<(), EmulateError>;
    /// XCR0.
    fn xcr0(&self) -> Result<u64, EmulateError>;
    /// The FPU's state in the standard XSAVE format, `XsaveLayout::size` bytes.
    fn fpu_state(&self) -> Result<Vec<u8>, EmulateError>;
    /// Replaces it.
    fn set_fpu_state(&mut self, state: &[u8]) -> Result<(), EmulateError>;
    /// Delivers `exception` on the next entry. CR2 is not touched.
    fn raise(&mut self, exception: Exception) -> Result<(), EmulateError>;
}

/// An exception for the guest (SDM vol. 3, 6.15).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// Vector.
    pub vector: u8,
    /// Error code, if this vector has one.
    pub error_code: Option<u32>,
    /// CR2, for a page fault.
    pub cr2: Option<u64>,
}

impl Exception {
    /// #BP.
    pub(super) const BREAKPOINT: Self = Self::plain(3);
    /// #UD.
    pub(super) const INVALID_OPCODE: Self = Self::plain(6);
    /// #NM.
    pub(super) const NO_DEVICE: Self = Self::plain(7);
    /// #SS(0).
    pub(super) const STACK: Self = Self::zero(12);
    /// #GP(0).
    pub(super) const PROTECTION: Self = Self::zero(13);
    /// #MF.
    pub(super) const X87: Self = Self::plain(16);

    /// #PF at `linear`.
    pub(super) fn page_fault(linear: u64, error_code: u32) -> Self {
        Self {
            vector: 14,
            error_code: Some(error_code),
            cr2: Some(linear),
        }
    }

    const fn plain(vector: u8) -> Self {
        Self {
            vector,
            error_code: None,
            cr2: None,
        }
    }

    const fn zero(vector: u8) -> Self {
        Self {
            error_code: Some(0),
            ..Self::plain(vector)
        }
    }
}
