use super::interpreter::{call, of_arch, run};
use super::*;
use proptest::prelude::*;
use seccompiler::SeccompRule;
use serde_json::{Value, json};

const ALLOW: u32 = 0x7fff_0000;
const LOG: u32 = 0x7ffc_0000;
const TRACE: u32 = 0x7ff0_0000;
const ERRNO: u32 = 0x0005_0000;
const TRAP: u32 = 0x0003_0000;
const KILL_THREAD: u32 = 0;
const KILL_PROCESS: u32 = 0x8000_0000;

fn compiled(profile: Value) -> Result<Vec<SeccompFilter>, String> {
    let profile: LinuxSeccomp = serde_json::from_value(profile).unwrap();
    resolve(Some(&profile)).map_err(|e| e.to_string())
}

fn program(profile: Value) -> Vec<u64> {
    compiled(profile).unwrap().remove(0).program
}

fn answer(program: &[u64], name: &str, args: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    let number = syscalls::number(name).unwrap();
    run(program, &call(number, all)).0
}

fn docker_profile() -> Value {
    let config: Value =
        serde_json::from_str(include_str!("../testdata/docker-config.json")).unwrap();
    config["linux"]["seccomp"].clone()
}

#[test]
fn dockers_default_profile() {
    let program = program(docker_profile());
    const THREAD: u64 = 0x3d_0f00;
    for (name, args, expected) in [
        ("read", &[][..], ALLOW),
        ("execve", &[], ALLOW),
        ("rseq", &[], ALLOW),
        ("mount", &[], ERRNO | 1),
        ("bpf", &[], ERRNO | 1),
        ("kexec_load", &[], ERRNO | 1),
        ("keyctl", &[], ERRNO | 1),
        ("clone", &[THREAD], ALLOW),
        ("clone", &[libc::CLONE_NEWUSER as u64], ERRNO | 1),
        ("clone", &[THREAD | libc::CLONE_NEWNS as u64], ERRNO | 1),
        ("clone3", &[], ERRNO | 38),
        ("personality", &[0], ALLOW),
        ("personality", &[8], ALLOW),
        ("personality", &[0x20000], ALLOW),
        ("personality", &[0x20008], ALLOW),
        ("personality", &[0xffff_ffff], ALLOW),
        ("personality", &[1], ERRNO | 1),
        ("personality", &[1 << 32], ERRNO | 1),
        ("mseal", &[], ERRNO | 38),
    ] {
        assert_eq!(answer(&program, name, args), expected, "{name} {args:?}");
    }
    let longest = (0..512).map(|n| run(&program, &call(n, [u64::MAX; 6])).1);
    assert!(longest.max() < Some(40), "a search is a few steps");
    assert!(program.len() < 500, "{} instructions", program.len());
}

/// The same profile by seccompiler alone, as a stack of filters: one that lets every
/// call with a rule through, and one for each action.
#[test]
fn seccompiler_agrees_about_dockers_profile() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
    let profile: LinuxSeccomp = serde_json::from_value(docker_profile()).unwrap();
    let ours = program(docker_profile());
    let rules = rules(profile.syscalls().as_ref().unwrap()).unwrap();
    let filter = |of: &dyn Fn(&Rule) -> bool, mismatch, matching| {
        let of_number = |(number, rules): (&u32, &Vec<Rule>)| {
            let rules: Vec<_> = rules.iter().filter(|&rule| of(rule)).collect();
            let conditions = rules.iter().map(|rule| rule.conditions.clone());
            let conditional = conditions.filter_map(|c| SeccompRule::new(c).ok());
            (!rules.is_empty()).then(|| (i64::from(*number), conditional.collect()))
        };
        let rules = rules.iter().filter_map(of_number).collect();
        let filter = SeccompFilter::new(rules, mismatch, matching, TargetArch::x86_64);
        let program: BpfProgram = filter.unwrap().try_into().unwrap();
        program.iter().map(program::number).collect::<Vec<_>>()
    };
    let stack = [
        filter(&|_| true, SeccompAction::Errno(1), SeccompAction::Allow),
        filter(
            &|rule| rule.action.0 == ERRNO | 38,
            SeccompAction::Allow,
            SeccompAction::Errno(38),
        ),
    ];
    let newest = *rules.keys().next_back().unwrap();
    for number in 0..=newest {
        for arg in [0, 8, 0x3d_0f00, 0x1000_0000, 0x20000, 0xffff_ffff, 1 << 33] {
            let data = call(number, [arg; 6]);
            let theirs = stack.iter().map(|program| run(program, &data).0);
            let strictest = theirs.min_by_key(|&answer| Action(answer).strictness());
            assert_eq!(Some(run(&ours, &data).0), strictest, "{number} {arg:#x}");
        }
    }
}

