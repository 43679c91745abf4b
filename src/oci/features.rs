//! What this version understands, in the form of features.md of the specification:
//! only what is done is listed.

use serde_json::{Value, json};

use crate::{capabilities, mount_options, version};

/// The document of `vmrun features`; `annotations` are the program's own.
pub fn features(annotations: Value) -> Value {
    let mut mount_options: Vec<_> = mount_options::understood().collect();
    mount_options.sort();
    let disabled = json!({"enabled": false});
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": version::SPEC,
        "hooks": ["prestart", "createRuntime", "startContainer", "poststart", "poststop"],
        "mountOptions": mount_options,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities::names(),
            "cgroup": {
                "v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": false
            },
            "seccomp": seccomp(),
            "apparmor": disabled,
            "selinux": disabled,
            "intelRdt": disabled,
            "memoryPolicy": {"modes": [], "flags": []},
            "mountExtensions": {"idmap": disabled},
            "netDevices": disabled,
        },
        "annotations": annotations,
        "potentiallyUnsafeConfigAnnotations": [],
    })
}

fn seccomp() -> Value {
    json!({
        "enabled": true,
        "actions": [
            "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
            "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"
        ],
        "operators": [
            "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
            "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"
        ],
        "archs": ["SCMP_ARCH_X86_64"],
        "knownFlags": [
            "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
            "SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
        ],
        "supportedFlags": [
            "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
            "SECCOMP_FILTER_FLAG_TSYNC"
        ]
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::parse;
    use oci_spec::runtime::Features;

    const CONFIG: &str = include_str!("testdata/runc-spec.json");

    /// What a config.json with this change comes to.
    fn accepted(pointer: &str, value: Value) -> Result<(), String> {
        let mut config: Value = serde_json::from_str(CONFIG).unwrap();
        let (parent, member) = pointer.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap()[member] = value;
        parse(config.to_string().as_bytes())
            .map(drop)
            .map_err(|e| e.to_string())
    }

    fn strings(of: &Value) -> Vec<&str> {
        of.as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_str().unwrap())
            .collect()
    }

    #[test]
    fn it_has_the_specifications_form() {
        let features: Features = serde_json::from_value(features(json!({"a": "b"}))).unwrap();
        assert_eq!(features.oci_version_max(), "1.3.0");
        assert_eq!(
            features
                .linux()
                .as_ref()
                .unwrap()
                .capabilities()
                .as_ref()
                .unwrap()
                .len(),
            41
        );
    }

    /// Every list against the parser: what is listed is taken, what is not is refused.
    #[test]
    fn it_is_true() {
        let features = features(Value::Null);
        let hooks = strings(&features["hooks"]);
        for hook in [
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
            "poststart",
            "poststop",
        ] {
            let taken = accepted("/hooks", json!({hook: [{"path": "/x"}]}));
            assert_eq!(taken.is_ok(), hooks.contains(&hook), "{hook}: {taken:?}");
        }
        let linux = &features["linux"];
        let namespaces = strings(&linux["namespaces"]);
        for name in [
            "cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts",
        ] {
            let mut all = vec!["mount", "pid", "network", "ipc", name];
            all.sort_unstable();
            all.dedup();
            let list: Vec<_> = all.iter().map(|n| json!({"type": n})).collect();
            let mut config: Value = serde_json::from_str(CONFIG).unwrap();
            config["hostname"] = json!("");
            config["linux"]["namespaces"] = json!(list);
            let mappings = json!([{"containerID": 0, "hostID": 0, "size": 9}]);
            if name == "user" {
                config["linux"]["uidMappings"] = mappings.clone();
                config["linux"]["gidMappings"] = mappings;
            }
            let taken = parse(config.to_string().as_bytes());
            assert_eq!(
                taken.is_ok(),
                namespaces.contains(&name),
                "{name}: {taken:?}"
            );
        }
        for option in strings(&features["mountOptions"]) {
            let taken = accepted("/mounts/1/options", json!([option]));
            assert_eq!(taken, Ok(()), "{option}");
        }
        let seccomp = &linux["seccomp"];
        let actions = strings(&seccomp["actions"]);
        for action in [
            "ALLOW",
            "ERRNO",
            "KILL",
            "KILL_PROCESS",
            "KILL_THREAD",
            "LOG",
            "NOTIFY",
            "TRACE",
            "TRAP",
        ] {
            let action = format!("SCMP_ACT_{action}");
            let taken = accepted("/linux/seccomp", json!({"defaultAction": action}));
            assert_eq!(
                taken.is_ok(),
                actions.contains(&action.as_str()),
                "{action}: {taken:?}"
            );
        }
        for op in strings(&seccomp["operators"]) {
            let rule = json!({"names": ["read"], "action": "SCMP_ACT_TRAP",
                              "args": [{"index": 0, "value": 1, "op": op}]});
            let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
            assert_eq!(accepted("/linux/seccomp", profile), Ok(()), "{op}");
        }
        for flag in strings(&seccomp["knownFlags"]) {
            let profile = json!({"defaultAction": "SCMP_ACT_LOG", "flags": [flag]});
            assert_eq!(accepted("/linux/seccomp", profile), Ok(()), "{flag}");
        }
        let sets = json!({"bounding": linux["capabilities"]});
        assert_eq!(accepted("/process/capabilities", sets), Ok(()));
        for (pointer, value) in [
            ("/linux/intelRdt", json!({"closID": "x"})),
            ("/linux/netDevices", json!({"eth0": {"name": "x"}})),
            (
                "/linux/memoryPolicy",
                json!({"mode": "MPOL_BIND", "nodes": "0"}),
            ),
            (
                "/mounts/0/uidMappings",
                json!([{"containerID": 0, "hostID": 1, "size": 1}]),
            ),
        ] {
            assert!(accepted(pointer, value).is_err(), "{pointer}");
        }
    }
}
