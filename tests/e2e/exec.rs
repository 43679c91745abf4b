//! Further processes in a container, and the processes of the host that stand for
//! them. The same cases are put to runc.

use std::fs;
use std::io::{PipeReader, Read, pipe};

use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getsid, kill_process, set_child_subreaper, waitpid,
};
use serde_json::{Value, json};

use crate::harness::{Bundle, Container, Engine, Runtime, Terminal};

fn idle(runtime: Runtime) -> Container {
    Container::run(runtime, Bundle::program(&["sleep", "1000"]))
}

#[test]
fn streams_and_exit_codes() {
    for runtime in Runtime::ALL {
        let container = idle(runtime);
        let run = container
            .exec(&[], "cat; echo err >&2; exit 7")
            .stdin("in")
            .finish();
        assert_eq!(
            (run.code(), run.out().as_str(), run.err().as_str()),
            (7, "in", "err\n"),
            "{runtime:?}"
        );
        let killed = container.exec(&[], "kill -9 $$").finish();
        assert_eq!(killed.code(), 137, "{runtime:?}");
    }
}

#[test]
fn flags() {
    let flags = [
        "--cwd", "/tmp", "--env", "A=1", "--env", "B=2", "--user", "5:6", "-g", "7",
    ];
    let script = "pwd; echo $A$B$TERM; id; grep NoNewPrivs /proc/self/status";
    for runtime in Runtime::ALL {
        let container = idle(runtime);
        let out = container.exec(&flags, script).finish().success().out();
        let lines: Vec<_> = out.lines().collect();
        assert_eq!(lines[..2], ["/tmp", "12xterm"], "{runtime:?}: {out}");
        assert!(lines[2].starts_with("uid=5 gid=6"), "{runtime:?}: {out}");
        assert!(lines[2].contains('7'), "{runtime:?}: {out}");
        assert_eq!(lines[3], "NoNewPrivs:\t1", "{runtime:?}");
    }
}

#[test]
fn what_cannot_be_run() {
    for runtime in Runtime::ALL {
        let container = idle(runtime);
        let id = container.id();
        for (words, text) in [
            (&["exec", id, "nope"][..], "executable file not found"),
            (&["exec", id, "/etc/passwd"], "ermission denied"),
            (&["exec", id], "process args cannot be empty"),
            (&["exec", "none", "true"], "container does not exist"),
            (
                &["exec", "--cwd", "/none", id, "true"],
                "o such file or directory",
            ),
            (
                &["exec", "--process", "/none", id],
                "o such file or directory",
            ),
            (
                &["exec", "-d", "-t", id, "true"],
                "without setting console socket",
            ),
            (
                &["exec", "--console-socket", "/s", id, "true"],
                "cannot use console socket",
            ),
        ] {
            let run = container.done(words);
            assert_eq!(run.code(), 255, "{runtime:?} {words:?}: {run:?}");
            assert!(run.err().contains(text), "{runtime:?} {words:?}: {run:?}");
            assert_eq!(run.err().lines().count(), 1, "{runtime:?}: {run:?}");
        }
    }
}

#[test]
fn a_paused_container() {
    for runtime in Runtime::ALL {
        let container = idle(runtime);
        let id = container.id();
        let fails = |words: &[&str], code: i32, text: &str| {
            let run = container.done(words);
            assert_eq!(run.code(), code, "{runtime:?}: {run:?}");
            assert!(run.err().contains(text), "{runtime:?}: {run:?}");
        };
        fails(&["resume", id], 1, "container not paused");
        container.done(&["pause", id]).success();
        assert_eq!(container.state()["status"], "paused", "{runtime:?}");
        fails(&["pause", id], 1, "container not running");
        fails(
            &["exec", id, "true"],
            255,
            "cannot exec in a paused container",
        );
        container.done(&["resume", id]).success();
        assert_eq!(container.state()["status"], "running", "{runtime:?}");
        container.done(&["exec", id, "true"]).success();
    }
}

#[test]
fn signals_are_passed_on() {
    for runtime in Runtime::ALL {
        let container = idle(runtime);
        for (signal, code) in [(Signal::TERM, 143), (Signal::USR1, 138)] {
            let running = container.exec(&[], "echo ready; exec sleep 1000").start();
            running.wait_for("ready");
            running.signal(signal);
            assert_eq!(running.finish().code(), code, "{runtime:?}");
        }
    }
}

#[test]
fn the_containers_end_is_the_processs() {
    for runtime in Runtime::ALL {
        let container = idle(runtime);
        let running = container.exec(&[], "echo ready; sleep 1000").start();
        running.wait_for("ready");
        container.done(&["kill", container.id(), "KILL"]).success();
        assert_eq!(running.finish().code(), 137, "{runtime:?}");
    }
}

/// As containerd's shim and conmon do it: adopts the process and waits for it.
fn detached(container: &Container, process: Value, more: &[&str]) -> (Pid, PipeReader) {
    set_child_subreaper(Some(Pid::INIT)).unwrap();
    let file = container.path("process.json");
    fs::write(&file, process.to_string()).unwrap();
    let (file, pid_file) = (file.to_str().unwrap(), container.path("pid"));
    let pid_file = pid_file.to_str().unwrap();
    let flags = [
        "exec",
        "--process",
        file,
        "--detach",
        "--pid-file",
        pid_file,
    ];
    let words = [&flags, more, &[container.id()]].concat();
    let (reader, writer) = pipe().unwrap();
    let errors = container.path("errors");
    let run = container
        .verb(&words)
        .stdout(writer)
        .detached_stderr(&errors)
        .finish();
    assert_eq!(run.code(), 0, "{}", fs::read_to_string(&errors).unwrap());
    let pid = fs::read_to_string(pid_file).unwrap().parse().unwrap();
    (Pid::from_raw(pid).unwrap(), reader)
}