#[test]
fn every_action() {
    for (action, expected) in [
        ("SCMP_ACT_KILL", KILL_THREAD),
        ("SCMP_ACT_KILL_THREAD", KILL_THREAD),
        ("SCMP_ACT_KILL_PROCESS", KILL_PROCESS),
        ("SCMP_ACT_TRAP", TRAP),
        ("SCMP_ACT_ERRNO", ERRNO | 1),
        ("SCMP_ACT_TRACE", TRACE | 1),
        ("SCMP_ACT_LOG", LOG),
    ] {
        let program = program(json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir"], "action": action}]}));
        assert_eq!(answer(&program, "mkdir", &[]), expected, "{action}");
        assert_eq!(answer(&program, "rmdir", &[]), ALLOW, "{action}");
        let default = self::program(json!({"defaultAction": action}));
        assert_eq!(answer(&default, "mkdir", &[]), expected, "{action}");
    }
}

#[test]
fn data_of_an_action() {
    let program = program(json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
        "syscalls": [
            {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
            {"names": ["rmdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0},
            {"names": ["mknod"], "action": "SCMP_ACT_TRACE", "errnoRet": 65535},
        ]
    }));
    assert_eq!(answer(&program, "mkdir", &[]), ERRNO | 13);
    assert_eq!(answer(&program, "rmdir", &[]), ERRNO);
    assert_eq!(answer(&program, "mknod", &[]), TRACE | 0xffff);
    assert_eq!(answer(&program, "read", &[]), ERRNO | 38);
}

#[test]
fn every_operator_over_64_bits() {
    const BIG: u64 = 5 << 32 | 7;
    for (op, value, value_two, fits, fails) in [
        (
            "SCMP_CMP_EQ",
            BIG,
            0,
            &[BIG][..],
            &[7, 5 << 32, BIG + 1][..],
        ),
        ("SCMP_CMP_NE", BIG, 0, &[7, BIG + 1], &[BIG]),
        (
            "SCMP_CMP_LT",
            BIG,
            0,
            &[0, BIG - 1, 4 << 32 | 9],
            &[BIG, 6 << 32],
        ),
        (
            "SCMP_CMP_LE",
            BIG,
            0,
            &[0, BIG, 4 << 32 | 9],
            &[BIG + 1, 6 << 32],
        ),
        (
            "SCMP_CMP_GT",
            BIG,
            0,
            &[BIG + 1, 6 << 32],
            &[0, BIG, 4 << 32 | 9],
        ),
        (
            "SCMP_CMP_GE",
            BIG,
            0,
            &[BIG, 6 << 32],
            &[0, BIG - 1, 4 << 32 | 9],
        ),
        (
            "SCMP_CMP_MASKED_EQ",
            3u64 << 32 | 6,
            1u64 << 32 | 2,
            &[1 << 32 | 3, BIG ^ 5],
            &[BIG, 2],
        ),
    ] {
        let program = program(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir"], "action": "SCMP_ACT_TRAP",
             "args": [{"index": 5, "value": value, "valueTwo": value_two, "op": op}]}]}));
        let of = |arg| answer(&program, "mkdir", &[0, 0, 0, 0, 0, arg]);
        for &arg in fits {
            assert_eq!(of(arg), TRAP, "{op} {arg:#x}");
        }
        for &arg in fails {
            assert_eq!(of(arg), ALLOW, "{op} {arg:#x}");
        }
    }
}

#[test]
fn conditions_are_all_to_be_fulfilled_unless_one_argument_is_named_twice() {
    let with = |args: Value| {
        program(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "args": args}]}))
    };
    let eq = |index: u64, value: u64| json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"});
    let both = with(json!([eq(0, 1), eq(1, 2)]));
    assert_eq!(answer(&both, "socket", &[1, 2]), ERRNO | 1);
    assert_eq!(answer(&both, "socket", &[1, 3]), ALLOW);
    assert_eq!(answer(&both, "socket", &[2, 2]), ALLOW);
    let any = with(json!([eq(0, 1), eq(1, 2), eq(0, 3)]));
    assert_eq!(answer(&any, "socket", &[1, 9]), ERRNO | 1);
    assert_eq!(answer(&any, "socket", &[9, 2]), ERRNO | 1);
    assert_eq!(answer(&any, "socket", &[3, 9]), ERRNO | 1);
    assert_eq!(answer(&any, "socket", &[9, 9]), ALLOW);
}

