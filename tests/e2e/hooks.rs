//! Hooks on the host. The same cases are put to runc.

use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::harness::{Bundle, Container, Runtime};

/// A hook that runs `script` of the host's shell.
fn hook(script: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]})
}

fn bundle() -> Bundle {
    Bundle::program(&["sleep", "1000"])
}

/// `create` with nothing on its streams but errors; its exit code and those.
fn create(container: &Container) -> (i32, String) {
    let errors = container.path("errors");
    let bundle = container.bundle().path().to_str().unwrap();
    let run = container
        .verb(&["create", "--bundle", bundle, container.id()])
        .stdout(Stdio::null())
        .detached_stderr(&errors)
        .finish();
    (run.code(), fs::read_to_string(errors).unwrap())
}

#[test]
fn order_and_state() {
    for runtime in Runtime::ALL {
        let folder = tempfile::tempdir().unwrap();
        let note = |name: &str| {
            let folder = folder.path().display();
            hook(&format!(
                "cat >{folder}/{name}; echo {name} >>{folder}/order"
            ))
        };
        let bundle = bundle()
            .with("/hooks/prestart", json!([note("prestart"), note("second")]))
            .with("/hooks/createRuntime", json!([note("createRuntime")]))
            .with("/hooks/poststart", json!([note("poststart")]))
            .with("/hooks/poststop", json!([note("poststop")]))
            .with("/annotations", json!({"a.b": "c"}));
        let container = Container::new(runtime, bundle);
        let (code, errors) = create(&container);
        assert_eq!(code, 0, "{runtime:?}: {errors}");
        let pid = container.pid();
        container.done(&["start", container.id()]).success();
        container
            .done(&["delete", "--force", container.id()])
            .success();
        let text = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        let mut order: Vec<String> = text("order").lines().map(str::to_owned).collect();
        // runc 1.1 runs poststart within create, as it should not.
        if runtime == Runtime::Vmrun {
            let expected = [
                "prestart",
                "second",
                "createRuntime",
                "poststart",
                "poststop",
            ];
            assert_eq!(order, expected);
        }
        order.sort();
        assert_eq!(order.len(), 5, "{runtime:?}");
        for (name, status) in [
            ("prestart", "creating"),
            ("createRuntime", "creating"),
            ("poststart", "running"),
            ("poststop", "stopped"),
        ] {
            let state: Value = serde_json::from_str(&text(name)).unwrap();
            assert_eq!(state["id"], container.id(), "{runtime:?} {name}");
            let path = container.bundle().path();
            assert_eq!(
                state["bundle"],
                path.to_str().unwrap(),
                "{runtime:?} {name}"
            );
            assert_eq!(state["annotations"]["a.b"], "c", "{runtime:?} {name}");
            if name == "poststop" {
                assert!(matches!(state["pid"].as_i64(), None | Some(0)), "{state}");
            } else {
                assert_eq!(state["pid"], pid, "{runtime:?} {name}");
            }
            if runtime == Runtime::Vmrun {
                assert_eq!(state["status"], status, "{name}");
            }
        }
    }
}

#[test]
fn a_hook_finds_the_network_namespace() {
    for runtime in Runtime::ALL {
        let folder = tempfile::tempdir().unwrap();
        // As Docker's does: by the pid of the state.
        let script = format!(
            "pid=$(grep -o '\"pid\": *[0-9]*' | grep -o '[0-9]*$'); \
             readlink /proc/$pid/ns/net /proc/self/ns/net >{}/net; \
             nsenter --net=/proc/$pid/ns/net ip -o link >{0}/links",
            folder.path().display()
        );
        let bundle = bundle().with("/hooks/prestart", json!([hook(&script)]));
        let container = Container::new(runtime, bundle);
        let (code, errors) = create(&container);
        assert_eq!(code, 0, "{runtime:?}: {errors}");
        let text = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        let namespaces = text("net");
        let (theirs, ours) = namespaces.trim().split_once('\n').unwrap();
        assert_ne!(theirs, ours, "{runtime:?}");
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        assert_eq!(own.to_str(), Some(ours), "{runtime:?}");
        assert!(text("links").contains(": lo: "), "{runtime:?}");
        let link = format!("/proc/{}/ns/net", container.pid());
        let now = fs::read_link(link).unwrap();
        assert_eq!(now.to_str(), Some(theirs), "{runtime:?}");
    }
}

#[test]
fn a_failed_hook_fails_create() {
    for runtime in Runtime::ALL {
        for list in ["prestart", "createRuntime"] {
            let failing = hook("echo told >&2; exit 3");
            let bundle = bundle().with(&format!("/hooks/{list}"), json!([failing]));
            let container = Container::new(runtime, bundle);
            let (code, errors) = create(&container);
            assert_eq!(code, 1, "{runtime:?}: {errors}");
            for text in ["hook #0", "exit status 3", "told"] {
                assert!(errors.contains(text), "{runtime:?} {list}: {errors}");
            }
            let state = container.done(&["state", container.id()]);
            assert!(
                state.err().contains("does not exist"),
                "{runtime:?}: {state:?}"
            );
        }
    }
}

#[test]
fn a_hook_that_takes_too_long_is_killed() {
    for runtime in Runtime::ALL {
        let mut slow = hook("exec sleep 3600");
        slow["timeout"] = json!(1);
        let bundle = bundle().with("/hooks/prestart", json!([slow]));
        let container = Container::new(runtime, bundle);
        let (code, errors) = create(&container);
        assert_eq!(code, 1, "{runtime:?}: {errors}");
        assert!(errors.contains("timeout of 1"), "{runtime:?}: {errors}");
    }
}

#[test]
fn a_failed_poststop_hook_is_only_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let after = hook(&format!(">{}/after", folder.path().display()));
    let bundle = bundle().with("/hooks/poststop", json!([hook("exit 1"), after]));
    let container = Container::run(Runtime::Vmrun, bundle);
    container
        .done(&["delete", "--force", container.id()])
        .success();
    assert!(folder.path().join("after").exists());
}
