//! Machines of one template are distinct.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::harness::{Bundle, Runtime, compiled};

const CLONES: usize = 100;

#[test]
fn a_hundred_clones_differ_in_all_that_must() {
    let bundle = || {
        Bundle::program(&["/clone"])
            .executable("clone", &compiled("clone"))
            .with(
                "/linux/resources/devices",
                json!([{"allow": true, "access": "rwm"}]),
            )
    };
    let some = |count| {
        let bundle = bundle();
        // The node that the program makes is in memory of each machine.
        let run = |_| Runtime::Vmrun.run(&bundle).success().out();
        (0..count).map(run).collect::<Vec<_>>()
    };
    let outputs = thread::scope(|scope| {
        let half = scope.spawn(|| some(CLONES / 2));
        let mut outputs = some(CLONES - CLONES / 2);
        outputs.extend(half.join().unwrap());
        outputs
    });
    let mut drawn: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in outputs.iter().flat_map(|output| output.lines()) {
        let (name, value) = line.split_once(' ').unwrap();
        drawn.entry(name).or_default().insert(value);
    }
    for name in ["at_random", "getrandom", "boot_id", "cid"] {
        assert_eq!(drawn[name].len(), CLONES, "{name}: {drawn:?}");
    }
    // 22 and 20 bits or so: two of a hundred may well be the same.
    for name in ["stack", "vdso"] {
        assert!(drawn[name].len() > CLONES / 2, "{name}: {drawn:?}");
    }
}

#[test]
fn the_wall_clock_is_the_hosts() {
    let now = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs()
    };
    let bundle = Bundle::shell("date +%s");
    let before = now();
    let run = Runtime::Vmrun.run(&bundle).success();
    let after = now();
    let seen: u64 = run.out().trim().parse().unwrap();
    assert!(
        (before.saturating_sub(1)..=after + 1).contains(&seen),
        "{before} {seen} {after}"
    );
}

#[test]
fn clocks_agree_whoever_reads_them_and_never_go_back() {
    let bundle = Bundle::program(&["/clocks"]).executable("clocks", &compiled("clocks"));
    let run = Runtime::Vmrun.run(&bundle).success();
    let out = run.out();
    let numbers = |line: &str| -> Vec<i64> {
        let words = line.split(' ').skip(1);
        words.map(|word| word.parse().unwrap()).collect()
    };
    assert_eq!(out.lines().count(), 2, "{out}");
    for line in out.lines() {
        let [back_ns, passed_ns] = numbers(line)[..] else {
            panic!("{out}")
        };
        assert_eq!(back_ns, 0, "{out}");
        // Some hundred nanoseconds for each reading, not years and not nothing.
        assert!((1_000_000..60_000_000_000).contains(&passed_ns), "{out}");
    }
}
