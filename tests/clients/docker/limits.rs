//! Limits of memory, processor, processes and files.

use super::{Docker, Promise};
use crate::suite::cases;

pub const CASES: &[(&str, Promise)] = cases![
    memory,
    out_of_memory,
    processors,
    number_of_processes,
    ulimits,
    changed_while_running,
    shared_memory,
];

/// Of version 2, which machines have, or of version 1.
const MEMORY: &str =
    "cd /sys/fs/cgroup; cat memory.max 2>/dev/null || cat memory/memory.limit_in_bytes";

fn memory(docker: &Docker) {
    let limit = docker.shell(&["--memory", "64m"], MEMORY);
    assert_eq!(limit, "67108864\n");
}

fn out_of_memory(docker: &Docker) {
    let run = docker.run(
        &["--memory", "32m", "--memory-swap", "32m"],
        &["tail", "/dev/zero"],
    );
    assert_eq!(run.code(), 128 + 9, "{run:?}");
}

fn processors(docker: &Docker) {
    let script = "cd /sys/fs/cgroup; cat cpu.max 2>/dev/null || echo $(cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us)";
    assert_eq!(docker.shell(&["--cpus", "0.5"], script), "50000 100000\n");
}

fn number_of_processes(docker: &Docker) {
    let script =
        "(for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 & echo $i; done) 2>&1; exit 0";
    let forks = docker.shell(&["--pids-limit", "8"], script);
    let started = forks
        .lines()
        .filter(|line| line.parse::<u32>().is_ok())
        .count();
    assert!((2..8).contains(&started), "{forks}");
    assert!(forks.contains("can't fork"), "{forks}");
}

fn ulimits(docker: &Docker) {
    let flags = ["--ulimit", "nofile=100:200", "--ulimit", "core=0"];
    let limits = docker.shell(&flags, "ulimit -S -n; ulimit -H -n; ulimit -c");
    assert_eq!(limits, "100\n200\n0\n");
}

fn changed_while_running(docker: &Docker) {
    let container = docker.background(&["--memory", "64m"], "sleep 1000");
    assert_eq!(container.shell(MEMORY), "67108864\n");
    container
        .cli(&["update", "--memory", "48m", "--memory-swap", "48m"])
        .success();
    assert_eq!(container.shell(MEMORY), "50331648\n");
}

fn shared_memory(docker: &Docker) {
    let size = docker.shell(
        &["--shm-size", "8m"],
        "df -k /dev/shm | tail -n 1 | awk '{print $2}'",
    );
    assert_eq!(size, "8192\n");
}
