//! Machines that end when they should not, or do not answer.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::harness::{Bundle, Finished, Launch, assembled};

/// Given to a guest where ring 0 is emulated; a fraction of it on others.
const AGENT_DEADLINE: Duration = Duration::from_secs(60);

fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn run_with(flag: &str, file: &Path) -> Finished {
    let bundle = Bundle::shell("echo never");
    let launch = Launch::vmrun(&["run", flag]).args([file, bundle.path()]);
    let run = launch.finish();
    assert_eq!(run.code(), 1, "{run:?}");
    assert_eq!(run.err().lines().count(), 1, "{run:?}");
    assert_eq!(run.out(), "");
    run
}

/// Runs a guest whose PID 1 is `init`.
fn run_init(init: &Path) -> Finished {
    let folder = folder();
    fs::copy(init, folder.path().join("init")).unwrap();
    let archive = folder.path().join("archive");
    let mut cpio = Command::new("cpio")
        .args(["--create", "--format=newc", "--quiet"])
        .current_dir(&folder)
        .stdin(Stdio::piped())
        .stdout(File::create(&archive).unwrap())
        .spawn()
        .expect("cpio: apt-get install cpio");
    use std::io::Write;
    cpio.stdin.take().unwrap().write_all(b"init\n").unwrap();
    assert!(cpio.wait().unwrap().success());
    run_with("--initramfs", &archive)
}

/// A kernel of these few instructions: an ELF64 file with one segment at 16 MiB.
fn run_kernel(code: &[u8]) -> Finished {
    let folder = folder();
    let path = folder.path().join("kernel");
    fs::write(&path, elf(code)).unwrap();
    run_with("--kernel", &path)
}

fn elf(code: &[u8]) -> Vec<u8> {
    const AT: u64 = 16 << 20;
    const HEADERS_LEN: u64 = 64 + 56;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // Executable, x86-64, version 1.
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    // Entry, program headers, no section headers.
    for word in [AT, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    // Flags, then sizes and counts of the headers.
    elf.extend([0; 4]);
    for half in [64u16, 56, 1, 64, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    // A segment to load, readable and executable.
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let len = code.len() as u64;
    for word in [HEADERS_LEN, AT, AT, len, len, 4096] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

#[test]
fn triple_fault() {
    // No interrupt table: `lidt [rip+x]` of zeroes, then ud2.
    let run = run_kernel(&[
        0x0f, 0x01, 0x1d, 2, 0, 0, 0, 0x0f, 0x0b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ]);
    assert!(run.err().contains("the guest triple-faulted"), "{run:?}");
    assert!(run.took < AGENT_DEADLINE / 2, "at once");
}

#[test]
fn halt_before_the_agent_answers() {
    // cli; hlt; jmp -3: what Linux ends in too when it is told to halt. KVM does not
    // tell that nothing will ever wake it, so this is the deadline's.
    let run = run_kernel(&[0xfa, 0xf4, 0xeb, 0xfd]);
    let line = "vmrun: waiting for the agent in the guest: no answer within ";
    assert!(run.err().starts_with(line), "{run:?}");
    assert!(run.took < AGENT_DEADLINE + Duration::from_secs(5));
}

#[test]
fn panic_of_the_guest_kernel() {
    let run = run_init(&assembled("ending", &[]));
    assert!(run.err().contains("the guest kernel panicked"), "{run:?}");
}

#[test]
fn reboot_before_the_agent_answers() {
    let run = run_init(&assembled("ending", &["-DCOMMAND=0x01234567"]));
    assert!(run.err().contains("rebooted"), "{run:?}");
}

#[test]
fn files_that_are_no_kernel() {
    let folder = folder();
    let mut bz_image = vec![0; 4096];
    bz_image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    bz_image[0x202..0x206].copy_from_slice(b"HdrS");
    for (name, content, word) in [
        ("empty", Vec::new(), "ELF"),
        ("garbage", vec![0x5a; 8192], "ELF"),
        ("bzImage", bz_image, "bzImage"),
        ("truncated", elf(&[0xf4])[..100].to_vec(), ""),
        ("far", elf_at_the_end_of_the_world(), ""),
    ] {
        let path: PathBuf = folder.path().join(name);
        fs::write(&path, content).unwrap();
        let run = run_with("--kernel", &path);
        assert!(run.err().contains(word), "{name}: {run:?}");
    }
}

/// Its segment lies outside of any memory.
fn elf_at_the_end_of_the_world() -> Vec<u8> {
    let mut elf = elf(&[0xf4]);
    elf[64 + 24..64 + 32].copy_from_slice(&(u64::MAX - 4095).to_le_bytes());
    elf
}
