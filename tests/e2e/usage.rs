//! What a container uses, and who runs in it.

use serde_json::Value;

use crate::harness::{Bundle, Container, Runtime};

fn idle(runtime: Runtime) -> Container {
    Container::run(runtime, Bundle::program(&["sleep", "1000"]))
}

fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    keys
}

#[test]
fn statistics_have_runcs_keys() {
    let events = Runtime::ALL.map(|runtime| {
        let container = idle(runtime);
        let events = container
            .done(&["events", "--stats", container.id()])
            .success();
        let event: Value = serde_json::from_slice(&events.stdout).unwrap();
        assert_eq!(event["type"], "stats");
        assert_eq!(event["id"], container.id());
        event
    });
    let [runc, vmrun] = &events;
    assert_eq!(keys(runc), keys(vmrun));
    assert_eq!(keys(&runc["data"]), keys(&vmrun["data"]));
    assert_eq!(vmrun["data"]["pids"]["current"], 1);
    for event in &events {
        let data = &event["data"];
        // `runc run --detach` returns a moment before its program runs.
        assert!(data["pids"]["current"].as_u64() >= Some(1), "{data}");
        assert!(
            data["memory"]["usage"]["usage"].as_u64() > Some(0),
            "{data}"
        );
        assert!(data["cpu"]["usage"]["total"].as_u64() > Some(0), "{data}");
    }
}

#[test]
fn a_stream_of_events_ends_with_the_container() {
    for runtime in Runtime::ALL {
        let container = idle(runtime);
        let events = container
            .verb(&["events", "--interval", "200ms", container.id()])
            .start();
        events.wait_for("\"type\":\"stats\"");
        container.done(&["kill", container.id(), "KILL"]).success();
        if runtime == Runtime::Vmrun {
            assert_eq!(events.finish().code(), 0);
        }
        let gone = container.done(&["events", "--stats", "none"]);
        assert_eq!(gone.code(), 1, "{runtime:?}");
        assert!(gone.err().contains("container does not exist"), "{gone:?}");
    }
}

#[test]
fn a_lack_of_memory_is_an_event() {
    let script = "read x </go; exec tail /dev/zero";
    let bundle = Bundle::shell(script).with(
        "/linux/resources/memory",
        serde_json::json!({"limit": 32 << 20}),
    );
    let go = bundle.rootfs().join("go");
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &go, kind, rustix::fs::Mode::RWXU, 0).unwrap();
    let container = Container::run(Runtime::Vmrun, bundle);
    let events = container
        .verb(&["events", "--interval", "100ms", container.id()])
        .start();
    events.wait_for("\"type\":\"stats\"");
    container.exec(&[], "echo >/go").finish().success();
    events.wait_for("\"type\":\"oom\"");
    assert_eq!(events.finish().code(), 0);
}

#[test]
fn processes() {
    for runtime in Runtime::ALL {
        let container = idle(runtime);
        let table = container.done(&["ps", container.id()]).success().out();
        let mut lines = table.lines();
        let columns: Vec<_> = lines.next().unwrap().split_whitespace().collect();
        let expected = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"];
        assert_eq!(columns, expected, "{runtime:?}");
        let process: Vec<_> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(process[0], "root", "{runtime:?}");
        // `runc run --detach` returns a moment before its program runs.
        if runtime == Runtime::Vmrun {
            assert_eq!(process[7..], ["sleep", "1000"]);
        }
        assert_eq!(lines.next(), None, "{runtime:?}");
        let json = container
            .done(&["ps", "-f", "json", container.id()])
            .success();
        let pids: Vec<i32> = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!(pids, [container.pid()], "{runtime:?}");
        let unknown = container.done(&["ps", "none"]);
        assert!(
            unknown.err().contains("container does not exist"),
            "{unknown:?}"
        );
    }
}
