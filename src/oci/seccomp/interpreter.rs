//! The part of classic BPF that seccomp(2) has, for tests: what a program answers.

use super::program::ARCH_X86_64;

/// `struct seccomp_data` of a call of x86-64.
pub fn call(number: u32, args: [u64; 6]) -> [u32; 16] {
    of_arch(ARCH_X86_64, number, args)
}

/// `struct seccomp_data`, as words.
pub fn of_arch(arch: u32, number: u32, args: [u64; 6]) -> [u32; 16] {
    let mut data = [0; 16];
    data[0] = number;
    data[1] = arch;
    for (i, arg) in args.iter().enumerate() {
        data[4 + 2 * i] = *arg as u32;
        data[5 + 2 * i] = (arg >> 32) as u32;
    }
    data
}

/// The program's answer, and how many instructions it took. Panics on what the
/// kernel would refuse to install.
pub fn run(program: &[u64], data: &[u32; 16]) -> (u32, usize) {
    let (mut at, mut accumulator, mut steps) = (0, 0, 0);
    loop {
        let word = program[at];
        let (code, k) = (word as u16, (word >> 32) as u32);
        let (jt, jf) = ((word >> 16) as u8, (word >> 24) as u8);
        let branch = |taken| usize::from(if taken { jt } else { jf });
        steps += 1;
        at += 1;
        match code {
            0x20 => {
                assert!(k % 4 == 0, "load at {k}");
                accumulator = data[k as usize / 4];
            }
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => at += branch(accumulator == k),
            0x25 => at += branch(accumulator > k),
            0x35 => at += branch(accumulator >= k),
            0x45 => at += branch(accumulator & k != 0),
            0x06 => return (k, steps),
            other => panic!("instruction {other:#x}"),
        }
    }
}
