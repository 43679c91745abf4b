//! Namespaces. (validation: linux_ns_itype, linux_ns_nopath, linux_ns_path,
//! linux_ns_path_type, linux_uid_mappings; contest: the same, time offsets)

use std::fs;

use serde_json::{Value, json};

use super::Promise;
use super::lab::Lab;
use crate::harness::Bundle;
use crate::suite::cases;

pub const CASES: &[(&str, Promise)] = cases![
    new_ones,
    one_of_another_container,
    network_by_path,
    path_of_another_type,
    path_of_nothing,
    unknown_type,
    twice,
    hostname_needs_one,
    process_one,
    user_mappings,
    time_offsets,
];

fn list(names: &[&str]) -> Value {
    names.iter().map(|name| json!({"type": name})).collect()
}

fn here(name: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{name}"))
        .unwrap()
        .display()
        .to_string()
}

fn new_ones(lab: &Lab) {
    let script = "for n in pid net ipc uts mnt; do readlink /proc/self/ns/$n; done; hostname";
    let seen = lab.output(Bundle::shell(script));
    assert!(seen.ends_with("]\nbox\n"), "{seen}");
    for name in ["pid", "net", "ipc", "uts", "mnt"] {
        // Numbers of two kernels say nothing about each other.
        assert!(
            lab.runtime.is_vmrun() || !seen.contains(&here(name)),
            "{name}: {seen}"
        );
    }
}

/// By the path of a process of the first container, as engines do.
fn one_of_another_container(lab: &Lab) {
    let first = lab.started(Bundle::shell("sleep 1000"));
    let path = format!("/proc/{}/ns/net", first.pid().as_raw_nonzero());
    let mut namespaces = list(&["pid", "ipc", "uts", "mount", "network"]);
    namespaces[4]["path"] = json!(path);
    let container = lab.created(Bundle::shell("true").with("/linux/namespaces", namespaces));
    let of = |pid: String| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    let second = container.pid().as_raw_nonzero().to_string();
    assert_eq!(of(second), of(first.pid().as_raw_nonzero().to_string()));
}

/// The host process, whatever runs inside, is in the network that was asked for.
fn network_by_path(lab: &Lab) {
    let mut namespaces = list(&["pid", "ipc", "uts", "mount", "network"]);
    namespaces[4]["path"] = json!("/proc/1/ns/net");
    let container = lab.created(Bundle::shell("true").with("/linux/namespaces", namespaces));
    let pid = container.pid().as_raw_nonzero();
    assert_eq!(
        fs::read_link(format!("/proc/{pid}/ns/net"))
            .unwrap()
            .display()
            .to_string(),
        here("net")
    );
}

fn path_of_another_type(lab: &Lab) {
    let mut namespaces = list(&["pid", "ipc", "uts", "mount", "network"]);
    namespaces[4]["path"] = json!("/proc/1/ns/ipc");
    let run = lab.run(Bundle::shell("true").with("/linux/namespaces", namespaces));
    assert_ne!(run.code(), 0, "{run:?}");
}

fn path_of_nothing(lab: &Lab) {
    let mut namespaces = list(&["pid", "ipc", "uts", "mount", "network"]);
    namespaces[4]["path"] = json!("/proc/1/ns/nothing");
    let run = lab.run(Bundle::shell("true").with("/linux/namespaces", namespaces));
    assert_ne!(run.code(), 0, "{run:?}");
}

fn unknown_type(lab: &Lab) {
    let namespaces = list(&["pid", "ipc", "uts", "mount", "network", "nosuch"]);
    let run = lab.run(Bundle::shell("true").with("/linux/namespaces", namespaces));
    assert_ne!(run.code(), 0, "{run:?}");
}

fn twice(lab: &Lab) {
    let namespaces = list(&["pid", "ipc", "uts", "mount", "network", "pid"]);
    let run = lab.run(Bundle::shell("true").with("/linux/namespaces", namespaces));
    assert_ne!(run.code(), 0, "{run:?}");
}

fn hostname_needs_one(lab: &Lab) {
    let namespaces = list(&["pid", "ipc", "mount", "network"]);
    let run = lab.run(Bundle::shell("true").with("/linux/namespaces", namespaces));
    assert_ne!(run.code(), 0, "{run:?}");
}

fn process_one(lab: &Lab) {
    assert_eq!(
        lab.output(Bundle::shell("echo $$ /proc/[0-9]*")),
        "1 /proc/1\n"
    );
}

fn user_mappings(lab: &Lab) {
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 2000}]);
    let bundle =
        Bundle::shell("id -u; cat /proc/self/uid_map /proc/self/gid_map | sed 's/  */ /g'")
            .with(
                "/linux/namespaces",
                list(&["pid", "ipc", "uts", "mount", "network", "user"]),
            )
            .with("/linux/uidMappings", map.clone())
            .with("/linux/gidMappings", map);
    // The mapped root has to reach its own.
    let root = bundle.rootfs();
    std::os::unix::fs::chown(&root, Some(1000), Some(1000)).unwrap();
    let seen = lab.output(bundle);
    assert_eq!(seen.lines().next(), Some("0"), "{seen}");
    assert_eq!(seen.matches("0 1000 2000").count(), 2, "{seen}");
}

fn time_offsets(lab: &Lab) {
    let bundle = Bundle::shell("cut -d . -f 1 /proc/uptime")
        .with(
            "/linux/namespaces",
            list(&["pid", "ipc", "uts", "mount", "network", "time"]),
        )
        .with(
            "/linux/timeOffsets",
            json!({"monotonic": {"secs": 1_000_000}, "boottime": {"secs": 5_000_000}}),
        );
    let seen: u64 = lab.output(bundle).trim().parse().expect("seconds");
    assert!(seen >= 5_000_000, "{seen}");
}
