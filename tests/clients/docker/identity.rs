//! Who the program is, what it may, and how it is called.

use std::fs;

use super::{Docker, Promise};
use crate::suite::cases;

pub const CASES: &[(&str, Promise)] = cases![
    user,
    capabilities,
    no_new_privileges,
    default_seccomp,
    own_seccomp,
    hostname,
    init,
    environment_folder_entrypoint,
    only_loopback,
    namespaces,
    paths_that_are_masked,
    device_of_the_host,
];

fn user(docker: &Docker) {
    let script = "id -u; id -g; id -G";
    assert_eq!(
        docker.shell(&["--user", "1000:1000"], script),
        "1000\n1000\n1000\n"
    );
    assert_eq!(
        docker.shell(&["--user", "app"], script),
        "1000\n1000\n1000 2000\n"
    );
    let flags = ["--user", "5:6", "--group-add", "7"];
    assert_eq!(docker.shell(&flags, script), "5\n6\n6 7\n");
    let run = docker.run(&["--user", "1000"], &["touch", "/file"]);
    assert!(run.err().contains("Permission denied"), "{run:?}");
}

fn capabilities(docker: &Docker) {
    let seen = |flags: &[&str]| {
        let text = docker.shell(flags, "grep -E 'Cap(Eff|Bnd)' /proc/self/status | cut -f 2");
        let sets: Vec<_> = text
            .lines()
            .map(|set| u64::from_str_radix(set, 16).unwrap())
            .collect();
        assert_eq!(sets[0], sets[1], "{text}");
        sets[0]
    };
    assert_eq!(seen(&[]), 0xa804_25fb);
    assert_eq!(seen(&["--cap-drop", "ALL"]), 0);
    assert_eq!(seen(&["--cap-drop", "CHOWN"]), 0xa804_25fa);
    assert_eq!(
        seen(&["--cap-drop", "ALL", "--cap-add", "SYS_TIME"]),
        1 << 25
    );
    let run = docker.run(&["--cap-drop", "CHOWN"], &["chown", "1", "/etc/plain"]);
    assert!(run.err().contains("Operation not permitted"), "{run:?}");
}

fn no_new_privileges(docker: &Docker) {
    let script = "grep NoNewPrivs /proc/self/status | cut -f 2";
    assert_eq!(docker.shell(&[], script), "0\n");
    assert_eq!(
        docker.shell(&["--security-opt", "no-new-privileges"], script),
        "1\n"
    );
}

const SECCOMP: &str = "grep Seccomp: /proc/self/status | cut -f 2";

fn default_seccomp(docker: &Docker) {
    assert_eq!(docker.shell(&[], SECCOMP), "2\n");
    assert_eq!(
        docker.shell(&["--security-opt", "seccomp=unconfined"], SECCOMP),
        "0\n"
    );
    // Mounting needs a capability, and the profile knows that it is not there.
    let run = docker.run(&[], &["unshare", "-m", "true"]);
    assert!(run.err().contains("Operation not permitted"), "{run:?}");
}

fn own_seccomp(docker: &Docker) {
    let profile = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
        {"names": ["kill"], "action": "SCMP_ACT_ERRNO",
         "args": [{"index": 1, "value": 12, "op": "SCMP_CMP_EQ"}]}]}"#;
    fs::write(profile.path(), text).unwrap();
    let option = format!("seccomp={}", profile.path().display());
    let seen = docker.shell(
        &["--security-opt", &option],
        "mkdir /x 2>&1; kill -12 1 2>&1; kill -0 1 && echo rest",
    );
    assert!(seen.contains("No space left on device"), "{seen}");
    assert!(
        seen.contains("Operation not permitted") && seen.ends_with("rest\n"),
        "{seen}"
    );
}

fn hostname(docker: &Docker) {
    let seen = docker.shell(&["--hostname", "boxed"], "hostname; cat /etc/hostname");
    assert_eq!(seen, "boxed\nboxed\n");
}

fn init(docker: &Docker) {
    let seen = docker.shell(&["--init"], "cat /proc/1/comm; echo $$");
    let (first, own) = seen.trim().split_once('\n').expect("two lines");
    assert!(first.contains("init") && own != "1", "{seen}");
    assert_eq!(docker.run(&["--init"], &["sh", "-c", "exit 9"]).code(), 9);
}

fn environment_folder_entrypoint(docker: &Docker) {
    let flags = [
        "--env",
        "A=a b",
        "--env",
        "EMPTY=",
        "--workdir",
        "/made/for/it",
    ];
    let seen = docker.shell(&flags, "echo \"$A|$EMPTY|$HOME\"; pwd");
    assert_eq!(seen, "a b||/root\n/made/for/it\n");
    let run = docker.run(&["--entrypoint", "echo"], &["an", "argument"]);
    assert_eq!(run.success().out(), "an argument\n");
}

fn only_loopback(docker: &Docker) {
    let seen = docker.shell(
        &[],
        "ls /sys/class/net; ping -c 1 -W 5 127.0.0.1 >/dev/null && echo answers",
    );
    assert_eq!(seen, "lo\nanswers\n");
}

fn namespaces(docker: &Docker) {
    let script = "for n in pid mnt uts ipc net; do readlink /proc/self/ns/$n; done";
    let seen = docker.shell(&[], script);
    for name in ["pid", "mnt", "uts", "ipc", "net"] {
        assert!(seen.contains(&format!("{name}:[")), "{name}: {seen}");
        let here = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        // Numbers of two kernels say nothing about each other.
        let same = seen.contains(here.to_str().unwrap());
        assert!(!same || docker.runtime.is_vmrun(), "{name}: {seen}");
    }
    let pids = docker.shell(&[], "echo $$; echo /proc/[0-9]*");
    assert_eq!(pids, "1\n/proc/1\n");
}

fn paths_that_are_masked(docker: &Docker) {
    // What a kernel does not have needs no mask.
    let script = "for f in /proc/kcore /proc/keys /proc/timer_list /proc/sched_debug
        do [ ! -e $f ] || wc -c <$f; done
        for f in /proc/acpi /proc/scsi /sys/firmware; do [ ! -e $f ] || ls -A $f; done";
    let seen = docker.shell(&[], script);
    assert!(seen.lines().all(|line| line == "0"), "{seen}");
    let run = docker.run(&[], &["sh", "-c", "echo x >/proc/sys/kernel/core_pattern"]);
    assert!(run.err().contains("Read-only file system"), "{run:?}");
}

fn device_of_the_host(docker: &Docker) {
    let run = docker.run(&["--device", "/dev/kvm"], &["ls", "/dev/kvm"]);
    if docker.runtime.is_vmrun() {
        // It is the host's, and the message names it.
        assert!(run.err().contains("device"), "{run:?}");
        assert_ne!(run.code(), 0);
    } else {
        assert_eq!(run.success().out(), "/dev/kvm\n");
    }
}
