//! What config.json says about the process, its user and its namespaces, seen from
//! inside.

use std::fs;
use std::sync::LazyLock;

use serde_json::json;

use crate::harness::{Bundle, Runtime, Sections};

/// One process tells what it sees, by the shell's own means: processes are slow.
const SCRIPT: &str = r#"
dump() { while IFS= read -r line || [ -n "$line" ]; do printf '%s\n' "$line"; done <"$1"; }
echo "== args"; for a in "$0" "$@"; do printf '<%s>\n' "$a"; done
echo "== env"; export
echo "== cwd"; pwd
echo "== umask"; umask
echo "== pid"; echo $$
echo "== status"; dump /proc/self/status
echo "== limits"; dump /proc/self/limits
echo "== oom"; dump /proc/self/oom_score_adj
echo "== hostname"; dump /proc/sys/kernel/hostname
echo "== domainname"; dump /proc/sys/kernel/domainname
echo "== sysctl"; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax
echo "== net"; dump /proc/net/dev
echo "== processes"; for p in /proc/[0-9]*; do echo "$p"; done
echo "== fds"; for f in /proc/self/fd/*; do echo "$f"; done
"#;

fn all() -> &'static [(Runtime, Sections)] {
    static SEEN: LazyLock<Vec<(Runtime, Sections)>> = LazyLock::new(|| {
        let bundle = Bundle::program(&["sh", "-c", SCRIPT, "zero", "one two", "", "ä*\"$x"])
            .with(
                "/process/env",
                json!(["PATH=/bin", "A=b c", "EMPTY=", "UTF=ä"]),
            )
            .with("/process/cwd", json!("/tmp"))
            .with(
                "/process/user",
                json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 1002], "umask": 0o27}),
            )
            .with(
                "/process/rlimits",
                json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
                       {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
                       {"type": "RLIMIT_STACK", "soft": 1 << 20, "hard": 2 << 20}]),
            )
            .with("/process/oomScoreAdj", json!(300))
            .with(
                "/process/capabilities",
                json!({"bounding": ["CAP_KILL", "CAP_CHOWN"], "permitted": ["CAP_KILL"],
                       "inheritable": ["CAP_KILL"], "effective": ["CAP_KILL"],
                       "ambient": ["CAP_KILL"]}),
            )
            .with("/hostname", json!("inside"))
            .with("/domainname", json!("example.org"))
            .with(
                "/linux/sysctl",
                json!({"net.ipv4.ip_unprivileged_port_start": "80", "kernel.msgmax": "9000"}),
            );
        let run = |runtime: Runtime| (runtime, runtime.run(&bundle).success().sections());
        Runtime::ALL.map(run).to_vec()
    });
    &SEEN
}

/// The value behind `name` in a section of lines `name: value`.
fn field<'a>(sections: &'a Sections, section: &str, name: &str) -> &'a str {
    let mut lines = sections[section].lines();
    let line = lines.find(|line| line.starts_with(name));
    line.map_or("missing", |line| line[name.len()..].trim())
}

#[test]
fn args_arrive_as_they_are() {
    for (runtime, seen) in all() {
        assert_eq!(
            seen["args"], "<zero>\n<one two>\n<>\n<ä*\"$x>\n",
            "{runtime:?}"
        );
    }
}

#[test]
fn the_environment_is_that_of_config_json() {
    for (runtime, seen) in all() {
        let names = |line: &str| line.split(['=', ' ']).nth(1).unwrap_or("").to_owned();
        let mut found: Vec<_> = seen["env"].lines().map(names).collect();
        // Made by the shell itself; HOME by runc.
        found.retain(|name| !["PWD", "OLDPWD", "SHLVL", "HOME", "_"].contains(&name.as_str()));
        assert_eq!(found, ["A", "EMPTY", "PATH", "UTF"], "{runtime:?}");
        assert!(seen["env"].contains("A='b c'"), "{runtime:?}");
    }
}

#[test]
fn working_folder_and_umask() {
    for (runtime, seen) in all() {
        assert_eq!(seen["cwd"], "/tmp\n", "{runtime:?}");
        assert_eq!(seen["umask"], "0027\n", "{runtime:?}");
    }
}

#[test]
fn user_and_groups() {
    for (runtime, seen) in all() {
        let ids = |name| field(seen, "status", name).split_whitespace();
        assert!(ids("Uid:").eq(["1000"; 4]), "{runtime:?}");
        assert!(ids("Gid:").eq(["1001"; 4]), "{runtime:?}");
        let groups: Vec<_> = ids("Groups:").filter(|g| *g != "1001").collect();
        assert_eq!(groups, ["5", "1002"], "{runtime:?}");
    }
}

#[test]
fn capabilities_are_those_listed() {
    const KILL: u64 = 1 << 5;
    const CHOWN: u64 = 1 << 0;
    for (runtime, seen) in all() {
        let set = |name| u64::from_str_radix(field(seen, "status", name), 16).unwrap();
        assert_eq!(set("CapBnd:"), KILL | CHOWN, "{runtime:?}");
        for name in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(set(name), KILL, "{runtime:?} {name}");
        }
    }
}

#[test]
fn no_new_privileges() {
    for (runtime, seen) in all() {
        assert_eq!(field(seen, "status", "NoNewPrivs:"), "1", "{runtime:?}");
    }
}

#[test]
fn rlimits() {
    for (runtime, seen) in all() {
        let limits = |name| field(seen, "limits", name).split_whitespace().take(2);
        assert!(limits("Max open files").eq(["100", "200"]), "{runtime:?}");
        assert!(limits("Max core file size").eq(["0", "0"]), "{runtime:?}");
        let stack = limits("Max stack size");
        assert!(stack.eq(["1048576", "2097152"]), "{runtime:?}");
    }
}

#[test]
fn oom_score_adj() {
    for (runtime, seen) in all() {
        assert_eq!(seen["oom"], "300\n", "{runtime:?}");
    }
}

#[test]
fn names_of_the_host_and_domain() {
    for (runtime, seen) in all() {
        assert_eq!(seen["hostname"], "inside\n", "{runtime:?}");
        // Debian 12's runc does not know the property yet.
        if *runtime == Runtime::Vmrun {
            assert_eq!(seen["domainname"], "example.org\n");
        }
    }
}

#[test]
fn sysctls_of_namespaces() {
    for (runtime, seen) in all() {
        assert_eq!(seen["sysctl"], "80\n9000\n", "{runtime:?}");
    }
}

#[test]
fn namespaces_show_only_the_container() {
    for (runtime, seen) in all() {
        assert_eq!(seen["pid"], "1\n", "{runtime:?}");
        assert_eq!(seen["processes"], "/proc/1\n", "{runtime:?}");
        let devices = seen["net"].lines().skip(2);
        let names: Vec<_> = devices.filter_map(|line| line.split(':').next()).collect();
        assert_eq!(names.len(), 1, "{runtime:?}: {names:?}");
        assert_eq!(names[0].trim(), "lo", "{runtime:?}");
    }
}

#[test]
fn no_descriptor_but_the_three_streams() {
    for (runtime, seen) in all() {
        // The shell has its own for the folder that it reads.
        let fds = seen["fds"].lines().map(|f| f.rsplit('/').next().unwrap());
        let fds: Vec<u32> = fds.filter_map(|f| f.parse().ok()).collect();
        assert!(
            fds.starts_with(&[0, 1, 2]) && fds.len() <= 4,
            "{runtime:?}: {fds:?}"
        );
    }
}

#[test]
fn a_user_by_name_is_looked_up_inside() {
    let bundle = Bundle::shell("while read -r l; do echo \"$l\"; done </proc/self/status").with(
        "/process/user",
        json!({"uid": 0, "gid": 0, "username": "eve"}),
    );
    let passwd = "root:x:0:0:root:/root:/bin/sh\neve:x:1234:1235::/:/bin/sh\n";
    fs::write(bundle.rootfs().join("etc/passwd"), passwd).unwrap();
    let run = Runtime::Vmrun.run(&bundle).success();
    assert!(
        run.out().contains("Uid:\t1234\t1234\t1234\t1234\n"),
        "{run:?}"
    );
    assert!(
        run.out().contains("Gid:\t1235\t1235\t1235\t1235\n"),
        "{run:?}"
    );
}
