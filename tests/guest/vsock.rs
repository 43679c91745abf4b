//! Tries to connect to the host by vsock, at the port that the agent uses and at
//! others, and to the agent itself.

use std::ffi::{c_int, c_void};
use std::io::Error;

const AF_VSOCK: u16 = 40;
const SOCK_STREAM: c_int = 1;
const HOST: u32 = 2;
const CONTROL_PORT: u32 = 1024;

/// `struct sockaddr_vm` of the kernel.
#[repr(C)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    zero: [u8; 4],
}

unsafe extern "C" {
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn connect(socket: c_int, address: *const Address, len: u32) -> c_int;
    fn read(fd: c_int, buffer: *mut c_void, len: usize) -> isize;
}

fn attempt(port: u32) -> String {
    let address = Address {
        family: AF_VSOCK,
        reserved: 0,
        port,
        cid: HOST,
        zero: [0; 4],
    };
    // SAFETY: `address` and `byte` outlive the calls, which get their sizes.
    unsafe {
        let socket = socket(AF_VSOCK.into(), SOCK_STREAM, 0);
        if socket < 0 {
            return format!("refused\n(no socket: {})", Error::last_os_error());
        }
        if connect(socket, &address, size_of::<Address>() as u32) != 0 {
            return format!("refused\n({})", Error::last_os_error());
        }
        let mut byte = 0_u8;
        let got = read(socket, (&raw mut byte).cast(), 1);
        format!("connected, read {got}")
    }
}

fn main() {
    for port in [CONTROL_PORT, CONTROL_PORT + 1, 22] {
        println!("port {port}: {}", attempt(port));
    }
}
