//! Containers as processes: streams, exits, signals, users, capabilities.

mod harness;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;

use harness::{Host, collect, plan, terminal_plan};
use vmrun_protocol::message::{ExitStatus, FailureKind, INIT, Request, Stream};
use vmrun_protocol::plan::{Capabilities, Rlimit, User, WindowSize, namespace};

#[test]
fn output_and_exit_code_come_out() {
    let mut host = Host::new();
    let outcome = host.sh("echo out; echo err >&2; exit 7");
    assert_eq!(outcome.stdout, b"out\n");
    assert_eq!(outcome.stderr, b"err\n");
    assert_eq!(outcome.status, ExitStatus::Code(7));
}

#[test]
fn the_program_sees_its_environment() {
    let mut host = Host::new();
    let mut plan = plan(&[
        "sh",
        "-c",
        "echo $A $$ $(hostname) $(pwd) $0 $1",
        "x",
        "y z",
    ]);
    plan.process.env.push(b"A=b c".to_vec());
    plan.process.cwd = b"/made/for/it".to_vec();
    assert_eq!(host.run(&plan).text(), "b c 1 inside /made/for/it x y z\n");
    assert!(host.path("made/for/it").is_dir());
}

#[test]
fn a_home_is_found_unless_given() {
    let mut host = Host::new();
    let mut plan = plan(&["sh", "-c", "echo $HOME"]);
    plan.process.user.uid = 7;
    assert_eq!(host.run(&plan).text(), "/home/user\n");
    plan.process.user.uid = 1234;
    assert_eq!(host.run(&plan).text(), "/\n");
    plan.process.env.push(b"HOME=/given".to_vec());
    assert_eq!(host.run(&plan).text(), "/given\n");
}

#[test]
fn containers_follow_each_other() {
    let mut host = Host::new();
    for round in 0..3 {
        let outcome = host.sh(&format!("echo {round}"));
        assert_eq!(outcome.text(), format!("{round}\n"));
    }
}

#[test]
fn megabytes_go_through_unchanged() {
    let mut host = Host::new();
    let mut state = 1u64;
    let input: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(64 << 20)
    .collect();
    let outcome = host.run_with(&plan(&["cat"]), input.clone());
    assert_eq!(outcome.status, ExitStatus::Code(0));
    assert!(outcome.stdout == input, "{} bytes", outcome.stdout.len());
}

#[test]
fn a_closed_stdout_is_a_broken_pipe() {
    let mut host = Host::new();
    // Not as the first process, which a pid namespace saves from SIGPIPE.
    host.create(&plan(&["sh", "-c", "yes; echo $? >&2"]))
        .unwrap();
    let _stdin = host.connect(Stream::Stdin);
    let mut stdout = host.connect(Stream::Stdout);
    let stderr = collect(host.connect(Stream::Stderr));
    host.start().unwrap();
    stdout.read_exact(&mut [0; 1000]).unwrap();
    drop(stdout);
    assert_eq!(host.exited(), ExitStatus::Code(0));
    let expected = format!("{}\n", 128 + libc::SIGPIPE);
    assert_eq!(stderr.join().unwrap(), expected.as_bytes());
}

#[test]
fn a_container_that_closes_stdin_is_left_alone() {
    let mut host = Host::new();
    let plan = plan(&["sh", "-c", "exec <&-; echo closed; sleep 0.1; echo done"]);
    let outcome = host.run_with(&plan, vec![0; 4 << 20]);
    assert_eq!(outcome.text(), "closed\ndone\n");
}

#[test]
fn standard_streams_can_be_opened_again() {
    let mut host = Host::new();
    let mut plan = plan(&[
        "sh",
        "-c",
        "echo a >/dev/stdout; echo b >/dev/stderr; cat /dev/stdin",
    ]);
    plan.process.user.uid = 1000;
    let outcome = host.run_with(&plan, b"in".to_vec());
    assert_eq!(
        (outcome.text().as_str(), &*outcome.stderr),
        ("a\nin", &b"b\n"[..])
    );
}

