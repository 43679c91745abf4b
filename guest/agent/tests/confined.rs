//! Seccomp filters, schedulers, clocks and hooks: of a container's first process and
//! of further ones.

mod harness;

use std::os::unix::fs::PermissionsExt;

use harness::{Host, Outcome, bytes, collect, plan};
use vmrun_protocol::message::{ExitStatus, Failure, FailureKind, INIT, Report, Request, Stream};
use vmrun_protocol::plan::{
    Capabilities, ContainerPlan, Hook, ProcessPlan, Scheduler, SeccompFilter, namespace,
};

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

fn refuse() -> u32 {
    libc::SECCOMP_RET_ERRNO | libc::EXDEV as u32
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> u64 {
    u64::from(code) | u64::from(jt) << 16 | u64::from(jf) << 24 | u64::from(k) << 32
}

/// A filter with one answer for the system calls `numbers`, another for all others.
fn filter(numbers: &[i64], listed: u32, others: u32) -> SeccompFilter {
    // BPF_LD | BPF_W | BPF_ABS, the number; BPF_JMP | BPF_JEQ; BPF_RET.
    let mut program = vec![instruction(0x20, 0, 0, 0)];
    for (index, number) in numbers.iter().enumerate() {
        let to_listed = (numbers.len() - index) as u8;
        program.push(instruction(0x15, to_listed, 0, *number as u32));
    }
    program.push(instruction(0x06, 0, 0, others));
    program.push(instruction(0x06, 0, 0, listed));
    SeccompFilter { flags: 0, program }
}

fn sh(script: &str) -> ContainerPlan {
    plan(&["sh", "-c", script])
}

/// Runs the process as a container's first one, and as a further one.
fn both(process: &ProcessPlan) -> [Outcome; 2] {
    let mut host = Host::new();
    let mut first = plan(&[]);
    first.process = process.clone();
    let first = host.run(&first);
    let (stdin, _stdout) = host.idle(&plan(&[]));
    let further = host.exec_run(1, process);
    drop(stdin);
    assert_eq!(host.exited(), ExitStatus::Code(0));
    [first, further]
}

fn start(host: &mut Host, plan: &ContainerPlan) -> Result<(), Failure> {
    host.create(plan).unwrap();
    let _streams = [Stream::Stdin, Stream::Stdout, Stream::Stderr].map(|s| host.connect(s));
    host.start()
}

/// As user 7 with one capability, which is in all sets.
fn user(mut process: ProcessPlan) -> ProcessPlan {
    let kill = 1 << 5;
    process.user.uid = 7;
    process.capabilities = Some(Capabilities {
        bounding: kill,
        effective: kill,
        permitted: kill,
        inheritable: kill,
        ambient: kill,
    });
    process
}

const DESCRIBE: &str =
    "grep -E '^(Cap|NoNewPrivs|Seccomp)' /proc/self/status; id -u; mkdir /tmp/x 2>&1";

#[test]
fn filters_are_the_last_that_is_done() {
    let mut plan = user(sh(DESCRIBE).process);
    plan.seccomp = vec![
        filter(&[libc::SYS_mkdir, libc::SYS_mkdirat], refuse(), ALLOW),
        filter(&[libc::SYS_swapon], KILL, ALLOW),
    ];
    let set = "0000000000000020";
    for no_new_privileges in [false, true] {
        plan.no_new_privileges = no_new_privileges;
        let expected = format!(
            "CapInh:\t{set}\nCapPrm:\t{set}\nCapEff:\t{set}\nCapBnd:\t{set}\nCapAmb:\t{set}\n\
             NoNewPrivs:\t{}\nSeccomp:\t2\nSeccomp_filters:\t2\n7\n\
             mkdir: can't create directory '/tmp/x': Invalid cross-device link\n",
            u8::from(no_new_privileges)
        );
        for outcome in both(&plan) {
            assert_eq!(String::from_utf8_lossy(&outcome.stdout), expected);
        }
    }
}

/// What busybox needs to do nothing. The agent itself only uses execve of it.
const LEAST: [i64; 27] = [
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_prctl,
    libc::SYS_execve,
    libc::SYS_exit_group,
    libc::SYS_write,
    libc::SYS_brk,
    libc::SYS_arch_prctl,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_mprotect,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_prlimit64,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getrandom,
    libc::SYS_newfstatat,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_openat,
    libc::SYS_close,
];

#[test]
fn a_filter_need_allow_nothing_but_the_program() {
    let mut plan = user(plan(&["/bin/true"]).process);
    plan.no_new_privileges = true;
    plan.seccomp = vec![filter(&LEAST, ALLOW, KILL)];
    for outcome in both(&plan) {
        assert_eq!(outcome.status, ExitStatus::Code(0));
    }
    // Without no_new_privs also what sets the capabilities.
    plan.no_new_privileges = false;
    let mut most = LEAST.to_vec();
    most.push(libc::SYS_capset);
    plan.seccomp = vec![filter(&most, ALLOW, KILL)];
    for outcome in both(&plan) {
        assert_eq!(outcome.status, ExitStatus::Code(0));
    }
    // And a failure is told by write and exit_group alone.
    let least = [libc::SYS_execve, libc::SYS_write, libc::SYS_exit_group];
    plan.no_new_privileges = true;
    plan.seccomp = vec![filter(&least, ALLOW, KILL)];
    plan.args = bytes(&["/text"]);
    let mut host = Host::new();
    let text = host.path("text");
    std::fs::write(&text, "no program").unwrap();
    std::fs::set_permissions(&text, PermissionsExt::from_mode(0o755)).unwrap();
    let mut container = self::plan(&[]);
    container.process = plan;
    let failure = start(&mut host, &container).unwrap_err();
    assert_eq!(failure.kind, FailureKind::NotExecutable);
}

#[test]
fn broken_filters_are_refused() {
    let mut host = Host::new();
    let good = filter(&[libc::SYS_mkdir], refuse(), ALLOW);
    let mut broken = [(); 5].map(|()| good.clone());
    broken[0].program.clear();
    broken[1].program.resize(SeccompFilter::MAX_LEN + 1, 0);
    // Without a return, a listener that nobody would have, an unknown flag.
    broken[2].program.truncate(2);
    broken[3].flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32;
    broken[4].flags = 1 << 20;
    for broken in broken {
        let mut plan = sh("true");
        plan.process.seccomp = vec![good.clone(), broken];
        let failure = start(&mut host, &plan).unwrap_err();
        assert_eq!(
            (&*failure.what, failure.errno),
            ("seccomp filter 1", libc::EINVAL)
        );
    }
    let mut plan = sh("true");
    plan.process.seccomp = vec![good];
    plan.process.seccomp[0].flags = libc::SECCOMP_FILTER_FLAG_LOG as u32;
    assert_eq!(start(&mut host, &plan), Ok(()));
}

#[test]
fn a_long_filter_goes_through() {
    let mut plan = sh("grep Seccomp: /proc/self/status");
    let mut long = filter(&[libc::SYS_mkdir], refuse(), ALLOW);
    let fill = SeccompFilter::MAX_LEN - long.program.len();
    // BPF_LD | BPF_IMM of the largest number: five bytes each on the way.
    let load = instruction(0, 0, 0, u32::MAX);
    long.program.splice(0..0, std::iter::repeat_n(load, fill));
    plan.process.seccomp = vec![long];
    for outcome in both(&plan.process) {
        assert_eq!(outcome.text(), "Seccomp:\t2\n");
    }
}

#[test]
fn personality_scheduler_and_io_priority_are_set() {
    let mut plan = sh("cat /proc/self/personality; \
        while read name colon value; do case $name in policy|prio) echo $value;; esac; done \
        </proc/self/sched; cut -d ' ' -f 18,19,40,41 /proc/self/stat")
    .process;
    // ADDR_NO_RANDOMIZE; SCHED_BATCH.
    plan.personality = Some(0x0004_0000);
    plan.scheduler = Some(Scheduler {
        policy: 3,
        nice: 5,
        ..Scheduler::default()
    });
    // Best effort, the last of eight.
    plan.io_priority = Some(2 << 13 | 7);
    plan.user.uid = 7;
    for outcome in both(&plan) {
        let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
        assert!(text.starts_with("00040000\n"), "{text}");
        // Priority, nice value, real-time priority, policy.
        assert!(text.ends_with("25 5 0 3\n"), "{text}");
    }
    plan.scheduler = Some(Scheduler {
        policy: 77,
        ..Scheduler::default()
    });
    let mut host = Host::new();
    let mut container = self::plan(&[]);
    container.process = plan.clone();
    let failure = host.create(&container).unwrap_err();
    assert_eq!(
        (&*failure.what, failure.errno),
        ("scheduler policy 77", libc::EINVAL)
    );
    plan.scheduler = None;
    plan.io_priority = Some(7 << 13);
    container.process = plan;
    let failure = host.create(&container).unwrap_err();
    assert_eq!(failure.what, "ioPriority 0xe000");
}

#[test]
fn clocks_begin_where_they_are_told() {
    let mut host = Host::new();
    let mut plan = sh(
        "cat /proc/self/timens_offsets; read up rest </proc/uptime; \
        test ${up%.*} -gt 86400 && echo late; echo ready; exec cat",
    );
    plan.namespaces |= namespace::TIME;
    plan.time_offsets = vec![(1, 1000, 5), (7, 86_400, 0)];
    for users in [0, namespace::USER] {
        plan.namespaces |= users;
        let text = host.run(&plan).text();
        let lines: Vec<Vec<_>> = text
            .lines()
            .map(|l| l.split_whitespace().collect())
            .collect();
        assert_eq!(lines[0], ["monotonic", "1000", "5"]);
        assert_eq!(lines[1], ["boottime", "86400", "0"]);
        assert_eq!(lines[2], ["late"]);
    }
    // A further process has the same, and the next container does not.
    let (stdin, _stdout) = host.idle(&plan);
    let same = host.exec_run(1, &sh("cat /proc/self/timens_offsets").process);
    assert!(same.text().contains(" 86400 "), "{same:?}");
    drop(stdin);
    assert_eq!(host.exited(), ExitStatus::Code(0));
    let text = host.sh("cat /proc/self/timens_offsets").text();
    assert!(!text.contains("86400"), "{text}");
    plan.time_offsets = vec![(0, 1, 0)];
    assert_eq!(host.create(&plan).unwrap_err().what, "timeOffsets");
    let text = host.sh("echo next").text();
    assert_eq!(text, "next\n");
}

fn hook(script: &str) -> Hook {
    Hook {
        path: b"/bin/sh".to_vec(),
        args: bytes(&["sh", "-c", script, "hook"]),
        env: bytes(&["PATH=/bin", "A=b c"]),
        stdin: b"{\"state\": 1}".to_vec(),
        timeout_s: Some(30),
    }
}

#[test]
fn hooks_run_in_order_in_the_container_before_its_program() {
    let mut host = Host::new();
    let mut plan = sh("cat /tmp/log");
    plan.process.user.uid = 7;
    plan.process.seccomp = vec![filter(&[libc::SYS_mkdir], refuse(), ALLOW)];
    std::fs::set_permissions(
        host.path("tmp"),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    plan.start_container_hooks = vec![
        hook("{ cat; echo; hostname; id -u; echo $0 $A; } >>/tmp/log; echo nobody reads this"),
        hook("grep -E '^(CapPrm|Seccomp):' /proc/self/status >>/tmp/log"),
    ];
    host.create(&plan).unwrap();
    assert!(!host.path("tmp/log").exists());
    let _stdin = host.connect(Stream::Stdin);
    let stdout = collect(host.connect(Stream::Stdout));
    let _stderr = host.connect(Stream::Stderr);
    host.start().unwrap();
    assert_eq!(host.exited(), ExitStatus::Code(0));
    let expected = "{\"state\": 1}\ninside\n7\nhook b c\nCapPrm:\t0000000000000000\nSeccomp:\t2\n";
    assert_eq!(String::from_utf8(stdout.join().unwrap()).unwrap(), expected);
}

#[test]
fn a_hook_that_fails_fails_the_start() {
    let mut host = Host::new();
    let mut slow = hook("exec sleep 1000");
    slow.timeout_s = Some(1);
    let mut missing = hook("true");
    missing.path = b"/no/such".to_vec();
    for (hook, problem) in [
        (hook("exit 3"), "\"/bin/sh\": exit code 3"),
        (hook("kill -9 $$"), "\"/bin/sh\": killed by signal 9"),
        (missing, "\"/no/such\""),
        (slow, "\"/bin/sh\": took too long"),
    ] {
        let mut plan = sh("echo never >/tmp/never");
        plan.start_container_hooks = vec![self::hook("true"), hook];
        let failure = start(&mut host, &plan).unwrap_err();
        assert_eq!(failure.what, format!("startContainer hook {problem}"));
        assert!(!host.path("tmp/never").exists());
    }
    assert_eq!(host.sh("echo next").text(), "next\n");
}

#[test]
fn a_container_can_be_killed_while_its_hooks_run() {
    let mut host = Host::new();
    let mut plan = sh("true");
    plan.start_container_hooks = vec![hook("echo >/tmp/here; exec sleep 1000")];
    let mode = rustix::fs::Mode::RWXU;
    rustix::fs::mkfifoat(rustix::fs::CWD, host.path("tmp/here"), mode).unwrap();
    host.create(&plan).unwrap();
    let _streams = [Stream::Stdin, Stream::Stdout, Stream::Stderr].map(|s| host.connect(s));
    host.request(Request::Start);
    // It waits for a reader.
    std::fs::read(host.path("tmp/here")).unwrap();
    // The agent serves meanwhile.
    assert_eq!(host.create(&plan).unwrap_err().kind, FailureKind::State);
    host.request(Request::Signal {
        process: INIT,
        signal: libc::SIGKILL as u8,
    });
    let mut report = host.report();
    if report == Report::Started {
        // What is told of an end before execve cannot be told from execve.
        report = host.report();
    }
    assert!(
        matches!(report, Report::Exited { process: INIT, .. }),
        "{report:?}"
    );
}
