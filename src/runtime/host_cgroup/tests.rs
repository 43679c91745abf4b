use super::*;
use std::fs;
use std::path::Path;
use vmrun_oci::resources::Limit;

/// A tree of files that looks like cgroup v2, with what `own` is in.
struct Fake {
    folder: tempfile::TempDir,
    layout: Layout,
}

const V2_FILES: [&str; 10] = [
    "cgroup.procs",
    "cgroup.controllers",
    "cgroup.subtree_control",
    "memory.max",
    "memory.swap.max",
    "memory.low",
    "cpu.weight",
    "cpu.max",
    "pids.max",
    "io.weight",
];

impl Fake {
    fn v2(own: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mountinfo = format!("1 1 0:1 / {} rw - cgroup2 c rw\n", folder.path().display());
        Self {
            layout: Layout::parse(&mountinfo, &format!("0::{own}\n")),
            folder,
        }
    }

    /// What the kernel puts into each cgroup.
    fn fill(&self, inner: &str) {
        let folder = self.folder.path().join(inner);
        fs::create_dir_all(&folder).unwrap();
        for file in V2_FILES {
            fs::write(folder.join(file), "").unwrap();
        }
        fs::write(folder.join("cgroup.controllers"), "cpu io memory pids\n").unwrap();
        fs::write(folder.join("cpu.max"), "max 100000\n").unwrap();
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.folder.path().join(path)).unwrap()
    }

    fn plan(&self, path: Option<&str>) -> Result<HostCgroup, CgroupError> {
        HostCgroup::plan_in(&self.layout, &asked(path)).map(Option::unwrap)
    }
}

fn asked(path: Option<&str>) -> Asked<'_> {
    Asked {
        id: "c1",
        path,
        driver: Driver::Cgroupfs,
        overhead_mib: 1,
    }
}

fn limits() -> HostLimits {
    HostLimits {
        memory: Some(Limit::At(1 << 20)),
        memory_and_swap: Some(Limit::At(3 << 20)),
        cpu_shares: Some(1024),
        cpu_quota_us: Some(Limit::At(50_000)),
        pids: Some(Limit::At(10)),
        blkio_weight: Some(1000),
        ..HostLimits::default()
    }
}

#[test]
fn limits_of_v2_are_written_and_set_back() {
    let fake = Fake::v2("/");
    fake.fill("a/b");
    let cgroup = fake.plan(Some("/a/b")).unwrap();
    let undo = cgroup.update(&limits()).unwrap();
    for (file, value) in [
        ("memory.max", "2097152"),
        ("memory.swap.max", "2097152"),
        ("cpu.weight", "100"),
        ("cpu.max", "50000 100000"),
        ("pids.max", "266"),
        ("io.weight", "10000"),
    ] {
        assert_eq!(fake.text(&format!("a/b/{file}")), value, "{file}");
    }
    undo.run();
    assert!(fake.text("a/b/cpu.max").starts_with("max 100000"));
}

#[test]
fn the_first_that_fails_sets_back_those_before() {
    let fake = Fake::v2("/");
    fake.fill("a");
    fs::write(fake.folder.path().join("a/memory.max"), "7\n").unwrap();
    let pids = fake.folder.path().join("a/pids.max");
    fs::remove_file(&pids).unwrap();
    fs::create_dir(&pids).unwrap();
    let cgroup = fake.plan(Some("/a")).unwrap();
    let error = cgroup.update(&limits()).unwrap_err();
    assert!(matches!(error, CgroupError::Limit { .. }), "{error}");
    assert!(fake.text("a/memory.max").starts_with("7\n"));
}

#[test]
fn a_missing_controller_is_left_to_the_guest() {
    let fake = Fake::v2("/");
    fake.fill("a");
    fs::write(fake.folder.path().join("a/cgroup.controllers"), "pids\n").unwrap();
    let cgroup = fake.plan(Some("/a")).unwrap();
    let _undo = cgroup.update(&limits()).unwrap();
    assert!(fake.text("a/pids.max").starts_with("266"));
    assert_eq!(fake.text("a/memory.max"), "");
}

#[test]
fn controllers_are_enabled_on_the_way_down() {
    let fake = Fake::v2("/x/own");
    fake.fill("");
    fake.fill("x");
    fake.fill("x/c/d");
    let cgroup = fake.plan(Some("c/d")).unwrap();
    cgroup.make(&HostLimits::default()).unwrap();
    assert_eq!(fake.text("cgroup.subtree_control"), "+pids");
    assert_eq!(fake.text("x/cgroup.subtree_control"), "+pids");
    assert_eq!(fake.text("x/c/d/cgroup.subtree_control"), "");
}

fn places(fake: &Fake, path: Option<&str>) -> String {
    let cgroup = fake.plan(path).unwrap();
    let (name, path) = cgroup.paths().next().unwrap();
    assert_eq!(name, "");
    let inner = path.strip_prefix(fake.folder.path()).unwrap();
    inner.to_str().unwrap().to_owned()
}

#[test]
fn places_are_runcs() {
    let fake = Fake::v2("/x/own");
    assert_eq!(places(&fake, Some("/docker/1")), "docker/1");
    assert_eq!(places(&fake, Some("docker//1/")), "x/docker/1");
    assert_eq!(places(&fake, None), "x/vmrun-c1");
    for bad in ["/", "//", ".", "a.slice:b:c", ":b:c"] {
        assert!(fake.plan(Some(bad)).is_err(), "{bad}");
    }
}