#[test]
fn signals_arrive_and_their_death_is_reported() {
    let mut host = Host::new();
    let script = "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.01; done";
    host.create(&plan(&["sh", "-c", script])).unwrap();
    let _stdin = host.connect(Stream::Stdin);
    let mut stdout = host.connect(Stream::Stdout);
    let _stderr = host.connect(Stream::Stderr);
    host.start().unwrap();
    stdout.read_exact(&mut [0; 6]).unwrap();
    let signal = |signal: i32| Request::Signal {
        process: INIT,
        signal: signal as u8,
    };
    host.request(signal(libc::SIGTERM));
    assert_eq!(collect(stdout).join().unwrap(), b"got\n");
    assert_eq!(host.exited(), ExitStatus::Code(3));
    // Before the start, too.
    host.create(&plan(&["true"])).unwrap();
    host.request(signal(libc::SIGKILL));
    assert_eq!(host.exited(), ExitStatus::Signal(9));
}

#[test]
fn a_missing_program_is_found_out_before_the_start() {
    let mut host = Host::new();
    std::fs::write(host.path("text"), "no program").unwrap();
    std::fs::write(host.path("bin/plain"), "").unwrap();
    for (program, kind) in [
        ("nosuch", FailureKind::NotFound),
        ("/no/such", FailureKind::NotFound),
        ("/etc/passwd/x", FailureKind::NotFound),
        ("/text", FailureKind::NotExecutable),
        ("plain", FailureKind::NotExecutable),
        ("/bin", FailureKind::NotExecutable),
    ] {
        let failure = host.create(&plan(&[program])).unwrap_err();
        assert_eq!(failure.kind, kind, "{program}: {failure:?}");
        assert_eq!(failure.what, format!("program {program:?}"));
    }
    assert_eq!(host.sh("echo still").text(), "still\n");
}

#[test]
fn what_is_no_program_is_found_out_at_start() {
    let mut host = Host::new();
    let text = host.path("text");
    std::fs::write(&text, "no program").unwrap();
    std::fs::set_permissions(&text, PermissionsExt::from_mode(0o755)).unwrap();
    host.create(&plan(&["/text"])).unwrap();
    let _streams = [Stream::Stdin, Stream::Stdout, Stream::Stderr].map(|s| host.connect(s));
    let failure = host.start().unwrap_err();
    assert_eq!(failure.kind, FailureKind::NotExecutable, "{failure:?}");
    assert_eq!(host.sh("echo still").text(), "still\n");
}

#[test]
fn no_handle_of_the_agent_can_be_run() {
    let mut host = Host::new();
    for fd in 3..16 {
        let path = format!("/proc/self/fd/{fd}");
        if host.create(&plan(&[&path])).is_ok() {
            let _streams = [Stream::Stdin, Stream::Stdout, Stream::Stderr].map(|s| host.connect(s));
            host.start().unwrap_err();
        }
    }
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    let mut host = Host::new();
    assert_eq!(host.start().unwrap_err().kind, FailureKind::State);
    host.create(&plan(&["true"])).unwrap();
    let failure = host.create(&plan(&["true"])).unwrap_err();
    assert_eq!(failure.kind, FailureKind::State);
}

#[test]
fn nothing_of_the_agent_is_inherited() {
    let mut host = Host::new();
    // Three streams and the folder that ls reads.
    assert_eq!(host.sh("ls /proc/self/fd | wc -l").text(), "4\n");
    let text = host.sh("grep -E '^Sig(Blk|Ign)' /proc/self/status").text();
    let mask = |line: &str| u64::from_str_radix(line.split('\t').nth(1).unwrap(), 16).unwrap();
    let masks: Vec<_> = text.lines().map(mask).collect();
    // The agent blocks all; the test ignores SIGPIPE (and its parent, maybe, more).
    assert_eq!((masks[0], masks[1] & 1 << (libc::SIGPIPE - 1)), (0, 0));
}

