//! What cannot be run: one line that names the thing and the reason, an exit code,
//! the same line in the log as runc writes it, and nothing left behind.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use serde_json::{Value, json};

use crate::harness::{Bundle, Sandbox, Sandboxed};

const LOG: [&str; 4] = ["--log", "/mnt/report/log", "--log-format", "json"];

/// Runs vmrun with `words` and compares everything that can be seen of it. Every one
/// of `names` has to be in the one line.
fn fails(sandbox: &Sandbox, bundle: Option<&Bundle>, words: &[&str], code: i32, names: &[&str]) {
    let words = [&LOG, words].concat();
    let seen = sandbox.run(bundle, &words, 1);
    let what = || format!("{words:?}: {seen:?}");
    assert_eq!(seen.run.code(), code, "{}", what());
    assert_eq!(seen.run.out(), "", "{}", what());
    let err = seen.run.err();
    assert_eq!(err.lines().count(), 1, "{}", what());
    let line = err
        .trim_end()
        .strip_prefix("vmrun: ")
        .unwrap_or_else(|| panic!("{}", what()));
    for name in names {
        assert!(line.contains(name), "no {name:?}: {}", what());
    }
    assert_eq!(seen.left, "", "left behind: {}", what());
    // A command line that is wrong may be so about the log.
    if code != 2 {
        assert_eq!(last_error(&seen), line, "{}", what());
    }
}

/// The message of the log's last line, which runc's callers read as the reason.
fn last_error(seen: &Sandboxed) -> String {
    let line: Value = seen.log.lines().last().map_or(Value::Null, |line| {
        serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))
    });
    assert_eq!(line["level"], "error", "{line}");
    assert!(line["time"].is_string(), "{line}");
    line["msg"].as_str().unwrap_or_default().to_owned()
}

fn run_fails(sandbox: &Sandbox, bundle: &Bundle, code: i32, names: &[&str]) {
    fails(sandbox, Some(bundle), &["run", "/mnt/bundle"], code, names);
}

#[test]
fn config_json_that_is_none() {
    let sandbox = Sandbox::new();
    let whole = fs::read_to_string(Bundle::shell("").path().join("config.json")).unwrap();
    for (content, names) in [
        ("", &["config.json"][..]),
        ("hello", &["config.json", "line 1"]),
        (&whole[..whole.len() / 2], &["config.json", "EOF"]),
        ("[]", &["ociVersion"]),
        ("{}", &["ociVersion"]),
        ("\0\u{1}\u{2}", &["config.json"]),
    ] {
        let bundle = Bundle::shell("");
        fs::write(bundle.path().join("config.json"), content).unwrap();
        run_fails(&sandbox, &bundle, 1, names);
    }
    let bundle = Bundle::shell("");
    fs::remove_file(bundle.path().join("config.json")).unwrap();
    run_fails(&sandbox, &bundle, 1, &["config.json", "No such file"]);
}

#[test]
fn values_that_cannot_be() {
    let sandbox = Sandbox::new();
    for (pointer, value, names) in [
        ("/ociVersion", json!("9.0.0"), &["ociVersion", "9.0.0"][..]),
        ("/ociVersion", json!(1), &["ociVersion"]),
        ("/process/args", json!([]), &["process.args"]),
        ("/process/args", json!("sh"), &["process.args"]),
        ("/process/args/0", json!(7), &["process.args[0]"]),
        ("/process/cwd", json!("relative"), &["process.cwd"]),
        ("/process/env", json!(["A=\u{0}"]), &["process.env[0]"]),
        ("/process/user/uid", json!(-1), &["process.user.uid"]),
        (
            "/process/user/uid",
            json!(1_u64 << 32),
            &["process.user.uid"],
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_FUN", "soft": 1, "hard": 1}]),
            &["process.rlimits[0]", "RLIMIT_FUN"],
        ),
        (
            "/root/path",
            json!("missing"),
            &["root.path", "missing", "No such file"],
        ),
        (
            "/root/path",
            json!("config.json"),
            &["root.path", "Not a directory"],
        ),
        ("/root/path", json!("link"), &["root.path", "symbolic link"]),
        ("/root", Value::Null, &["root"]),
        (
            "/mounts/0/destination",
            json!("proc"),
            &["mounts[0].destination", "absolute"],
        ),
        (
            "/mounts/0/destination",
            json!("/a/../../b"),
            &["mounts[0].destination"],
        ),
        ("/mounts/0/type", json!("nfs"), &["mounts[0].type", "nfs"]),
        (
            "/mounts/0",
            json!({"destination": "/x", "type": "bind", "source": "missing", "options": ["bind"]}),
            &["mounts[0].source", "missing"],
        ),
        (
            "/mounts/0",
            json!({"destination": "/x", "type": "bind", "source": "/dev/null", "options": ["bind"]}),
            &["mounts[0].source", "device"],
        ),
        (
            "/linux/devices",
            json!([{"path": "relative", "type": "c", "major": 1, "minor": 3}]),
            &["linux.devices[0].path"],
        ),
        (
            "/linux/maskedPaths",
            json!(["../x"]),
            &["linux.maskedPaths[0]"],
        ),
        (
            "/linux/sysctl",
            json!({"kernel.panic": "1"}),
            &["linux.sysctl", "kernel.panic"],
        ),
    ] {
        let bundle = Bundle::shell("echo never").with(pointer, value);
        symlink("rootfs", bundle.path().join("link")).unwrap();
        run_fails(&sandbox, &bundle, 1, names);
    }
}

