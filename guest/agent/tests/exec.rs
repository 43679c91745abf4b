//! Further processes of a running container.

mod harness;

use std::io::{Read, Write};

use harness::{Host, collect, plan};
use vmrun_protocol::message::{ExitStatus, FailureKind, INIT, ProcessId, Report, Request, Stream};
use vmrun_protocol::plan::{
    Capabilities, ContainerPlan, IdMapping, ProcessPlan, Rlimit, User, WindowSize, namespace,
};

fn process(args: &[&str]) -> ProcessPlan {
    plan(args).process
}

fn sh(script: &str) -> ProcessPlan {
    process(&["sh", "-c", script])
}

fn signal(process: ProcessId, signal: i32) -> Request {
    Request::Signal {
        process,
        signal: signal as u8,
    }
}

fn exited(host: &mut Host) -> (ProcessId, ExitStatus) {
    match host.report() {
        Report::Exited { process, status } => (process, status),
        other => panic!("{other:?}"),
    }
}

fn end(host: &mut Host, stdin: std::os::unix::net::UnixStream) {
    drop(stdin);
    assert_eq!(exited(host), (INIT, ExitStatus::Code(0)));
}

/// A shell command that prints all namespaces of process `pid`.
fn namespaces(pid: &str) -> String {
    format!("for ns in cgroup ipc mnt net pid time user uts; do readlink /proc/{pid}/ns/$ns; done")
}

fn is_inside(plan: &ContainerPlan) {
    let mut host = Host::new();
    let (stdin, _stdout) = host.idle(plan);
    for number in 1..3 {
        let outcome = host.exec_run(number, &sh("hostname; pwd; ls /proc/1/fd; exit 7"));
        assert_eq!(outcome.status, ExitStatus::Code(7));
        let text = String::from_utf8(outcome.stdout).unwrap();
        assert!(text.starts_with("inside\n/\n"), "{text}");
        let own = host.exec_run(number + 10, &sh(&namespaces("self"))).text();
        let init = host.exec_run(number + 20, &sh(&namespaces("1"))).text();
        assert_eq!((own.lines().count(), own), (8, init));
    }
    end(&mut host, stdin);
}

#[test]
fn it_is_inside_the_container() {
    is_inside(&plan(&[]));
}

#[test]
fn it_has_the_containers_ids() {
    let mut host = Host::new();
    let own = |path: &std::path::Path| {
        std::os::unix::fs::lchown(path, Some(100_000), Some(200_000)).unwrap();
    };
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(host.tree.path(), readable).unwrap();
    own(&host.path(""));
    for folder in ["dev", "proc", "sys", "tmp"] {
        std::fs::create_dir_all(host.path(folder)).unwrap();
        own(&host.path(folder));
    }
    let mapping = |outside| IdMapping {
        inside: 0,
        outside,
        count: 1001,
    };
    let mut plan = plan(&[]);
    plan.namespaces |= namespace::USER;
    plan.uid_mappings = vec![mapping(100_000)];
    plan.gid_mappings = vec![mapping(200_000)];
    let (stdin, _stdout) = host.idle(&plan);
    let script = "id -u; id -g; : >/tmp/made; stat -c %u:%g /tmp/made";
    let outcome = host.exec_run(1, &sh(script));
    assert_eq!(outcome.text(), "0\n0\n0:0\n", "{outcome:?}");
    let made = std::fs::metadata(host.path("tmp/made")).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!((made.uid(), made.gid()), (100_000, 200_000));
    let mut other = sh("id -u; id -g");
    (other.user.uid, other.user.gid) = (1000, 1000);
    assert_eq!(host.exec_run(2, &other).text(), "1000\n1000\n");
    other.user.uid = 1001;
    let outcome = host.exec(3, &other);
    assert!(outcome.is_err(), "{outcome:?}");
    end(&mut host, stdin);
}

#[test]
fn it_is_inside_a_container_with_users_of_its_own() {
    let mut plan = plan(&[]);
    plan.namespaces |= namespace::USER | namespace::CGROUP;
    is_inside(&plan);
}

