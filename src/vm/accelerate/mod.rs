//! Ring 0 of the guest, interpreted by this process.
//!
//! Where KVM runs ring 3 on the processor but emulates ring 0, its emulator makes
//! some 1.5 million instructions a second. The interpreter of [`crate::interpret`]
//! works on the same memory and makes some tens of millions. So on such hosts
//! KVM_RUN comes back at each entry into the guest's kernel ([`entry`]), the kernel
//! is interpreted up to the next instruction that only KVM can execute, and KVM
//! goes on from there:
//!
//! ```text
//! KVM: ring 3 ── exception ──▶ entry ─breakpoint─▶ interpreter ── iret to ring 3 ──▶ KVM
//!                                                    ▲     │ in, out, wrmsr, invlpg,
//!                                        breakpoint  │     ▼ page tables, faults, hlt
//!                                                    └─── KVM, one instruction
//! ```
//! Interrupts are KVM's: every [`BUDGET`] instructions it is entered to deliver one.
//! Page tables are KVM's, too, as far as it shadows them ([`tables`]).
//!
//! Only for machines with one vCPU. Never on hardware. The guest loses its debug
//! registers: their breakpoints are ours.

mod breakpoints;
mod bulk;
mod entry;
mod idle;
mod privileged;
mod ram;
mod segments;
mod tables;
#[cfg(test)]
mod tests;
mod translate;
mod tsc;

use std::cell::RefCell;
use std::sync::Arc;

use kvm_bindings::{kvm_regs, kvm_sregs, kvm_vcpu_events};
use kvm_ioctls::{SyncReg, VcpuFd};
use vm_memory::GuestMemoryMmap;

use crate::bus::Bus;
use crate::emulate::{self, EmulateError, ring0_64};
use crate::interpret::{self, CodeCache, State, Stop};
use crate::profile::{self, Profile};
use breakpoints::Breakpoints;
use entry::Entry;
use idle::Idle;
use privileged::Next;
use ram::Ram;
use translate::Translator;

/// Instructions between two chances for an interrupt: less than a millisecond.
const BUDGET: u64 = 20_000;

/// Instructions between two samples of a profile.
const SAMPLE: u64 = 500;

/// KVM refused what it must not refuse.
#[derive(Debug, thiserror::Error)]
pub enum AccelerateError {
    /// A request to KVM failed.
    #[error("KVM cannot {what}")]
    Kvm {
        /// What was asked of it.
        what: &'static str,
        /// Why not.
        source: kvm_ioctls::Error,
    },
    /// An instruction that has to be completed cannot be.
    #[error(transparent)]
    Emulate(#[from] EmulateError),
}

/// See the module's text. One for each vCPU.
pub struct Accelerator {
    memory: GuestMemoryMmap,
    mmio: Arc<Bus>,
    translator: Translator,
    code: CodeCache,
    breakpoints: Breakpoints,
    entry: Entry,
    tsc_offset: Option<u64>,
    kernel_gs: privileged::KernelGs,
    /// An entry of a page table that KVM is changing.
    left_write: Option<(u64, u8)>,
    /// KVM is executing something that may change translations.
    left_paging: bool,
    idle: Idle,
    /// KVM has been asked for the registers.
    began: bool,
    /// Gets a sample every [`SAMPLE`] instructions.
    profile: Option<Arc<Profile>>,
    /// Instructions interpreted in this run.
    instructions: u64,
}

impl Accelerator {
    /// For a vCPU whose registers are shared ([`emulate::share_registers`]); none where
    /// KVM cannot do that.
    pub fn new(
        vcpu: &mut VcpuFd,
        memory: &GuestMemoryMmap,
        mmio: Arc<Bus>,
        profile: Option<Arc<Profile>>,
    ) -> Option<Self> {
        emulate::shares_registers(vcpu).then(|| Self {
            memory: memory.clone(),
            mmio,
            translator: Translator::new(Ram::new(memory)),
            code: CodeCache::new(),
            breakpoints: Breakpoints::default(),
            entry: Entry::default(),
            tsc_offset: tsc::offset(vcpu),
            kernel_gs: privileged::KernelGs::default(),
            left_write: None,
            left_paging: true,
            idle: Idle::default(),
            began: false,
            profile,
            instructions: 0,
        })
    }

    /// Lets KVM finish an access to a device and bring its registers up to date,
    /// without running the guest.
    pub fn finish_access(vcpu: &mut VcpuFd) -> Result<(), AccelerateError> {
        vcpu.set_kvm_immediate_exit(1);
        let ran = vcpu.run().map(drop);
        vcpu.set_kvm_immediate_exit(0);
        match ran {
            Err(e) if e.errno() != libc::EINTR => Err(refused("finish an access")(e)),
            _ => Ok(()),
        }
    }