#[test]
fn what_is_not_supported_is_refused_by_its_path() {
    let sandbox = Sandbox::new();
    for (pointer, value, path) in [
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
            "linux.seccomp.defaultAction",
        ),
        (
            "/hooks",
            json!({"createContainer": [{"path": "/bin/true"}]}),
            "hooks.createContainer",
        ),
        (
            "/linux/namespaces/0",
            json!({"type": "pid", "path": "/proc/1/ns/pid"}),
            "linux.namespaces[0].path",
        ),
        (
            "/linux/namespaces/0",
            json!({"type": "user"}),
            "linux.namespaces",
        ),
        (
            "/linux/uidMappings",
            json!([{"containerID": 0, "hostID": 1, "size": 1}]),
            "linux.uidMappings",
        ),
        ("/linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt"),
        (
            "/linux/resources/blockIO",
            json!({"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}]}),
            "linux.resources.blockIO.throttleReadBpsDevice",
        ),
        (
            "/linux/devices",
            json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]),
            "linux.devices[0]",
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_ISO"}),
            "process.scheduler.policy",
        ),
        ("/vm", json!({"kernel": {"path": "/vmlinux"}}), "vm"),
    ] {
        let bundle = Bundle::shell("echo never").with(pointer, value);
        run_fails(&sandbox, &bundle, 1, &[path]);
    }
}

#[test]
fn program_not_found() {
    let bundle = Bundle::program(&["/bin/missing"]);
    run_fails(
        &Sandbox::new(),
        &bundle,
        127,
        &["/bin/missing", "no such file"],
    );
}

#[test]
fn program_not_executable() {
    let bundle = Bundle::program(&["/etc/passwd"]);
    run_fails(
        &Sandbox::new(),
        &bundle,
        126,
        &["/etc/passwd", "permission denied"],
    );
}

#[test]
fn user_that_does_not_exist() {
    let user = json!({"uid": 0, "gid": 0, "username": "nobody-of-that-name"});
    let bundle = Bundle::shell("echo never").with("/process/user", user);
    run_fails(&Sandbox::new(), &bundle, 1, &["nobody-of-that-name"]);
}

#[test]
fn no_bundle() {
    let sandbox = Sandbox::new();
    fails(
        &sandbox,
        None,
        &["run", "/missing"],
        1,
        &["bundle \"/missing\"", "No such file"],
    );
    fails(
        &sandbox,
        None,
        &["run", "/mnt/bin/vmrun"],
        1,
        &["/mnt/bin/vmrun", "Not a directory"],
    );
    fails(
        &sandbox,
        None,
        &["run", "/mnt/empty"],
        1,
        &["config.json", "No such file"],
    );
}

#[test]
fn no_kvm() {
    let bundle = Bundle::shell("echo never");
    for (prelude, reason) in [
        ("mount -t tmpfs tmpfs /dev", "No such file"),
        ("mount --bind /dev/null /dev/kvm", "KVM"),
    ] {
        let sandbox = Sandbox::new().after(prelude);
        run_fails(&sandbox, &bundle, 1, &["KVM", "vmrun check", reason]);
    }
}

#[test]
fn no_permission_for_kvm() {
    let bundle = Bundle::shell("echo never");
    fs::set_permissions(bundle.rootfs(), fs::Permissions::from_mode(0o755)).unwrap();
    let prelude = "mount -t tmpfs -o mode=755 tmpfs /dev && mknod -m 0600 /dev/kvm c 10 232";
    let sandbox = Sandbox::new().after(prelude).with_user(12345);
    run_fails(&sandbox, &bundle, 1, &["/dev/kvm", "Permission denied"]);
}

#[test]
fn guest_image_not_built() {
    let sandbox = Sandbox::new();
    let bundle = Bundle::shell("echo never");
    let from = |folder| ["--guest-dir", folder, "run", "/mnt/bundle"];
    fails(
        &sandbox,
        Some(&bundle),
        &from("/mnt/empty"),
        1,
        &["/mnt/empty/vmlinux", "scripts/quickstart"],
    );
    fails(
        &sandbox,
        Some(&bundle),
        &from("/missing"),
        1,
        &["/missing/vmlinux", "scripts/quickstart"],
    );
}

#[test]
fn sizes_that_cannot_be() {
    let sandbox = Sandbox::new();
    let bundle = Bundle::shell("echo never");
    for (flag, value, code, name) in [
        ("--memory", "1m", 1, "at least"),
        ("--memory", "900t", 1, "more than the host"),
        ("--memory", "lots", 2, "lots"),
        ("--cpus", "0", 1, "must be 1 to"),
        ("--cpus", "200", 1, "must be 1 to"),
        ("--cpus", "two", 2, "two"),
    ] {
        let words = ["run", flag, value, "/mnt/bundle"];
        fails(&sandbox, Some(&bundle), &words, code, &[flag, name]);
    }
}

#[test]
fn command_lines_that_are_wrong() {
    let sandbox = Sandbox::new();
    for (words, name) in [
        (&["run", "--fly", "/mnt/bundle"][..], "--fly"),
        (&["--fly", "run", "/mnt/bundle"], "--fly"),
        (&["fly"], "fly"),
        (&["run"], "BUNDLE"),
        (&["create", "--preserve-fds", "1", "id"], "--preserve-fds"),
        (&["run", "/mnt/bundle", "more"], "more"),
    ] {
        fails(&sandbox, None, words, 2, &[name]);
    }
}

#[test]
fn ids_that_cannot_be() {
    let sandbox = Sandbox::new();
    let long = "x".repeat(256);
    for id in ["an/id", "..", "a b", long.as_str()] {
        let words = ["run", "--bundle", "/mnt/bundle", id];
        fails(&sandbox, None, &words, 1, &["invalid container ID format"]);
        let words = ["state", id];
        fails(&sandbox, None, &words, 1, &["invalid container ID format"]);
    }
}