#[test]
fn it_is_inside_a_container_with_clocks_of_its_own() {
    let mut plan = plan(&[]);
    plan.namespaces |= namespace::TIME;
    is_inside(&plan);
}

#[test]
fn streams_are_its_own() {
    let mut host = Host::new();
    let (mut stdin, mut stdout) = host.idle(&plan(&[]));
    for number in [1, 2] {
        host.exec(number, &process(&["cat"])).unwrap();
    }
    let [mut in_1, out_1, _err_1] = host.exec_started(1);
    let [mut in_2, out_2, _err_2] = host.exec_started(2);
    stdin.write_all(b"init").unwrap();
    in_2.write_all(b"two").unwrap();
    in_1.write_all(b"one").unwrap();
    drop(in_1);
    assert_eq!(exited(&mut host), (1, ExitStatus::Code(0)));
    drop(in_2);
    assert_eq!(exited(&mut host), (2, ExitStatus::Code(0)));
    assert_eq!(collect(out_1).join().unwrap(), b"one");
    assert_eq!(collect(out_2).join().unwrap(), b"two");
    let mut init = [0; 4];
    stdout.read_exact(&mut init).unwrap();
    assert_eq!(&init, b"init");
    end(&mut host, stdin);
}

#[test]
fn all_output_comes_before_the_exit() {
    let mut host = Host::new();
    let (stdin, _stdout) = host.idle(&plan(&[]));
    let outcome = host.exec_run(1, &sh("head -c 3000000 /dev/zero; kill -9 $$"));
    assert_eq!(outcome.status, ExitStatus::Signal(9));
    assert_eq!(outcome.stdout.len(), 3_000_000);
    // One that leaves a process behind does not wait for it.
    let outcome = host.exec_run(2, &sh("sleep 1000 & echo out"));
    assert_eq!(outcome.text(), "out\n");
    end(&mut host, stdin);
}

#[test]
fn it_is_the_user_with_the_rights_asked_for() {
    let mut host = Host::new();
    let mut container = plan(&[]);
    container.process.oom_score_adj = Some(100);
    let (stdin, _stdout) = host.idle(&container);
    let mut plan = sh(
        "id; umask; ulimit -n; grep -E '^(Cap|NoNewPrivs)' /proc/self/status; \
         cat /proc/self/oom_score_adj; echo $HOME",
    );
    let kill = 1 << 5;
    plan.user = User {
        name: Some(b"user".to_vec()),
        umask: Some(0o027),
        ..User::default()
    };
    plan.capabilities = Some(Capabilities {
        bounding: kill,
        effective: kill,
        permitted: kill,
        inheritable: kill,
        ambient: kill,
    });
    plan.no_new_privileges = true;
    plan.oom_score_adj = Some(321);
    plan.rlimits = vec![Rlimit {
        resource: libc::RLIMIT_NOFILE,
        soft: 11,
        hard: 22,
    }];
    let sets = ["Inh", "Prm", "Eff", "Bnd", "Amb"].map(|set| format!("Cap{set}:\t{kill:016x}\n"));
    let expected = format!(
        "uid=7(user) gid=8 groups=99(extra)\n0027\n11\n{}NoNewPrivs:\t1\n321\n/home/user\n",
        sets.concat()
    );
    assert_eq!(host.exec_run(1, &plan).text(), expected);
    let none = host.exec_run(
        2,
        &sh("grep -c -E 'Cap.*0000000000000000' /proc/self/status"),
    );
    assert_eq!(none.text(), "5\n");
    end(&mut host, stdin);
}

