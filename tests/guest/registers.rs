//! Two processes compute in vector registers that they never let go of, while they
//! preempt each other, make system calls and get signals; each compares with the
//! same sums made by ordinary arithmetic.

use std::arch::asm;
use std::arch::is_x86_feature_detected;
use std::ffi::{c_int, c_long};
use std::time::{Duration, Instant};

const SIGALRM: c_int = 14;
const ITIMER_REAL: c_int = 0;
const RUSAGE_SELF: c_int = 0;
const SYS_SCHED_YIELD: u64 = 24;
const FOR: Duration = Duration::from_secs(4);
/// Additions between two looks at the clock.
const ROUNDS: u64 = 2_000_000;

#[repr(C)]
struct Interval {
    every: [c_long; 2],
    first: [c_long; 2],
}

/// `struct rusage`: two times, then counts, the last two those of switches.
#[repr(C)]
struct Usage([c_long; 18]);

unsafe extern "C" {
    fn fork() -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn signal(number: c_int, handler: extern "C" fn(c_int)) -> usize;
    fn setitimer(which: c_int, new: *const Interval, old: *mut Interval) -> c_int;
    fn getrusage(who: c_int, usage: *mut Usage) -> c_int;
}

/// Scribbles over registers: they have to come back when it returns.
extern "C" fn on_alarm(_: c_int) {
    // SAFETY: the registers are named as changed.
    unsafe {
        asm!("pcmpeqd xmm0, xmm0", "pcmpeqd xmm7, xmm7", "pcmpeqd xmm15, xmm15",
             out("xmm0") _, out("xmm7") _, out("xmm15") _);
    }
}

/// Adds `steps[i]` to lane `i` of register `i / 4`, `rounds` times, without ever
/// leaving the registers; a system call every 65536 rounds.
#[target_feature(enable = "avx2")]
unsafe fn avx2(steps: &[u64; 16], lanes: &mut [u64; 16], rounds: u64) {
    // SAFETY: reads and writes 128 bytes at each pointer; every register is named.
    unsafe {
        asm!(
            "vmovdqu ymm0, [{lanes}]", "vmovdqu ymm7, [{lanes} + 32]",
            "vmovdqu ymm8, [{lanes} + 64]", "vmovdqu ymm15, [{lanes} + 96]",
            "vmovdqu ymm1, [{steps}]", "vmovdqu ymm2, [{steps} + 32]",
            "vmovdqu ymm3, [{steps} + 64]", "vmovdqu ymm4, [{steps} + 96]",
            "2:",
            "vpaddq ymm0, ymm0, ymm1", "vpaddq ymm7, ymm7, ymm2",
            "vpaddq ymm8, ymm8, ymm3", "vpaddq ymm15, ymm15, ymm4",
            "test {rounds:e}, 0xffff", "jnz 3f",
            "mov eax, {yield_number}", "syscall",
            "3:",
            "dec {rounds}", "jnz 2b",
            "vmovdqu [{lanes}], ymm0", "vmovdqu [{lanes} + 32], ymm7",
            "vmovdqu [{lanes} + 64], ymm8", "vmovdqu [{lanes} + 96], ymm15",
            lanes = in(reg) lanes, steps = in(reg) steps,
            rounds = inout(reg) rounds => _,
            yield_number = const SYS_SCHED_YIELD,
            out("rax") _, out("rcx") _, out("r11") _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _,
            out("ymm7") _, out("ymm8") _, out("ymm15") _,
        );
    }
}

