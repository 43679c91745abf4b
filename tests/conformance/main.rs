//! Conformance with the OCI runtime specification: a case for each check of the
//! runtime-tools validation programs and of youki's contest, by subject, run by runc,
//! crun and vmrun side by side. What runc does proves the case; what differs is
//! either a fault or listed in `differences.rs` with its reason.
//!
//!   cargo test --test conformance -- [PART OF A NAME...] [--skip PART]
//!
//!   VMRUN_TEST_RUNTIMES   runtimes, separated by commas (default runc,crun,vmrun)

#[path = "../e2e/harness/mod.rs"]
#[allow(dead_code, unused_imports)]
mod harness;
#[path = "../suite/mod.rs"]
#[allow(dead_code, unused_imports)]
mod suite;

mod cgroups;
mod devices;
mod differences;
mod execs;
mod hooks;
mod lab;
mod lifecycle;
mod mounts;
mod namespaces;
mod paths;
mod process;
mod rights;
mod seccomp;
mod system;

use std::collections::BTreeMap;
use std::process::ExitCode;

use differences::Difference;
use lab::Lab;
use suite::{Case, Outcome, Runner, Runtime, Snapshot, Stage};

/// A promise of the specification.
type Promise = fn(&Lab);

fn main() -> ExitCode {
    let stage = Stage::enter();
    let runner = Runner::from_arguments();
    let runtimes = Runtime::asked(&stage, &["runc", "crun", "vmrun"]);
    // Makes machine templates, before anything is compared.
    let _ = harness::Bundle::program(&["true"]);
    lab::become_subreaper();
    let before = Snapshot::take(&stage, &[]);
    let labs: Vec<_> = runtimes
        .iter()
        .map(|runtime| Lab::new(&stage, runtime))
        .collect();
    let case = |name: &str, promise: Promise, lab: &Lab| {
        let lab = lab.clone();
        Case {
            name: format!("{}::{}", lab.runtime.name, short(name)),
            differs: Difference::of(short(name), &lab.runtime.name).map(|one| one.reason),
            run: Box::new(move || promise(&lab)),
        }
    };
    let all =
        promises().flat_map(|(name, promise)| labs.iter().map(move |lab| (name, promise, lab)));
    let all = all.filter(|(name, _, lab)| {
        let difference = Difference::of(short(name), &lab.runtime.name);
        !difference.is_some_and(|difference| difference.harmful)
    });
    let cases = all
        .map(|(name, promise, lab)| case(name, promise, lab))
        .collect();
    let outcomes = runner.run(cases);
    suite::settle();
    let left = left_behind(&stage, &before);
    report(&outcomes, &runtimes, &left)
}

/// What vmrun left. Peers leave cgroups, and processes that nobody reaps, where they
/// fail as they are expected to.
fn left_behind(stage: &Stage, before: &Snapshot) -> Vec<String> {
    let cgroups = stage.remove_cgroups();
    let cgroups = cgroups
        .iter()
        .map(|path| format!("cgroup {}", path.display()));
    let cgroups = cgroups.filter(|line| !is_peers(line));
    let rest = Snapshot::take(stage, &[]).since(before);
    let rest = rest.into_iter().filter(|line| match line.as_str() {
        // Folders that runtimes keep for good.
        "file /run/mount" | "file /run/runc" | "file /run/crun" | "file /run/vmrun" => false,
        // Each process of vmrun's has its name.
        line => !line.starts_with("process ") || line.contains("vmrun"),
    });
    cgroups.chain(rest).collect()
}

fn is_peers(cgroup: &str) -> bool {
    cgroup.contains("/runc-") || cgroup.contains("/crun-")
}

/// All of them, in the table's order.
fn promises() -> impl Iterator<Item = (&'static str, Promise)> {
    let lists: [&[(&str, Promise)]; 12] = [
        lifecycle::CASES,
        process::CASES,
        rights::CASES,
        execs::CASES,
        mounts::CASES,
        paths::CASES,
        devices::CASES,
        namespaces::CASES,
        cgroups::CASES,
        seccomp::CASES,
        hooks::CASES,
        system::CASES,
    ];
    lists.into_iter().flatten().copied()
}

fn short(name: &str) -> &str {
    name.trim_start_matches("conformance::")
}

/// Prints the table, and what is not as expected.
fn report(outcomes: &[Outcome], runtimes: &[Runtime], left: &[String]) -> ExitCode {
    let by_name: BTreeMap<_, _> = outcomes.iter().map(|o| (o.name.as_str(), o)).collect();
    let mut wrong = Vec::new();
    let mut used = Vec::new();
    let width = promises()
        .map(|(name, _)| short(name).len())
        .max()
        .unwrap_or(0);
    let heads: Vec<_> = runtimes
        .iter()
        .map(|runtime| format!("{:8}", runtime.name))
        .collect();
    println!("\n{:width$}  {}", "", heads.concat());
    for (name, _) in promises() {
        let name = short(name);
        let mut row = String::new();
        for runtime in runtimes {
            let full = format!("{}::{name}", runtime.name);
            let outcome = by_name.get(full.as_str()).copied();
            let difference = Difference::of(name, &runtime.name);
            used.extend(difference.filter(|one| outcome.is_some() || one.harmful));
            let cell = cell(outcome, difference.is_some());
            if matches!(cell, "FAILED" | "fixed?") {
                wrong.push(format!("{full}: {cell}"));
            }
            row.push_str(&format!("{cell:8}"));
        }
        if !row.trim().is_empty() {
            println!("{name:width$}  {row}");
        }
    }
    for Difference {
        case,
        runtimes,
        reason,
        ..
    } in used
    {
        println!("differs: {case} ({}): {reason}", runtimes.join(", "));
    }
    println!("\n{} cases run, {} wrong", outcomes.len(), wrong.len());
    wrong.extend(left.iter().map(|line| format!("left behind: {line}")));
    wrong.iter().for_each(|line| println!("    {line}"));
    ExitCode::from(u8::from(!wrong.is_empty()))
}

/// A difference that is none any more has to leave the list.
fn cell(outcome: Option<&Outcome>, expected: bool) -> &'static str {
    match (outcome.map(|outcome| outcome.failure.is_some()), expected) {
        (None, _) => "",
        (Some(false), false) => "ok",
        (Some(true), true) => "differs",
        (Some(true), false) => "FAILED",
        (Some(false), true) => "fixed?",
    }
}
