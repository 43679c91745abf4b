//! `process`: arguments, environment, folder, user, terminal, rlimits, scheduling.
//! (validation: default, process, linux_process, process_user, process_rlimits,
//! process_rlimits_fail, process_oom_score_adj; contest: process, process_user,
//! process_rlimits, process_rlimits_fail, process_oom_score_adj, io_priority,
//! scheduler, personality, exec_cpu_affinity, fd_control)

use std::fs;

use serde_json::json;

use super::Promise;
use super::lab::Lab;
use crate::harness::{Bundle, Terminal};
use crate::suite::cases;

pub const CASES: &[(&str, Promise)] = cases![
    arguments,
    no_arguments,
    program_by_path,
    program_is_missing,
    environment,
    working_folder,
    working_folder_is_made,
    working_folder_is_relative,
    user_and_groups,
    umask,
    user_without_an_entry,
    rlimits,
    rlimit_of_an_unknown_type,
    rlimit_soft_above_hard,
    rlimits_twice,
    oom_score,
    io_priority,
    scheduler,
    personality,
    terminal,
    terminal_without_a_place,
    standard_streams_only,
    preserved_descriptors,
];

fn arguments(lab: &Lab) {
    let words = [
        "/bin/sh",
        "-c",
        "printf '%s|' \"$@\"",
        "sh",
        "a b",
        "",
        "$x",
        "ä",
    ];
    assert_eq!(lab.output(Bundle::program(&words)), "a b||$x|ä|");
}

fn no_arguments(lab: &Lab) {
    lab.refused(
        Bundle::shell("true").with("/process/args", json!([])),
        &["args", "argument"],
    );
}

fn program_by_path(lab: &Lab) {
    let bundle =
        Bundle::program(&["mine"]).with("/process/env", json!(["PATH=/nowhere:/opt:/bin"]));
    fs::create_dir(bundle.rootfs().join("opt")).unwrap();
    let script = bundle.rootfs().join("opt/mine");
    fs::write(&script, "#!/bin/sh\necho found\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(lab.output(bundle), "found\n");
}

fn program_is_missing(lab: &Lab) {
    lab.refused(Bundle::program(&["/bin/nothing"]), &["no such file"]);
    lab.refused(
        Bundle::program(&["nothing"]),
        &["not found", "no such file"],
    );
}

fn environment(lab: &Lab) {
    let bundle = Bundle::shell("echo \"$A|$B\"; env | grep -c ^C=")
        .with("/process/env", json!(["PATH=/bin", "A=1=2", "B=", "C=c"]));
    assert_eq!(lab.output(bundle), "1=2|\n1\n");
}

fn working_folder(lab: &Lab) {
    assert_eq!(
        lab.output(Bundle::shell("pwd").with("/process/cwd", json!("/etc"))),
        "/etc\n"
    );
}

fn working_folder_is_made(lab: &Lab) {
    assert_eq!(
        lab.output(Bundle::shell("pwd").with("/process/cwd", json!("/new/folder"))),
        "/new/folder\n"
    );
}

fn working_folder_is_relative(lab: &Lab) {
    lab.refused(
        Bundle::shell("pwd").with("/process/cwd", json!("etc")),
        &["absolute", "cwd"],
    );
}

fn user_and_groups(lab: &Lab) {
    let user = json!({"uid": 10, "gid": 20, "additionalGids": [30, 40]});
    let script = "id -u; id -g; id -G; : >/tmp/x; stat -c '%u %g' /tmp/x";
    let bundle = Bundle::shell(script).with("/process/user", user);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    fs::set_permissions(bundle.rootfs().join("tmp"), mode).unwrap();
    assert_eq!(lab.output(bundle), "10\n20\n20 30 40\n10 20\n");
}

fn umask(lab: &Lab) {
    let user = json!({"uid": 0, "gid": 0, "umask": 0o027});
    assert_eq!(
        lab.output(
            Bundle::shell("umask; mkdir /made; stat -c %a /made").with("/process/user", user)
        ),
        "0027\n750\n"
    );
}

fn user_without_an_entry(lab: &Lab) {
    let user = json!({"uid": 4_000_000, "gid": 4_000_001});
    assert_eq!(
        lab.output(Bundle::shell("id -u; id -g").with("/process/user", user)),
        "4000000\n4000001\n"
    );
}

fn rlimits(lab: &Lab) {
    let limits = json!([
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 1024},
        {"type": "RLIMIT_FSIZE", "soft": 4096, "hard": 8192},
        {"type": "RLIMIT_STACK", "soft": 1 << 20, "hard": 2 << 20},
        {"type": "RLIMIT_CPU", "soft": 100, "hard": 200},
        {"type": "RLIMIT_MEMLOCK", "soft": 4096, "hard": 8192},
        {"type": "RLIMIT_AS", "soft": 1_u64 << 40, "hard": 1_u64 << 41}]);
    let script = "grep -E 'open files|core|file size|stack|cpu time|locked memory|address' /proc/self/limits |
        sed 's/  */ /g' | cut -d ' ' -f 2-5 | sort";
    let seen = lab.output(Bundle::shell(script).with("/process/rlimits", limits));
    for expected in [
        "open files 100 200",
        "core file size 0",
        "file size 4096 8192",
        "stack size 1048576 2097152",
        "cpu time 100 200",
        "locked memory 4096 8192",
        "address space 1099511627776 2199023255552",
    ] {
        assert!(seen.contains(expected), "{expected}: {seen}");
    }
}

