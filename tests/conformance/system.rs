//! Names, kernel parameters, and what a runtime tells of itself. (validation:
//! hostname, default, linux_process_apparmor_profile, linux_mount_label; contest:
//! hostname, domainname, sysctl, intel_rdt, net_devices, memory_policy)

use serde_json::{Value, json};

use super::Promise;
use super::lab::Lab;
use crate::harness::Bundle;
use crate::suite::cases;

pub const CASES: &[(&str, Promise)] = cases![
    hostname,
    no_hostname,
    domainname,
    sysctl,
    sysctl_of_the_host,
    default_file_systems,
    only_loopback,
    features,
    version,
    spec,
    spec_is_accepted,
    log_as_json,
    unknown_verb,
    unknown_flag,
    checkpoint_needs_more,
];

fn hostname(lab: &Lab) {
    let bundle = Bundle::shell("hostname").with("/hostname", json!("a-name.with.dots"));
    assert_eq!(lab.output(bundle), "a-name.with.dots\n");
}

fn no_hostname(lab: &Lab) {
    lab.output(Bundle::shell("hostname").with("/hostname", json!("")));
}

fn domainname(lab: &Lab) {
    let bundle =
        Bundle::shell("cat /proc/sys/kernel/domainname").with("/domainname", json!("a.domain"));
    assert_eq!(lab.output(bundle), "a.domain\n");
}

fn sysctl(lab: &Lab) {
    let sysctl = json!({"net.ipv4.ip_forward": "1", "kernel.msgmax": "65000", "kernel.domainname": "by.sysctl"});
    let script = "cd /proc/sys; cat net/ipv4/ip_forward kernel/msgmax";
    let sysctl = Value::Object(
        sysctl
            .as_object()
            .unwrap()
            .clone()
            .into_iter()
            .filter(|(name, _)| name != "kernel.domainname")
            .collect(),
    );
    assert_eq!(
        lab.output(Bundle::shell(script).with("/linux/sysctl", sysctl)),
        "1\n65000\n"
    );
}

fn sysctl_of_the_host(lab: &Lab) {
    lab.refused(
        Bundle::shell("true").with("/linux/sysctl", json!({"vm.swappiness": "1"})),
        &["sysctl", "vm.swappiness"],
    );
}

fn default_file_systems(lab: &Lab) {
    let seen = lab.output(Bundle::shell("cut -d ' ' -f 2,3 /proc/mounts"));
    for expected in ["/proc proc", "/sys sysfs", "/dev tmpfs", "/dev/pts devpts"] {
        assert!(
            seen.lines().any(|line| line == expected),
            "{expected}: {seen}"
        );
    }
}

fn only_loopback(lab: &Lab) {
    assert_eq!(lab.output(Bundle::shell("ls /sys/class/net")), "lo\n");
}

fn features(lab: &Lab) {
    let features: Value =
        serde_json::from_str(&lab.call(&["features"]).success().out()).expect("JSON");
    assert!(
        features["ociVersionMin"].is_string() && features["ociVersionMax"].is_string(),
        "{features}"
    );
    for list in [
        "/hooks",
        "/mountOptions",
        "/linux/namespaces",
        "/linux/capabilities",
    ] {
        let list = features.pointer(list).and_then(Value::as_array);
        assert!(list.is_some_and(|list| !list.is_empty()), "{features}");
    }
    assert_eq!(
        features.pointer("/linux/seccomp/enabled"),
        Some(&json!(true)),
        "{features}"
    );
}

fn version(lab: &Lab) {
    let version = lab.call(&["--version"]).success().out();
    assert!(
        version
            .lines()
            .next()
            .is_some_and(|line| line.contains(" version ")),
        "{version}"
    );
    assert!(version.contains("spec: 1."), "{version}");
}

fn spec(lab: &Lab) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    lab.call(&["spec", "--bundle", folder.path().to_str().unwrap()])
        .success();
    let text = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert!(config["ociVersion"].is_string() && config["process"]["args"].is_array());
}

fn spec_is_accepted(lab: &Lab) {
    let container = lab.container(Bundle::shell("true"));
    let path = container.path("config.json");
    std::fs::remove_file(&path).unwrap();
    lab.call(&[
        "spec",
        "--bundle",
        container.bundle.path().to_str().unwrap(),
    ])
    .success();
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["sh", "-c", "echo ran"]);
    config["linux"]["cgroupsPath"] = json!(lab.cgroup(&container.id));
    std::fs::write(&path, config.to_string()).unwrap();
    assert_eq!(container.create().code, 0);
    container.call("start").success();
    container.wait();
    assert_eq!(container.out(), "ran\n");
}

/// Engines read the last line of it for what went wrong.
fn log_as_json(lab: &Lab) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let log = folder.path().join("log.json");
    let call = lab.call(&[
        "--log",
        log.to_str().unwrap(),
        "--log-format",
        "json",
        "start",
        "nothing",
    ]);
    assert_ne!(call.code(), 0);
    let text = std::fs::read_to_string(&log).unwrap();
    let line: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    assert_eq!(line["level"], json!("error"), "{line}");
    assert!(
        line["msg"]
            .as_str()
            .is_some_and(|text| text.contains("does not exist")),
        "{line}"
    );
}

fn unknown_verb(lab: &Lab) {
    assert_ne!(lab.call(&["fly"]).code(), 0);
}

fn unknown_flag(lab: &Lab) {
    assert_ne!(lab.call(&["--fly", "list"]).code(), 0);
}

/// By runc criu, which is not installed; by vmrun a later version.
fn checkpoint_needs_more(lab: &Lab) {
    let container = lab.started(Bundle::shell("sleep 1000"));
    let folder = container.path("image");
    let call = lab.call(&[
        "checkpoint",
        "--image-path",
        folder.to_str().unwrap(),
        &container.id,
    ]);
    assert_ne!(call.code(), 0);
    assert!(!call.err().trim().is_empty());
    assert_eq!(container.status(), "running");
}
