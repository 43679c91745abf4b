//! create, start, state, kill, delete: what they do, when they are refused, and what
//! is left. (validation: create, start, state, kill, kill_no_effect, killsig, delete,
//! delete_resources, delete_only_create_resources, pidfile,
//! config_updates_without_affect, misc_props; contest: lifecycle, kill, delete,
//! kill_no_effect, killsig, pidfile, misc_props)

use std::fs;

use serde_json::json;

use super::Promise;
use super::lab::Lab;
use crate::harness::Bundle;
use crate::suite::cases;

pub const CASES: &[(&str, Promise)] = cases![
    create_needs_an_id,
    create_needs_a_bundle,
    create_refuses_a_used_id,
    create_refuses_odd_ids,
    create_does_not_start,
    create_refuses_bad_json,
    create_refuses_versions_to_come,
    failed_create_frees_the_id,
    start_needs_an_id,
    start_of_nothing,
    start_twice,
    start_after_the_end,
    state_needs_an_id,
    state_of_nothing,
    state_tells,
    state_through_a_life,
    kill_needs_an_id,
    kill_of_nothing,
    kill_of_a_created_one,
    kill_of_a_stopped_one,
    kill_by_any_name,
    kill_is_term_by_itself,
    kill_all,
    kill_of_a_bad_signal,
    delete_needs_an_id,
    delete_of_nothing,
    delete_by_force_of_nothing,
    delete_of_a_running_one,
    delete_by_force_of_a_running_one,
    delete_of_a_created_one,
    delete_frees_the_id,
    delete_removes_cgroups,
    delete_leaves_what_it_did_not_make,
    pid_file,
    exit_status_of_the_process,
    config_is_read_once,
    unknown_properties,
    annotations,
    list,
    pause_and_resume,
    ps,
    killed_on_the_host,
];

const WAITS: &str = "trap 'exit 7' TERM; while :; do sleep 1000 & wait $!; done";

/// Fails unless refused with a line on stderr.
fn refused(lab: &Lab, words: &[&str]) {
    let call = lab.call(words);
    assert_ne!(call.code(), 0, "{words:?}: {call:?}");
    assert!(!call.err().trim().is_empty(), "{words:?}: {call:?}");
}

fn create_needs_an_id(lab: &Lab) {
    let bundle = Bundle::shell("true");
    refused(
        lab,
        &["create", "--bundle", bundle.path().to_str().unwrap()],
    );
}

fn create_needs_a_bundle(lab: &Lab) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().to_str().unwrap();
    refused(lab, &["create", "--bundle", path, &lab.unique_id()]);
    refused(lab, &["create", "--bundle", "/nowhere", &lab.unique_id()]);
}

fn create_refuses_a_used_id(lab: &Lab) {
    let first = lab.created(Bundle::shell("true"));
    let bundle = Bundle::shell("true");
    let path = bundle.path().to_str().unwrap();
    let second = lab.call(&["create", "--bundle", path, &first.id]);
    assert_ne!(second.code(), 0);
    assert!(second.err().contains("exist"), "{second:?}");
    assert_eq!(first.status(), "created");
}

fn create_refuses_odd_ids(lab: &Lab) {
    let bundle = Bundle::shell("true");
    let path = bundle.path().to_str().unwrap();
    for id in ["", ".", "..", "a/b", "../x"] {
        refused(lab, &["create", "--bundle", path, id]);
    }
}

fn create_does_not_start(lab: &Lab) {
    let container = lab.created(Bundle::shell("echo ran >/ran"));
    let ran = container.bundle.rootfs().join("ran");
    assert_eq!(container.status(), "created");
    assert!(!ran.exists());
    container.call("start").success();
    assert_eq!(container.wait(), 0);
    assert!(ran.exists());
}

fn create_refuses_bad_json(lab: &Lab) {
    let bundle = Bundle::shell("true");
    let path = bundle.path().to_str().unwrap();
    for text in ["", "{", "[]", "{\"ociVersion\": 1}"] {
        fs::write(bundle.path().join("config.json"), text).unwrap();
        refused(lab, &["create", "--bundle", path, &lab.unique_id()]);
    }
}