#[test]
fn numbers_of_the_user_are_taken_on() {
    let mut host = Host::new();
    let mut plan = plan(&[
        "sh",
        "-c",
        "id -u; id -g; id -G; touch /tmp/f; stat -c %a /tmp/f",
    ]);
    std::fs::set_permissions(
        host.path("tmp"),
        std::os::unix::fs::PermissionsExt::from_mode(0o1777),
    )
    .unwrap();
    plan.process.user = User {
        name: None,
        uid: 1000,
        gid: 1001,
        additional_gids: vec![5, 6],
        umask: Some(0o077),
    };
    assert_eq!(host.run(&plan).text(), "1000\n1001\n1001 5 6\n600\n");
    plan.process.user = User {
        name: Some(b"user".to_vec()),
        ..User::default()
    };
    plan.process.args = vec![b"id".to_vec()];
    assert!(
        host.run(&plan)
            .text()
            .starts_with("uid=7(user) gid=8 groups=99(extra)")
    );
    plan.process.user.name = Some(b"ghost".to_vec());
    let failure = host.create(&plan).unwrap_err();
    assert_eq!(failure.what, "user \"ghost\"");
}

const CAPS: &str = "grep -E '^(Cap|NoNewPrivs)' /proc/self/status";

fn caps_text(
    inherited: u64,
    permitted: u64,
    effective: u64,
    bounding: u64,
    ambient: u64,
) -> String {
    format!(
        "CapInh:\t{inherited:016x}\nCapPrm:\t{permitted:016x}\nCapEff:\t{effective:016x}\n\
         CapBnd:\t{bounding:016x}\nCapAmb:\t{ambient:016x}\n"
    )
}

#[test]
fn no_capabilities_unless_given() {
    let mut host = Host::new();
    let text = host.sh(CAPS).text();
    assert_eq!(text, caps_text(0, 0, 0, 0, 0) + "NoNewPrivs:\t0\n");
}

#[test]
fn capabilities_are_exactly_those_given() {
    let mut host = Host::new();
    let mut plan = plan(&["sh", "-c", CAPS]);
    plan.process.no_new_privileges = true;
    let kill = 1 << 5;
    let chown = 1;
    plan.process.capabilities = Some(Capabilities {
        bounding: kill | chown,
        effective: kill,
        permitted: kill | chown,
        inheritable: kill,
        ambient: kill,
    });
    plan.process.user.uid = 1000;
    let text = host.run(&plan).text();
    let user = caps_text(kill, kill, kill, kill | chown, kill);
    assert_eq!(text, user + "NoNewPrivs:\t1\n");
}

#[test]
fn limits_apply() {
    let mut host = Host::new();
    let mut plan = plan(&["sh", "-c", "ulimit -n; ulimit -Hn"]);
    plan.process.rlimits = vec![Rlimit {
        resource: libc::RLIMIT_NOFILE,
        soft: 11,
        hard: 22,
    }];
    assert_eq!(host.run(&plan).text(), "11\n22\n");
    plan.process.rlimits[0].soft = 23;
    let failure = host.create(&plan).unwrap_err();
    assert_eq!(
        (failure.what.as_str(), failure.errno),
        ("rlimit 7", libc::EINVAL)
    );
}

#[test]
fn settings_of_the_kernel_are_written() {
    let mut host = Host::new();
    let mut plan = plan(&[
        "cat",
        "/proc/sys/net/ipv4/ip_unprivileged_port_start",
        "/proc/self/oom_score_adj",
    ]);
    let file = b"net/ipv4/ip_unprivileged_port_start".to_vec();
    plan.sysctl = vec![(file, b"81".to_vec())];
    plan.process.oom_score_adj = Some(321);
    assert_eq!(host.run(&plan).text(), "81\n321\n");
    // Also where the container has no procfs.
    plan.mounts.retain(|mount| mount.destination != b"/proc");
    plan.process.args = vec![b"true".to_vec()];
    assert_eq!(host.run(&plan).status, ExitStatus::Code(0));
    plan.sysctl[0].0 = b"../sysrq-trigger".to_vec();
    let failure = host.create(&plan).unwrap_err();
    assert_eq!(failure.what, "sysctl \"../sysrq-trigger\"");
}

#[test]
fn loopback_is_up() {
    let mut host = Host::new();
    let script = "ip link show lo | head -n 1; readlink /proc/self/ns/net";
    let networks = [(); 3].map(|()| host.sh(script).text());
    for text in &networks {
        assert!(text.contains("LOOPBACK,UP"), "{text}");
    }
    // The first container has the machine's namespace, each other one its own.
    assert_ne!(networks[0], networks[1]);
    assert_ne!(networks[0], networks[2]);
}

