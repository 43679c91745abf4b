//! A container from its start to its removal.

use rustix::process::{Pid, Signal, kill_process};

use super::{Docker, Promise};
use crate::engine::IMAGE;
use crate::suite::cases;

pub const CASES: &[(&str, Promise)] = cases![
    created_then_started,
    stop_is_a_term_first,
    stop_kills_who_does_not_listen,
    kill_sends_signals,
    restart,
    restart_policy,
    top_shows_host_processes,
    pause_and_unpause,
    stats,
    inspect,
    remove_by_force,
    events_in_order,
    host_process_killed,
];

/// Prints, then ends at SIGTERM with 7.
const ENDS_AT_TERM: &str =
    "trap 'echo term; exit 7' TERM; echo up; while :; do sleep 1000 & wait $!; done";

fn created_then_started(docker: &Docker) {
    let create = docker.cli(&[
        "create",
        "--network",
        "none",
        "--runtime",
        &docker.runtime.name,
    ]);
    let container = docker.container(create.args([IMAGE, "echo", "started"]));
    assert_eq!(container.inspect("{{.State.Status}}"), "created");
    container.cli(&["start", "--attach"]).success();
    assert_eq!(container.logs(), "started\n");
    // The same container once more.
    container.cli(&["start", "--attach"]).success();
    assert_eq!(container.logs(), "started\nstarted\n");
}

fn stop_is_a_term_first(docker: &Docker) {
    let container = docker.background(&[], ENDS_AT_TERM);
    container.wait_for("up");
    container.cli(&["stop", "--time", "50"]).success();
    assert_eq!(container.inspect("{{.State.ExitCode}}"), "7");
    assert_eq!(container.logs(), "up\nterm\n");
}

fn stop_kills_who_does_not_listen(docker: &Docker) {
    let container = docker.background(&[], "trap '' TERM; echo up; while :; do sleep 1000; done");
    container.wait_for("up");
    container.cli(&["stop", "--time", "1"]).success();
    assert_eq!(container.inspect("{{.State.ExitCode}}"), "137");
}

fn kill_sends_signals(docker: &Docker) {
    let script = "trap 'echo usr1' USR1; trap 'echo usr2; exit 2' USR2; echo up; while :; do sleep 1000 & wait $!; done";
    let container = docker.background(&[], script);
    container.wait_for("up");
    container.cli(&["kill", "-s", "USR1"]).success();
    container.wait_for("usr1");
    container.cli(&["kill", "--signal", "12"]).success();
    assert_eq!(container.wait(), 2);
    let container = docker.background(&[], "sleep 1000");
    container.cli(&["kill"]).success();
    assert_eq!(container.wait(), 128 + 9);
    let late = container.cli(&["kill"]);
    assert!(late.err().contains("is not running"), "{late:?}");
}

fn restart(docker: &Docker) {
    let container = docker.background(&[], ENDS_AT_TERM);
    container.wait_for("up");
    let first = container.inspect("{{.State.Pid}}");
    container.cli(&["restart", "--time", "50"]).success();
    container.wait_for("term\nup");
    assert_ne!(container.inspect("{{.State.Pid}}"), first);
    assert_eq!(container.inspect("{{.State.Status}}"), "running");
}

fn restart_policy(docker: &Docker) {
    let container = docker.background(&["--restart", "on-failure:2"], "echo try; exit 1");
    let events = container.events();
    // The third end is the last.
    events.wait_for("die 1;\nstart <no value>;\ndie 1;\nstart <no value>;\ndie 1;");
    assert_eq!(container.wait(), 1);
    assert_eq!(container.logs(), "try\ntry\ntry\n");
    assert_eq!(container.inspect("{{.RestartCount}}"), "2");
}

fn top_shows_host_processes(docker: &Docker) {
    let container = docker.background(&[], "sleep 1000; true");
    let top = docker
        .cli(&["top", &container.id, "-o", "pid,args"])
        .finish()
        .success()
        .out();
    let pids: Vec<_> = top
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(!pids.is_empty(), "{top}");
    for pid in pids {
        assert!(std::fs::exists(format!("/proc/{pid}")).unwrap(), "{top}");
    }
}

