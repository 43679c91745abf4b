//! Docker Engine, containerd and podman, as Debian has them, with the runtime under
//! test. The same cases run with runc, to prove that they are right.
//!
//!   cargo test --test clients -- [PART OF A NAME...] [--skip PART]
//!
//!   VMRUN_TEST_RUNTIMES   runtimes, separated by commas (default runc,vmrun)

#[path = "../e2e/harness/mod.rs"]
#[allow(dead_code, unused_imports)]
mod harness;
#[path = "../suite/mod.rs"]
#[allow(dead_code, unused_imports)]
mod suite;

mod ctr;
mod docker;
mod engine;
mod image;
mod podman;

use std::process::ExitCode;

use engine::Engine;
use suite::{Outcome, Runner, Runtime, Snapshot, Stage};

/// How many of the slowest cases are named.
const SLOWEST: usize = 8;

fn main() -> ExitCode {
    let stage = Stage::enter();
    let runner = Runner::from_arguments();
    let runtimes = Runtime::asked(&stage, &["runc", "vmrun"]);
    // Makes machine templates, before anything is compared.
    let _ = harness::Bundle::program(&["true"]);
    let before = Snapshot::take(&stage, &[]);
    let engine = Engine::start(&stage, &runtimes);
    let pods = podman::Podman::prepare(&stage);
    let mut cases = Vec::new();
    for runtime in &runtimes {
        cases.extend(docker::cases(&engine, runtime));
        cases.extend(ctr::cases(&engine, runtime));
        cases.extend(podman::cases(&pods, runtime));
    }
    let outcomes = runner.run(cases);
    let log = engine.stop();
    pods.clean();
    let left = left_behind(&stage, &before);
    report(&outcomes, &left, &log)
}

/// What none of the runs should have left. Daemons and runtimes keep folders in /run.
fn left_behind(stage: &Stage, before: &Snapshot) -> Vec<String> {
    suite::settle();
    let mut cgroups = stage.remove_cgroups();
    // podman puts all of its monitors into one, and leaves it.
    cgroups.retain(|path| !path.ends_with("conmon"));
    let left = Snapshot::take(stage, &[]).since(before);
    let left = left.into_iter().filter(|line| !is_kept(line));
    let cgroups = cgroups
        .iter()
        .map(|path| format!("cgroup {}", path.display()));
    left.chain(cgroups).collect()
}

fn is_kept(line: &str) -> bool {
    let folders = ["/run/runc", "/run/crun", "/run/vmrun", "/run/mount"];
    // Of each container and of each shim.
    let of_containers = ["/runtime-runc/moby/", "/runc/ctr/", "/containerd/s/"];
    let Some(path) = line.strip_prefix("file ") else {
        return false;
    };
    let of_daemons = path.starts_with("/run/docker") || path.starts_with("/run/containerd");
    folders.contains(&path) || of_daemons && !of_containers.iter().any(|part| path.contains(part))
}

fn report(outcomes: &[Outcome], left: &[String], log: &str) -> ExitCode {
    let mut by_time: Vec<_> = outcomes.iter().collect();
    by_time.sort_by_key(|outcome| std::cmp::Reverse(outcome.took));
    println!("\nslowest:");
    for outcome in by_time.iter().take(SLOWEST) {
        println!("{:6.1} s  {}", outcome.took.as_secs_f64(), outcome.name);
    }
    let failed: Vec<_> = outcomes.iter().filter(|o| o.failure.is_some()).collect();
    println!("\n{} of {} cases failed", failed.len(), outcomes.len());
    for outcome in &failed {
        println!("    {}", outcome.name);
    }
    for line in left {
        println!("left behind: {line}");
    }
    if failed.is_empty() && left.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("\nend of the daemon's log:\n{log}");
    ExitCode::FAILURE
}
