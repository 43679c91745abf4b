//! Configurations with anything anywhere: every one is taken or refused by an error.

use proptest::prelude::*;
use serde_json::{Value, json};
use vmrun_oci::exec::load_process;
use vmrun_oci::explain::explain;
use vmrun_oci::load::parse;
use vmrun_oci::update::load_update;

/// What Docker writes, and beside it a value of every other property that is taken.
fn whole() -> Value {
    let mut config: Value =
        serde_json::from_str(include_str!("../testdata/docker-config.json")).unwrap();
    config["domainname"] = json!("d");
    config["annotations"] = json!({"a": "b"});
    config["hooks"] = json!({
        "prestart": [{"path": "/h", "args": ["a"], "env": ["A=b"], "timeout": 1}],
        "createRuntime": [{"path": "/h"}], "startContainer": [{"path": "/h"}],
        "poststart": [{"path": "/h"}], "poststop": [{"path": "/h"}]
    });
    let process = &mut config["process"];
    process["terminal"] = json!(true);
    process["consoleSize"] = json!({"height": 1, "width": 1});
    process["noNewPrivileges"] = json!(true);
    process["rlimits"] = json!([{"type": "RLIMIT_CPU", "soft": 1, "hard": 2}]);
    process["scheduler"] = json!({"policy": "SCHED_DEADLINE", "nice": 1, "runtime": 1,
        "deadline": 1, "period": 1, "flags": ["SCHED_FLAG_RESET_ON_FORK"]});
    process["ioPriority"] = json!({"class": "IOPRIO_CLASS_RT", "priority": 1});
    process["user"] = json!({"uid": 1, "gid": 1, "umask": 18, "additionalGids": [1],
        "username": "u"});
    let linux = &mut config["linux"];
    linux["personality"] = json!({"domain": "LINUX32"});
    linux["rootfsPropagation"] = json!("slave");
    linux["devices"] = json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229,
        "fileMode": 384, "uid": 0, "gid": 0}, {"path": "/dev/p", "type": "p"}]);
    linux["namespaces"] = json!([{"type": "mount"}, {"type": "pid"}, {"type": "ipc"},
        {"type": "network", "path": "/n"}, {"type": "uts"}, {"type": "time"}]);
    linux["timeOffsets"] = json!({"monotonic": {"secs": 1, "nanosecs": 1}});
    linux["resources"] = json!({
        "devices": [{"allow": true, "type": "c", "major": 1, "minor": -1, "access": "rw"}],
        "memory": {"limit": 1048576, "swap": 1048576, "reservation": 1, "swappiness": 1},
        "cpu": {"shares": 1, "quota": 1000, "period": 1000, "burst": 1, "idle": 1,
                "cpus": "0-1", "mems": "0"},
        "pids": {"limit": 1}, "blockIO": {"weight": 10},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
        "unified": {"memory.high": "1", "cpuset.cpus": "0"}
    });
    config
}

#[test]
fn the_whole_is_taken() {
    let container = parse(whole().to_string().as_bytes()).unwrap();
    assert_eq!(container.warnings, [""; 0]);
    let explanation = explain(whole().to_string().as_bytes()).unwrap();
    assert_eq!(explanation.refusals, []);
}

/// JSON pointers of everything in a value.
fn pointers(value: &Value, at: String, to: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                pointers(member, format!("{at}/{name}"), to);
            }
        }
        Value::Array(entries) => {
            // A long list is as good as a short one.
            for (i, entry) in entries.iter().enumerate().take(4) {
                pointers(entry, format!("{at}/{i}"), to);
            }
        }
        _ => {}
    }
    to.push(at);
}

/// Values that are at the borders of something.
fn odd_value() -> impl Strategy<Value = Value> {
    let texts = [
        "",
        "\0",
        "/",
        "..",
        "/..",
        "a\nb",
        "-1",
        "max",
        "0-",
        "9999999999-1",
        "é",
        "=",
        ":::",
        "SCMP_ACT_ERRNO",
        "CAP_KILL",
        "bind",
        "r",
        "\u{202e}",
    ];
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        prop_oneof![Just(0), Just(1), Just(-1), Just(i64::MAX), Just(i64::MIN)]
            .prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        proptest::sample::select(texts.to_vec()).prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        (0usize..70_000).prop_map(|len| Value::from("x".repeat(len))),
        Just(json!([])),
        Just(json!({})),
        (1usize..2000).prop_map(|len| json!(vec!["a"; len])),
        (1usize..200).prop_map(|len| json!(vec![json!({"a": 1}); len])),
    ]
}

fn every_reader(json: &[u8]) {
    let _ = parse(json);
    let _ = explain(json);
    if let Ok(container) = parse(whole().to_string().as_bytes()) {
        let _ = load_process(json, &container);
        let _ = load_update(json, &container);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]

    #[test]
    fn any_value_anywhere(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), odd_value()), 1..4)
    ) {
        let mut config = whole();
        for (index, value) in changes {
            let mut all = Vec::new();
            pointers(&config, String::new(), &mut all);
            let pointer = &all[index.index(all.len())];
            *config.pointer_mut(pointer).unwrap() = value;
        }
        every_reader(config.to_string().as_bytes());
        let container = parse(whole().to_string().as_bytes()).unwrap();
        let _ = load_process(config["process"].to_string().as_bytes(), &container);
        let resources = &config["linux"]["resources"];
        let _ = load_update(resources.to_string().as_bytes(), &container);
    }

    #[test]
    fn any_byte_anywhere(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        end in any::<prop::sample::Index>(),
    ) {
        let mut text = whole().to_string().into_bytes();
        for (index, byte) in changes {
            let at = index.index(text.len());
            text[at] = byte;
        }
        every_reader(&text);
        every_reader(&text[..end.index(text.len())]);
    }
}
