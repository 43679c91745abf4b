//! Runs cases, some at a time, and says how each went.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How many cases run at a time, as they wait more than they work;
/// `VMRUN_TEST_MACHINES`.
const AT_A_TIME: usize = 4;

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A promise; it panics where it is not kept.
pub struct Case<'a> {
    pub name: String,
    pub run: Box<dyn Fn() + Send + Sync + 'a>,
    /// Why it is not expected to be kept.
    pub differs: Option<&'static str>,
}

/// How a case went.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub name: String,
    pub took: Duration,
    /// What was not as promised.
    pub failure: Option<String>,
    /// Why that was expected.
    pub differs: Option<&'static str>,
}

/// What of the cases runs.
#[derive(Debug, Default)]
pub struct Runner {
    wanted: Vec<String>,
    skipped: Vec<String>,
}

impl Runner {
    /// By the command line: parts of names; `--skip PART`. Other flags of cargo's
    /// own tests mean nothing here.
    pub fn from_arguments() -> Self {
        let mut runner = Self::default();
        let mut words = env::args().skip(1);
        while let Some(word) = words.next() {
            if word == "--skip" {
                runner.skipped.extend(words.next());
            } else if !word.starts_with('-') {
                runner.wanted.push(word);
            }
        }
        runner
    }

    /// Whether a case of that name runs.
    pub fn selects(&self, name: &str) -> bool {
        let one_of = |parts: &[String]| parts.iter().any(|part| name.contains(part.as_str()));
        !one_of(&self.skipped) && (self.wanted.is_empty() || one_of(&self.wanted))
    }

    /// Runs those of `cases` that are selected.
    pub fn run(&self, cases: Vec<Case>) -> Vec<Outcome> {
        set_hook(Box::new(|panic| {
            PANIC.with(|text| *text.borrow_mut() = panic.to_string());
        }));
        let cases: VecDeque<_> = cases
            .into_iter()
            .filter(|case| self.selects(&case.name))
            .collect();
        let asked = env::var("VMRUN_TEST_MACHINES").ok();
        let at_a_time = asked.map_or(AT_A_TIME, |count| count.parse().expect("a number"));
        let (queue, outcomes) = (Mutex::new(cases), Mutex::new(Vec::new()));
        let work = || {
            while let Some(case) = lock(&queue).pop_front() {
                let outcome = attempt(&case);
                println!("{outcome}");
                lock(&outcomes).push(outcome);
            }
        };
        thread::scope(|scope| {
            for _ in 0..at_a_time {
                scope.spawn(work);
            }
        });
        outcomes
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn attempt(case: &Case) -> Outcome {
    let from = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| (case.run)()));
    Outcome {
        name: case.name.clone(),
        took: from.elapsed(),
        failure: result.err().map(|_| PANIC.with(RefCell::take)),
        differs: case.differs,
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { name, took, .. } = self;
        let how = match (&self.failure, self.differs) {
            (None, None) => "ok",
            (None, Some(_)) => "ok, and listed as different",
            (Some(_), None) => "FAILED",
            (Some(_), Some(reason)) => reason,
        };
        write!(f, "test {name} ... {how} ({:.1} s)", took.as_secs_f64())?;
        match &self.failure {
            Some(failure) if self.differs.is_none() => {
                write!(f, "\n    {}", failure.replace('\n', "\n    "))
            }
            _ => Ok(()),
        }
    }
}