#[test]
fn of_overlapping_rules_the_strictest_counts_then_the_first() {
    let eq = |value: u64| json!([{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]);
    let program = program(json!({"defaultAction": "SCMP_ACT_KILL", "syscalls": [
        {"names": ["ioctl"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["ioctl"], "action": "SCMP_ACT_LOG", "args": eq(1)},
        {"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5, "args": eq(2)},
        {"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": 6, "args": eq(2)},
        {"names": ["ioctl"], "action": "SCMP_ACT_KILL_PROCESS", "args": eq(3)},
        {"names": ["ioctl"], "action": "SCMP_ACT_TRAP", "args": eq(3)},
    ]}));
    for (arg, expected) in [(0, ALLOW), (1, LOG), (2, ERRNO | 5), (3, KILL_PROCESS)] {
        assert_eq!(answer(&program, "ioctl", &[arg]), expected, "{arg}");
    }
}

#[test]
fn newer_calls_than_the_profile_knows() {
    let with = |default: &str| {
        program(json!({"defaultAction": default,
            "syscalls": [{"names": ["openat2"], "action": "SCMP_ACT_TRAP"}]}))
    };
    for (default, expected) in [
        ("SCMP_ACT_ERRNO", ERRNO | 38),
        ("SCMP_ACT_KILL_PROCESS", ERRNO | 38),
        ("SCMP_ACT_LOG", LOG),
        ("SCMP_ACT_ALLOW", ALLOW),
        ("SCMP_ACT_TRACE", TRACE | 1),
    ] {
        assert_eq!(answer(&with(default), "mseal", &[]), expected, "{default}");
    }
    assert_eq!(answer(&with("SCMP_ACT_ERRNO"), "clone3", &[]), ERRNO | 1);
}

#[test]
fn other_architectures_do_not_get_in() {
    const I386: u32 = 0x4000_0003;
    let program = program(json!({"defaultAction": "SCMP_ACT_LOG",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]}));
    assert_eq!(run(&program, &of_arch(I386, 1, [0; 6])).0, KILL_PROCESS);
    assert_eq!(run(&program, &call(1, [0; 6])).0, LOG);
}

#[test]
fn flags_and_no_filter_at_all() {
    let with = |flags: Value| {
        compiled(json!({"defaultAction": "SCMP_ACT_LOG", "flags": flags})).unwrap()[0].flags
    };
    assert_eq!(with(json!([])), 0);
    assert_eq!(
        with(json!([
            "SECCOMP_FILTER_FLAG_TSYNC",
            "SECCOMP_FILTER_FLAG_LOG",
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
        ])),
        1 | 2 | 4
    );
    assert_eq!(resolve(None).unwrap(), []);
    assert_eq!(
        compiled(json!({"defaultAction": "SCMP_ACT_ALLOW"})),
        Ok(vec![])
    );
    // Of another architecture only.
    assert_eq!(
        compiled(json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["chown32", "none"], "action": "SCMP_ACT_KILL"}]})),
        Ok(vec![])
    );
}