fn create_refuses_versions_to_come(lab: &Lab) {
    lab.refused(
        Bundle::shell("true").with("/ociVersion", json!("99.0.0")),
        &["version"],
    );
}

fn failed_create_frees_the_id(lab: &Lab) {
    let container = lab.container(Bundle::program(&["/bin/nothing"]));
    for _ in 0..2 {
        // runc looks for the program in create, crun in start.
        let create = container.create();
        if create.code == 0 {
            assert_ne!(container.call("start").code(), 0);
            container
                .lab
                .call(&["delete", "--force", &container.id])
                .success();
        } else {
            assert!(
                create.err.to_lowercase().contains("no such file"),
                "{create:?}"
            );
            refused(lab, &["state", &container.id]);
        }
    }
}

fn start_needs_an_id(lab: &Lab) {
    refused(lab, &["start"]);
}

fn start_of_nothing(lab: &Lab) {
    refused(lab, &["start", "nothing"]);
}

fn start_twice(lab: &Lab) {
    let container = lab.started(Bundle::shell(WAITS));
    refused(lab, &["start", &container.id]);
    assert_eq!(container.status(), "running");
}

fn start_after_the_end(lab: &Lab) {
    let container = lab.started(Bundle::shell("echo once"));
    container.wait();
    refused(lab, &["start", &container.id]);
    assert_eq!(
        (container.status().as_str(), container.out().as_str()),
        ("stopped", "once\n")
    );
}

fn state_needs_an_id(lab: &Lab) {
    refused(lab, &["state"]);
}

fn state_of_nothing(lab: &Lab) {
    let state = lab.call(&["state", "nothing"]);
    assert_ne!(state.code(), 0);
    assert!(state.err().contains("does not exist"), "{state:?}");
}

fn state_tells(lab: &Lab) {
    let container = lab.created(Bundle::shell("true").with("/annotations", json!({"a.b": "c"})));
    let state = container.state();
    assert!(
        state["ociVersion"]
            .as_str()
            .is_some_and(|version| version.starts_with("1.")),
        "{state}"
    );
    assert_eq!(state["id"], json!(container.id));
    assert_eq!(state["status"], json!("created"));
    assert_eq!(state["pid"], json!(container.pid().as_raw_nonzero().get()));
    let bundle = fs::canonicalize(container.bundle.path()).unwrap();
    assert_eq!(state["bundle"], json!(bundle));
    assert_eq!(state["annotations"]["a.b"], json!("c"));
}

fn state_through_a_life(lab: &Lab) {
    let container = lab.created(Bundle::shell(WAITS));
    assert_eq!(container.status(), "created");
    container.call("start").success();
    assert_eq!(container.status(), "running");
    container.kill("KILL").success();
    container.wait();
    assert_eq!(container.status(), "stopped");
    container.call("delete").success();
    refused(lab, &["state", &container.id]);
}

fn kill_needs_an_id(lab: &Lab) {
    refused(lab, &["kill"]);
}

fn kill_of_nothing(lab: &Lab) {
    refused(lab, &["kill", "nothing", "TERM"]);
}

fn kill_of_a_created_one(lab: &Lab) {
    let container = lab.created(Bundle::shell("true"));
    container.kill("KILL").success();
    assert_eq!(container.wait(), 128 + 9);
    assert_eq!(container.status(), "stopped");
}

fn kill_of_a_stopped_one(lab: &Lab) {
    let container = lab.started(Bundle::shell("true"));
    container.wait();
    let kill = container.kill("KILL");
    assert_ne!(kill.code(), 0);
    let expected = ["not running", "already finished", "no such process"];
    let said = kill.err().to_lowercase();
    assert!(expected.iter().any(|text| said.contains(text)), "{kill:?}");
    assert_eq!(container.status(), "stopped");
}

