//! `exec`. (contest: exec, exec_env, exec_env_inheritance, exec_cpu_affinity, the
//! lifecycle's)

use std::fs;

use serde_json::json;

use super::Promise;
use super::lab::{self, Container, Lab};
use crate::harness::{Bundle, Terminal};
use crate::suite::cases;

pub const CASES: &[(&str, Promise)] = cases![
    exit_code_and_streams,
    input,
    user_folder_and_environment,
    further_groups,
    inherits_the_environment,
    process_file,
    capabilities,
    seccomp_of_the_container,
    no_new_privileges,
    detached,
    on_a_terminal,
    preserved_descriptors,
    program_is_missing,
    in_a_created_one,
    in_a_stopped_one,
    in_a_paused_one,
    needs_a_container,
];

const WAITS: &str = "trap 'exit 7' TERM; while :; do sleep 1000 & wait $!; done";

fn exec(container: &Container, flags: &[&str], argv: &[&str]) -> crate::harness::Finished {
    container
        .lab
        .launch(&["exec"])
        .args(flags)
        .arg(&container.id)
        .args(argv)
        .finish()
}

fn exit_code_and_streams(lab: &Lab) {
    let container = lab.started(Bundle::shell(WAITS));
    let run = exec(
        &container,
        &[],
        &["sh", "-c", "echo out; echo err >&2; exit 42"],
    );
    assert_eq!(
        (run.code(), run.out().as_str(), run.err().trim()),
        (42, "out\n", "err")
    );
    assert_eq!(container.status(), "running");
}

fn input(lab: &Lab) {
    let container = lab.started(Bundle::shell(WAITS));
    let run = lab
        .launch(&["exec", &container.id, "cat"])
        .stdin("line\n")
        .finish();
    assert_eq!(run.success().out(), "line\n");
}

fn user_folder_and_environment(lab: &Lab) {
    let container = lab.started(Bundle::shell(WAITS));
    let flags = [
        "--user", "10:20", "--cwd", "/tmp", "--env", "A=a", "--env", "B=b",
    ];
    let run = exec(
        &container,
        &flags,
        &["sh", "-c", "id -u; id -G; pwd; echo $A$B"],
    );
    assert_eq!(run.success().out(), "10\n20\n/tmp\nab\n");
}

fn further_groups(lab: &Lab) {
    let container = lab.started(Bundle::shell(WAITS));
    let flags = ["--user", "10:20", "--additional-gids", "30"];
    assert_eq!(
        exec(&container, &flags, &["id", "-G"]).success().out(),
        "20 30\n"
    );
}

fn inherits_the_environment(lab: &Lab) {
    let container =
        lab.started(Bundle::shell(WAITS).with("/process/env", json!(["PATH=/bin", "C=container"])));
    assert_eq!(
        exec(&container, &["--env", "A=a"], &["sh", "-c", "echo $C $A"])
            .success()
            .out(),
        "container a\n"
    );
}

fn process_file(lab: &Lab) {
    let container = lab.started(Bundle::shell(WAITS));
    let process = json!({"args": ["sh", "-c", "echo $A; pwd; id -u"], "cwd": "/etc", "env": ["PATH=/bin", "A=a"], "user": {"uid": 5, "gid": 6}});
    let path = container.path("process.json");
    fs::write(&path, process.to_string()).unwrap();
    let run = lab.call(&["exec", "--process", path.to_str().unwrap(), &container.id]);
    assert_eq!(run.success().out(), "a\n/etc\n5\n");
}

fn capabilities(lab: &Lab) {
    let container = lab.started(Bundle::shell(WAITS));
    let script = "grep -E 'CapEff|CapBnd' /proc/self/status | cut -f 2 | sed 's/^0*//'";
    assert_eq!(
        exec(&container, &[], &["sh", "-c", script]).success().out(),
        "a80425fb\na80425fb\n"
    );
    let more = exec(
        &container,
        &["--cap", "CAP_SYS_TIME"],
        &["sh", "-c", script],
    )
    .success()
    .out();
    assert!(more.starts_with("aa0425fb\n"), "{more}");
}

fn seccomp_of_the_container(lab: &Lab) {
    let seccomp = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]});
    let container = lab.started(Bundle::shell(WAITS).with("/linux/seccomp", seccomp));
    let run = exec(&container, &[], &["mkdir", "/x"]);
    assert!(run.err().contains("Operation not permitted"), "{run:?}");
}

