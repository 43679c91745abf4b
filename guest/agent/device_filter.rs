//! Device rules as a program of the kernel's cgroup device hook
//! (BPF_PROG_TYPE_CGROUP_DEVICE), the cgroup v2 form of devices.allow.
//!
//! For each access bit that is asked for, the last rule that matches decides;
//! without one the access is denied. So the program walks the rules backwards
//! and takes off the bits that are allowed until none is left or one is denied.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, Result};
use vmrun_protocol::message::Failure;
use vmrun_protocol::plan::{ContainerPlan, DeviceKind, DeviceNode, DeviceRule, access};

use crate::failure::{Named, setup};
use crate::steps::device_nodes;
use crate::sys;

/// Most rules taken; a program of this length loads in any kernel.
const RULES_MAX: usize = 4096;

/// One instruction: `struct bpf_insn` of linux/bpf.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Opcodes: class, operation and source of linux/bpf.h, named as its assembler
/// does. Comparisons are of the low 32 bits.
mod op {
    pub const LOAD_WORD: u8 = 0x61;
    pub const MOVE_REGISTER: u8 = 0xbc;
    pub const MOVE: u8 = 0xb4;
    pub const AND: u8 = 0x54;
    pub const SHIFT_RIGHT: u8 = 0x74;
    pub const JUMP: u8 = 0x05;
    pub const JUMP_IF_NOT_EQUAL: u8 = 0x56;
    pub const JUMP_IF_ANY_BIT: u8 = 0x46;
    pub const EXIT: u8 = 0x95;
}

const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// `BPF_DEVCG_DEV_BLOCK` and `BPF_DEVCG_DEV_CHAR`.
const BLOCK: u32 = 1;
const CHAR: u32 = 2;

const ALL_ACCESS: u8 = access::MKNOD | access::READ | access::WRITE;

fn instruction(code: u8, destination: u8, immediate: u32) -> Instruction {
    Instruction {
        code,
        registers: destination,
        offset: 0,
        immediate: immediate as i32,
    }
}

fn jump(code: u8, destination: u8, immediate: u32, offset: i16) -> Instruction {
    Instruction {
        offset,
        ..instruction(code, destination, immediate)
    }
}

fn load(destination: u8, offset: i16) -> Instruction {
    Instruction {
        registers: destination | CONTEXT << 4,
        ..jump(op::LOAD_WORD, destination, 0, offset)
    }
}

