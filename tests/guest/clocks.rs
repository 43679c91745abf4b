//! Reads clocks by code that the kernel maps into the process (vDSO) and by system
//! calls in turn: no reading may lie before the one before it. Prints by how much
//! any did, and how much time went by.

use std::ffi::{c_int, c_long};

const MONOTONIC: c_int = 1;
const REALTIME: c_int = 0;
const SYS_CLOCK_GETTIME: c_long = 228;
const READINGS: usize = 20_000;

#[repr(C)]
#[derive(Default)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

unsafe extern "C" {
    fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
}

fn by_vdso(clock: c_int) -> i64 {
    let mut time = Timespec::default();
    // SAFETY: the time is written to a local.
    let done = unsafe { clock_gettime(clock, &raw mut time) };
    assert_eq!(done, 0);
    time.seconds * 1_000_000_000 + time.nanoseconds
}

fn by_call(clock: c_int) -> i64 {
    let mut time = Timespec::default();
    // SAFETY: as above.
    let done = unsafe { syscall(SYS_CLOCK_GETTIME, clock, &raw mut time) };
    assert_eq!(done, 0);
    time.seconds * 1_000_000_000 + time.nanoseconds
}

fn main() {
    for (name, clock) in [("realtime", REALTIME), ("monotonic", MONOTONIC)] {
        let first = by_vdso(clock);
        let (mut last, mut back) = (first, 0);
        for reading in 0..READINGS {
            let read = if reading % 2 == 0 { by_call } else { by_vdso };
            let now = read(clock);
            back = back.max(last - now);
            last = now;
        }
        println!("{name} {back} {}", last - first);
    }
}