/// The same in two registers of 512 bits, and a mask that stays set.
#[target_feature(enable = "avx512f")]
unsafe fn avx512(steps: &[u64; 16], lanes: &mut [u64; 16], rounds: u64) {
    // SAFETY: reads and writes 128 bytes at each pointer; every register is named.
    unsafe {
        asm!(
            "mov eax, 0xff", "kmovw k5, eax",
            "vmovdqu64 zmm5, [{lanes}]", "vmovdqu64 zmm29, [{lanes} + 64]",
            "vmovdqu64 zmm6, [{steps}]", "vmovdqu64 zmm30, [{steps} + 64]",
            "2:",
            "vpaddq zmm5{{k5}}, zmm5, zmm6", "vpaddq zmm29{{k5}}, zmm29, zmm30",
            "test {rounds:e}, 0xffff", "jnz 3f",
            "mov eax, {yield_number}", "syscall",
            "3:",
            "dec {rounds}", "jnz 2b",
            "vmovdqu64 [{lanes}], zmm5", "vmovdqu64 [{lanes} + 64], zmm29",
            lanes = in(reg) lanes, steps = in(reg) steps,
            rounds = inout(reg) rounds => _,
            yield_number = const SYS_SCHED_YIELD,
            out("rax") _, out("rcx") _, out("r11") _, out("k5") _,
            out("zmm5") _, out("zmm6") _, out("zmm29") _, out("zmm30") _,
        );
    }
}

/// The sums, and how often another process was let in against its will.
fn work(seed: u64) -> Result<c_long, String> {
    let steps: [u64; 16] = std::array::from_fn(|i| seed.wrapping_mul(i as u64 * 2 + 1));
    let from = Instant::now();
    while from.elapsed() < FOR {
        let expected: [u64; 16] = steps.map(|step| step.wrapping_mul(ROUNDS));
        let mut lanes = [0; 16];
        // SAFETY: the processor has what the functions need.
        unsafe { avx2(&steps, &mut lanes, ROUNDS) };
        if lanes != expected {
            return Err(format!("AVX2: {lanes:x?} instead of {expected:x?}"));
        }
        if is_x86_feature_detected!("avx512f") {
            let mut lanes = [0; 16];
            // SAFETY: as above.
            unsafe { avx512(&steps, &mut lanes, ROUNDS) };
            if lanes != expected {
                return Err(format!("AVX-512: {lanes:x?} instead of {expected:x?}"));
            }
        }
    }
    let mut usage = Usage([0; 18]);
    // SAFETY: `usage` has the size that the kernel fills.
    unsafe { getrusage(RUSAGE_SELF, &mut usage) };
    Ok(usage.0[17])
}

fn one_process(seed: u64) -> c_int {
    let interval = Interval {
        every: [0, 100_000],
        first: [0, 100_000],
    };
    // SAFETY: the handler only touches registers; `interval` outlives the call.
    unsafe {
        signal(SIGALRM, on_alarm);
        setitimer(ITIMER_REAL, &interval, std::ptr::null_mut());
    }
    match work(seed) {
        Ok(switches) => {
            println!("preempted {switches} times");
            c_int::from(switches == 0)
        }
        Err(difference) => {
            println!("{difference}");
            2
        }
    }
}

fn main() {
    let has = |name, yes| println!("{name}: {}", if yes { "yes" } else { "no" });
    has("AVX2", is_x86_feature_detected!("avx2"));
    has("AVX-512", is_x86_feature_detected!("avx512f"));
    assert!(is_x86_feature_detected!("avx2"), "this test needs AVX2");
    // SAFETY: one thread only; the child does the same as its parent and exits.
    let child = unsafe { fork() };
    assert!(child >= 0, "fork");
    let code = one_process(if child == 0 {
        0x0123_4567_89ab_cdef
    } else {
        0xfedc_ba98_7654_3211
    });
    if child == 0 {
        std::process::exit(code);
    }
    let mut status = 0;
    loop {
        // SAFETY: `status` outlives the call.
        let waited = unsafe { waitpid(child, &mut status, 0) };
        if waited == child {
            break;
        }
    }
    if code == 0 && status == 0 {
        println!("all sums are right");
    } else {
        println!("failed: {code}, {status:#x}");
        std::process::exit(1);
    }
}