#[test]
fn it_never_has_more_rights_than_its_program() {
    let mut host = Host::new();
    let (stdin, _stdout) = host.idle(&plan(&[]));
    let mut waiting = process(&["cat"]);
    let kill = 1 << 5;
    waiting.capabilities = Some(Capabilities {
        bounding: kill,
        permitted: kill,
        ..Capabilities::default()
    });
    waiting.user.uid = 7;
    host.exec(1, &waiting).unwrap();
    let script = "for p in /proc/[0-9]*; do test $p = /proc/1 -o $p = /proc/$$ || \
        grep -E '^(Uid|CapPrm|CapEff|CapBnd)' $p/status; done";
    let expected = format!(
        "Uid:\t7\t7\t7\t7\nCapPrm:\t{kill:016x}\nCapEff:\t{:016x}\nCapBnd:\t{kill:016x}\n",
        0
    );
    assert_eq!(host.exec_run(2, &sh(script)).text(), expected);
    host.request(signal(1, libc::SIGKILL));
    assert_eq!(exited(&mut host), (1, ExitStatus::Signal(9)));
    end(&mut host, stdin);
}

#[test]
fn a_limit_of_one_more_process_is_enough() {
    let mut host = Host::new();
    let mut container = plan(&[]);
    container.process.user.uid = 6_000_123;
    let (stdin, _stdout) = host.idle(&container);
    let mut plan = process(&["cat", "/proc/self/limits"]);
    plan.user.uid = 6_000_123;
    plan.rlimits = vec![Rlimit {
        resource: libc::RLIMIT_NPROC,
        soft: 2,
        hard: 2,
    }];
    let text = host.exec_run(1, &plan).text();
    let mut lines = text.lines();
    let line = lines
        .find(|line| line.starts_with("Max processes"))
        .unwrap();
    assert_eq!(line.split_whitespace().nth(2), Some("2"));
    end(&mut host, stdin);
}

#[test]
fn a_terminal_is_its_own() {
    let mut host = Host::new();
    let (stdin, _stdout) = host.idle(&harness::plan(&[]));
    let mut plan = sh("tty; stty size; read line; stty size; ls -l /dev/console 2>&1; exit 3");
    plan.user.uid = 1000;
    plan.terminal = Some(WindowSize {
        rows: 30,
        columns: 90,
    });
    host.exec(4, &plan).unwrap();
    let mut terminal = host.connect_to(4, Stream::Terminal);
    assert_eq!(host.report(), Report::ExecStarted { process: 4 });
    let mut seen = [0; 19];
    terminal.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"/dev/pts/0\r\n30 90\r\n");
    host.request(Request::ResizeTerminal {
        process: 4,
        size: WindowSize {
            rows: 11,
            columns: 22,
        },
    });
    // Handled in order: this is refused once the size is set.
    host.start().unwrap_err();
    terminal.write_all(b"\n").unwrap();
    assert_eq!(exited(&mut host), (4, ExitStatus::Code(3)));
    let rest = String::from_utf8(collect(terminal).join().unwrap()).unwrap();
    assert!(rest.starts_with("\r\n11 22\r\n"), "{rest}");
    assert!(rest.contains("No such file"), "{rest}");
    end(&mut host, stdin);
}

#[test]
fn a_program_that_cannot_run_has_the_kind_of_a_shell() {
    let mut host = Host::new();
    std::fs::write(host.path("text"), "no program").unwrap();
    let (stdin, _stdout) = host.idle(&plan(&[]));
    for (number, (program, kind)) in [
        ("nosuch", FailureKind::NotFound),
        ("/no/such", FailureKind::NotFound),
        ("/text", FailureKind::NotExecutable),
        ("/bin", FailureKind::NotExecutable),
    ]
    .into_iter()
    .enumerate()
    {
        let number = number as u32 + 1;
        host.exec(number, &process(&[program])).unwrap();
        let _streams =
            [Stream::Stdin, Stream::Stdout, Stream::Stderr].map(|s| host.connect_to(number, s));
        match host.report() {
            Report::ExecFailed { process, failure } => {
                assert_eq!((process, failure.kind), (number, kind), "{failure:?}");
                assert_eq!(failure.what, format!("program {program:?}"));
            }
            other => panic!("{program}: {other:?}"),
        }
    }
    assert_eq!(host.exec_run(90, &sh("echo still")).text(), "still\n");
    // No descriptor of the agent's is one that can be run.
    for fd in 3..16 {
        let number = 100 + fd;
        host.exec(number, &process(&[&format!("/proc/self/fd/{fd}")]))
            .unwrap();
        let _streams =
            [Stream::Stdin, Stream::Stdout, Stream::Stderr].map(|s| host.connect_to(number, s));
        assert!(matches!(host.report(), Report::ExecFailed { .. }));
    }
    end(&mut host, stdin);
}

