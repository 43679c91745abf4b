//! Flags of vmrun itself.

use std::fs;
use std::sync::LazyLock;

use serde_json::Value;

use crate::harness::{Bundle, Finished, Launch, Runtime};

/// Two vCPUs, memory by hand, a timeline.
fn shaped() -> &'static (Finished, Value) {
    static RUN: LazyLock<(Finished, Value)> = LazyLock::new(|| {
        let script = "echo $(nproc); while read -r name kib unit; do
            [ $name = MemTotal: ] && echo $kib; done </proc/meminfo; exit 0";
        let bundle = Bundle::shell(script);
        let trace = bundle.path().join("trace.json");
        let flags = [
            "--cpus",
            "2",
            "--memory",
            "200m",
            "--trace",
            trace.to_str().unwrap(),
        ];
        let run = Runtime::Vmrun
            .launch_with(&bundle, &flags)
            .two_machines()
            .finish()
            .success();
        let text = fs::read_to_string(&trace).unwrap();
        (run, serde_json::from_str(&text).expect("the trace is JSON"))
    });
    &RUN
}

#[test]
fn cpus() {
    let (run, _) = shaped();
    assert_eq!(run.out().lines().next(), Some("2"), "{run:?}");
}

#[test]
fn memory() {
    let (run, _) = shaped();
    let kib: u64 = run.out().lines().nth(1).unwrap().parse().unwrap();
    // 200 MiB are rounded up to 256, of which the kernel keeps some for itself.
    assert!((225 << 10..256 << 10).contains(&kib), "{kib} KiB");
}

/// The milestones `expected` are in `trace`, in this order.
fn has_milestones(trace: &Value, expected: &[&str]) {
    let events = trace["traceEvents"].as_array().unwrap().iter();
    let instants = events.filter(|e| e["ph"] == "i");
    let (names, times): (Vec<_>, Vec<_>) = instants
        .map(|e| (e["name"].as_str().unwrap(), e["ts"].as_f64().unwrap()))
        .unzip();
    let mut at = names.iter();
    for milestone in expected {
        assert!(at.any(|name| name == milestone), "{milestone}: {names:?}");
    }
    assert!(times.is_sorted(), "{times:?}");
}

#[test]
fn trace_has_the_milestones_in_order() {
    let (_, trace) = shaped();
    let expected = [
        "bundle read",
        "template found",
        "vm made",
        "machine restored",
        "first instruction",
        "agent ready",
        "container created",
        "container started",
        "container exited",
        "machine stopped",
    ];
    has_milestones(trace, &expected);
}

#[test]
fn a_bundle_alone_is_run_and_pvh_boots() {
    let bundle = Bundle::shell("echo short");
    let path = bundle.path().to_str().unwrap();
    let trace = bundle.path().join("trace.json");
    let run = Launch::vmrun(&[path, "--boot-protocol", "pvh", "--trace"])
        .arg(&trace)
        .finish()
        .success();
    assert_eq!(run.out(), "short\n");
    let text = fs::read_to_string(&trace).unwrap();
    let expected = [
        "bundle read",
        "vm made",
        "kernel loaded",
        "machine built",
        "first instruction",
        "agent ready",
        "machine stopped",
    ];
    has_milestones(&serde_json::from_str(&text).unwrap(), &expected);
}

#[test]
fn check_tells_what_the_host_offers() {
    let run = Launch::vmrun(&["check"]).finish().success();
    assert!(run.out().contains("/dev/kvm"), "{run:?}");
    let statuses = run.out();
    let statuses = statuses.lines().filter_map(|l| l.split(' ').next());
    let known = |s: &str| ["ok", "warn", "fail", ""].contains(&s);
    assert!(statuses.into_iter().all(known), "{run:?}");

    let run = Launch::vmrun(&["check", "--json"]).finish().success();
    let json: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(json["ok"], true);
    let checks = json["checks"].as_array().unwrap();
    assert!(checks.len() >= 8, "{json}");
    for check in checks {
        let status = check["status"].as_str().unwrap();
        assert!(["ok", "warn", "fail"].contains(&status), "{check}");
    }
}
