//! seccomp, scheduling, personality, clocks, hooks in the container, and what `explain`
//! and `spec` say about bundles, seen with real machines.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

use crate::harness::{Bundle, Launch, Runtime};

/// The profile that Docker gives to a container without further capabilities.
fn docker_profile() -> Value {
    let config = include_str!("../../src/oci/testdata/docker-config.json");
    let config: Value = serde_json::from_str(config).unwrap();
    config["linux"]["seccomp"].clone()
}

#[test]
fn dockers_profile_is_enforced_as_runc_does() {
    let script = "mkdir /tmp/made && echo made; unshare -n true 2>&1; echo $?; \
                  mount -t tmpfs t /tmp 2>&1; echo $?; grep Seccomp: /proc/self/status";
    let outputs = Runtime::ALL.map(|runtime| {
        let bundle = Bundle::shell(script)
            .with("/linux/seccomp", docker_profile())
            .with("/root/readonly", json!(false));
        let run = runtime.run(&bundle).success();
        run.out()
    });
    assert_eq!(outputs[0], outputs[1]);
    assert!(outputs[0].contains("Seccomp:\t2\n"), "{}", outputs[0]);
    assert!(
        outputs[0].contains("Operation not permitted"),
        "{}",
        outputs[0]
    );
}

#[test]
fn a_forbidden_call_ends_the_program_as_with_runc() {
    for (action, code) in [("SCMP_ACT_KILL_PROCESS", 128 + 31), ("SCMP_ACT_ERRNO", 1)] {
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": action}]});
        for runtime in Runtime::ALL {
            let bundle = Bundle::program(&["mkdir", "/tmp/x"])
                .with("/linux/seccomp", profile.clone())
                .with("/root/readonly", json!(false));
            let run = runtime.run(&bundle);
            assert_eq!(run.code(), code, "{runtime:?} {action}: {run:?}");
        }
    }
}

#[test]
fn what_newer_specifications_have() {
    let script = "ionice -p $$; uname -m; cut -d. -f1 /proc/uptime; \
                  cut -d' ' -f19,41 /proc/self/stat; cat /kept/file; echo x >>/kept/file";
    let bundle = Bundle::shell(script)
        .with(
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0}),
        )
        .with(
            "/process/scheduler",
            json!({"policy": "SCHED_BATCH", "nice": 5}),
        )
        .with("/linux/personality", json!({"domain": "LINUX32"}))
        .with(
            "/linux/namespaces",
            json!([{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "mount"},
                   {"type": "uts"}, {"type": "time"}]),
        )
        .with(
            "/linux/timeOffsets",
            json!({"boottime": {"secs": 5_000_000}}),
        )
        .mount(
            json!({"destination": "/kept", "type": "tmpfs", "source": "t",
                      "options": ["tmpcopyup", "size=64k"]}),
        );
    let kept = bundle.rootfs().join("kept");
    fs::create_dir(&kept).unwrap();
    fs::write(kept.join("file"), "of the image\n").unwrap();
    let out = Runtime::Vmrun.run(&bundle).success().out();
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[0], "idle");
    assert_eq!(lines[1], "i686");
    let uptime: u64 = lines[2].parse().unwrap();
    assert!((5_000_000..5_010_000).contains(&uptime), "{out}");
    // Nice value and policy.
    assert_eq!(lines[3], "5 3");
    assert_eq!(lines[4], "of the image");
    let after = fs::read_to_string(kept.join("file")).unwrap();
    assert_eq!(after, "of the image\n", "the image is not changed");
}

/// vmrun with these arguments: exit code, standard output and standard error.
fn vmrun(args: &[&str]) -> (i32, String, String) {
    let run = Launch::vmrun(args).finish();
    (run.code(), run.out(), run.err())
}