#[test]
fn what_cannot_be_set_up_is_named() {
    let mut host = Host::new();
    std::os::unix::fs::symlink("/proc/self/fd/0/..", host.path("magic")).unwrap();
    let (stdin, _stdout) = host.idle(&plan(&[]));
    type Change = fn(&mut ProcessPlan);
    let changes: [(Change, &str); 6] = [
        (|plan| plan.cwd = b"/missing".to_vec(), "cwd \"/missing\""),
        (
            |plan| plan.cwd = b"/etc/passwd".to_vec(),
            "cwd \"/etc/passwd\"",
        ),
        (
            |plan| plan.cwd = b"/proc/self/fd/3/..".to_vec(),
            "cwd \"/proc/self/fd/3/..\"",
        ),
        (|plan| plan.cwd = b"/magic".to_vec(), "cwd \"/magic\""),
        (
            |plan| plan.user.name = Some(b"ghost".to_vec()),
            "user \"ghost\"",
        ),
        (|plan| plan.args.clear(), "args"),
    ];
    for (number, (change, what)) in changes.into_iter().enumerate() {
        let mut plan = process(&["true"]);
        change(&mut plan);
        let failure = host.exec(number as u32 + 1, &plan).unwrap_err();
        assert_eq!((failure.kind, &*failure.what), (FailureKind::Setup, what));
    }
    assert!(!host.path("missing").exists());
    let mut plan = process(&["pwd"]);
    plan.cwd = b"/tmp/../bin".to_vec();
    assert_eq!(host.exec_run(9, &plan).text(), "/bin\n");
    end(&mut host, stdin);
}

#[test]
fn there_must_be_a_running_container_and_a_new_number() {
    let mut host = Host::new();
    let refused = |host: &mut Host, number| {
        let failure = host.exec(number, &process(&["true"])).unwrap_err();
        assert_eq!(failure.kind, FailureKind::State, "{failure:?}");
        failure.what
    };
    assert_eq!(refused(&mut host, 1), "exec: no running container");
    let (stdin, _stdout) = host.idle(&plan(&[]));
    assert_eq!(refused(&mut host, INIT), "exec: process 0 exists");
    host.exec(1, &process(&["true"])).unwrap();
    assert_eq!(refused(&mut host, 1), "exec: process 1 exists");
    host.exec_started(1);
    assert_eq!(exited(&mut host), (1, ExitStatus::Code(0)));
    end(&mut host, stdin);
    host.create(&plan(&["true"])).unwrap();
    assert_eq!(refused(&mut host, 2), "exec: no running container");
}