fn kill_by_any_name(lab: &Lab) {
    let script = "trap 'echo hup' HUP; trap 'echo usr1' USR1; trap 'echo winch' WINCH
        trap 'echo usr2; exit 3' USR2; echo up; while :; do sleep 1000 & wait $!; done";
    let container = lab.created(Bundle::shell(script));
    container.call("start").success();
    container.hear("up");
    // One after the other: a shell runs the traps of several in order of number.
    for (signal, said) in [("HUP", "hup"), ("SIGUSR1", "usr1"), ("28", "winch")] {
        container.kill(signal).success();
        container.hear(said);
    }
    container.kill("USR2").success();
    assert_eq!(container.wait(), 3);
    let out = container.out();
    let mut seen: Vec<_> = out.lines().collect();
    seen.sort_unstable();
    assert_eq!(seen, ["hup", "up", "usr1", "usr2", "winch"]);
}

fn kill_is_term_by_itself(lab: &Lab) {
    let container = lab.created(Bundle::shell(&format!(
        "trap 'exit 7' TERM; echo up; {WAITS}"
    )));
    container.call("start").success();
    container.hear("up");
    container.call("kill").success();
    assert_eq!(container.wait(), 7);
}

fn kill_all(lab: &Lab) {
    let script = "mkfifo /ready; (trap 'echo child >/said; exit' USR1; echo >/ready
        while :; do sleep 1000 & wait $!; done) &
        trap '' USR1; read x </ready; echo up; wait; cat /said; exit 4";
    let container = lab.created(Bundle::shell(script));
    container.call("start").success();
    container.hear("up");
    lab.call(&["kill", "--all", &container.id, "USR1"])
        .success();
    assert_eq!(container.wait(), 4);
    assert_eq!(container.out(), "up\nchild\n");
}

fn kill_of_a_bad_signal(lab: &Lab) {
    let container = lab.started(Bundle::shell(WAITS));
    for signal in ["NOSUCH", "-1", "1000"] {
        refused(lab, &["kill", &container.id, signal]);
    }
    assert_eq!(container.status(), "running");
}

fn delete_needs_an_id(lab: &Lab) {
    refused(lab, &["delete"]);
}

fn delete_of_nothing(lab: &Lab) {
    let delete = lab.call(&["delete", "nothing"]);
    assert_ne!(delete.code(), 0);
    assert!(delete.err().contains("does not exist"), "{delete:?}");
}

fn delete_by_force_of_nothing(lab: &Lab) {
    lab.call(&["delete", "--force", "nothing"]).success();
}

fn delete_of_a_running_one(lab: &Lab) {
    let container = lab.started(Bundle::shell(WAITS));
    refused(lab, &["delete", &container.id]);
    assert_eq!(container.status(), "running");
}

fn delete_by_force_of_a_running_one(lab: &Lab) {
    let container = lab.started(Bundle::shell(WAITS));
    lab.call(&["delete", "--force", &container.id]).success();
    assert_eq!(container.wait(), 128 + 9);
    refused(lab, &["state", &container.id]);
}

/// runc and others allow it, though the specification does not demand that.
fn delete_of_a_created_one(lab: &Lab) {
    let container = lab.created(Bundle::shell("true"));
    container.call("delete").success();
    container.wait();
    refused(lab, &["state", &container.id]);
}

fn delete_frees_the_id(lab: &Lab) {
    let container = lab.started(Bundle::shell("true"));
    container.wait();
    container.call("delete").success();
    assert_eq!(container.create().code, 0);
    container.call("start").success();
    assert_eq!(container.wait(), 0);
}

fn delete_removes_cgroups(lab: &Lab) {
    let container = lab.started(Bundle::shell("true"));
    let cgroup =
        |controller: &str| format!("/sys/fs/cgroup/{controller}{}", lab.cgroup(&container.id));
    assert!(fs::exists(cgroup("memory")).unwrap());
    container.wait();
    container.call("delete").success();
    for controller in ["memory", "cpu", "pids", "devices", "freezer", "systemd"] {
        assert!(!fs::exists(cgroup(controller)).unwrap(), "{controller}");
    }
}

