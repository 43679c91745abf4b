//! `linux.seccomp`. (validation: linux_seccomp; contest: seccomp, seccomp_notify)

use serde_json::{Value, json};

use super::Promise;
use super::lab::Lab;
use crate::harness::Bundle;
use crate::suite::cases;

pub const CASES: &[(&str, Promise)] = cases![
    allows_all,
    errno,
    errno_of_its_own,
    argument_equal,
    argument_masked,
    argument_greater,
    default_denies,
    kill,
    trap,
    logs,
    first_match_of_many,
    unknown_call,
    unknown_action,
    holds_for_children,
    notify_needs_a_listener,
];

fn bundle(script: &str, default: &str, syscalls: Value) -> Bundle {
    let seccomp = json!({"defaultAction": default, "architectures": ["SCMP_ARCH_X86_64"], "syscalls": syscalls});
    Bundle::shell(script).with("/linux/seccomp", seccomp)
}

fn mkdir(action: &str) -> Value {
    json!([{"names": ["mkdir", "mkdirat"], "action": action}])
}

fn kill_with(op: &str, value: u64, value_two: u64) -> Value {
    json!([{"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": value, "valueTwo": value_two, "op": op}]}])
}

/// Signals that `kill` may not send, of 10 to 14.
fn denied(lab: &Lab, syscalls: Value) -> Vec<u32> {
    // Who is ignored here is by the child from its start on.
    let script = "trap '' 10 11 12 13 14; sleep 1000 &
        for s in 10 11 12 13 14; do kill -$s $! 2>/dev/null || echo $s; done; kill -9 $!; true";
    let seen = lab.output(bundle(script, "SCMP_ACT_ALLOW", syscalls));
    seen.lines()
        .map(|line| line.parse().expect("a signal"))
        .collect()
}

fn allows_all(lab: &Lab) {
    let seen = lab.output(bundle(
        "grep Seccomp: /proc/self/status | cut -f 2",
        "SCMP_ACT_ALLOW",
        mkdir("SCMP_ACT_ERRNO"),
    ));
    assert_eq!(seen, "2\n");
}

fn errno(lab: &Lab) {
    let seen = lab.output(bundle(
        "mkdir /x 2>&1; true",
        "SCMP_ACT_ALLOW",
        mkdir("SCMP_ACT_ERRNO"),
    ));
    assert!(seen.contains("Operation not permitted"), "{seen}");
}

fn errno_of_its_own(lab: &Lab) {
    let mut calls = mkdir("SCMP_ACT_ERRNO");
    calls[0]["errnoRet"] = json!(28);
    let seen = lab.output(bundle("mkdir /x 2>&1; true", "SCMP_ACT_ALLOW", calls));
    assert!(seen.contains("No space left on device"), "{seen}");
}

fn argument_equal(lab: &Lab) {
    assert_eq!(denied(lab, kill_with("SCMP_CMP_EQ", 12, 0)), [12]);
    assert_eq!(
        denied(lab, kill_with("SCMP_CMP_NE", 9, 0)),
        [10, 11, 12, 13, 14]
    );
}

fn argument_masked(lab: &Lab) {
    // Odd ones: bit 0 of 11 and 13.
    assert_eq!(
        denied(lab, kill_with("SCMP_CMP_MASKED_EQ", 1, 1))[..2],
        [11, 13]
    );
}

fn argument_greater(lab: &Lab) {
    assert_eq!(denied(lab, kill_with("SCMP_CMP_GT", 12, 0)), [13, 14]);
    assert_eq!(denied(lab, kill_with("SCMP_CMP_GE", 12, 0)), [12, 13, 14]);
    assert_eq!(denied(lab, kill_with("SCMP_CMP_LT", 12, 0))[..2], [10, 11]);
}