#[test]
fn as_many_as_there_may_be_run_at_once() {
    let mut host = Host::new();
    let (stdin, _stdout) = host.idle(&plan(&[]));
    let numbers = 1..=64;
    for number in numbers.clone() {
        let plan = Box::new(process(&["cat"]));
        host.request(Request::Exec {
            process: number,
            plan,
        });
    }
    let mut created: Vec<_> = numbers
        .clone()
        .map(|_| match host.report() {
            Report::ExecCreated { process } => process,
            other => panic!("{other:?}"),
        })
        .collect();
    created.sort_unstable();
    assert!(created.into_iter().eq(numbers.clone()));
    let failure = host.exec(65, &process(&["true"])).unwrap_err();
    assert_eq!(failure.what, "exec: there are 64 further processes");
    // All are connected before any is started: none is turned away.
    let kinds = [Stream::Stdin, Stream::Stdout, Stream::Stderr];
    let mut streams: Vec<_> = numbers
        .clone()
        .map(|number| kinds.map(|kind| host.connect_to(number, kind)))
        .collect();
    for _ in numbers.clone() {
        assert!(matches!(host.report(), Report::ExecStarted { .. }));
    }
    for (number, [stdin, ..]) in numbers.clone().zip(&mut streams) {
        stdin.write_all(number.to_string().as_bytes()).unwrap();
        stdin.shutdown(std::net::Shutdown::Write).unwrap();
    }
    for _ in numbers.clone() {
        assert_eq!(exited(&mut host).1, ExitStatus::Code(0));
    }
    for (number, [_, stdout, _]) in numbers.zip(streams) {
        assert_eq!(
            collect(stdout).join().unwrap(),
            number.to_string().as_bytes()
        );
    }
    assert_eq!(host.exec_run(65, &sh("echo next")).text(), "next\n");
    end(&mut host, stdin);
}

#[test]
fn signals_reach_the_one_they_are_for() {
    let mut host = Host::new();
    let (stdin, _stdout) = host.idle(&plan(&[]));
    host.exec(
        1,
        &sh("trap 'exit 5' USR1; echo ready; while :; do sleep 0.01; done"),
    )
    .unwrap();
    let [_stdin, mut stdout, _stderr] = host.exec_started(1);
    stdout.read_exact(&mut [0; 6]).unwrap();
    host.exec(2, &process(&["cat"])).unwrap();
    let _streams = host.exec_started(2);
    // Before its program runs, and one that there is not.
    host.exec(3, &process(&["cat"])).unwrap();
    host.request(signal(3, libc::SIGKILL));
    assert_eq!(exited(&mut host), (3, ExitStatus::Signal(9)));
    host.request(signal(9, libc::SIGKILL));
    host.request(signal(1, libc::SIGUSR1));
    assert_eq!(exited(&mut host), (1, ExitStatus::Code(5)));
    host.request(signal(2, libc::SIGTERM));
    assert_eq!(exited(&mut host), (2, ExitStatus::Signal(15)));
    end(&mut host, stdin);
}

#[test]
fn one_that_is_killed_at_once_is_gone() {
    let mut host = Host::new();
    let (stdin, _stdout) = host.idle(&plan(&[]));
    for number in 1..20 {
        let plan = Box::new(process(&["cat"]));
        host.request(Request::Exec {
            process: number,
            plan,
        });
        host.request(signal(number, libc::SIGKILL));
        let report = match host.report() {
            Report::ExecCreated { .. } => host.report(),
            report => report,
        };
        assert!(
            matches!(report, Report::ExecFailed { .. } | Report::Exited { .. }),
            "{report:?}"
        );
    }
    assert_eq!(
        host.exec_run(99, &sh("set -- /proc/[0-9]*; echo $#"))
            .text(),
        "2\n"
    );
    end(&mut host, stdin);
}

#[test]
fn they_end_with_the_container_and_are_reported_before_it() {
    let mut own_pids = plan(&[]);
    for with_pids in [true, false] {
        if !with_pids {
            own_pids.namespaces &= !namespace::PID;
        }
        let Some(mut host) = Host::with_cgroup() else {
            return;
        };
        let (_stdin, _stdout) = host.idle(&own_pids);
        host.exec(1, &process(&["cat"])).unwrap();
        let _streams = host.exec_started(1);
        // Not started, and on its way.
        host.exec(2, &process(&["cat"])).unwrap();
        let plan = Box::new(process(&["cat"]));
        host.request(Request::Exec { process: 3, plan });
        host.request(signal(INIT, libc::SIGKILL));
        let mut gone = Vec::new();
        while gone.last() != Some(&INIT) {
            match host.report() {
                Report::ExecCreated { process: 3 } => {}
                Report::ExecFailed { process: 3, .. } => gone.push(3),
                Report::Exited { process, status } => {
                    assert_eq!(status, ExitStatus::Signal(9));
                    gone.push(process);
                }
                other => panic!("{other:?}"),
            }
        }
        gone.pop();
        gone.sort_unstable();
        assert_eq!(gone, [1, 2, 3]);
        assert_eq!(host.groups(), 0);
    }
}

