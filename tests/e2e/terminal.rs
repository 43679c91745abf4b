//! `process.terminal`: a terminal inside for the one outside.

use rustix::process::Signal;
use serde_json::json;

use crate::harness::{Bundle, Container, Engine, Launch, Runtime, Terminal};

fn bundle(script: &str) -> Bundle {
    Bundle::shell(script).with("/process/terminal", json!(true))
}

#[test]
fn a_terminal_inside_for_the_one_outside() {
    let script = "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo is a tty
        [ -c /dev/console ] && echo has a console
        trap 'echo resized to $(stty size)' WINCH; trap 'echo interrupted; exit 9' INT
        echo size $(stty size)
        sleep 1000 & echo ready; while :; do wait $!; done";
    for runtime in Runtime::ALL {
        let mut terminal = Terminal::new(33, 101);
        assert!(terminal.is_cooked());
        let bundle = bundle(script);
        let running = runtime.launch(&bundle).on(&terminal).start();
        terminal.wait_for("ready\r\n");
        let shown = terminal.text();
        assert!(shown.contains("is a tty\r\n"), "{runtime:?}: {shown}");
        assert!(shown.contains("has a console\r\n"), "{runtime:?}: {shown}");
        // runc sets the size when the program runs already.
        terminal.wait_for("33 101\r\n");
        let at_start = shown.contains("size 33 101\r\n");
        assert!(at_start || runtime == Runtime::Runc, "{shown}");
        assert!(terminal.is_raw(), "{runtime:?}");
        terminal.resize(44, 99);
        terminal.wait_for("resized to 44 99\r\n");
        // The key, not a signal: the container's own terminal makes one of it.
        terminal.type_in("\x03");
        terminal.wait_for("interrupted\r\n");
        assert_eq!(
            running.finish().code(),
            9,
            "{runtime:?}: {}",
            terminal.text()
        );
        assert!(terminal.is_cooked(), "{runtime:?}");
    }
}

#[test]
fn set_back_when_the_start_fails() {
    let terminal = Terminal::new(24, 80);
    let bundle = Bundle::program(&["/missing"]).with("/process/terminal", json!(true));
    let run = Runtime::Vmrun.launch(&bundle).on(&terminal).finish();
    assert_eq!(run.code(), 127, "{}", terminal.text());
    assert!(terminal.is_cooked());
    // The screen is read on a thread of its own.
    terminal.wait_for("\n");
    let shown = terminal.text();
    assert_eq!(shown.lines().count(), 1, "{shown}");
    assert!(shown.contains("/missing"), "{shown}");
}

#[test]
fn set_back_when_terminated() {
    let terminal = Terminal::new(24, 80);
    let bundle = bundle("echo ready; read -r line; exit 3");
    let running = Runtime::Vmrun.launch(&bundle).on(&terminal).start();
    terminal.wait_for("ready\r\n");
    assert!(terminal.is_raw());
    // Of process 1, which has no handler: ignored, as in any pid namespace.
    running.signal(Signal::TERM);
    let mut terminal = terminal;
    terminal.type_in("\r");
    assert_eq!(running.finish().code(), 3, "{}", terminal.text());
    assert!(terminal.is_cooked());
}

#[test]
fn a_terminal_needs_one() {
    let bundle = bundle("echo hello");
    let run = Launch::vmrun(&["run"]).args([bundle.path()]).finish();
    assert_eq!(run.code(), 1);
    assert_eq!(
        run.err(),
        "vmrun: process.terminal: standard input is not a terminal\n"
    );
}

/// As engines start a container with a terminal: its size is set before the start.
#[test]
fn a_terminal_for_an_engine() {
    let script = "stty size; read x; echo got $x; trap 'echo >/hup; exit 1' HUP
        echo ready; while :; do read y; done";
    for runtime in Runtime::ALL {
        let container = Container::new(runtime, bundle(script));
        let engine = Engine::listening(&container.path("console"));
        let errors = container.path("errors");
        let path = container.bundle().path().to_str().unwrap();
        let words = [
            "create",
            "--bundle",
            path,
            "--console-socket",
            engine.path(),
        ];
        let words = [&words[..], &[container.id()]].concat();
        // Read to its end: nobody holds the verb's streams.
        let created = container.verb(&words).detached_stderr(&errors).finish();
        let text = std::fs::read_to_string(&errors).unwrap();
        assert_eq!((created.code(), text.as_str()), (0, ""), "{runtime:?}");
        let mut terminal = engine.accept();
        terminal.resize(30, 90);
        container.done(&["start", container.id()]).success();
        terminal.wait_for("30 90");
        terminal.type_in("x\r");
        terminal.wait_for("got x");
        terminal.wait_for("ready");
        let pid = rustix::process::Pid::from_raw(container.pid()).unwrap();
        let flags = rustix::process::PidfdFlags::empty();
        let pidfd = rustix::process::pidfd_open(pid, flags).unwrap();
        drop(terminal);
        let mut fds = [rustix::event::PollFd::new(
            &pidfd,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut fds, None).unwrap();
        let hup = container.bundle().rootfs().join("hup");
        assert!(hup.exists(), "{runtime:?}");
    }
}
