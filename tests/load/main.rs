//! Many containers at a time, whose host processes are killed at any step: all of
//! them can be deleted, and nothing is left.
//!
//!   cargo test --test load
//!
//!   VMRUN_TEST_RUNTIMES   runtimes, separated by commas (default vmrun)
//!   VMRUN_TEST_CYCLES     how many (default 200)
//!   VMRUN_TEST_SEED       what is killed when; printed (default: the clock's)

#[path = "../e2e/harness/mod.rs"]
#[allow(dead_code, unused_imports)]
mod harness;
#[path = "../conformance/lab.rs"]
#[allow(dead_code, unused_imports)]
mod lab;
#[path = "../suite/mod.rs"]
#[allow(dead_code, unused_imports)]
mod suite;

mod cycle;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use cycle::Step;
use lab::Lab;
use suite::{Runner, Runtime, Snapshot, Stage};

const CYCLES: u64 = 200;
const AT_A_TIME: usize = 10;

fn main() -> ExitCode {
    let stage = Stage::enter();
    if !Runner::from_arguments().selects("load") {
        return ExitCode::SUCCESS;
    }
    // Makes machine templates, before anything is compared.
    let _ = harness::Bundle::program(&["true"]);
    lab::become_subreaper();
    let runtimes = Runtime::asked(&stage, &["vmrun"]);
    let right = runtimes.iter().all(|runtime| load(&stage, runtime));
    ExitCode::from(u8::from(!right))
}

fn number(variable: &str, default: u64) -> u64 {
    let asked = std::env::var(variable).ok();
    asked.map_or(default, |number| number.parse().expect("a number"))
}

/// Runs all cycles with one runtime; whether all went well.
fn load(stage: &Stage, runtime: &Runtime) -> bool {
    let clock = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a time");
    let seed = number("VMRUN_TEST_SEED", u64::from(clock.subsec_nanos()));
    let cycles = number("VMRUN_TEST_CYCLES", CYCLES);
    println!(
        "{}: {cycles} cycles, {AT_A_TIME} at a time, seed {seed}",
        runtime.name
    );
    let lab = Lab::new(stage, runtime);
    // Its folders and parents of cgroups stay.
    cycle::run(&lab, 0, Step::Never).expect("one cycle");
    let before = Snapshot::take(stage, &[stage.path()]);
    let from = Instant::now();
    let next = AtomicU64::new(0);
    let seen = Mutex::new((BTreeMap::new(), Vec::new()));
    let work = || {
        loop {
            let cycle = next.fetch_add(1, Ordering::Relaxed);
            if cycle >= cycles {
                return;
            }
            let mut random = cycle::Random::new(seed, cycle);
            let step = Step::any(&mut random);
            let result = cycle::run(&lab, random.below(cycle::DELAY_MAX_US), step);
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            *seen.0.entry(step).or_insert(0) += 1;
            seen.1.extend(
                result
                    .err()
                    .map(|error| format!("cycle {cycle}, killed {step:?}: {error}")),
            );
        }
    };
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(work);
        }
    });
    let took = from.elapsed().as_secs_f64();
    let (steps, mut wrong) = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
    suite::settle();
    let left = Snapshot::take(stage, &[stage.path()]).since(&before);
    wrong.extend(left.iter().map(|line| format!("left behind: {line}")));
    wrong.extend(
        stage
            .remove_cgroups()
            .iter()
            .map(|path| format!("left behind: cgroup {}", path.display())),
    );
    println!(
        "{took:.1} s, {:.1} cycles a second; killed: {steps:?}",
        cycles as f64 / took
    );
    wrong.iter().for_each(|line| println!("    {line}"));
    println!("{} wrong", wrong.len());
    wrong.is_empty()
}