fn process(script: &str) -> Value {
    json!({"user": {"uid": 0, "gid": 0}, "args": ["sh", "-c", script],
           "env": ["PATH=/bin"], "cwd": "/"})
}

/// Makes `/go` in the container.
fn fifo(container: &Container) {
    let path = container.bundle().rootfs().join("go");
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, rustix::fs::Mode::RWXU, 0).unwrap();
}

fn ended(pid: Pid) -> WaitStatus {
    waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap().1
}

#[test]
fn a_detached_process_is_adopted_with_its_exit_status() {
    for runtime in Runtime::ALL {
        let container = idle(runtime);
        let script = process("read x </go; echo $x; exit 5");
        fifo(&container);
        let (pid, mut output) = detached(&container, script, &[]);
        let pids = container
            .done(&["ps", "--format", "json", container.id()])
            .success();
        let pids: Vec<i32> = serde_json::from_slice(&pids.stdout).unwrap();
        let expected = [container.pid(), pid.as_raw_pid()];
        assert_eq!(pids, expected, "{runtime:?}");
        if runtime == Runtime::Vmrun {
            assert_eq!(getsid(Some(pid)).unwrap(), pid);
        }
        container.exec(&[], "echo go >/go").finish().success();
        assert_eq!(ended(pid).exit_status(), Some(5), "{runtime:?}");
        let mut text = String::new();
        // Ends, because nobody holds it any more.
        output.read_to_string(&mut text).unwrap();
        assert_eq!(text, "go\n", "{runtime:?}");
    }
}

#[test]
fn killing_the_process_on_the_host_kills_the_one_inside() {
    for runtime in Runtime::ALL {
        let container = idle(runtime);
        fifo(&container);
        for (signal, code) in [(Signal::KILL, None), (Signal::TERM, Some(143))] {
            // Reads until nobody has it open for writing.
            let watch = container.exec(&[], "cat /go").start();
            let script = process("exec 9>/go; echo ready >&9; exec sleep 1000");
            let (pid, _output) = detached(&container, script, &[]);
            watch.wait_for("ready");
            kill_process(pid, signal).unwrap();
            let status = ended(pid);
            match (runtime, code) {
                (Runtime::Vmrun, Some(code)) => assert_eq!(status.exit_status(), Some(code)),
                _ => assert!(status.signaled(), "{runtime:?}"),
            }
            watch.finish().success();
        }
    }
}

#[test]
fn a_terminal() {
    for runtime in Runtime::ALL {
        let container = idle(runtime);
        let mut terminal = Terminal::new(24, 80);
        let script =
            "trap 'stty size' WINCH; stty size; tty; until read x; do :; done; echo got $x; exit 4";
        let running = container.exec(&["-t"], script).on(&terminal).start();
        terminal.wait_for("24 80");
        terminal.wait_for("/dev/pts/");
        terminal.resize(30, 90);
        terminal.wait_for("30 90");
        terminal.type_in("abc\r");
        terminal.wait_for("got abc");
        assert_eq!(running.finish().code(), 4, "{runtime:?}");
        assert!(terminal.is_cooked(), "{runtime:?}");
    }
}

#[test]
fn a_terminal_for_an_engine() {
    for runtime in Runtime::ALL {
        let container = idle(runtime);
        let engine = Engine::listening(&container.path("console"));
        let mut script = process(
            "trap 'stty size' WINCH; trap 'echo >/hup; exit 1' HUP; echo ready
            while :; do read y; done",
        );
        script["terminal"] = json!(true);
        let (pid, mut output) = detached(&container, script, &["--console-socket", engine.path()]);
        let mut terminal = engine.accept();
        // The streams that the verb was started with are let go of.
        assert_eq!(output.read(&mut [0]).unwrap(), 0, "{runtime:?}");
        terminal.wait_for("ready");
        terminal.resize(30, 90);
        terminal.wait_for("30 90");
        drop(terminal);
        // The process is told, and ends.
        ended(pid);
        container.exec(&[], "test -e /hup").finish().success();
    }
}

#[test]
fn an_exec_without_a_reader() {
    let container = idle(Runtime::Vmrun);
    let run = container
        .exec(&[], "yes; echo code $? >&2")
        .by_shell("\"$@\" | head -n 1")
        .finish();
    assert_eq!(run.out(), "y\n", "{run:?}");
}

#[test]
fn what_a_process_leaves_behind_is_not_waited_for() {
    let container = idle(Runtime::Vmrun);
    let run = container.exec(&[], "sleep 1000 & echo out").finish();
    assert_eq!((run.code(), run.out().as_str()), (0, "out\n"), "{run:?}");
    let table = container.done(&["ps", container.id()]).success().out();
    assert_eq!(table.matches("sleep 1000").count(), 2, "{table}");
}

#[test]
fn many_at_a_time() {
    let container = idle(Runtime::Vmrun);
    let running: Vec<_> = (0..8)
        .map(|n| {
            container
                .exec(&[], &format!("cat; exit {n}"))
                .stdin(n.to_string())
                .start()
        })
        .collect();
    for (n, running) in running.into_iter().enumerate() {
        let run = running.finish();
        assert_eq!((run.code(), run.out()), (n as i32, n.to_string()));
    }
}
