//! The machine's cgroup on the host.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::harness::{Bundle, Container, Finished, Runtime};

fn bundle(path: &str) -> Bundle {
    Bundle::program(&["sleep", "1000"])
        .with("/linux/cgroupsPath", json!(path))
        .with("/linux/resources/memory", json!({"limit": 64 << 20}))
        .with(
            "/linux/resources/cpu",
            json!({"shares": 512, "quota": 90_000, "period": 100_000}),
        )
        .with("/linux/resources/pids", json!({"limit": 20}))
}

fn unique(name: &str) -> String {
    format!("/vmrun-e2e-{name}-{}", std::process::id())
}

/// The folders of `path` in all hierarchies of this host.
fn folders(path: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let point = |line: &str| {
        let mut words = line.split(' ').skip(1);
        let (point, kind) = (words.next()?, words.next()?);
        let is_cgroup = kind == "cgroup" || kind == "cgroup2";
        is_cgroup.then(|| Path::new(point).join(path.trim_start_matches('/')))
    };
    let folders: Vec<_> = mounts.lines().filter_map(point).collect();
    assert!(!folders.is_empty());
    folders
}

/// The file, of cgroup v1 or v2, in whichever folder has it.
fn value(path: &str, files: [&str; 2]) -> String {
    let paths = folders(path);
    let mut paths = paths
        .iter()
        .flat_map(|folder| files.map(|file| folder.join(file)));
    let found = paths.find_map(|path| fs::read_to_string(path).ok());
    found
        .expect("a hierarchy with the controller")
        .trim()
        .to_owned()
}

const MEMORY: [&str; 2] = ["memory.limit_in_bytes", "memory.max"];
const PIDS: [&str; 2] = ["pids.max", "pids.max"];
const OVERHEAD_BYTES: u64 = 128 << 20;

#[test]
fn the_monitor_is_in_it_with_limits_until_it_is_deleted() {
    let path = unique("place") + "/inner";
    let container = Container::run(Runtime::Vmrun, bundle(&path));
    let own = fs::read_to_string(format!("/proc/{}/cgroup", container.pid())).unwrap();
    for line in own.lines() {
        assert!(line.ends_with(&path), "{line}");
    }
    let memory = || value(&path, MEMORY).parse::<u64>().unwrap();
    assert_eq!(memory(), (64 << 20) + OVERHEAD_BYTES);
    assert_eq!(value(&path, PIDS), "276");
    assert_eq!(
        value(&path, ["cpu.shares", "cpu.weight"])
            .parse::<u32>()
            .unwrap()
            / 512,
        1
    );

    let id = container.id();
    let update =
        |words: &[&str]| -> Finished { container.done(&[&["update"], words, &[id]].concat()) };
    update(&["--memory", "80m", "--pids-limit", "30"]).success();
    assert_eq!(
        (memory(), value(&path, PIDS)),
        ((80 << 20) + OVERHEAD_BYTES, "286".into())
    );
    let inside = container
        .exec(&[], "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max")
        .finish();
    // Only if the bundle shows it.
    assert!(
        inside.out().is_empty() || inside.out() == "83886080\n30\n",
        "{inside:?}"
    );
    // Nothing is changed by what cannot be, on the host or in the guest.
    let before = memory();
    let refused = update(&["--memory", "90m", "--cpuset-cpus", "1000"]);
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert_eq!(memory(), before);
    let refused = container
        .verb(&["update", "--resources", "-", id])
        .stdin(r#"{"memory": {"limit": 90000000}, "unified": {"memory.high": "x"}}"#)
        .finish();
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert_eq!(memory(), before);
    let resources = container
        .verb(&["update", "--resources", "-", id])
        .stdin(r#"{"pids": {"limit": 50}, "memory": {"limit": 0}}"#)
        .finish();
    resources.success();
    assert_eq!(
        (memory(), value(&path, PIDS)),
        ((80 << 20) + OVERHEAD_BYTES, "306".into())
    );
    // A period by itself is one of the quota that was set last.
    update(&["--cpu-quota", "30000"]).success();
    update(&["--cpu-period", "50000"]).success();
    let quota = value(&path, ["cpu.cfs_quota_us", "cpu.max"]);
    assert_eq!(quota.split(' ').next(), Some("30000"), "{quota}");

    container.done(&["delete", "--force", id]).success();
    for folder in folders(&path) {
        assert!(!folder.parent().unwrap().exists(), "{folder:?}");
    }
}

#[test]
fn what_was_there_stays() {
    let path = unique("kept");
    let kept = Kept(folders(&path));
    for folder in &kept.0 {
        fs::create_dir(folder).unwrap();
    }
    let container = Container::run(Runtime::Vmrun, bundle(&(path.clone() + "/c")));
    container
        .done(&["delete", "--force", container.id()])
        .success();
    for folder in &kept.0 {
        assert!(folder.exists() && !folder.join("c").exists(), "{folder:?}");
    }
}

/// Folders that are removed whatever comes of the test.
struct Kept(Vec<PathBuf>);

impl Drop for Kept {
    fn drop(&mut self) {
        for folder in &self.0 {
            let _ = fs::remove_dir(folder);
        }
    }
}

#[test]
fn a_monitor_that_was_killed_leaves_none() {
    let path = unique("killed");
    let container = Container::run(Runtime::Vmrun, bundle(&path));
    let pid = rustix::process::Pid::from_raw(container.pid()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    container
        .done(&["delete", "--force", container.id()])
        .success();
    assert!(folders(&path).iter().all(|folder| !folder.exists()));
}

#[test]
fn paths_that_cannot_be() {
    for (path, flags, text) in [
        ("/", &[][..], "top of the tree"),
        ("/a/../b", &[], "must not contain \"..\""),
        ("a.slice:b:c", &[], "needs --systemd-cgroup"),
        ("/a", &["--systemd-cgroup"], "ystemd"),
    ] {
        let container = Container::new(Runtime::Vmrun, bundle(path));
        let bundle = container.bundle().path().to_str().unwrap();
        let words = [flags, &["run", "--bundle", bundle, container.id()]].concat();
        let run = container.done(&words);
        assert_eq!(run.code(), 1, "{path}: {run:?}");
        assert!(run.err().contains(text), "{path}: {run:?}");
        assert_eq!(run.err().lines().count(), 1, "{run:?}");
    }
}