fn rlimit_of_an_unknown_type(lab: &Lab) {
    let limits = json!([{"type": "RLIMIT_NOSUCH", "soft": 1, "hard": 1}]);
    lab.refused(
        Bundle::shell("true").with("/process/rlimits", limits),
        &["rlimit"],
    );
}

fn rlimit_soft_above_hard(lab: &Lab) {
    let limits = json!([{"type": "RLIMIT_NOFILE", "soft": 200, "hard": 100}]);
    lab.refused(
        Bundle::shell("true").with("/process/rlimits", limits),
        &["rlimit", "invalid argument", "prlimit", "setrlimit"],
    );
}

fn rlimits_twice(lab: &Lab) {
    let limit = json!({"type": "RLIMIT_NOFILE", "soft": 100, "hard": 100});
    lab.refused(
        Bundle::shell("true").with("/process/rlimits", json!([limit, limit])),
        &["rlimit", "duplicate", "twice"],
    );
}

fn oom_score(lab: &Lab) {
    let seen = lab.output(
        Bundle::shell("cat /proc/self/oom_score_adj").with("/process/oomScoreAdj", json!(321)),
    );
    assert_eq!(seen, "321\n");
}

fn io_priority(lab: &Lab) {
    let bundle = Bundle::shell("ionice -p $$").with(
        "/process/ioPriority",
        json!({"class": "IOPRIO_CLASS_BE", "priority": 6}),
    );
    assert_eq!(lab.output(bundle), "best-effort: prio 6\n");
}

fn scheduler(lab: &Lab) {
    // The nice value, and SCHED_BATCH.
    let bundle = Bundle::shell("cut -d ' ' -f 19,41 /proc/self/stat").with(
        "/process/scheduler",
        json!({"policy": "SCHED_BATCH", "nice": 5}),
    );
    assert_eq!(lab.output(bundle), "5 3\n");
}

fn personality(lab: &Lab) {
    let bundle = Bundle::shell("uname -m").with("/linux/personality", json!({"domain": "LINUX32"}));
    assert_eq!(lab.output(bundle), "i686\n");
}

fn terminal(lab: &Lab) {
    let container = lab.container(
        Bundle::shell("tty; read line; echo got $line; stty size; exit 3")
            .with("/process/terminal", json!(true)),
    );
    let mut terminal = Terminal::new(33, 77);
    let path = container.bundle.path().to_str().unwrap();
    let run = lab
        .launch(&["run", "--bundle", path, &container.id])
        .on(&terminal)
        .start();
    terminal.wait_for("/dev/pts/0");
    terminal.type_in("hello\r");
    assert_eq!(run.finish().code(), 3);
    let text = terminal.text();
    assert!(
        text.contains("got hello") && text.contains("33 77"),
        "{text:?}"
    );
}

/// Neither a socket for the terminal nor one to be on.
fn terminal_without_a_place(lab: &Lab) {
    let container = lab.container(Bundle::shell("true").with("/process/terminal", json!(true)));
    assert_ne!(container.create().code, 0);
}

fn standard_streams_only(lab: &Lab) {
    // The fourth is the folder that is listed.
    let bundle = Bundle::program(&["/bin/ls", "/proc/self/fd"]);
    assert_eq!(lab.output(bundle), "0\n1\n2\n3\n");
}

fn preserved_descriptors(lab: &Lab) {
    let container = lab.container(Bundle::shell("read line <&3; echo got $line"));
    let path = container.bundle.path().to_str().unwrap();
    let run = lab.launch(&[
        "run",
        "--preserve-fds",
        "1",
        "--bundle",
        path,
        &container.id,
    ]);
    let run = run
        .by_shell("exec \"$@\" 3<<E\nhanded in\nE")
        .finish()
        .success();
    assert_eq!(run.out(), "got handed in\n");
}