fn pause_and_unpause(docker: &Docker) {
    let container = docker.background(
        &["--stop-signal", "TERM"],
        "trap 'echo usr1; exit 3' USR1; echo up; while :; do sleep 1000 & wait $!; done",
    );
    container.wait_for("up");
    // A signal to stop by, which is any without this flag, would unpause.
    container.cli(&["pause"]).success();
    assert_eq!(container.inspect("{{.State.Status}}"), "paused");
    let exec = container.exec(&[], &["true"]);
    assert!(exec.err().contains("is paused"), "{exec:?}");
    container.cli(&["kill", "-s", "USR1"]).success();
    assert_eq!(container.logs(), "up\n");
    assert_eq!(container.inspect("{{.State.Status}}"), "paused");
    container.cli(&["unpause"]).success();
    assert_eq!(container.wait(), 3);
    assert_eq!(container.logs(), "up\nusr1\n");
}

fn stats(docker: &Docker) {
    let container = docker.background(&["--memory", "100m"], "sleep 1000");
    let format = "{{.MemUsage}}|{{.PIDs}}";
    let stats = container
        .cli(&["stats", "--no-stream", "--format", format])
        .success()
        .out();
    let (memory, pids) = stats.trim().split_once('|').expect("two fields");
    assert!(
        !memory.starts_with("0B /") && !memory.ends_with("/ 0B"),
        "{stats}"
    );
    assert!(pids.parse::<u32>().unwrap() > 0, "{stats}");
}

fn inspect(docker: &Docker) {
    let container = docker.background(&[], ENDS_AT_TERM);
    container.wait_for("up");
    assert_eq!(
        container.inspect("{{.State.Status}} {{.HostConfig.Runtime}}"),
        format!("running {}", docker.runtime.name)
    );
    let pid = container.inspect("{{.State.Pid}}");
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("a host process");
    assert!(cgroups.contains(&container.id), "{cgroups}");
    let network = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_ne!(network(&pid), network("self"));
    container.cli(&["stop"]).success();
    assert_eq!(
        container.inspect("{{.State.Status}} {{.State.Pid}} {{.State.ExitCode}}"),
        "exited 0 7"
    );
    assert!(!std::fs::exists(format!("/proc/{pid}")).unwrap());
}

fn remove_by_force(docker: &Docker) {
    let container = docker.background(&[], "sleep 1000");
    let pid = container.inspect("{{.State.Pid}}");
    let refused = container.cli(&["rm"]);
    assert!(refused.err().contains("running container"), "{refused:?}");
    container.cli(&["rm", "-f"]).success();
    assert!(!std::fs::exists(format!("/proc/{pid}")).unwrap());
    assert_ne!(container.cli(&["inspect"]).code(), 0);
}

fn events_in_order(docker: &Docker) {
    let container = docker.background(&[], ENDS_AT_TERM);
    container.wait_for("up");
    let events = container.events();
    container.shell("exit 0");
    container.cli(&["stop"]).success();
    container.cli(&["rm"]).success();
    events.wait_for("destroy");
    events.signal(Signal::TERM);
    let seen = events.finish().out();
    let seen: Vec<_> = seen
        .lines()
        .map(|line| line.split([':', ' ', ';']).next().unwrap())
        .collect();
    let all = [
        "create",
        "start",
        "exec_create",
        "exec_start",
        "exec_die",
        "kill",
        "die",
        "stop",
        "destroy",
    ];
    let order = |name: &&str| {
        seen.iter()
            .position(|seen| seen == name)
            .unwrap_or_else(|| panic!("no {name}: {seen:?}"))
    };
    // Reports of ends come by another way than answers to commands.
    for pair in [
        ["create", "start"],
        ["start", "exec_create"],
        ["exec_create", "exec_start"],
        ["kill", "die"],
        ["die", "destroy"],
    ] {
        assert!(order(&pair[0]) < order(&pair[1]), "{pair:?}: {seen:?}");
    }
    all.iter()
        .for_each(|name| assert!(seen.contains(name), "{name}: {seen:?}"));
}

fn host_process_killed(docker: &Docker) {
    let container = docker.background(&[], "sleep 1000");
    let pid = container.inspect("{{.State.Pid}}").parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    assert_eq!(container.wait(), 128 + 9);
    container.cli(&["start"]).success();
    assert_eq!(container.inspect("{{.State.Status}}"), "running");
}
