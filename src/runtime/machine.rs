//! The seam to the machine: everything that is asked of `vmrun-vm`.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use vmrun_protocol::{CONTROL_PORT, FS_TAG};
pub use vmrun_vm::machine::MachineError;
use vmrun_vm::machine::{Machine, RunningMachine};
pub use vmrun_vm::probe::{HostKind, ProbeError};
use vmrun_vm::snapshot::Template;
use vmrun_vm::spec::{BootProtocol, FsExport, FsSpec, HostPort, MachineSpec, VsockSpec};
use vmrun_vm::trace::Timeline;

use crate::Error;
use crate::guest_image::GuestImage;
use crate::plan::Shape;
use crate::session::draw_random;

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

/// Memory of the host in MiB.
pub fn host_mem_mib() -> u64 {
    let info = rustix::system::sysinfo();
    let bytes = u128::from(info.totalram) * u128::from(info.mem_unit);
    u64::try_from(bytes >> 20).unwrap_or(u64::MAX)
}

/// The machine that containers run in, without anything for debugging. All of a
/// shape have the same devices, whether they were booted or restored.
pub fn spec(
    shape: Shape,
    image: GuestImage,
    exports: Vec<FsExport>,
    agent_end: UnixStream,
) -> Result<MachineSpec, Error> {
    Ok(MachineSpec {
        kernel: image.kernel,
        initramfs: Some(image.initramfs),
        boot_protocol: BootProtocol::default(),
        kernel_params: Vec::new(),
        mem_size_mib: shape.mem_size_mib,
        vcpu_count: shape.vcpu_count,
        fs: Some(FsSpec {
            tag: FS_TAG.to_owned(),
            exports,
        }),
        vsock: Some(VsockSpec {
            guest_cid: random_cid()?,
            host_ports: vec![(CONTROL_PORT, HostPort::Once(agent_end))],
        }),
        drives: Vec::new(),
        rng: true,
        console: None,
        serial: None,
        profile: None,
    })
}

/// Builds the machine and lets it run. Dropping it stops it.
pub fn boot(
    spec: MachineSpec,
    host: HostKind,
    timeline: &Timeline,
) -> Result<RunningMachine, Error> {
    Machine::build(spec, host, timeline)
        .and_then(Machine::resume)
        .map_err(Error::Machine)
}

/// Lets a machine go on from where `template` was frozen. Dropping it stops it.
pub fn restore(
    template: Template,
    spec: MachineSpec,
    host: HostKind,
    timeline: &Timeline,
) -> Result<RunningMachine, Error> {
    Machine::restore(template, spec, host, timeline)
        .and_then(Machine::resume)
        .map_err(Error::Machine)
}

/// A context id of its own for each machine.
fn random_cid() -> Result<u64, Error> {
    loop {
        let mut bytes = [0; 4];
        draw_random(&mut bytes)?;
        let cid = u32::from_ne_bytes(bytes);
        if is_guest_cid(cid) {
            return Ok(cid.into());
        }
    }
}

/// The others mean the hypervisor, this machine, the host and any (virtio 1.2,
/// 5.10.4, and linux/vm_sockets.h).
fn is_guest_cid(cid: u32) -> bool {
    const FIRST: u32 = 3;
    (FIRST..u32::MAX).contains(&cid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_ids() {
        for (cid, expected) in [(0, false), (2, false), (3, true), (u32::MAX - 1, true)] {
            assert_eq!(is_guest_cid(cid), expected, "{cid}");
        }
        assert!(!is_guest_cid(u32::MAX));
        assert_ne!(random_cid().unwrap(), random_cid().unwrap());
    }
}
