//! A machine that runs a few instructions of ours, for tests.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::Instant;

use kvm_ioctls::{VcpuExit, VcpuFd};
use tempfile::{NamedTempFile, TempDir};

use super::Machine;
use crate::probe::{self, HostKind};
use crate::snapshot::{SnapshotError, Template};
use crate::spec::{FsSpec, MachineSpec, VsockSpec};
use crate::trace::Timeline;

/// Rounds of [`counter`] so far, 64 bits.
pub const COUNTER: u64 = 0x20_0000;
/// What the last read of [`PORT`] gave, one byte.
pub const READ: u64 = 0x20_0008;
/// The time stamp counter then, 64 bits.
pub const TSC: u64 = 0x20_0010;
/// No device is there.
pub const PORT: u16 = 0x80;

/// A guest that goes through as many rounds and then pulls the reset line. In each
/// round it adds one to a counter in memory, reads a port, and keeps what came and
/// when.
pub fn counter(rounds: u32) -> Vec<u8> {
    let mut code = vec![
        0x48, 0x31, 0xdb, // xor rbx, rbx
        0x48, 0xff, 0xc3, // inc rbx
        0x48, 0x89, 0x1c, 0x25, 0x00, 0x00, 0x20, 0x00, // mov [COUNTER], rbx
        0xe4, 0x80, // in al, PORT
        0x88, 0x04, 0x25, 0x08, 0x00, 0x20, 0x00, // mov [READ], al
        0x0f, 0x31, // rdtsc
        0x89, 0x04, 0x25, 0x10, 0x00, 0x20, 0x00, // mov [TSC], eax
        0x89, 0x14, 0x25, 0x14, 0x00, 0x20, 0x00, // mov [TSC + 4], edx
        0x48, 0x81, 0xfb, // cmp rbx, rounds
    ];
    code.extend(rounds.to_le_bytes());
    // jb to the inc; mov al, 0xfe; out 0x64, al; hlt
    let back = 3_i32 - (code.len() as i32 + 2);
    code.extend([0x72, back as u8, 0xb0, 0xfe, 0xe6, 0x64, 0xf4]);
    code
}

/// A kernel of these instructions: an ELF file with one segment at 1 MiB.
pub fn kernel(code: &[u8]) -> NamedTempFile {
    const HEADERS: u64 = 64 + 56;
    const ADDRESS: u64 = 1 << 20;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |elf: &mut Vec<u8>, value: u16| elf.extend(value.to_le_bytes());
    let word = |elf: &mut Vec<u8>, value: u32| elf.extend(value.to_le_bytes());
    let long = |elf: &mut Vec<u8>, value: u64| elf.extend(value.to_le_bytes());
    half(&mut elf, 2); // ET_EXEC
    half(&mut elf, 62); // EM_X86_64
    word(&mut elf, 1);
    long(&mut elf, ADDRESS); // entry
    long(&mut elf, 64); // program headers
    long(&mut elf, 0);
    word(&mut elf, 0);
    for value in [64, 56, 1, 0, 0, 0] {
        half(&mut elf, value);
    }
    word(&mut elf, 1); // PT_LOAD
    word(&mut elf, 7);
    long(&mut elf, HEADERS);
    long(&mut elf, ADDRESS);
    long(&mut elf, ADDRESS);
    long(&mut elf, code.len() as u64);
    long(&mut elf, code.len() as u64);
    long(&mut elf, 4096);
    elf.extend(code);
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&elf).unwrap();
    file
}

/// 32 MiB, one vCPU, vsock, an empty share and a random number generator.
pub fn spec(kernel: &NamedTempFile) -> MachineSpec {
    MachineSpec {
        kernel: kernel.path().to_owned(),
        initramfs: None,
        boot_protocol: Default::default(),
        kernel_params: Vec::new(),
        mem_size_mib: 32,
        vcpu_count: 1,
        fs: Some(FsSpec {
            tag: "share".to_owned(),
            exports: Vec::new(),
        }),
        vsock: Some(VsockSpec {
            guest_cid: 3,
            host_ports: Vec::new(),
        }),
        drives: Vec::new(),
        rng: true,
        console: None,
        serial: None,
        profile: None,
    }
}

pub fn host() -> HostKind {
    probe::host_kind().unwrap()
}

pub fn build(spec: MachineSpec) -> Machine {
    Machine::build(spec, host(), &Timeline::new(Instant::now())).unwrap()
}

/// Lets [`counter`] run up to its next read of [`PORT`], and has that give `value`.
/// The guest has not got it when this returns.
pub fn round(vcpu: &mut VcpuFd, value: u8) {
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoIn(PORT, data)) => {
                data.fill(value);
                return;
            }
            Err(error) if error.errno() == libc::EINTR => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A folder for a template, and nobody else's.
pub struct Folder(pub TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn open(&self) -> File {
        File::open(self.0.path()).unwrap()
    }

    pub fn template(&self) -> Result<Template, SnapshotError> {
        Template::open(self.open().as_fd())
    }
}
