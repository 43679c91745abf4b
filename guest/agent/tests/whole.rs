//! What the host asks about a container as a whole. Which controllers there are
//! depends on the system that the tests run on, so files that only some have are
//! tested in a real guest.

mod harness;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{SystemTime, UNIX_EPOCH};

use harness::{Host, collect, mount, plan};
use vmrun_protocol::message::{
    Answer, ExitStatus, FailureKind, INIT, Process, Question, Report, Request,
};
use vmrun_protocol::plan::{FsType, namespace};

fn host() -> Option<Host> {
    let host = Host::with_cgroup();
    if host.is_none() {
        eprintln!("no cgroup v2 tree here: not tested");
    }
    host
}

fn sh(script: &str) -> vmrun_protocol::plan::ProcessPlan {
    plan(&["sh", "-c", script]).process
}

fn end(host: &mut Host, stdin: UnixStream) {
    drop(stdin);
    assert_eq!(host.exited(), ExitStatus::Code(0));
}

fn processes(host: &mut Host) -> Vec<Process> {
    match host.ask(Question::Processes) {
        Ok(Answer::Processes(processes)) => processes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn processes_are_told_with_their_numbers() {
    let Some(mut host) = host() else { return };
    let (stdin, _stdout) = host.idle(&plan(&[]));
    let child = "echo up; read x </tmp/never";
    let mut user = sh(&format!(
        "mknod /tmp/never p; sh -c '{child}' & i=0; \
         while test $i -lt 30000; do i=$((i+1)); done; echo busy; read line"
    ));
    user.user.uid = 77;
    std::fs::set_permissions(
        host.path("tmp"),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    host.exec(5, &user).unwrap();
    let [_stdin, mut stdout, _stderr] = host.exec_started(5);
    std::io::Read::read_exact(&mut stdout, &mut [0; 8]).unwrap();
    let found = processes(&mut host);
    let told: Vec<_> = found.iter().map(|p| (p.uid, p.process)).collect();
    assert_eq!(told, [(0, Some(INIT)), (77, Some(5)), (77, None)]);
    assert!(found[1].command.starts_with(b"sh -c mknod /tmp/never"));
    assert_eq!(found[2].command, format!("sh -c {child}").as_bytes());
    assert!(found.is_sorted_by_key(|process| process.pid));
    assert_eq!(found[2].parent, found[1].pid);
    assert!(found[1].cpu_ns > 0, "{found:?}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    for process in &found {
        let age = now.as_nanos() as i128 - i128::from(process.started_ns);
        // Ticks of 10 ms.
        assert!((-20_000_000..60_000_000_000).contains(&age), "{age}");
    }
    end_with(&mut host, stdin, 5);
}

/// Ends the container, and with it a further process.
fn end_with(host: &mut Host, stdin: UnixStream, process: u32) {
    drop(stdin);
    let killed = Report::Exited {
        process,
        status: ExitStatus::Signal(9),
    };
    assert_eq!(host.report(), killed);
    assert_eq!(host.exited(), ExitStatus::Code(0));
}

#[test]
fn what_a_process_calls_itself_is_cut_and_never_believed() {
    let Some(mut host) = host() else { return };
    let (stdin, _stdout) = host.idle(&plan(&[]));
    std::fs::copy("/bin/busybox", host.path("bin/cat) R 1 (")).unwrap();
    let long = "x".repeat(300);
    for (process, args) in [(1, ["cat) R 1 (", "cat"]), (2, ["cat", &long])] {
        let mut plan = plan(&args).process;
        if process == 2 {
            plan = sh(&format!("while :; do sleep 1; done # {long}"));
        }
        host.exec(process, &plan).unwrap();
        let _ = host.exec_started(process);
        if process == 1 {
            // Not an applet of busybox's, which says so.
            assert!(matches!(host.report(), Report::Exited { .. }));
        }
    }
    let found = processes(&mut host);
    let second = found.iter().find(|p| p.process == Some(2)).unwrap();
    assert_eq!(second.command.len(), Process::MAX_COMMAND_BYTES);
    assert!(second.command.starts_with(b"sh -c while"));
    end_with(&mut host, stdin, 2);
}

#[test]
fn processes_of_groups_inside_are_found_and_as_many_as_may_be_are_told() {
    let Some(mut host) = host() else { return };
    let mut container = plan(&[]);
    container.mounts.push(mount(FsType::Cgroup2, "/cg", ""));
    let (stdin, _stdout) = host.idle(&container);
    let script = "mkdir -p /cg/a/b; echo 0 >/cg/a/b/cgroup.procs; i=0; \
        while test $i -lt 280; do sleep 1000 & i=$((i+1)); done; echo made; exec cat";
    host.exec(1, &sh(script)).unwrap();
    let [_stdin, mut stdout, _stderr] = host.exec_started(1);
    std::io::Read::read_exact(&mut stdout, &mut [0; 5]).unwrap();
    let found = processes(&mut host);
    assert_eq!(found.len(), Process::MAX_COUNT);
    assert_eq!(found[0].process, Some(INIT));
    assert_eq!(found[1].process, Some(1));
    end_with(&mut host, stdin, 1);
    assert_eq!(host.groups(), 0);
}

#[test]
fn a_paused_container_stands_until_it_is_resumed() {
    let Some(mut host) = host() else { return };
    let (mut stdin, stdout) = host.idle(&plan(&[]));
    assert_eq!(host.ask(Question::Pause), Ok(Answer::Done));
    let again = host.ask(Question::Pause).unwrap_err();
    assert_eq!(again.what, "pause: the container is paused");
    let failure = host.exec(1, &sh("true")).unwrap_err();
    assert_eq!(failure.kind, FailureKind::State);
    assert_eq!(failure.what, "exec: the container is paused");
    stdin.write_all(b"while it stands").unwrap();
    stdout.set_nonblocking(true).unwrap();
    let mut buffer = [0; 64];
    // The agent has relayed the input when it has answered, and more than once.
    processes(&mut host);
    let read = std::io::Read::read(&mut &stdout, &mut buffer);
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(host.ask(Question::Resume), Ok(Answer::Done));
    let again = host.ask(Question::Resume).unwrap_err();
    assert_eq!(again.kind, FailureKind::State);
    stdout.set_nonblocking(false).unwrap();
    end(&mut host, stdin);
    assert_eq!(collect(stdout).join().unwrap(), b"while it stands");
}

#[test]
fn a_paused_container_can_be_killed() {
    let Some(mut host) = host() else { return };
    for with_pids in [true, false] {
        let mut container = plan(&[]);
        if !with_pids {
            container.namespaces &= !namespace::PID;
        }
        let _streams = host.idle(&container);
        assert_eq!(host.ask(Question::Pause), Ok(Answer::Done));
        host.request(Request::Signal {
            process: INIT,
            signal: libc::SIGKILL as u8,
        });
        assert_eq!(host.exited(), ExitStatus::Signal(9));
        assert_eq!(host.groups(), 0);
    }
    // The next one is not paused.
    let (stdin, _stdout) = host.idle(&plan(&[]));
    assert_eq!(host.exec_run(1, &sh("echo next")).text(), "next\n");
    end(&mut host, stdin);
}

#[test]
fn a_container_that_stops_itself_does_not_stop_the_agent() {
    let Some(mut host) = host() else { return };
    let mut container = plan(&[]);
    container.mounts.push(mount(FsType::Cgroup2, "/cg", ""));
    for with_pids in [true, false] {
        if !with_pids {
            container.namespaces &= !namespace::PID;
        }
        let _streams = host.idle(&container);
        let freeze = sh("echo ready; echo 1 >/cg/cgroup.freeze; exec cat");
        host.exec(1, &freeze).unwrap();
        let _streams = host.exec_started(1);
        // Of this one nothing is heard, unless it was faster.
        let plan = Box::new(sh("true"));
        host.request(Request::Exec { process: 2, plan });
        host.request(Request::Signal {
            process: INIT,
            signal: libc::SIGKILL as u8,
        });
        let mut gone = Vec::new();
        while gone.last() != Some(&INIT) {
            match host.report() {
                Report::ExecCreated { process: 2 } => {}
                Report::ExecFailed { process, .. } | Report::Exited { process, .. } => {
                    gone.push(process);
                }
                other => panic!("{other:?}"),
            }
        }
        gone.sort_unstable();
        assert_eq!(gone, [INIT, 1, 2]);
        assert_eq!(host.groups(), 0);
    }
}

#[test]
fn a_signal_for_all_reaches_all() {
    let Some(mut host) = host() else { return };
    let (stdin, _stdout) = host.idle(&plan(&[]));
    let script = "trap 'echo parent; wait; exit 4' USR1; \
        (trap 'echo child; exit' USR1; echo ready; while :; do sleep 0.01; done) & \
        while :; do sleep 0.01; done";
    host.exec(1, &sh(script)).unwrap();
    let [_stdin, mut stdout, _stderr] = host.exec_started(1);
    std::io::Read::read_exact(&mut stdout, &mut [0; 6]).unwrap();
    // The container's first process ignores what it does not handle.
    host.request(Request::SignalAll {
        signal: libc::SIGUSR1 as u8,
    });
    let exited = Report::Exited {
        process: 1,
        status: ExitStatus::Code(4),
    };
    assert_eq!(host.report(), exited);
    let text = collect(stdout).join().unwrap();
    let mut words: Vec<_> = text.split(|b| *b == b'\n').collect();
    words.sort_unstable();
    assert_eq!(words, [&b""[..], b"child", b"parent"]);
    host.exec(2, &sh("exec cat")).unwrap();
    let _streams = host.exec_started(2);
    host.request(Request::SignalAll {
        signal: libc::SIGKILL as u8,
    });
    let killed = Report::Exited {
        process: 2,
        status: ExitStatus::Signal(9),
    };
    assert_eq!(host.report(), killed);
    assert_eq!(host.exited(), ExitStatus::Signal(9));
    drop(stdin);
}

#[test]
fn limits_are_changed_or_not_at_all() {
    let Some(mut host) = host() else { return };
    let (stdin, _stdout) = host.idle(&plan(&[]));
    let write = |file: &str, value: &str| (file.into(), value.into());
    let depth = |host: &mut Host| {
        let group = host.group().join("container/cgroup.max.depth");
        std::fs::read_to_string(group).unwrap()
    };
    let good = vec![write("cgroup.max.depth", "3")];
    assert_eq!(host.ask(Question::Update(good)), Ok(Answer::Done));
    assert_eq!(depth(&mut host), "3\n");
    let bad = vec![
        write("cgroup.max.depth", "4"),
        write("cgroup.max.descendants", "many"),
    ];
    let failure = host.ask(Question::Update(bad)).unwrap_err();
    assert_eq!(failure.what, "cgroup \"cgroup.max.descendants\"");
    assert_eq!(failure.errno, libc::EINVAL);
    assert_eq!(depth(&mut host), "3\n");
    for file in ["../cgroup.max.depth", "cgroup.freeze", "cgroup.kill", "x"] {
        let writes = vec![write("cgroup.max.depth", "5"), write(file, "1")];
        let failure = host.ask(Question::Update(writes)).unwrap_err();
        assert_eq!(failure.what, format!("cgroup {file:?}"));
        assert_eq!(depth(&mut host), "3\n");
    }
    end(&mut host, stdin);
}

#[test]
fn statistics_are_those_of_the_group() {
    let Some(mut host) = host() else { return };
    let failure = host.ask(Question::Statistics).unwrap_err();
    assert_eq!(
        (failure.kind, &*failure.what),
        (FailureKind::State, "no container")
    );
    let (stdin, _stdout) = host.idle(&plan(&[]));
    let Ok(Answer::Statistics(files)) = host.ask(Question::Statistics) else {
        panic!("no statistics");
    };
    let cpu = files.iter().find(|(name, _)| name == "cpu.stat").unwrap();
    assert!(cpu.1.starts_with(b"usage_usec "), "{files:?}");
    end(&mut host, stdin);
}

#[test]
fn a_group_that_may_have_no_processes_does_not_get_any() {
    let Some(mut host) = host() else { return };
    let mut container = plan(&[]);
    container.mounts.push(mount(FsType::Cgroup2, "/cg", ""));
    let (stdin, _stdout) = host.idle(&container);
    let move_away = "mkdir /cg/init && echo 1 >/cg/init/cgroup.procs && \
        echo 0 >/cg/init/cgroup.procs && cat /cg/cgroup.controllers";
    let controllers = host.exec_run(1, &sh(move_away)).text();
    let Some(one) = controllers.split_whitespace().next() else {
        eprintln!("no controller here: not tested");
        return end(&mut host, stdin);
    };
    let enable = format!("echo +{one} >/cg/cgroup.subtree_control");
    // The shell itself is in the group until it is gone.
    let enabled = host.exec_run(2, &sh(&format!("echo 0 >/cg/init/cgroup.procs; {enable}")));
    assert_eq!(enabled.text(), "");
    let where_am_i = sh("grep ^0:: /proc/self/cgroup");
    assert_eq!(host.exec_run(3, &where_am_i).text(), "0::/init\n");
    end(&mut host, stdin);
}
