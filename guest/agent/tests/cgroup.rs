//! Containers in a cgroup v2 tree. Which controllers there are depends on the
//! system that the tests run on, so limits are tested in a real guest.

mod harness;

use harness::{Host, mount, plan};
use vmrun_protocol::plan::{Capabilities, DeviceKind, DeviceRule, FsType, access, namespace};

fn host() -> Option<Host> {
    let host = Host::with_cgroup();
    if host.is_none() {
        eprintln!("no cgroup v2 tree here: not tested");
    }
    host
}

#[test]
fn device_rules_are_enforced() {
    let Some(mut host) = host() else { return };
    let mut plan = plan(&[
        "sh",
        "-c",
        "echo x >/dev/null && echo null; head -c 1 /dev/zero || echo denied; \
         mknod /dev/new c 1 5 || echo no node; mkdir /dev/d",
    ]);
    let rule = |allow, minor, bits| DeviceRule {
        allow,
        kind: Some(DeviceKind::Char),
        major: None,
        minor,
        access: bits,
    };
    plan.device_rules = vec![
        rule(false, None, 7),
        rule(true, Some(3), access::READ | access::WRITE),
    ];
    let mknod = 1 << 27;
    plan.process.capabilities = Some(Capabilities {
        bounding: mknod,
        effective: mknod,
        permitted: mknod,
        ..Capabilities::default()
    });
    assert_eq!(host.run(&plan).text(), "null\ndenied\nno node\n");
    assert_eq!(host.groups(), 0);
}

#[test]
fn the_container_sees_its_own_group_as_the_root() {
    let Some(mut host) = host() else { return };
    let script = "grep ^0:: /proc/self/cgroup; cat /cg/cgroup.procs | head -n 1; mkdir /cg/sub";
    let mut plan = plan(&["sh", "-c", script]);
    plan.mounts.push(mount(FsType::Cgroup2, "/cg", ""));
    assert_eq!(host.run(&plan).text(), "0::/\n1\n");
    // With the group that the container made in it.
    assert_eq!(host.groups(), 0);
}

#[test]
fn without_a_pid_namespace_the_rest_is_killed() {
    let Some(mut host) = host() else { return };
    let mut plan = plan(&["sh", "-c", "sleep 1000 & (sleep 1000 &) ; echo out"]);
    plan.namespaces &= !namespace::PID;
    assert_eq!(host.run(&plan).text(), "out\n");
    assert_eq!(host.groups(), 0);
}

#[test]
fn failures_leave_no_group() {
    let Some(mut host) = host() else { return };
    let mut plan = plan(&["true"]);
    plan.cgroup_writes = vec![(b"cgroup.nothing".to_vec(), b"1".to_vec())];
    let failure = host.create(&plan).unwrap_err();
    assert_eq!(failure.what, "cgroup \"cgroup.nothing\"");
    assert_eq!(host.groups(), 0);
    plan.cgroup_writes = vec![(b"../cgroup.procs".to_vec(), b"1".to_vec())];
    assert!(host.create(&plan).is_err());
    plan.cgroup_writes = vec![];
    plan.process.cwd = b"/etc/passwd".to_vec();
    host.create(&plan).unwrap_err();
    assert_eq!(host.groups(), 0);
}