#[test]
fn a_terminal_is_one() {
    let mut host = Host::new();
    let script = "tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo all; \
                  echo console >/dev/console; read line; echo \"<$line>\"; stty size; \
                  ls -l /dev/pts/0";
    let mut plan = terminal_plan(&["sh", "-c", script]);
    plan.process.user.uid = 1000;
    host.create(&plan).unwrap();
    let mut terminal = host.connect(Stream::Terminal);
    host.start().unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"console\r\n") {
        let mut byte = [0];
        terminal.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
    assert_eq!(seen, b"/dev/pts/0\r\n30 90\r\nall\r\nconsole\r\n");
    host.request(Request::ResizeTerminal {
        process: INIT,
        size: WindowSize {
            rows: 11,
            columns: 22,
        },
    });
    // The request is handled before this is relayed, or after: wait for an answer.
    assert!(host.create(&plan).is_err());
    terminal.write_all(b"typed\n").unwrap();
    let rest = String::from_utf8(collect(terminal).join().unwrap()).unwrap();
    assert!(
        rest.starts_with("typed\r\n<typed>\r\n11 22\r\ncrw--w----"),
        "{rest}"
    );
    assert!(rest.contains(" 1000 "), "{rest}");
    assert_eq!(host.exited(), ExitStatus::Code(0));
}

#[test]
fn terminal_output_is_whole_at_the_end() {
    let mut host = Host::new();
    host.create(&terminal_plan(&["sh", "-c", "head -c 300000 /dev/zero"]))
        .unwrap();
    let terminal = collect(host.connect(Stream::Terminal));
    host.start().unwrap();
    assert_eq!(host.exited(), ExitStatus::Code(0));
    assert_eq!(terminal.join().unwrap().len(), 300_000);
}

#[test]
fn an_interrupt_typed_reaches_the_foreground() {
    let mut host = Host::new();
    let script = "trap 'echo int; exit 4' INT; echo ready; while :; do sleep 0.01; done";
    host.create(&terminal_plan(&["sh", "-c", script])).unwrap();
    let mut terminal = host.connect(Stream::Terminal);
    host.start().unwrap();
    terminal.read_exact(&mut [0; 7]).unwrap();
    terminal.write_all(&[3]).unwrap();
    assert_eq!(host.exited(), ExitStatus::Code(4));
}

#[test]
fn orphans_do_not_keep_the_container() {
    let mut host = Host::new();
    // In its own pid namespace the kernel ends them, and their pipes.
    let outcome = host.sh("sleep 1000 & echo out");
    assert_eq!(outcome.text(), "out\n");
    // In the agent's they come to the agent. (No cgroup here to end them by.)
    let mut plan = plan(&["sh", "-c", "(sleep 0.2; true) & echo $$"]);
    plan.namespaces &= !namespace::PID;
    let text = host.run(&plan).text();
    assert_ne!(text.trim(), "1");
}

#[test]
fn streams_may_come_before_the_container() {
    let mut host = Host::new();
    let mut stdin = host.connect(Stream::Stdin);
    let stdout = collect(host.connect(Stream::Stdout));
    let stderr = collect(host.connect(Stream::Stderr));
    stdin.write_all(b"early").unwrap();
    drop(stdin);
    host.create(&plan(&["cat"])).unwrap();
    host.start().unwrap();
    assert_eq!(host.exited(), ExitStatus::Code(0));
    assert_eq!(stdout.join().unwrap(), b"early");
    assert!(stderr.join().unwrap().is_empty());
}

#[test]
fn a_start_waits_for_its_streams() {
    let mut host = Host::new();
    host.create(&plan(&["cat"])).unwrap();
    host.request(Request::Start);
    let stdout = collect(host.connect(Stream::Stdout));
    let _stderr = host.connect(Stream::Stderr);
    let mut stdin = host.connect(Stream::Stdin);
    stdin.write_all(b"late").unwrap();
    drop(stdin);
    assert_eq!(host.report(), vmrun_protocol::message::Report::Started);
    assert_eq!(host.exited(), ExitStatus::Code(0));
    assert_eq!(stdout.join().unwrap(), b"late");
}
