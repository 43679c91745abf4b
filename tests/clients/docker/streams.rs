//! Streams, terminals and exit codes.

use std::thread;
use std::time::Duration;

use super::{Docker, Promise};
use crate::harness::Terminal;
use crate::suite::cases;

pub const CASES: &[(&str, Promise)] = cases![
    output_and_errors_are_separate,
    exit_codes,
    what_cannot_be_executed,
    input_comes_in,
    a_mebibyte_comes_back,
    terminal,
    terminal_changes_size,
    ctrl_c_on_a_terminal,
    detached_then_logs,
    logs_follow_to_the_end,
];

fn output_and_errors_are_separate(docker: &Docker) {
    let run = docker
        .run(&[], &["sh", "-c", "echo out; echo err >&2"])
        .success();
    assert_eq!((run.out().as_str(), run.err().as_str()), ("out\n", "err\n"));
}

fn exit_codes(docker: &Docker) {
    assert_eq!(docker.run(&[], &["sh", "-c", "exit 42"]).code(), 42);
    let missing = docker.run(&[], &["/bin/nothing"]);
    assert_eq!(missing.code(), 127, "{missing:?}");
    assert!(
        missing.err().contains("no such file or directory"),
        "{missing:?}"
    );
    let unnamed = docker.run(&[], &["nothing"]);
    assert_eq!(unnamed.code(), 127, "{unnamed:?}");
    let plain = docker.run(&[], &["/etc/plain"]);
    assert_eq!(plain.code(), 126, "{plain:?}");
    assert!(plain.err().contains("permission denied"), "{plain:?}");
    let killed = docker.run(&["--init"], &["sh", "-c", "kill -9 $$"]);
    assert_eq!(killed.code(), 128 + 9, "{killed:?}");
}

/// The file is there and may be executed; what that brings shows when it is tried,
/// which is in `start`, or in the container.
fn what_cannot_be_executed(docker: &Docker) {
    let name = format!("garbage-{}", docker.runtime.name);
    let garbage = docker.run(&["--name", &name], &["/bin/garbage"]);
    assert!([1, 125, 255].contains(&garbage.code()), "{garbage:?}");
    let said = garbage.err().to_lowercase();
    assert!(said.contains("exec format error"), "{garbage:?}");
    // --rm comes true.
    assert_eq!(docker.cli(&["inspect", &name]).finish().code(), 1);
}

fn input_comes_in(docker: &Docker) {
    let run = docker.launch(&["-i"], &["cat"]).stdin("line\n").finish();
    assert_eq!(run.success().out(), "line\n");
    // Without -i there is nothing to read.
    assert_eq!(docker.run(&[], &["cat"]).success().out(), "");
}

fn a_mebibyte_comes_back(docker: &Docker) {
    let bytes: Vec<u8> = (0..1 << 20).map(|i: u32| (i / 7 % 251) as u8).collect();
    let run = docker
        .launch(&["-i"], &["cat"])
        .stdin(bytes.clone())
        .finish();
    assert!(run.success().stdout == bytes);
}

/// Ends once the terminal has its size, which clients set after the start.
const SIZED: &str = "until [ \"$(stty size 2>/dev/null)\" = '33 77' ]; do usleep 20000; done";

fn terminal(docker: &Docker) {
    let mut terminal = Terminal::new(33, 77);
    let script = format!("{SIZED}; tty; read line; echo got $line; exit 3");
    let run = docker
        .launch(&["-i", "-t"], &["sh", "-c", &script])
        .on(&terminal)
        .start();
    terminal.wait_for("/dev/pts/0");
    assert!(terminal.is_raw());
    terminal.type_in("hello\r");
    terminal.wait_for("got hello");
    assert_eq!(run.finish().code(), 3);
    assert!(terminal.is_cooked());
}

fn terminal_changes_size(docker: &Docker) {
    let mut terminal = Terminal::new(24, 80);
    let script = "trap 'stty size' WINCH; echo up; until read line; do :; done";
    let run = docker
        .launch(&["-i", "-t"], &["sh", "-c", script])
        .on(&terminal)
        .start();
    terminal.wait_for("up");
    // The client listens for changes some time after the start, and says nothing
    // then: one may be missed.
    for _ in 0..100 {
        terminal.resize(50, 131);
        terminal.resize(50, 132);
        if terminal.text().contains("50 132") {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    terminal.wait_for("50 132");
    terminal.type_in("\r");
    run.finish().success();
}

fn ctrl_c_on_a_terminal(docker: &Docker) {
    let mut terminal = Terminal::new(24, 80);
    let script = "trap 'exit 9' INT; echo ready; while :; do read line; done";
    let run = docker
        .launch(&["-i", "-t"], &["sh", "-c", script])
        .on(&terminal)
        .start();
    terminal.wait_for("ready");
    terminal.type_in("\x03");
    assert_eq!(run.finish().code(), 9);
}

fn detached_then_logs(docker: &Docker) {
    let container = docker.background(&[], "echo out; echo err >&2; exit 4");
    assert_eq!(container.wait(), 4);
    let logs = container.cli(&["logs"]).success();
    assert_eq!(
        (logs.out().as_str(), logs.err().as_str()),
        ("out\n", "err\n")
    );
}

fn logs_follow_to_the_end(docker: &Docker) {
    let container = docker.background(&["-i"], "echo one; read x; echo two");
    let follow = docker.cli(&["logs", "--follow", &container.id]).start();
    follow.wait_for("one");
    let attach = docker
        .cli(&["attach", &container.id])
        .stdin("go\n")
        .finish();
    assert_eq!(attach.code(), 0, "{attach:?}");
    assert_eq!(follow.finish().success().out(), "one\ntwo\n");
}