#[test]
fn a_reader_that_stands_still_does_not_keep_the_containers_exit() {
    let mut host = Host::new();
    let (stdin, _stdout) = host.idle(&plan(&[]));
    host.exec(1, &process(&["yes"])).unwrap();
    let _unread = host.exec_started(1);
    // Until it waits, and the agent does: for a reader.
    let blocked = "for p in /proc/[0-9]*; do grep -q yes $p/comm && yes=$p; done; n=0; \
        while test $n -lt 20; do n=$((n+1)); grep -q 'State:.S' $yes/status || n=0; done";
    assert_eq!(host.exec_run(2, &sh(blocked)).text(), "");
    drop(stdin);
    assert_eq!(exited(&mut host), (1, ExitStatus::Signal(9)));
    assert_eq!(exited(&mut host), (INIT, ExitStatus::Code(0)));
}

/// Tells what can be seen of processes other than the first one and this shell.
const PEEK: &str = "for p in /proc/[0-9]*; do \
    test $p = /proc/1 -o $p = /proc/$$ && continue; test -d $p || continue; echo seen; \
    for link in exe cwd root fd/0 ns/mnt; do test $(readlink $p/$link) && echo $link; done; \
    for file in maps environ auxv; do \
        read line <$p/$file && echo $file; done 2>/dev/null; done";

fn tracer() -> Capabilities {
    let ptrace = 1 << 19;
    Capabilities {
        bounding: ptrace,
        effective: ptrace,
        permitted: ptrace,
        ..Capabilities::default()
    }
}

#[test]
fn the_container_cannot_look_into_it_before_its_program_runs() {
    let mut host = Host::new();
    let (stdin, _stdout) = host.idle(&plan(&[]));
    // It is not connected, so it waits.
    host.exec(1, &process(&["cat"])).unwrap();
    assert_eq!(host.exec_run(2, &sh(PEEK)).text(), "seen\n");
    let _streams = host.exec_started(1);
    // What the same shows of its program.
    let text = host.exec_run(3, &sh(PEEK)).text();
    assert!(
        text.starts_with("seen\nexe\ncwd\nroot\nfd/0\nns/mnt\nmaps\n"),
        "{text}"
    );
    host.request(signal(1, libc::SIGKILL));
    assert_eq!(exited(&mut host).0, 1);
    end(&mut host, stdin);
}

#[test]
fn it_has_nothing_of_the_agent() {
    let mut host = Host::new();
    let (stdin, _stdout) = host.idle(&plan(&[]));
    host.exec(1, &process(&["cat"])).unwrap();
    // Who may trace anything sees three streams and the handshake.
    let mut list = sh(
        "for p in /proc/[0-9]*; do test $p = /proc/1 -o $p = /proc/$$ || \
        for fd in $p/fd/*; do readlink $fd; done; done",
    );
    list.capabilities = Some(tracer());
    let text = host.exec_run(2, &list).text();
    let kinds: Vec<_> = text
        .lines()
        .map(|link| link.split(':').next().unwrap())
        .collect();
    assert_eq!(kinds, ["pipe", "pipe", "pipe", "socket"]);
    // Three streams and the folder that ls reads.
    let list = sh("ls /proc/self/fd | wc -l; grep -E '^Sig(Blk|Ign)' /proc/self/status");
    let text = host.exec_run(3, &list).text();
    assert!(text.starts_with("4\nSigBlk:\t0000000000000000\n"), "{text}");
    host.request(signal(1, libc::SIGKILL));
    assert_eq!(exited(&mut host), (1, ExitStatus::Signal(9)));
    end(&mut host, stdin);
}
