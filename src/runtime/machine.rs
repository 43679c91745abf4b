//! The seam to the machine: everything that is asked of `vmrun-vm`.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

pub use vmrun_vm::machine::MachineError;
use vmrun_vm::machine::{Machine, RunningMachine};
pub use vmrun_vm::probe::{HostKind, ProbeError};
use vmrun_vm::spec::MachineSpec;
use vmrun_vm::trace::Timeline;

use crate::Error;

/// What a session needs of the machine that its guest runs in.
pub trait Guest {
    /// Readable once the machine has ended. Only to be polled.
    fn ended_fd(&self) -> BorrowedFd<'_>;
    /// How it ended, in words, once it has.
    fn ending(&self) -> Option<String>;
    /// A connection to a vsock port of the guest, at once.
    fn connect(&self, guest_port: u32) -> io::Result<UnixStream>;
}

impl Guest for RunningMachine {
    fn ended_fd(&self) -> BorrowedFd<'_> {
        self.ended_fd()
    }

    fn ending(&self) -> Option<String> {
        self.ending().map(|ending| ending.to_string())
    }

    fn connect(&self, guest_port: u32) -> io::Result<UnixStream> {
        let vsock = self.vsock().ok_or(io::ErrorKind::NotConnected)?;
        vsock.connect(guest_port)
    }
}

/// How this host's KVM runs ring 0.
pub fn host_kind() -> Result<HostKind, Error> {
    vmrun_vm::probe::host_kind().map_err(Error::Kvm)
}

/// Builds the machine and lets it run. Dropping it stops it.
pub fn start(
    spec: MachineSpec,
    host: HostKind,
    timeline: &Timeline,
) -> Result<RunningMachine, Error> {
    Machine::build(spec, host, timeline)
        .and_then(Machine::resume)
        .map_err(Error::Machine)
}
