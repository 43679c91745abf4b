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
