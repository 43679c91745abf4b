//! Nodes in /dev, and who may open them. (validation: default, linux_devices,
//! linux_cgroups_devices; contest: default, devices, cgroups/devices)

use serde_json::json;

use super::Promise;
use super::lab::Lab;
use crate::harness::Bundle;
use crate::suite::cases;

pub const CASES: &[(&str, Promise)] = cases![
    default_nodes,
    default_links,
    default_nodes_work,
    further_nodes,
    nodes_of_the_listed_ones_only,
    device_rules,
    nodes_in_the_root,
    pseudo_terminals,
];

fn default_nodes(lab: &Lab) {
    let script =
        "for d in null zero full random urandom tty; do stat -c '%n %a %t %T' /dev/$d; done";
    let expected = "/dev/null 666 1 3\n/dev/zero 666 1 5\n/dev/full 666 1 7\n/dev/random 666 1 8\n/dev/urandom 666 1 9\n/dev/tty 666 5 0\n";
    assert_eq!(lab.output(Bundle::shell(script)), expected);
}

fn default_links(lab: &Lab) {
    let script = "for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done";
    let seen = lab.output(Bundle::shell(script));
    assert_eq!(
        seen,
        "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n"
    );
}

fn default_nodes_work(lab: &Lab) {
    let script = "echo x >/dev/null && head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; (echo x >/dev/full) 2>&1; true";
    let seen = lab.output(Bundle::shell(script));
    assert!(
        seen.starts_with("4\n4\n") && seen.contains("No space left on device"),
        "{seen}"
    );
}

fn further_nodes(lab: &Lab) {
    let devices = json!([
        {"path": "/dev/one", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 1, "gid": 2},
        {"path": "/dev/sub/pipe", "type": "p", "fileMode": 0o600}]);
    let script = "stat -c '%n %F %a %u %g %t %T' /dev/one /dev/sub/pipe";
    let run = lab.run(Bundle::shell(script).with("/linux/devices", devices));
    let seen = run.success().out();
    assert!(
        seen.starts_with(
            "/dev/one character special file 640 1 2 1 5\n/dev/sub/pipe fifo 600 0 0 "
        ),
        "{seen}"
    );
}

fn nodes_of_the_listed_ones_only(lab: &Lab) {
    let seen = lab.output(Bundle::shell("ls /dev"));
    let expected = [
        "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm",
        "stderr", "stdin", "stdout", "tty", "urandom", "zero",
    ];
    assert!(
        seen.split_whitespace().all(|name| expected.contains(&name)),
        "{seen}"
    );
}

/// Nodes may be made; what they lead to is another matter.
fn device_rules(lab: &Lab) {
    let rules = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "w"}]);
    let script = "cd /t; (mknod kmsg c 1 11 && mknod mem c 1 1 && mknod disk b 8 0) || exit 1
        (: <mem) 2>&1; (: <disk) 2>&1; (: <kmsg) 2>&1; (: >kmsg) && echo written; true";
    let tmpfs = json!({"destination": "/t", "type": "tmpfs", "source": "tmpfs"});
    let bundle = Bundle::shell(script).with("/linux/resources/devices", rules);
    let seen = lab.output(bundle.mount(tmpfs));
    assert_eq!(seen.matches("Operation not permitted").count(), 3, "{seen}");
    assert!(seen.ends_with("written\n"), "{seen}");
}

fn nodes_in_the_root(lab: &Lab) {
    let seen = lab.output(Bundle::shell(
        "mknod /null c 1 3 && echo x >/null && echo made",
    ));
    assert_eq!(seen, "made\n");
}

fn pseudo_terminals(lab: &Lab) {
    let script = "stat -c %a /dev/pts/ptmx; grep ' /dev/pts ' /proc/mounts; script -q -c tty /dev/null </dev/null";
    let seen = lab.run(Bundle::shell(script)).out();
    assert!(
        seen.starts_with("666\n") && seen.contains("devpts"),
        "{seen}"
    );
}
