//! Ten containers at a time.

use std::thread;

use super::{Docker, Promise};
use crate::suite::cases;

pub const CASES: &[(&str, Promise)] = cases![ten_at_a_time];

fn ten_at_a_time(docker: &Docker) {
    let runs: Vec<_> = thread::scope(|scope| {
        let one = |number: usize| {
            let script = format!("echo number {number}; exit {number}");
            docker.run(&[], &["sh", "-c", &script])
        };
        let runs: Vec<_> = (0..10)
            .map(|number| scope.spawn(move || one(number)))
            .collect();
        runs.into_iter()
            .map(|run| run.join().expect("it is run"))
            .collect()
    });
    for (number, run) in runs.iter().enumerate() {
        assert_eq!(run.out(), format!("number {number}\n"), "{run:?}");
        assert_eq!(run.code(), number as i32, "{run:?}");
    }
}
