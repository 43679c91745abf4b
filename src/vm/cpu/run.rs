//! The loop of one vCPU, on a thread of its own.

#![allow(unsafe_code)]

use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{Builder, JoinHandle};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::CpuError;
use crate::accelerate::{AccelerateError, Accelerator};
use crate::bus::Bus;
use crate::emulate::{self, Bulk, Completed, EmulateError};
use crate::ending::{Ending, Outcome};
use crate::kick::{self, KickTimer};
use crate::probe::HostKind;
use crate::profile::{self, Profile};
use crate::trace::Counters;

/// What every vCPU of a machine shares.
#[derive(Clone)]
pub struct VcpuContext {
    /// I/O ports.
    pub ports: Arc<Bus>,
    /// Memory-mapped devices.
    pub mmio: Arc<Bus>,
    /// Guest RAM.
    pub memory: GuestMemoryMmap,
    /// Where the end is told.
    pub outcome: Arc<Outcome>,
    /// Ring 0 is interpreted here: a software host, and the only vCPU.
    pub accelerate: bool,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// Samples of the instruction pointer, if asked for.
    pub profile: Option<Arc<Profile>>,
}

/// A running vCPU. Dropping it without [`Self::join`] leaves the thread alone.
pub struct VcpuThread {
    /// The vCPU comes back at the end, so that its `kvm_run` page stays mapped
    /// as long as a [`Kicker`] may write to it.
    handle: JoinHandle<VcpuFd>,
    immediate_exit: ImmediateExit,
}

/// `kvm_run.immediate_exit` of a vCPU.
#[derive(Clone, Copy)]
struct ImmediateExit(*const AtomicU8);

// SAFETY: it points into the shared kvm_run page, and is only used for an atomic
// store while `VcpuThread` keeps that page mapped.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above.
unsafe impl Sync for ImmediateExit {}

impl VcpuThread {
    /// Starts vCPU `id`.
    pub fn start(mut vcpu: VcpuFd, id: usize, context: VcpuContext) -> Result<Self, CpuError> {
        let field = &raw mut vcpu.get_kvm_run().immediate_exit;
        let immediate_exit = ImmediateExit(field.cast_const().cast());
        let handle = Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(move || {
                let _timer = context.profile.as_ref().and_then(|_| sample_timer());
                let mut accelerator = accelerator(&mut vcpu, &context);
                run(&mut vcpu, &context, accelerator.as_mut());
                vcpu
            })
            .map_err(CpuError::Thread)?;
        Ok(Self {
            handle,
            immediate_exit,
        })
    }

    /// Ends the loop, waits for the thread and takes the vCPU back;
    /// [`Outcome::is_over`] must hold. None if the thread panicked.
    pub fn join(self) -> Option<VcpuFd> {
        // SAFETY: the page is mapped until the VcpuFd is dropped, which the thread
        // returns and `join` below hands to us.
        unsafe { (*self.immediate_exit.0).store(1, Ordering::SeqCst) };
        // SAFETY: the thread has not been joined, so its pthread_t is valid.
        unsafe { libc::pthread_kill(self.handle.as_pthread_t(), kick::signal()) };
        self.handle
            .join()
            .inspect_err(|_| log::error!("a vCPU thread panicked"))
            .ok()
    }
}

/// Completes a port or memory access that KVM has handed back and not yet heard
/// the answer of, and applies registers that were changed meanwhile, without a
/// further instruction of the guest: then the vCPU's state is all there is. For a
/// vCPU that runs on no thread.
pub(super) fn settle(vcpu: &mut VcpuFd, context: &VcpuContext) -> Result<(), Ending> {
    vcpu.set_kvm_immediate_exit(1);
    while run_once(vcpu, context)? != Turn::Interrupted {}
    Ok(())
}

/// Why [`run_once`] came back.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// The guest asked for something and has got it.
    Served,
    /// A kick, between two instructions.
    Interrupted,
    /// A breakpoint of ours.
    Stopped,
    /// The guest gets an exception. KVM does not tell of all of them again.
    Raised,
}

/// Whether ring 0 of such a machine is interpreted by this process, see
/// [`crate::accelerate`].
pub fn is_accelerated(host: HostKind, vcpu_count: u8) -> bool {
    host == HostKind::Software && vcpu_count == 1
}

fn accelerator(vcpu: &mut VcpuFd, context: &VcpuContext) -> Option<Accelerator> {
    let wanted = context.accelerate;
    wanted
        .then(|| {
            let (mmio, profile) = (context.mmio.clone(), context.profile.clone());
            Accelerator::new(vcpu, &context.memory, mmio, profile)
        })
        .flatten()
}