    /// Interprets ring 0 from where KVM_RUN came back, up to where KVM is needed.
    /// Registers must be up to date, see [`Self::finish_access`]. Returns the number of
    /// instructions.
    pub fn run(&mut self, vcpu: &mut VcpuFd) -> Result<u64, AccelerateError> {
        if !std::mem::replace(&mut self.began, true) {
            Self::finish_access(vcpu)?;
        }
        if let Some(entry) = self.left_write.take() {
            self.translator.left_write(entry);
        }
        if std::mem::take(&mut self.left_paging) {
            self.translator.flush();
        }
        let mut shared = emulate::shared_registers(vcpu);
        // Nobody may run it but KVM, which alone knows what it waits for.
        if self.idle.still(shared.regs.rip, &mut self.code) {
            return Ok(0);
        }
        if !ring0_64(&shared.sregs) || delivers(&shared.events) {
            return Ok(0);
        }
        self.translator.set_mode(shared.sregs.cr0, shared.sregs.cr3);
        if let Some(entry) = self.entry.find(&mut self.translator, &shared.sregs) {
            self.breakpoints.set_entry(entry);
        }
        let mut state = state(&shared.regs, &shared.sregs);
        let next = self.interpret(vcpu, &mut state, &mut shared.sregs)?;
        self.translator.settle();
        store(vcpu, &state, shared.sregs);
        self.breakpoints.stop_at(vcpu, state.rip, next)?;
        Ok(std::mem::take(&mut self.instructions))
    }

    fn interpret(
        &mut self,
        vcpu: &mut VcpuFd,
        state: &mut State,
        sregs: &mut kvm_sregs,
    ) -> Result<Next, AccelerateError> {
        let mut budget = BUDGET;
        loop {
            let piece = match self.profile {
                Some(_) => budget.min(SAMPLE),
                None => budget,
            };
            let ran = interpret::run(state, &mut self.translator, &mut self.code, piece);
            self.instructions += ran.instructions;
            if ran.instructions >= SAMPLE {
                self.sample(state);
            }
            for frame in self.translator.stale_code() {
                self.code.invalidate(frame);
            }
            budget = budget.saturating_sub(ran.instructions.max(1));
            if budget == 0 {
                return Ok(Next::Here);
            }
            if ran.stop == Stop::Budget {
                continue;
            }
            match self.privileged(vcpu, state, sregs)? {
                Some(next) => return Ok(next),
                None => budget = budget.saturating_sub(1),
            }
        }
    }

    fn sample(&mut self, state: &State) {
        const RBP: usize = 5;
        if let Some(profile) = &self.profile {
            let translator = RefCell::new(&mut self.translator);
            let read = |address| entry::load(&mut translator.borrow_mut(), address);
            profile.hit(profile::stack(state.rip, state.gpr[RBP], read));
        }
    }

    /// Leaves nothing behind that only this process knows. Before the vCPU's state is
    /// read by others.
    pub fn release(&mut self, vcpu: &mut VcpuFd) -> Result<(), AccelerateError> {
        self.kernel_gs.give_back(vcpu)?;
        self.breakpoints.clear(vcpu)
    }
}

/// An exception or interrupt is on its way to the guest.
fn delivers(events: &kvm_vcpu_events) -> bool {
    events.exception.injected != 0
        || events.exception.pending != 0
        || events.interrupt.injected != 0
        || events.nmi.injected != 0
}

fn state(regs: &kvm_regs, sregs: &kvm_sregs) -> State {
    State {
        gpr: [
            regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi,
            regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ],
        rip: regs.rip,
        rflags: regs.rflags,
        fs_base: sregs.fs.base,
        gs_base: sregs.gs.base,
    }
}

fn store(vcpu: &mut VcpuFd, state: &State, mut sregs: kvm_sregs) {
    let [
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ] = state.gpr;
    (sregs.fs.base, sregs.gs.base) = (state.fs_base, state.gs_base);
    let shared = vcpu.sync_regs_mut();
    shared.regs = kvm_regs {
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: state.rip,
        rflags: state.rflags,
    };
    // Costs KVM more than the others.
    let sregs_changed = shared.sregs != sregs;
    shared.sregs = sregs;
    vcpu.set_sync_dirty_reg(SyncReg::Register);
    if sregs_changed {
        vcpu.set_sync_dirty_reg(SyncReg::SystemRegister);
    }
}

fn refused(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> AccelerateError {
    move |source| AccelerateError::Kvm { what, source }
}
