//! Limits, seen where the container sees them, and the host's cgroups. (validation:
//! linux_cgroups_cpus, _memory, _pids, _blkio, _hugetlb, _network, _relative_*;
//! contest: cgroups/cpu, memory, pids, blkio, network, unified)

use std::fs;

use serde_json::{Value, json};

use super::Promise;
use super::lab::Lab;
use crate::harness::Bundle;
use crate::suite::cases;

pub const CASES: &[(&str, Promise)] = cases![
    absolute_path,
    relative_path,
    default_path,
    memory,
    memory_swap,
    memory_too_small,
    cpu_quota,
    cpu_shares,
    cpu_set,
    cpu_set_of_none,
    number_of_processes,
    number_of_processes_kept,
    block_weight,
    huge_pages,
    limits_are_not_the_containers,
    update_from_json,
    update_by_flags,
    statistics,
];

/// With a cgroup mount, which shows a container its own.
fn bundle(script: &str) -> Bundle {
    Bundle::shell(script).mount(
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "ro"]}),
    )
}

/// `cat` of a file of version 2, which machines have, or of version 1.
fn either(v2: &str, v1: &str) -> String {
    format!("cd /sys/fs/cgroup; cat {v2} 2>/dev/null || cat {v1}")
}

fn cgroups_of(container: &super::lab::Container) -> String {
    fs::read_to_string(format!("/proc/{}/cgroup", container.pid().as_raw_nonzero())).unwrap()
}

fn absolute_path(lab: &Lab) {
    let container = lab.created(Bundle::shell("true"));
    let cgroups = cgroups_of(&container);
    let path = lab.cgroup(&container.id);
    for controller in ["memory", "cpu", "pids", "devices", "freezer"] {
        let line = cgroups.lines().find(|line| {
            line.split(':')
                .nth(1)
                .is_some_and(|list| list.split(',').any(|one| one == controller))
        });
        assert!(
            line.is_some_and(|line| line.ends_with(&path)),
            "{controller}: {cgroups}"
        );
    }
}

fn relative_path(lab: &Lab) {
    let container = lab.container(Bundle::shell("true"));
    let tag = lab.cgroup(&container.id);
    let relative = tag.trim_start_matches('/').to_owned();
    let path = container.bundle.path().join("config.json");
    let config = fs::read_to_string(&path)
        .unwrap()
        .replace(&format!("\"{tag}\""), &format!("\"{relative}\""));
    fs::write(&path, config).unwrap();
    assert_eq!(container.create().code, 0);
    assert!(cgroups_of(&container).contains(&relative));
}

fn default_path(lab: &Lab) {
    let container = lab.container(Bundle::shell("true"));
    let path = container.bundle.path().join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["linux"]
        .as_object_mut()
        .unwrap()
        .remove("cgroupsPath");
    fs::write(&path, config.to_string()).unwrap();
    assert_eq!(container.create().code, 0);
    let cgroups = cgroups_of(&container);
    let memory = cgroups
        .lines()
        .find(|line| line.contains(":memory:"))
        .unwrap();
    assert!(memory.contains(&container.id), "{cgroups}");
}

fn memory(lab: &Lab) {
    let script = either("memory.max", "memory/memory.limit_in_bytes");
    let seen =
        lab.output(bundle(&script).with("/linux/resources/memory", json!({"limit": 64 << 20})));
    assert_eq!(seen, "67108864\n");
}

fn memory_swap(lab: &Lab) {
    let bundle = bundle("exec tail /dev/zero").with(
        "/linux/resources/memory",
        json!({"limit": 16 << 20, "swap": 16 << 20}),
    );
    assert_eq!(lab.run(bundle).code(), 128 + 9);
}

fn memory_too_small(lab: &Lab) {
    let run = lab.run(bundle("true").with("/linux/resources/memory", json!({"limit": 4096})));
    assert_ne!(run.code(), 0, "{run:?}");
}

fn cpu_quota(lab: &Lab) {
    let script = "cd /sys/fs/cgroup; cat cpu.max 2>/dev/null || echo $(cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us)";
    let cpu = json!({"quota": 20_000, "period": 50_000});
    assert_eq!(
        lab.output(bundle(script).with("/linux/resources/cpu", cpu)),
        "20000 50000\n"
    );
}

fn cpu_shares(lab: &Lab) {
    let script = either("cpu.weight", "cpu/cpu.shares");
    let seen = lab.output(bundle(&script).with("/linux/resources/cpu", json!({"shares": 512})));
    // By the two conversions that runtimes have had, or as it is.
    assert!(["20\n", "59\n", "512\n"].contains(&seen.as_str()), "{seen}");
}

