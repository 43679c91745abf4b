//! Filters as the kernel takes them, installed in threads and children of the test.
#![allow(unsafe_code)]

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

use seccompiler::sock_filter;
use serde_json::{Value, json};

const DOCKER: &str = include_str!("../testdata/docker-config.json");

/// The filter of a config.json with this profile, as the agent gets it.
fn filter(profile: Option<Value>) -> Vec<sock_filter> {
    let mut config: Value = serde_json::from_str(DOCKER).unwrap();
    if let Some(profile) = profile {
        config["linux"]["seccomp"] = profile;
    }
    let container = vmrun_oci::load::parse(config.to_string().as_bytes()).unwrap();
    let [filter] = &container.plan.process.seccomp[..] else {
        panic!("one filter");
    };
    let instruction = |&word: &u64| sock_filter {
        code: word as u16,
        jt: (word >> 16) as u8,
        jf: (word >> 24) as u8,
        k: (word >> 32) as u32,
    };
    filter.program.iter().map(instruction).collect()
}

/// The errno of a system call, 0 if it succeeds.
fn errno(number: i64, args: [u64; 2]) -> i32 {
    // SAFETY: every call in this file is one that fails in the kernel or reads nothing
    // of ours: the arguments are no addresses of memory that is in use.
    let result = unsafe { libc::syscall(number, args[0], args[1], 0, 0, 0, 0) };
    match result {
        -1 => std::io::Error::last_os_error().raw_os_error().unwrap(),
        _ => 0,
    }
}

#[test]
fn dockers_profile_in_the_kernel() {
    let filter = filter(None);
    let in_thread = std::thread::spawn(move || {
        seccompiler::apply_filter(&filter).unwrap();
        [
            errno(libc::SYS_getppid, [0; 2]),
            errno(libc::SYS_personality, [0xffff_ffff, 0]),
            errno(libc::SYS_personality, [1, 0]),
            errno(libc::SYS_clone3, [0; 2]),
            errno(libc::SYS_unshare, [0; 2]),
            errno(libc::SYS_bpf, [u64::MAX, 0]),
            errno(libc::SYS_close, [u64::from(u32::MAX), 0]),
            // No kernel has it, nor does the profile.
            errno(4000, [0; 2]),
        ]
    });
    let expected = [
        0,
        0,
        libc::EPERM,
        libc::ENOSYS,
        libc::EPERM,
        libc::EPERM,
        libc::EBADF,
        libc::ENOSYS,
    ];
    assert_eq!(in_thread.join().unwrap(), expected);
}

/// Runs a program under a filter.
fn run(filter: Vec<sock_filter>, program: &str, args: &[&str]) -> ExitStatus {
    let mut command = Command::new(program);
    command.args(args).stderr(std::process::Stdio::null());
    // SAFETY: between fork and exec only prctl(2) and seccomp(2) are called, on memory
    // that was made before.
    unsafe {
        command.pre_exec(move || {
            seccompiler::apply_filter(&filter).map_err(|_| std::io::Error::last_os_error())
        });
    }
    command.status().unwrap()
}

#[test]
fn programs_run_under_dockers_profile() {
    let shell = run(filter(None), "/bin/sh", &["-c", "ls / | cat >/dev/null"]);
    assert!(shell.success(), "{shell}");
    let status = run(filter(None), "/bin/sh", &["-c", "exec unshare --user true"]);
    assert_eq!(status.code(), Some(1), "{status}");
}

#[test]
fn a_call_that_kills() {
    for action in ["SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL", "SCMP_ACT_TRAP"] {
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": action}]});
        let folder = tempfile::tempdir().unwrap();
        let made = folder.path().join("made");
        let status = run(
            filter(Some(profile)),
            "/bin/mkdir",
            &[made.to_str().unwrap()],
        );
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{action}: {status}");
        assert!(!made.exists());
    }
}
