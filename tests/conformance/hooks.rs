//! Hooks. (validation: hooks, hooks_stdin, prestart, prestart_fail, poststart,
//! poststart_fail, poststop, poststop_fail; contest: hooks, prestart, prestart_fail,
//! create_runtime, create_runtime_fail, poststart, poststart_fail, poststop,
//! poststop_fail)

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::Promise;
use super::lab::{Container, Lab};
use crate::harness::Bundle;
use crate::suite::cases;

pub const CASES: &[(&str, Promise)] = cases![
    in_order_at_their_time,
    state_on_stdin,
    arguments_and_environment,
    network_exists_for_prestart,
    create_container_hooks,
    start_container_hooks,
    prestart_fails,
    create_runtime_fails,
    poststart_fails,
    poststop_fails,
    hook_is_missing,
    time_out,
];

/// A hook that runs a shell script in the bundle's folder.
fn hook(script: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]})
}

/// One that adds a word to a file.
fn notes(bundle: &Path, word: &str) -> Value {
    hook(&format!(
        "cat >/dev/null; echo {word} >>{}/notes",
        bundle.display()
    ))
}

fn noted(container: &Container) -> String {
    let notes = fs::read_to_string(container.path("notes")).unwrap_or_default();
    notes.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn in_order_at_their_time(lab: &Lab) {
    let bundle = Bundle::shell("true");
    let path = bundle.path().to_owned();
    let bundle = bundle.with(
        "/hooks",
        json!({
        "prestart": [notes(&path, "prestart1"), notes(&path, "prestart2")],
        "createRuntime": [notes(&path, "createRuntime")],
        "poststart": [notes(&path, "poststart1"), notes(&path, "poststart2")],
        "poststop": [notes(&path, "poststop1"), notes(&path, "poststop2")]}),
    );
    let container = lab.created(bundle);
    assert_eq!(noted(&container), "prestart1 prestart2 createRuntime");
    container.call("start").success();
    container.wait();
    assert_eq!(
        noted(&container),
        "prestart1 prestart2 createRuntime poststart1 poststart2"
    );
    container.call("delete").success();
    assert_eq!(
        noted(&container),
        "prestart1 prestart2 createRuntime poststart1 poststart2 poststop1 poststop2"
    );
}

fn state_on_stdin(lab: &Lab) {
    let bundle = Bundle::shell("sleep 1000").with("/annotations", json!({"a": "b"}));
    let path = bundle.path().to_owned();
    let saves = |name: &str| hook(&format!("cat >{}/{name}.json", path.display()));
    let bundle = bundle.with(
        "/hooks",
        json!({"prestart": [saves("prestart")], "createRuntime": [saves("createRuntime")],
        "poststart": [saves("poststart")], "poststop": [saves("poststop")]}),
    );
    let container = lab.started(bundle);
    let pid = container.pid().as_raw_nonzero().get();
    container.kill("KILL").success();
    container.wait();
    container.call("delete").success();
    for (name, status) in [
        ("prestart", &["creating", "created"][..]),
        ("createRuntime", &["creating", "created"]),
        ("poststart", &["running"]),
        ("poststop", &["stopped"]),
    ] {
        let text = fs::read_to_string(container.path(&format!("{name}.json"))).unwrap();
        let state: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{name}: {text}"));
        assert_eq!(state["id"], json!(container.id), "{name}");
        assert!(
            status.contains(&state["status"].as_str().unwrap()),
            "{name}: {state}"
        );
        assert_eq!(
            state["bundle"],
            json!(fs::canonicalize(&path).unwrap()),
            "{name}"
        );
        assert_eq!(state["annotations"]["a"], json!("b"), "{name}");
        if name != "poststop" {
            assert_eq!(state["pid"], json!(pid), "{name}");
        }
    }
}

fn arguments_and_environment(lab: &Lab) {
    let bundle = Bundle::shell("true");
    let script = format!("echo \"$0|$1|$A|$HOME\" >{}/notes", bundle.path().display());
    let hook =
        json!({"path": "/bin/sh", "args": ["named", "-c", script, "zero", "one"], "env": ["A=a"]});
    let container = lab.created(bundle.with("/hooks", json!({"prestart": [hook]})));
    assert_eq!(noted(&container), "zero|one|a|");
}

/// Docker's enters it by the pid that the state has.
fn network_exists_for_prestart(lab: &Lab) {
    let bundle = Bundle::shell("true");
    let script = format!(
        "pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/'); readlink /proc/$pid/ns/net >{}/notes",
        bundle.path().display()
    );
    let container = lab.created(bundle.with("/hooks", json!({"prestart": [hook(&script)]})));
    let pid = container.pid().as_raw_nonzero();
    let network = fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(noted(&container), network.display().to_string());
    assert_ne!(network, fs::read_link("/proc/self/ns/net").unwrap());
}

fn create_container_hooks(lab: &Lab) {
    let bundle = Bundle::shell("true");
    let path = bundle.path().to_owned();
    let container =
        lab.created(bundle.with("/hooks", json!({"createContainer": [notes(&path, "ran")]})));
    assert_eq!(noted(&container), "ran");
}

/// In the container, with its root.
fn start_container_hooks(lab: &Lab) {
    let bundle = Bundle::shell("cat /from-hook");
    let container = lab.created(bundle.with(
        "/hooks",
        json!({"startContainer": [hook("echo hooked >/from-hook")]}),
    ));
    assert!(!container.bundle.rootfs().join("from-hook").exists());
    container.call("start").success();
    container.wait();
    assert_eq!(container.out(), "hooked\n");
}

fn fails_in_create(lab: &Lab, name: &str) {
    let bundle = Bundle::shell("echo ran >/ran").with("/hooks", json!({name: [hook("exit 3")]}));
    let container = lab.container(bundle);
    let create = container.create();
    assert_ne!(create.code, 0);
    assert!(!create.err.is_empty());
    assert_ne!(container.call("state").code(), 0);
    assert!(!container.bundle.rootfs().join("ran").exists());
}

fn prestart_fails(lab: &Lab) {
    fails_in_create(lab, "prestart");
}

fn create_runtime_fails(lab: &Lab) {
    fails_in_create(lab, "createRuntime");
}

/// By the specification's 1.0 a warning, by its 1.1 an error: in both cases the
/// program did run, and the container can be removed.
fn poststart_fails(lab: &Lab) {
    let bundle = Bundle::shell("echo ran").with("/hooks", json!({"poststart": [hook("exit 3")]}));
    let container = lab.created(bundle);
    container.call("start");
    container.wait();
    lab.call(&["delete", "--force", &container.id]).success();
}

fn poststop_fails(lab: &Lab) {
    let bundle = Bundle::shell("true");
    let path = bundle.path().to_owned();
    let bundle = bundle.with(
        "/hooks",
        json!({"poststop": [hook("exit 3"), notes(&path, "second")]}),
    );
    let container = lab.started(bundle);
    container.wait();
    container.call("delete");
    // It is gone, whatever hooks said.
    assert_ne!(container.call("state").code(), 0);
}

fn hook_is_missing(lab: &Lab) {
    let bundle =
        Bundle::shell("true").with("/hooks", json!({"prestart": [{"path": "/no/such/hook"}]}));
    let container = lab.container(bundle);
    let create = container.create();
    assert_ne!(create.code, 0);
    assert!(
        create.err.to_lowercase().contains("no such file"),
        "{create:?}"
    );
}

fn time_out(lab: &Lab) {
    let mut slow = hook("exec sleep 50");
    slow["timeout"] = json!(1);
    let container =
        lab.container(Bundle::shell("true").with("/hooks", json!({"prestart": [slow]})));
    let from = std::time::Instant::now();
    assert_ne!(container.create().code, 0);
    assert!(from.elapsed().as_secs() < 40);
}
