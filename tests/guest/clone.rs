//! Prints what must differ between machines of one template, a line each: what
//! the kernel drew for this process, what it draws now, its boot id, the machine's
//! context id, and where this process's stack and code were put.

use std::ffi::{CStr, c_char, c_int, c_ulong};
use std::fs::{self, File};
use std::os::fd::AsRawFd;

const AT_RANDOM: c_ulong = 25;
const AT_RANDOM_BYTES: usize = 16;
const CHARACTER_DEVICE: u32 = 0o020600;
const MISC_MAJOR: u64 = 10;
const GET_LOCAL_CID: c_ulong = 0x7b9;

unsafe extern "C" {
    fn getauxval(kind: c_ulong) -> c_ulong;
    fn getrandom(buffer: *mut u8, len: usize, flags: u32) -> isize;
    fn mknod(path: *const c_char, mode: u32, device: u64) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, argument: *mut u32) -> c_int;
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the kernel gave to this process for its stack protector.
fn at_random() -> String {
    // SAFETY: the kernel puts 16 bytes there for every process.
    let bytes = unsafe {
        let at = getauxval(AT_RANDOM) as *const u8;
        std::slice::from_raw_parts(at, AT_RANDOM_BYTES)
    };
    hex(bytes)
}

fn drawn() -> String {
    let mut bytes = [0; 32];
    // SAFETY: `bytes` is as long as told.
    let got = unsafe { getrandom(bytes.as_mut_ptr(), bytes.len(), 0) };
    assert_eq!(got, bytes.len() as isize);
    hex(&bytes)
}

/// Asks the vsock device, for which this makes a node.
fn context_id() -> u32 {
    const NODE: &CStr = c"/dev/vsock";
    let devices = fs::read_to_string("/proc/misc").unwrap();
    let line = devices.lines().find(|line| line.ends_with(" vsock"));
    let minor = line.expect("a vsock device").split_whitespace().next();
    let minor: u64 = minor.unwrap().parse().unwrap();
    // SAFETY: the path ends with a NUL.
    let made = unsafe { mknod(NODE.as_ptr(), CHARACTER_DEVICE, MISC_MAJOR << 8 | minor) };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    let device = File::open(NODE.to_str().unwrap()).unwrap();
    let mut id = 0;
    // SAFETY: the request writes 32 bits.
    let asked = unsafe { ioctl(device.as_raw_fd(), GET_LOCAL_CID, &raw mut id) };
    assert_eq!(asked, 0, "{}", std::io::Error::last_os_error());
    id
}

fn main() {
    let on_stack = 0_u8;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    println!("at_random {}", at_random());
    println!("getrandom {}", drawn());
    println!("boot_id {}", boot_id.trim());
    println!("cid {}", context_id());
    println!("stack {:p}", &raw const on_stack);
    println!("vdso {:x}", vdso());
}

/// Where the kernel mapped its own code into this process.
fn vdso() -> c_ulong {
    const AT_SYSINFO_EHDR: c_ulong = 33;
    // SAFETY: only looks the number up.
    unsafe { getauxval(AT_SYSINFO_EHDR) }
}