fn no_new_privileges(lab: &Lab) {
    let container =
        lab.started(Bundle::shell(WAITS).with("/process/noNewPrivileges", json!(false)));
    let script = "grep NoNewPrivs /proc/self/status | cut -f 2";
    assert_eq!(
        exec(&container, &[], &["sh", "-c", script]).success().out(),
        "0\n"
    );
    assert_eq!(
        exec(&container, &["--no-new-privs"], &["sh", "-c", script])
            .success()
            .out(),
        "1\n"
    );
}

fn detached(lab: &Lab) {
    let container = lab.started(Bundle::shell(
        "mkfifo /p; read line </p; echo $line; exit 3",
    ));
    let pid_file = container.path("exec.pid");
    let flags = ["--detach", "--pid-file", pid_file.to_str().unwrap()];
    let script = "until [ -p /p ]; do usleep 20000; done; echo said >/p";
    // A detached process keeps the streams.
    let started = lab
        .launch(&["exec"])
        .args(flags)
        .arg(&container.id)
        .args(["sh", "-c", script]);
    let started = started
        .by_shell("\"$@\" >/dev/null 2>&1 </dev/null")
        .finish();
    assert_eq!(started.code(), 0, "{started:?}");
    // A process of the host, whose end is ours to see, and holds up the container's.
    assert_eq!(lab::wait(lab::pid_in(&pid_file)), 0);
    assert_eq!(container.wait(), 3);
    assert_eq!(container.out(), "said\n");
}

fn on_a_terminal(lab: &Lab) {
    let container = lab.started(Bundle::shell(WAITS));
    let mut terminal = Terminal::new(44, 88);
    let exec = lab
        .launch(&[
            "exec",
            "--tty",
            &container.id,
            "sh",
            "-c",
            "read line; stty size; echo got $line; exit 6",
        ])
        .on(&terminal)
        .start();
    terminal.type_in("hello\r");
    assert_eq!(exec.finish().code(), 6);
    let text = terminal.text();
    assert!(
        text.contains("44 88") && text.contains("got hello"),
        "{text:?}"
    );
}

fn preserved_descriptors(lab: &Lab) {
    let container = lab.started(Bundle::shell(WAITS));
    let exec = lab.launch(&[
        "exec",
        "--preserve-fds",
        "1",
        &container.id,
        "sh",
        "-c",
        "read line <&3; echo got $line",
    ]);
    let exec = exec
        .by_shell("exec \"$@\" 3<<E\nhanded in\nE")
        .finish()
        .success();
    assert_eq!(exec.out(), "got handed in\n");
}

fn program_is_missing(lab: &Lab) {
    let container = lab.started(Bundle::shell(WAITS));
    let run = exec(&container, &[], &["/bin/nothing"]);
    assert_ne!(run.code(), 0);
    assert!(run.err().to_lowercase().contains("no such file"), "{run:?}");
    assert_eq!(container.status(), "running");
}

fn in_a_created_one(lab: &Lab) {
    let container = lab.created(Bundle::shell("echo ran"));
    assert_eq!(
        exec(&container, &[], &["echo", "before"]).success().out(),
        "before\n"
    );
    container.call("start").success();
    container.wait();
    assert_eq!(container.out(), "ran\n");
}

fn in_a_stopped_one(lab: &Lab) {
    let container = lab.started(Bundle::shell("true"));
    container.wait();
    let run = exec(&container, &[], &["true"]);
    assert_ne!(run.code(), 0);
    assert!(
        run.err().contains("stopped") || run.err().contains("not running"),
        "{run:?}"
    );
}

fn in_a_paused_one(lab: &Lab) {
    let container = lab.started(Bundle::shell(WAITS));
    container.call("pause").success();
    let run = exec(&container, &[], &["true"]);
    assert_ne!(run.code(), 0);
    assert!(run.err().contains("paused"), "{run:?}");
    container.call("resume").success();
    exec(&container, &[], &["true"]).success();
}

fn needs_a_container(lab: &Lab) {
    let run = lab.call(&["exec", "nothing", "true"]);
    assert_ne!(run.code(), 0);
    assert!(run.err().contains("does not exist"), "{run:?}");
}
