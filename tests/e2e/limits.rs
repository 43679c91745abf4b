//! Limits of the container's cgroup, and devices that it may not open.

use std::sync::LazyLock;

use serde_json::json;

use crate::harness::{Bundle, Runtime, Sections};

/// In the guest, where cgroup v2 is the only one; the host's may be v1.
fn limited() -> &'static Sections {
    static SEEN: LazyLock<Sections> = LazyLock::new(|| {
        let script = r#"
            cd /sys/fs/cgroup
            for f in memory.max pids.max cpu.max cpu.weight; do
                echo "== $f"; read -r value <$f; echo "$value"
            done
            echo "== write"; (echo max >pids.max) 2>/dev/null && echo yes || echo no
            echo "== cgroup"; read -r line </proc/self/cgroup; echo "$line"
            echo "== forks"
            # The shell gives up at the first fork that fails.
            (for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1000 & echo $i; done) 2>&1
            exit 0"#;
        let bundle = Bundle::shell(script)
            .mount(
                json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "ro"]}),
            )
            .with("/linux/resources/memory", json!({"limit": 64 << 20}))
            .with("/linux/resources/pids", json!({"limit": 6}))
            .with(
                "/linux/resources/cpu",
                json!({"quota": 50_000, "period": 100_000, "shares": 1024}),
            )
            .with(
                "/linux/namespaces",
                json!([{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "mount"},
                       {"type": "uts"}, {"type": "cgroup"}]),
            );
        Runtime::Vmrun.run(&bundle).success().sections()
    });
    &SEEN
}

#[test]
fn limits_are_set_in_the_guests_cgroup() {
    let seen = limited();
    assert_eq!(seen["memory.max"], "67108864\n");
    assert_eq!(seen["pids.max"], "6\n");
    assert_eq!(seen["cpu.max"], "50000 100000\n");
    assert_eq!(seen["cpu.weight"], "100\n");
    assert_eq!(seen["write"], "no\n", "a read-only mount");
    assert_eq!(
        seen["cgroup"], "0::/\n",
        "its cgroup is the root that it sees"
    );
}

#[test]
fn pids_limit_ends_forks() {
    let forks = &limited()["forks"];
    let started = forks.lines().filter(|l| l.parse::<u32>().is_ok()).count();
    assert!((2..6).contains(&started), "{forks}");
    assert!(forks.contains("can't fork"), "{forks}");
}

#[test]
fn memory_limit_kills() {
    let bundle = Bundle::shell("exec tail /dev/zero")
        .with("/linux/resources/memory", json!({"limit": 16 << 20}));
    let run = Runtime::Vmrun.run(&bundle);
    assert_eq!(run.code(), 128 + 9, "{run:?}");
}

#[test]
fn devices_are_denied_unless_allowed() {
    // By root with CAP_MKNOD: only the cgroup says no.
    let script = "mknod /dev/disk b 254 0; (: </dev/disk) 2>&1
        mknod /dev/mem c 1 1; (: </dev/mem) 2>&1
        mknod /dev/copy c 1 3 && (: </dev/copy) && echo null opens";
    for runtime in Runtime::ALL {
        let run = runtime.run(&Bundle::shell(script)).success();
        let denied = run.out().matches("Operation not permitted").count();
        assert_eq!(denied, 2, "{runtime:?}: {run:?}");
        assert!(run.out().ends_with("null opens\n"), "{runtime:?}: {run:?}");
    }
}