fn delete_leaves_what_it_did_not_make(lab: &Lab) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::write(folder.path().join("file"), "kept").unwrap();
    let mount = json!({"destination": "/data", "type": "bind", "source": folder.path(), "options": ["rbind", "rw"]});
    let container = lab.started(Bundle::shell("true").mount(mount));
    container.wait();
    container.call("delete").success();
    assert_eq!(
        fs::read_to_string(folder.path().join("file")).unwrap(),
        "kept"
    );
    assert!(container.bundle.rootfs().join("bin/busybox").exists());
    assert!(container.bundle.path().join("config.json").exists());
}

fn pid_file(lab: &Lab) {
    let container = lab.created(Bundle::shell("true"));
    let text = fs::read_to_string(container.pid_file()).unwrap();
    assert_eq!(text, container.state()["pid"].to_string());
    assert!(fs::exists(format!("/proc/{text}")).unwrap());
}

fn exit_status_of_the_process(lab: &Lab) {
    let container = lab.started(Bundle::shell("exit 42"));
    assert_eq!(container.wait(), 42);
    let container = lab.started(Bundle::shell(WAITS));
    container.kill("9").success();
    assert_eq!(container.wait(), 128 + 9);
}

fn config_is_read_once(lab: &Lab) {
    let container = lab.created(Bundle::shell("echo as created; hostname"));
    let config = container.bundle.path().join("config.json");
    let changed = fs::read_to_string(&config)
        .unwrap()
        .replace("as created", "as changed")
        .replace("\"box\"", "\"xob\"");
    fs::write(&config, changed).unwrap();
    container.call("start").success();
    container.wait();
    assert_eq!(container.out(), "as created\nbox\n");
}

fn unknown_properties(lab: &Lab) {
    let bundle = Bundle::shell("echo ran")
        .with("/unknown", json!({"a": [1]}))
        .with("/process/unknown", json!("x"));
    assert_eq!(lab.output(bundle), "ran\n");
}

fn annotations(lab: &Lab) {
    let text = "x".repeat(1000);
    let bundle = Bundle::shell("echo ran")
        .with("/annotations", json!({"org.example.unknown": text, "": ""}));
    let bundle = bundle.with("/annotations", json!({"org.example.unknown": text}));
    assert_eq!(lab.output(bundle), "ran\n");
}

fn list(lab: &Lab) {
    let container = lab.created(Bundle::shell("true"));
    let all: serde_json::Value =
        serde_json::from_str(&lab.call(&["list", "--format", "json"]).success().out()).unwrap();
    let found = all
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["id"] == json!(container.id))
        .expect("it is listed");
    assert_eq!(found["status"], json!("created"));
    assert_eq!(found["pid"], json!(container.pid().as_raw_nonzero().get()));
    let names = lab.call(&["list", "--quiet"]).success().out();
    assert!(names.lines().any(|line| line == container.id), "{names}");
    let table = lab.call(&["list"]).success().out();
    assert!(
        table.starts_with("ID") || table.starts_with("NAME"),
        "{table}"
    );
}

fn pause_and_resume(lab: &Lab) {
    let container = lab.started(Bundle::shell(WAITS));
    container.call("pause").success();
    assert_eq!(container.status(), "paused");
    container.call("resume").success();
    assert_eq!(container.status(), "running");
    refused(lab, &["resume", &container.id]);
}

fn ps(lab: &Lab) {
    let container = lab.started(Bundle::shell(WAITS));
    let pids = lab
        .call(&["ps", "--format", "json", &container.id])
        .success()
        .out();
    let pids: Vec<i32> = serde_json::from_str(&pids).expect("a list of pids");
    assert!(
        pids.contains(&container.pid().as_raw_nonzero().get()),
        "{pids:?}"
    );
    assert!(
        pids.iter()
            .all(|pid| fs::exists(format!("/proc/{pid}")).unwrap()),
        "{pids:?}"
    );
}

fn killed_on_the_host(lab: &Lab) {
    let container = lab.started(Bundle::shell(WAITS));
    rustix::process::kill_process(container.pid(), rustix::process::Signal::KILL).unwrap();
    assert_eq!(container.wait(), 128 + 9);
    assert_eq!(container.status(), "stopped");
    container.call("delete").success();
}
