//! Further processes in a container.

use super::{Docker, Promise};
use crate::harness::Terminal;
use crate::suite::cases;

pub const CASES: &[(&str, Promise)] = cases![
    user_folder_and_environment,
    exit_codes_of_exec,
    exec_reads_input,
    exec_on_a_terminal,
    detached_exec,
    exec_sees_the_container,
    exec_after_the_end,
    healthcheck,
    unhealthy,
];

/// Stays until it is killed.
const WAITS: &str = "trap exit TERM; while :; do sleep 1000 & wait $!; done";

fn user_folder_and_environment(docker: &Docker) {
    let container = docker.background(&["-e", "A=container"], WAITS);
    let ids = container.exec(&["-u", "1000:2000"], &["sh", "-c", "id -u; id -g"]);
    assert_eq!(ids.success().out(), "1000\n2000\n");
    let name = container.exec(&["-u", "app"], &["sh", "-c", "id -u; id -G"]);
    assert_eq!(name.success().out(), "1000\n1000 2000\n");
    let place = container.exec(
        &["-w", "/tmp", "-e", "B=exec"],
        &["sh", "-c", "pwd; echo $A $B"],
    );
    assert_eq!(place.success().out(), "/tmp\ncontainer exec\n");
}

fn exit_codes_of_exec(docker: &Docker) {
    let container = docker.background(&[], WAITS);
    assert_eq!(container.exec(&[], &["sh", "-c", "exit 42"]).code(), 42);
    assert_eq!(
        container.exec(&[], &["sh", "-c", "kill -9 $$"]).code(),
        128 + 9
    );
    let missing = container.exec(&[], &["/bin/nothing"]);
    assert!([126, 127].contains(&missing.code()), "{missing:?}");
    let text = missing.out() + &missing.err();
    assert!(text.contains("no such file or directory"), "{missing:?}");
    let plain = container.exec(&[], &["/etc/plain"]);
    assert_eq!(plain.code(), 126, "{plain:?}");
    // None of them ended the container.
    assert_eq!(container.inspect("{{.State.Running}}"), "true");
}

fn exec_reads_input(docker: &Docker) {
    let container = docker.background(&[], WAITS);
    let bytes: Vec<u8> = (0..300_000).map(|i: u32| (i / 3 % 251) as u8).collect();
    let run = container
        .exec_launch(&["-i"], &["cat"])
        .stdin(bytes.clone())
        .finish();
    assert!(run.success().stdout == bytes);
    let run = container
        .exec(&[], &["sh", "-c", "echo out; echo err >&2"])
        .success();
    assert_eq!((run.out().as_str(), run.err().as_str()), ("out\n", "err\n"));
}

fn exec_on_a_terminal(docker: &Docker) {
    let container = docker.background(&[], WAITS);
    let mut terminal = Terminal::new(33, 77);
    let script =
        "read line; until stty size | grep '33 77'; do usleep 20000; done; echo got $line; exit 5";
    let run = container
        .exec_launch(&["-i", "-t"], &["sh", "-c", script])
        .on(&terminal)
        .start();
    terminal.type_in("hello\r");
    terminal.wait_for("got hello");
    assert!(terminal.text().contains("33 77"), "{:?}", terminal.text());
    assert_eq!(run.finish().code(), 5);
}

fn detached_exec(docker: &Docker) {
    let container = docker.background(
        &[],
        "mkfifo /pipe; echo made; read line </pipe; echo $line; exit 6",
    );
    container.wait_for("made");
    container
        .exec(&["-d"], &["sh", "-c", "echo from exec >/pipe"])
        .success();
    assert_eq!(container.wait(), 6);
    assert_eq!(container.logs(), "made\nfrom exec\n");
}

fn exec_sees_the_container(docker: &Docker) {
    let container = docker.background(
        &["--hostname", "boxed"],
        &format!("echo x >/file; echo made; {WAITS}"),
    );
    container.wait_for("made");
    assert_eq!(
        container.shell("cat /file; hostname; ls /proc | grep -cx 1"),
        "x\nboxed\n1\n"
    );
    let caps = "grep -E 'Cap(Bnd|Eff)|Seccomp:' /proc/self/status";
    let first = container.shell("grep -E 'Cap(Bnd|Eff)|Seccomp:' /proc/1/status");
    assert_eq!(container.shell(caps), first);
}

fn exec_after_the_end(docker: &Docker) {
    let container = docker.background(&[], "true");
    container.wait();
    let late = container.exec(&[], &["true"]);
    assert_ne!(late.code(), 0);
    assert!(late.err().contains("is not running"), "{late:?}");
}

fn healthcheck(docker: &Docker) {
    let flags = [
        "--health-cmd",
        "test -e /ok",
        "--health-interval",
        "1s",
        "--health-retries",
        "100",
    ];
    let container = docker.background(&flags, WAITS);
    assert_eq!(container.inspect("{{.State.Health.Status}}"), "starting");
    let events = container.events();
    container.shell("touch /ok");
    events.wait_for("health_status: healthy");
    assert_eq!(container.inspect("{{.State.Health.Status}}"), "healthy");
}

fn unhealthy(docker: &Docker) {
    let flags = [
        "--health-cmd",
        "echo sick; false",
        "--health-interval",
        "1s",
        "--health-retries",
        "1",
    ];
    let container = docker.background(&flags, WAITS);
    container.events().wait_for("health_status: unhealthy");
    let log = container.inspect("{{(index .State.Health.Log 0).Output}}");
    assert_eq!(log, "sick");
}