/// The program for `rules`. Context: `struct bpf_cgroup_dev_ctx`, three words:
/// access << 16 | kind, major, minor.
fn compile(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut program = vec![
        load(KIND, 0),
        Instruction {
            registers: ACCESS | KIND << 4,
            ..instruction(op::MOVE_REGISTER, ACCESS, 0)
        },
        instruction(op::AND, KIND, 0xffff),
        instruction(op::SHIFT_RIGHT, ACCESS, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for rule in rules.iter().rev() {
        let every_device = rule.kind.is_none() && rule.major.is_none() && rule.minor.is_none();
        program.extend(compile_rule(rule));
        if every_device && rule.access & ALL_ACCESS == ALL_ACCESS {
            break;
        }
    }
    program.push(instruction(op::MOVE, RESULT, 0));
    program.push(instruction(op::EXIT, 0, 0));
    program
}

fn compile_rule(rule: &DeviceRule) -> Vec<Instruction> {
    let bits = u32::from(rule.access & ALL_ACCESS);
    let mut tests = Vec::new();
    match rule.kind {
        Some(DeviceKind::Char) => tests.push((KIND, CHAR)),
        Some(DeviceKind::Block) => tests.push((KIND, BLOCK)),
        // No device: nothing that the hook is asked about.
        Some(DeviceKind::Fifo) => return Vec::new(),
        None => {}
    }
    tests.extend(rule.major.map(|major| (MAJOR, major)));
    tests.extend(rule.minor.map(|minor| (MINOR, minor)));
    let verdict = if rule.allow {
        vec![
            instruction(op::AND, ACCESS, !bits),
            jump(op::JUMP_IF_NOT_EQUAL, ACCESS, 0, 2),
            instruction(op::MOVE, RESULT, 1),
            instruction(op::EXIT, 0, 0),
        ]
    } else {
        vec![
            jump(op::JUMP_IF_ANY_BIT, ACCESS, bits, 1),
            jump(op::JUMP, 0, 0, 2),
            instruction(op::MOVE, RESULT, 0),
            instruction(op::EXIT, 0, 0),
        ]
    };
    let len = tests.len() + verdict.len();
    let mut program = Vec::with_capacity(len);
    for (index, (register, value)) in tests.into_iter().enumerate() {
        let to_end = len - index - 1;
        program.push(jump(op::JUMP_IF_NOT_EQUAL, register, value, to_end as i16));
    }
    program.extend(verdict);
    program
}

/// Whether the rules allow `bits` of a node; the meaning the program must have.
fn allows(rules: &[DeviceRule], kind: DeviceKind, major: u32, minor: u32, bits: u8) -> bool {
    let mut left = bits;
    for rule in rules.iter().rev() {
        let matches = rule.kind.is_none_or(|k| k == kind)
            && rule.major.is_none_or(|m| m == major)
            && rule.minor.is_none_or(|m| m == minor);
        if !matches {
            continue;
        }
        if !rule.allow && left & rule.access != 0 {
            return false;
        }
        if rule.allow {
            left &= !rule.access;
            if left == 0 {
                return true;
            }
        }
    }
    false
}

/// CAP_SYS_ADMIN (mounts devtmpfs) and CAP_MKNOD of linux/capability.h.
const MAKES_NODES: u64 = 1 << 21 | 1 << 27;

/// Whether the rules of `plan` can ever deny anything. They cannot where the
/// container has no way to a device node but those the agent makes (its root
/// and the exports are mounted nodev, and the bounding set has no capability to
/// make nodes) and the rules allow reading and writing all of these. Loading a
/// program costs every start what such a container would never notice.
pub fn needed(plan: &ContainerPlan) -> bool {
    let capabilities = plan.process.capabilities.unwrap_or_default();
    let held = capabilities.bounding | capabilities.permitted | capabilities.inheritable;
    let use_ = access::READ | access::WRITE;
    let allowed = |kind, major, minor| allows(&plan.device_rules, kind, major, minor, use_);
    let node_allowed = |node: &DeviceNode| {
        node.kind == DeviceKind::Fifo || allowed(node.kind, node.major, node.minor)
    };
    // Terminals: 5:2 is ptmx, 136 the first and usual major number of pts.
    let terminals = allowed(DeviceKind::Char, 5, 2) && allowed(DeviceKind::Char, 136, 0);
    held & MAKES_NODES != 0 || !terminals || !device_nodes(plan).iter().all(node_allowed)
}

const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// The container's own groups may get further programs; all must allow.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// BPF_PROG_LOAD's part of `union bpf_attr`.
#[repr(C)]
struct LoadAttr {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// BPF_PROG_ATTACH's part of `union bpf_attr`.
#[repr(C)]
struct AttachAttr {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

/// Puts the rules of `plan` into force for the cgroup whose folder is `cgroup`.
pub fn attach(cgroup: BorrowedFd<'_>, plan: &ContainerPlan) -> std::result::Result<(), Failure> {
    if plan.device_rules.len() > RULES_MAX {
        let what = format!("{} device rules", plan.device_rules.len());
        return Err(setup(what, Errno::TOOBIG));
    }
    load_and_attach(cgroup, &compile(&plan.device_rules)).named(|| "device rules")
}

fn load_and_attach(cgroup: BorrowedFd<'_>, program: &[Instruction]) -> Result<()> {
    let program = sys::bpf_fd(
        BPF_PROG_LOAD,
        &LoadAttr {
            program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
            instruction_count: program.len() as u32,
            instructions: sys::bpf_pointer(program.as_ptr()),
            license: sys::bpf_pointer(c"Apache-2.0".as_ptr()),
            log_level: 0,
            log_size: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
        },
    )?;
    let attr = AttachAttr {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    sys::bpf(BPF_PROG_ATTACH, &attr).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vmrun_protocol::plan::Capabilities;

    /// Runs a program on a context of three words.
    fn run(program: &[Instruction], context: [u32; 3]) -> u32 {
        let mut registers = [0u32; 16];
        let mut pc = 0;
        loop {
            let i = program[pc];
            let destination = usize::from(i.registers & 15);
            let value = i.immediate as u32;
            pc += 1;
            let taken = match i.code {
                op::LOAD_WORD => {
                    registers[destination] = context[i.offset as usize / 4];
                    false
                }
                op::MOVE_REGISTER => {
                    registers[destination] = registers[usize::from(i.registers >> 4)];
                    false
                }
                op::MOVE => {
                    registers[destination] = value;
                    false
                }
                op::AND => {
                    registers[destination] &= value;
                    false
                }
                op::SHIFT_RIGHT => {
                    registers[destination] >>= value;
                    false
                }
                op::JUMP => true,
                op::JUMP_IF_NOT_EQUAL => registers[destination] != value,
                op::JUMP_IF_ANY_BIT => registers[destination] & value != 0,
                op::EXIT => return registers[0],
                other => panic!("opcode {other:#x}"),
            };
            if taken {
                pc += i.offset as usize;
            }
        }
    }

    fn asked(rules: &[DeviceRule], kind: u32, major: u32, minor: u32, bits: u8) -> bool {
        let context = [u32::from(bits) << 16 | kind, major, minor];
        run(&compile(rules), context) == 1
    }

    fn rule(
        allow: bool,
        kind: Option<DeviceKind>,
        numbers: [Option<u32>; 2],
        bits: u8,
    ) -> DeviceRule {
        DeviceRule {
            allow,
            kind,
            major: numbers[0],
            minor: numbers[1],
            access: bits,
        }
    }

    const DENY_ALL: DeviceRule = DeviceRule {
        allow: false,
        kind: None,
        major: None,
        minor: None,
        access: ALL_ACCESS,
    };

    #[test]
    fn nothing_is_allowed_without_a_rule() {
        assert!(!asked(&[], CHAR, 1, 3, access::READ));
        assert!(!asked(&[DENY_ALL], CHAR, 1, 3, access::READ));
    }

    #[test]
    fn the_last_rule_wins_for_each_access() {
        let char = Some(DeviceKind::Char);
        let null = [Some(1), Some(3)];
        let rules = [
            DENY_ALL,
            rule(true, char, null, access::READ | access::WRITE),
            rule(false, char, null, access::WRITE),
            rule(true, None, [None, None], access::MKNOD),
        ];
        assert!(asked(&rules, CHAR, 1, 3, access::READ));
        assert!(!asked(&rules, CHAR, 1, 3, access::WRITE));
        assert!(!asked(&rules, CHAR, 1, 3, access::READ | access::WRITE));
        assert!(asked(&rules, BLOCK, 8, 0, access::MKNOD));
        assert!(!asked(&rules, BLOCK, 1, 3, access::READ));
        assert!(!asked(&rules, CHAR, 1, 5, access::READ));
    }

    #[test]
    fn large_numbers_are_compared_whole() {
        let rules = [rule(true, None, [Some(u32::MAX), None], ALL_ACCESS)];
        assert!(asked(&rules, CHAR, u32::MAX, 0, access::READ));
        assert!(!asked(&rules, CHAR, i32::MAX as u32, 0, access::READ));
    }

    #[test]
    fn a_rule_for_everything_ends_the_program() {
        let everything = || rule(true, None, [None, None], ALL_ACCESS);
        assert_eq!(compile(&[DENY_ALL, everything()]), compile(&[everything()]));
        assert!(asked(&[DENY_ALL, everything()], BLOCK, 8, 1, ALL_ACCESS));
    }

    #[test]
    fn a_filter_is_needed_where_it_could_deny() {
        let mut plan = ContainerPlan {
            device_rules: vec![
                DENY_ALL,
                rule(true, Some(DeviceKind::Char), [Some(1), None], ALL_ACCESS),
                rule(true, Some(DeviceKind::Char), [Some(5), None], ALL_ACCESS),
                rule(true, Some(DeviceKind::Char), [Some(136), None], ALL_ACCESS),
            ],
            ..ContainerPlan::default()
        };
        assert!(!needed(&plan));
        plan.process.capabilities = Some(Capabilities {
            bounding: 1 << 27,
            ..Capabilities::default()
        });
        assert!(needed(&plan));
        plan.process.capabilities = None;
        let full = [Some(1), Some(7)];
        let deny_full = rule(false, Some(DeviceKind::Char), full, access::WRITE);
        plan.device_rules.push(deny_full);
        assert!(needed(&plan));
    }

    fn any_rule() -> impl Strategy<Value = DeviceRule> {
        let kind = prop_oneof![
            Just(None),
            Just(Some(DeviceKind::Char)),
            Just(Some(DeviceKind::Block)),
        ];
        let number = || proptest::option::of(0u32..3);
        (any::<bool>(), kind, number(), number(), 0u8..8)
            .prop_map(|(allow, kind, major, minor, bits)| rule(allow, kind, [major, minor], bits))
    }

    proptest! {
        #[test]
        fn the_program_means_what_the_rules_say(
            rules in proptest::collection::vec(any_rule(), 0..8),
            block in any::<bool>(), major in 0u32..3, minor in 0u32..3, bits in 1u8..8,
        ) {
            let (kind, number) = if block {
                (DeviceKind::Block, BLOCK)
            } else {
                (DeviceKind::Char, CHAR)
            };
            prop_assert_eq!(
                asked(&rules, number, major, minor, bits),
                allows(&rules, kind, major, minor, bits)
            );
        }
    }
}