#[test]
fn explain_and_run_agree() {
    let bundle = Bundle::shell("echo never");
    let path = bundle.path().to_str().unwrap().to_owned();
    let (code, out, _) = vmrun(&["explain", &path]);
    assert_eq!(code, 0, "{out}");
    assert!(out.ends_with("The container can be made.\n"), "{out}");
    let bundle = bundle
        .with("/vm", json!({"kernel": {"path": "/vmlinux"}}))
        .with("/process/oomScoreAdj", json!(1001));
    let (code, out, _) = vmrun(&["explain", &path]);
    assert_eq!(code, 1, "{out}");
    let (_, refused) = out.split_once("The container is refused:\n").unwrap();
    let first: Vec<_> = refused.split_whitespace().take(2).collect();
    assert_eq!(first, ["vm", "refused"]);
    assert!(refused.contains("\nprocess.oomScoreAdj "), "{out}");
    let run = Runtime::Vmrun.run(&bundle);
    assert!(run.err().contains("vm: not supported"), "{run:?}");
    let (code, _, err) = vmrun(&["explain", "/nonexistent"]);
    assert_eq!((code, err.lines().count()), (1, 1), "{err}");
}

#[test]
fn what_spec_writes_runs_under_runc_too() {
    for flags in [&["spec"][..], &["spec", "--rootless"]] {
        let bundle = Bundle::shell("unused");
        let config = bundle.path().join("config.json");
        fs::remove_file(&config).unwrap();
        let args = [flags, &["-b", bundle.path().to_str().unwrap()]].concat();
        assert_eq!(vmrun(&args), (0, String::new(), String::new()));
        let (code, _, err) = vmrun(&args);
        assert_eq!(code, 1);
        assert!(err.contains("exists: remove it first"), "{err}");
        let written: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        let bundle = bundle
            .with("", written)
            .with("/process/terminal", json!(false))
            .with("/process/args", json!(["echo", "hello"]));
        for runtime in Runtime::ALL {
            let run = runtime.run(&bundle).success();
            assert_eq!(run.out(), "hello\n", "{runtime:?}");
        }
    }
}

#[test]
fn features_are_json() {
    let (code, out, _) = vmrun(&["features"]);
    assert_eq!(code, 0);
    let features: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(features["ociVersionMin"], "1.0.0");
    assert_eq!(features["linux"]["seccomp"]["enabled"], true);
}

#[test]
fn ids_are_mapped_as_by_runc() {
    const ROOT: u32 = 100_000;
    let script = "cat /proc/self/uid_map /proc/self/gid_map; id -u; id -g; stat -c %u:%g /bin; \
                  echo x >/tmp/made && stat -c %u:%g /tmp/made; stat -c %u /etc";
    for runtime in Runtime::ALL {
        let mapping = json!([{"containerID": 0, "hostID": ROOT, "size": 65_536}]);
        let bundle = Bundle::shell(script)
            .with("/root/readonly", json!(false))
            .with(
                "/linux/namespaces",
                json!([{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "mount"},
                       {"type": "uts"}, {"type": "user"}]),
            )
            .with("/linux/uidMappings", mapping.clone())
            .with("/linux/gidMappings", mapping);
        // As an engine makes it: but for /etc, which is nobody's of the container.
        for folder in ["", "bin", "dev", "proc", "root", "sys", "tmp"] {
            let path = bundle.rootfs().join(folder);
            std::os::unix::fs::chown(path, Some(ROOT), Some(ROOT)).unwrap();
        }
        let run = runtime.run(&bundle).success();
        let words: Vec<_> = run.out().split_whitespace().map(str::to_owned).collect();
        assert_eq!(
            words.join(" "),
            "0 100000 65536 0 100000 65536 0 0 0:0 0:0 65534",
            "{runtime:?}"
        );
        let made = fs::metadata(bundle.rootfs().join("tmp/made")).unwrap();
        assert_eq!((made.uid(), made.gid()), (ROOT, ROOT), "{runtime:?}");
    }
}

#[test]
fn hooks_in_the_container_read_its_state_as_with_runc() {
    for runtime in Runtime::ALL {
        let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", "cat >/tmp/state; pwd"],
                          "env": ["PATH=/bin"]});
        let bundle = Bundle::shell("cat /tmp/state")
            .with("/root/readonly", json!(false))
            .with("/annotations", json!({"a.b": "c"}))
            .with("/hooks", json!({"startContainer": [hook]}));
        let out = runtime.run(&bundle).success().out();
        let state: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
        assert_eq!(state["status"], "created", "{runtime:?}: {out}");
        assert_eq!(state["pid"], 1, "{runtime:?}: {out}");
        assert_eq!(state["annotations"]["a.b"], "c", "{runtime:?}: {out}");
    }
}