fn cpu_set(lab: &Lab) {
    let container =
        lab.created(Bundle::shell("true").with("/linux/resources/cpu", json!({"cpus": "0"})));
    let status =
        fs::read_to_string(format!("/proc/{}/status", container.pid().as_raw_nonzero())).unwrap();
    assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
}

fn cpu_set_of_none(lab: &Lab) {
    lab.refused(
        Bundle::shell("true").with("/linux/resources/cpu", json!({"cpus": "100000"})),
        &["cpu"],
    );
}

fn number_of_processes(lab: &Lab) {
    let script =
        "(for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 & echo $i; done) 2>&1; exit 0";
    let seen = lab.output(bundle(script).with("/linux/resources/pids", json!({"limit": 8})));
    let started = seen
        .lines()
        .filter(|line| line.parse::<u32>().is_ok())
        .count();
    assert!((2..8).contains(&started), "{seen}");
}

fn number_of_processes_kept(lab: &Lab) {
    let script = either("pids.max", "pids/pids.max");
    assert_eq!(
        lab.output(bundle(&script).with("/linux/resources/pids", json!({"limit": 50}))),
        "50\n"
    );
    assert_eq!(
        lab.output(bundle(&script).with("/linux/resources/pids", json!({"limit": -1}))),
        "max\n"
    );
}

fn block_weight(lab: &Lab) {
    let run = lab.run(bundle("echo ran").with("/linux/resources/blockIO", json!({"weight": 500})));
    // Not every kernel has it.
    let named = ["blkio", "bfq", "weight", "blockio", "io.weight"];
    let said = run.err().to_lowercase();
    assert!(
        run.out() == "ran\n" || named.iter().any(|name| said.contains(name)),
        "{run:?}"
    );
}

fn huge_pages(lab: &Lab) {
    let limits = json!([{"pageSize": "2MB", "limit": 0}]);
    let run = lab.run(bundle("echo ran").with("/linux/resources/hugepageLimits", limits));
    let said = run.err().to_lowercase();
    assert!(run.out() == "ran\n" || said.contains("huge"), "{run:?}");
}

fn limits_are_not_the_containers(lab: &Lab) {
    let script = "cd /sys/fs/cgroup; for f in memory.max memory/memory.limit_in_bytes; do
        [ ! -e $f ] || (echo 1 >$f) 2>&1; done; true";
    let seen =
        lab.output(bundle(script).with("/linux/resources/memory", json!({"limit": 64 << 20})));
    assert!(seen.contains("Read-only file system"), "{seen}");
}

fn update_from_json(lab: &Lab) {
    let script = either("memory.max", "memory/memory.limit_in_bytes");
    let container = lab
        .started(bundle("sleep 1000").with("/linux/resources/memory", json!({"limit": 64 << 20})));
    let update = lab.launch(&["update", "--resources", "-", &container.id]);
    update
        .stdin(r#"{"memory": {"limit": 50331648, "swap": 50331648}}"#)
        .finish()
        .success();
    let seen = lab
        .call(&["exec", &container.id, "sh", "-c", &script])
        .success()
        .out();
    assert_eq!(seen, "50331648\n");
}

fn update_by_flags(lab: &Lab) {
    let script = either("pids.max", "pids/pids.max");
    let container =
        lab.started(bundle("sleep 1000").with("/linux/resources/pids", json!({"limit": 50})));
    lab.call(&["update", "--pids-limit", "40", &container.id])
        .success();
    assert_eq!(
        lab.call(&["exec", &container.id, "sh", "-c", &script])
            .success()
            .out(),
        "40\n"
    );
}

fn statistics(lab: &Lab) {
    let container = lab.started(bundle("sleep 1000"));
    let events = lab
        .call(&["events", "--stats", &container.id])
        .success()
        .out();
    let event: Value = serde_json::from_str(&events).expect("JSON");
    assert_eq!(
        (&event["type"], &event["id"]),
        (&json!("stats"), &json!(container.id))
    );
    let data = &event["data"];
    assert!(
        data["memory"]["usage"]["usage"]
            .as_u64()
            .is_some_and(|bytes| bytes > 0),
        "{event}"
    );
    assert!(
        data["cpu"]["usage"]["total"]
            .as_u64()
            .is_some_and(|ns| ns > 0),
        "{event}"
    );
    assert!(
        data["pids"]["current"]
            .as_u64()
            .is_some_and(|count| count > 0),
        "{event}"
    );
}