#[test]
fn refusals() {
    let rule = |rule: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    let eq = json!({"index": 0, "value": 1, "op": "SCMP_CMP_EQ"});
    for (profile, message) in [
        (
            rule(json!({"names": ["read"], "action": "SCMP_ACT_NOTIFY"})),
            "linux.seccomp.syscalls[0].action: SCMP_ACT_NOTIFY is not supported: no program of \
             the host can look into the guest",
        ),
        (
            rule(json!({"names": ["read"], "action": "SCMP_ACT_KILL", "errnoRet": 1})),
            "linux.seccomp.syscalls[0].errnoRet: is only for SCMP_ACT_ERRNO and SCMP_ACT_TRACE",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 65536}),
            "linux.seccomp.defaultErrnoRet: must be at most 65535",
        ),
        (
            rule(json!({"names": ["read"], "action": "SCMP_ACT_TRAP",
                        "args": [eq, {"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]})),
            "linux.seccomp.syscalls[0].args[1].index: must be 0 to 5",
        ),
        (
            rule(
                json!({"names": ["read"], "action": "SCMP_ACT_TRAP", "args": vec![eq.clone(); 33]}),
            ),
            "linux.seccomp.syscalls[0].args: has 33 entries, more than 32",
        ),
        (
            rule(json!({"names": vec!["read"; 1025], "action": "SCMP_ACT_TRAP"})),
            "linux.seccomp.syscalls[0].names: has 1025 entries, more than 1024",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": vec![
                json!({"names": vec!["read"; 1000], "action": "SCMP_ACT_TRAP"}); 66]}),
            "linux.seccomp.syscalls: has 65537 entries, more than 65536",
        ),
    ] {
        assert_eq!(compiled(profile), Err(message.to_owned()));
    }
    let one = |value: u64| {
        json!({"names": ["ioctl"], "action": "SCMP_ACT_TRAP",
               "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]})
    };
    let many: Vec<_> = (0..1000).map(one).collect();
    let message = compiled(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": many}));
    let message = message.unwrap_err();
    assert!(
        message.ends_with("instructions, more than 4096"),
        "{message}"
    );
}

/// What a profile means, without a program.
fn meaning(profile: &LinuxSeccomp, number: u32, args: [u64; 6]) -> u32 {
    let fits = |arg: &LinuxSeccompArg| {
        use LinuxSeccompOperator::*;
        let (is, value) = (args[arg.index()], arg.value());
        match arg.op() {
            ScmpCmpNe => is != value,
            ScmpCmpLt => is < value,
            ScmpCmpLe => is <= value,
            ScmpCmpEq => is == value,
            ScmpCmpGe => is >= value,
            ScmpCmpGt => is > value,
            ScmpCmpMaskedEq => is & value == arg.value_two().unwrap_or(0) & value,
        }
    };
    let syscalls = profile.syscalls().as_deref().unwrap_or_default();
    let numbers = |s: &LinuxSyscall| -> Vec<u32> {
        let names = s.names().iter();
        names.filter_map(|name| syscalls::number(name)).collect()
    };
    let matching = syscalls.iter().filter(|s| {
        let args = s.args().as_deref().unwrap_or_default();
        numbers(s).contains(&number) && args.iter().all(fits)
    });
    let action = |s: &LinuxSyscall| action(("", s.action()), ("", s.errno_ret())).unwrap();
    let strictest = matching.map(action).min_by_key(|a| a.strictness());
    let default = default_action(profile).unwrap();
    let newest = syscalls.iter().flat_map(&numbers).max();
    let is_kept = [ALLOW, LOG, TRACE | 1].contains(&default.0);
    match strictest {
        Some(action) => action.0,
        None if newest.is_some_and(|n| number > n) && !is_kept => ERRNO | 38,
        None => default.0,
    }
}

fn any_action() -> impl Strategy<Value = (&'static str, Option<u32>)> {
    prop_oneof![
        Just(("SCMP_ACT_ALLOW", None)),
        Just(("SCMP_ACT_LOG", None)),
        Just(("SCMP_ACT_TRACE", None)),
        Just(("SCMP_ACT_ERRNO", None)),
        Just(("SCMP_ACT_ERRNO", Some(5))),
        Just(("SCMP_ACT_TRAP", None)),
        Just(("SCMP_ACT_KILL", None)),
        Just(("SCMP_ACT_KILL_PROCESS", None)),
    ]
}

/// Numbers that meet each other, and their borders, in both halves.
fn any_number() -> impl Strategy<Value = u64> {
    let half = || prop_oneof![Just(0), 0..4u64, Just(u64::from(u32::MAX))];
    (half(), half()).prop_map(|(high, low)| high << 32 | low)
}

fn any_rule() -> impl Strategy<Value = Value> {
    let names = proptest::sample::subsequence(
        vec![
            "read", "write", "open", "mkdir", "clone", "clone3", "openat2", "nothing",
        ],
        1..4,
    );
    let op = proptest::sample::select(vec![
        "SCMP_CMP_NE",
        "SCMP_CMP_LT",
        "SCMP_CMP_LE",
        "SCMP_CMP_EQ",
        "SCMP_CMP_GE",
        "SCMP_CMP_GT",
        "SCMP_CMP_MASKED_EQ",
    ]);
    let condition = (op, any_number(), any_number());
    let conditions = proptest::collection::vec(condition, 0..4);
    (names, any_action(), conditions).prop_map(|(names, (action, errno), conditions)| {
        let numbered = conditions.iter().enumerate();
        let args: Vec<_> = numbered
            .map(|(index, (op, value, value_two))| {
                json!({"index": index, "value": value, "valueTwo": value_two, "op": op})
            })
            .collect();
        json!({"names": names, "action": action, "errnoRet": errno, "args": args})
    })
}

proptest! {
    #[test]
    fn programs_say_what_profiles_mean(
        (default, errno) in any_action(),
        rules in proptest::collection::vec(any_rule(), 0..12),
        args in proptest::array::uniform6(any_number()),
    ) {
        let profile: LinuxSeccomp = serde_json::from_value(json!({
            "defaultAction": default, "defaultErrnoRet": errno, "syscalls": rules
        })).unwrap();
        let filters = resolve(Some(&profile)).unwrap();
        for name in ["read", "write", "close", "mkdir", "clone", "clone3", "openat2", "mseal"] {
            let number = syscalls::number(name).unwrap();
            let says = filters.first().map_or(ALLOW, |f| run(&f.program, &call(number, args)).0);
            let means = meaning(&profile, number, args);
            prop_assert_eq!(says, means, "{}", name);
        }
    }
}