fn run(vcpu: &mut VcpuFd, context: &VcpuContext, mut accelerator: Option<&mut Accelerator>) {
    if let Err(ending) = run_until_over(vcpu, context, accelerator.as_deref_mut()) {
        context.outcome.end(ending);
    }
    if let Some(accelerator) = accelerator
        && let Err(error) = accelerator.release(vcpu)
    {
        context.outcome.end(Ending::Failed(chain(&error)));
    }
}

fn run_until_over(
    vcpu: &mut VcpuFd,
    context: &VcpuContext,
    mut accelerator: Option<&mut Accelerator>,
) -> Result<(), Ending> {
    let mut raised = false;
    while !context.outcome.is_over() {
        if let Some(accelerator) = accelerator.as_mut().filter(|_| !raised) {
            let instructions = accelerator.run(vcpu).map_err(unaccelerated)?;
            let counter = &context.counters.instructions;
            counter.fetch_add(instructions, Ordering::Relaxed);
            // It may have undone a kick that came meanwhile, see `VcpuThread::join`.
            if context.outcome.is_over() {
                break;
            }
        }
        let turn = run_once(vcpu, context)?;
        context.counters.exits.fetch_add(1, Ordering::Relaxed);
        raised = turn == Turn::Raised;
        if turn == Turn::Interrupted {
            sample(vcpu, context);
        }
        if turn == Turn::Served && accelerator.is_some() {
            Accelerator::finish_access(vcpu).map_err(unaccelerated)?;
        }
    }
    Ok(())
}

fn unaccelerated(error: AccelerateError) -> Ending {
    Ending::Failed(chain(&error))
}

/// Runs the guest until KVM hands something back, and answers it.
fn run_once(vcpu: &mut VcpuFd, context: &VcpuContext) -> Result<Turn, Ending> {
    match vcpu.run() {
        Ok(VcpuExit::IoOut(port, data)) => match Bulk::asked(port, data) {
            Some(asked) => emulate::bulk(vcpu, &context.memory, asked).map_err(unfinished)?,
            None => context.ports.write(port.into(), data),
        },
        Ok(VcpuExit::IoIn(port, data)) => context.ports.read(port.into(), data),
        Ok(VcpuExit::MmioWrite(address, data)) => context.mmio.write(address, data),
        Ok(VcpuExit::MmioRead(address, data)) => context.mmio.read(address, data),
        Ok(VcpuExit::InternalError) => return complete(vcpu, context),
        Ok(VcpuExit::Shutdown) => return Err(Ending::TripleFault),
        Ok(VcpuExit::Debug(_)) => return Ok(Turn::Stopped),
        Ok(VcpuExit::Hlt) => return Err(Ending::Halted),
        Ok(VcpuExit::Intr) => return Ok(Turn::Interrupted),
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            return Err(Ending::Failed(format!(
                "KVM could not enter the guest: reason {reason:#x} on CPU {cpu}"
            )));
        }
        Ok(other) => return Err(Ending::Failed(format!("unexpected exit {other:?}"))),
        Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
            return Ok(Turn::Interrupted);
        }
        Err(e) => return Err(Ending::Failed(format!("KVM_RUN: {e}"))),
    }
    Ok(Turn::Served)
}

fn complete(vcpu: &mut VcpuFd, context: &VcpuContext) -> Result<Turn, Ending> {
    let completed = emulate::complete(vcpu, &context.memory).map_err(unfinished)?;
    Ok(match completed {
        Completed::Retired => Turn::Served,
        Completed::Raised(_) => Turn::Raised,
    })
}

fn unfinished(error: EmulateError) -> Ending {
    Ending::Emulation(chain(&error))
}

/// Kicks this thread on a timer, for samples.
fn sample_timer() -> Option<KickTimer> {
    profile::sample_timer(kick::signal())
        .inspect_err(|error| log::warn!("no profile: {error}"))
        .ok()
}

fn sample(vcpu: &VcpuFd, context: &VcpuContext) {
    let Some(profile) = &context.profile else {
        return;
    };
    if let Ok(regs) = vcpu.get_regs() {
        let read = |address| read_virtual(vcpu, context, address);
        profile.hit(profile::stack(regs.rip, regs.rbp, read));
    }
}

/// The 8 bytes at a guest-virtual address, where they are aligned and mapped.
fn read_virtual(vcpu: &VcpuFd, context: &VcpuContext, address: u64) -> Option<u64> {
    let translation = vcpu.translate_gva(address).ok()?;
    let mapped = translation.valid != 0 && address.is_multiple_of(8);
    let physical = GuestAddress(translation.physical_address);
    mapped.then(|| context.memory.read_obj(physical).ok())?
}

/// An error and its sources on one line.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |e| e.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
