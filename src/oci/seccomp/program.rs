//! From ranges of system call numbers to a classic BPF program.
//!
//! A binary search over the numbers, where seccompiler would compare with one after
//! the other: when a filter is installed, the kernel runs it once for each number
//! there is, and each instruction of it costs a dozen of the guest's kernel. The
//! conditions of a rule are seccompiler's.

use seccompiler::{BpfProgram, SeccompRule, sock_filter};
use vmrun_protocol::plan::SeccompFilter;

use super::{Range, Rule};

/// `BPF_LD | BPF_W | BPF_ABS`.
const LOAD: u16 = 0x20;
/// `BPF_JMP | BPF_JA`.
const JUMP: u16 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
const JUMP_IF_EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGE | BPF_K`.
const JUMP_IF_AT_LEAST: u16 = 0x35;
/// `BPF_RET | BPF_K`.
const RETURN: u16 = 0x06;

/// Offset of `nr` in `struct seccomp_data`.
const NUMBER_OFFSET: u32 = 0;
/// Offset of `arch` in `struct seccomp_data`.
const ARCH_OFFSET: u32 = 4;

/// `AUDIT_ARCH_X86_64` of linux/audit.h.
pub(super) const ARCH_X86_64: u32 = 0xc000_003e;

/// Compiles the ranges, which are by number, the first from 0 on. An error is the
/// length that is too much.
pub(super) fn compile(ranges: &[Range]) -> Result<Vec<u64>, usize> {
    let mut program = vec![
        statement(LOAD, ARCH_OFFSET),
        branch(JUMP_IF_EQUAL, ARCH_X86_64, 1, 0),
        statement(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        statement(LOAD, NUMBER_OFFSET),
    ];
    program.extend(search(ranges));
    if program.len() > SeccompFilter::MAX_LEN {
        return Err(program.len());
    }
    Ok(program.iter().map(number).collect())
}

/// Code that ends with what is done about the number it is entered with.
fn search(ranges: &[Range]) -> BpfProgram {
    if let [range] = ranges {
        return range.rules.iter().flat_map(rule).collect();
    }
    let (below, above) = ranges.split_at(ranges.len() / 2);
    let middle = above.first().map_or(0, |range| range.first);
    let below = search(below);
    let mut code = match u8::try_from(below.len()) {
        Ok(len) => vec![branch(JUMP_IF_AT_LEAST, middle, len, 0)],
        Err(_) => vec![
            branch(JUMP_IF_AT_LEAST, middle, 0, 1),
            statement(JUMP, u32::try_from(below.len()).unwrap_or(u32::MAX)),
        ],
    };
    code.extend(below);
    code.extend(search(above));
    code
}

/// The conditions, which go on behind the return if one of them is not fulfilled.
fn rule(rule: &Rule) -> BpfProgram {
    // A rule without conditions is no rule to seccompiler, and needs none.
    let conditions = SeccompRule::new(rule.conditions.clone());
    let mut code = conditions.map_or_else(|_| BpfProgram::new(), BpfProgram::from);
    code.push(statement(RETURN, rule.action.0));
    code
}

fn statement(code: u16, k: u32) -> sock_filter {
    branch(code, k, 0, 0)
}

fn branch(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// As [`SeccompFilter::program`] has it.
pub(super) fn number(instruction: &sock_filter) -> u64 {
    u64::from(instruction.code)
        | u64::from(instruction.jt) << 16
        | u64::from(instruction.jf) << 24
        | u64::from(instruction.k) << 32
}