#[test]
fn what_was_there_stays() {
    let fake = Fake::v2("/");
    let top = fake.folder.path();
    fs::create_dir(top.join("a")).unwrap();
    let cgroup = fake.plan(Some("/a/b/c")).unwrap();
    let text = serde_json::to_string(&cgroup).unwrap();
    cgroup.make(&HostLimits::default()).unwrap();
    assert!(top.join("a/b/c").is_dir());
    let cgroup: HostCgroup = serde_json::from_str(&text).unwrap();
    cgroup.remove().unwrap();
    assert!(top.join("a").is_dir() && !top.join("a/b").exists());
    // Twice, or never made: nothing to do.
    cgroup.remove().unwrap();

    let first = fake.plan(Some("/a/b/c")).unwrap();
    first.make(&HostLimits::default()).unwrap();
    let second = fake.plan(Some("/a/b/d")).unwrap();
    second.make(&HostLimits::default()).unwrap();
    first.remove().unwrap();
    assert!(top.join("a/b/d").is_dir() && !top.join("a/b/c").exists());
}

#[test]
fn no_cgroups_at_all() {
    let layout = Layout::parse("", "");
    assert_eq!(HostCgroup::plan_in(&layout, &asked(None)).unwrap(), None);
    let systemd = Asked {
        driver: Driver::Systemd,
        ..asked(None)
    };
    if !Path::new("/run/systemd/system").exists() {
        assert_eq!(
            HostCgroup::plan_in(&layout, &systemd)
                .unwrap_err()
                .to_string(),
            "systemd not running on this host, cannot use systemd cgroups manager"
        );
    }
}

/// In a child process, because it moves into a cgroup of this host.
mod on_this_host {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

    /// Whether this host lets tests make cgroups.
    fn possible() -> bool {
        let layout = Layout::of_this_host().unwrap();
        rustix::process::geteuid().is_root()
            && layout
                .hierarchies
                .iter()
                .any(|h| rustix::fs::access(&h.mount_point, rustix::fs::Access::WRITE_OK).is_ok())
    }

    fn planned(path: &str) -> HostCgroup {
        let asked = Asked {
            overhead_mib: 64,
            ..asked(Some(path))
        };
        HostCgroup::plan(&asked).unwrap().unwrap()
    }

    /// Enters `cgroup`, and then reads for ever.
    fn child_in(cgroup: &HostCgroup, limits: &HostLimits) -> Child {
        let (cgroup, limits) = (cgroup.clone(), limits.clone());
        let mut command = Command::new("/bin/cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        #[allow(unsafe_code)]
        // SAFETY: the child of this many-threaded test allocates; glibc's allocator
        // can be used after fork.
        unsafe {
            command.pre_exec(move || cgroup.enter(&limits).map_err(std::io::Error::other));
        }
        command.spawn().unwrap()
    }

    #[test]
    fn entered_counted_killed_and_removed() {
        if !possible() {
            return;
        }
        let path = format!("/vmrun-test-{}/inner", std::process::id());
        let cgroup = planned(&path);
        let limits = HostLimits {
            memory: Some(Limit::At(64 << 20)),
            cpu_shares: Some(512),
            cpu_quota_us: Some(Limit::At(50_000)),
            pids: Some(Limit::At(7)),
            cpus: Some("0".into()),
            ..HostLimits::default()
        };
        let mut child = child_in(&cgroup, &limits);
        let own = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
        for line in own.lines() {
            assert!(line.ends_with(&path), "{line}");
        }
        let statistics = cgroup.statistics();
        assert_eq!(statistics.pids, 1);
        assert!(statistics.memory_bytes > 0 && statistics.cpu_ns > 0);
        let memory = cgroup.folders.iter().find(|f| f.has("memory")).unwrap();
        let file = if memory.is_unified() {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        let limit = || memory.read(file).unwrap().trim().to_owned();
        assert_eq!(limit(), (128u64 << 20).to_string());
        let less = HostLimits {
            memory: Some(Limit::At(32 << 20)),
            ..HostLimits::default()
        };
        let undo = cgroup.update(&less).unwrap();
        assert_eq!(limit(), (96u64 << 20).to_string());
        undo.run();
        assert_eq!(limit(), (128u64 << 20).to_string());

        cgroup.remove().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(9)
        );
        for (_, path) in cgroup.paths() {
            assert!(
                !path.exists() && !path.parent().unwrap().exists(),
                "{path:?}"
            );
        }
    }

    #[test]
    fn a_failed_entry_leaves_nothing() {
        if !possible() {
            return;
        }
        let cgroup = planned(&format!("/vmrun-test-bad-{}", std::process::id()));
        let limits = HostLimits {
            cpus: Some("4000".into()),
            ..HostLimits::default()
        };
        let error = cgroup.enter(&limits).unwrap_err();
        assert!(matches!(error, CgroupError::Limit { .. }), "{error}");
        for (_, path) in cgroup.paths() {
            assert!(!path.exists(), "{path:?}");
        }
    }

    #[test]
    fn a_cgroup_that_was_there_is_neither_killed_nor_removed() {
        if !possible() {
            return;
        }
        let path = format!("/vmrun-test-kept-{}", std::process::id());
        let made = planned(&path);
        let mut child = child_in(&made, &HostLimits::default());
        planned(&path).remove().unwrap();
        assert!(child.try_wait().unwrap().is_none());
        assert!(made.paths().all(|(_, path)| path.exists()));
        made.remove().unwrap();
        child.wait().unwrap();
    }
}