/// What runtimes, and a shell that makes a folder, call.
const ALLOWED: &str = "
    read write close execve brk mmap mprotect munmap arch_prctl exit exit_group
    rt_sigaction rt_sigprocmask rt_sigreturn getuid getpid getppid geteuid getcwd fcntl
    dup2 stat newfstatat readlink prlimit64 prctl set_tid_address set_robust_list rseq
    getrandom open openat futex capset capget setgroups setuid setgid chdir fchdir ioctl
    fstat lseek epoll_ctl epoll_pwait epoll_wait nanosleep poll ppoll clone fork vfork
    wait4 readlinkat getdents64 uname access faccessat faccessat2 fstatfs statx tgkill
    gettid sigaltstack sched_getaffinity sched_yield recvmsg sendmsg sendto recvfrom
    close_range execveat umask getgid getegid setsid dup dup3 pipe2 writev madvise
    rt_sigtimedwait eventfd2 waitid kill seccomp socket connect getsockopt setresuid
    setresgid setreuid setregid pread64 getpgrp setpgid getpgid getgroups signalfd4
    timerfd_create timerfd_settime clock_gettime clock_nanosleep epoll_create1
    restart_syscall memfd_create fchown fchmod mknod mknodat pidfd_open pselect6 select
    sysinfo clone3 fsync time gettimeofday";

fn default_denies(lab: &Lab) {
    let names: Vec<_> = ALLOWED.split_whitespace().collect();
    let bundle = bundle(
        "echo ran; mkdir /x 2>&1; true",
        "SCMP_ACT_ERRNO",
        json!([{"names": names, "action": "SCMP_ACT_ALLOW"}]),
    );
    let seen = lab.output(bundle);
    assert!(
        seen.starts_with("ran\n") && seen.contains("Operation not permitted"),
        "{seen}"
    );
}

fn kill(lab: &Lab) {
    for action in [
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_KILL_THREAD",
    ] {
        let seen = lab.output(bundle(
            "mkdir /x; echo $?; ls -d /x 2>/dev/null; true",
            "SCMP_ACT_ALLOW",
            mkdir(action),
        ));
        assert_eq!(seen, "159\n", "{action}");
    }
}

fn trap(lab: &Lab) {
    let seen = lab.output(bundle(
        "mkdir /x; echo $?",
        "SCMP_ACT_ALLOW",
        mkdir("SCMP_ACT_TRAP"),
    ));
    assert_eq!(seen, "159\n");
}

fn logs(lab: &Lab) {
    let seen = lab.output(bundle(
        "mkdir /x && echo made",
        "SCMP_ACT_ALLOW",
        mkdir("SCMP_ACT_LOG"),
    ));
    assert_eq!(seen, "made\n");
}

fn first_match_of_many(lab: &Lab) {
    let calls = json!([{"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [
        {"index": 1, "value": 12, "op": "SCMP_CMP_EQ"}]}, {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"},
        {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 13, "op": "SCMP_CMP_EQ"}]}]);
    assert_eq!(denied(lab, calls), [12, 13]);
}

/// Profiles name calls of kernels to come.
fn unknown_call(lab: &Lab) {
    let calls =
        json!([{"names": ["no_such_call", "mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]);
    let seen = lab.output(bundle("mkdir /x 2>&1; true", "SCMP_ACT_ALLOW", calls));
    assert!(seen.contains("Operation not permitted"), "{seen}");
}

fn unknown_action(lab: &Lab) {
    let run = lab.run(bundle("true", "SCMP_ACT_ALLOW", mkdir("SCMP_ACT_NOSUCH")));
    assert_ne!(run.code(), 0, "{run:?}");
}

fn holds_for_children(lab: &Lab) {
    let script = "sh -c 'sh -c \"mkdir /x\"' 2>&1; grep Seccomp: /proc/self/status | cut -f 2";
    let seen = lab.output(bundle(script, "SCMP_ACT_ALLOW", mkdir("SCMP_ACT_ERRNO")));
    assert!(
        seen.contains("Operation not permitted") && seen.ends_with("2\n"),
        "{seen}"
    );
}

fn notify_needs_a_listener(lab: &Lab) {
    let run = lab.run(bundle("true", "SCMP_ACT_ALLOW", mkdir("SCMP_ACT_NOTIFY")));
    assert_ne!(run.code(), 0, "{run:?}");
}
