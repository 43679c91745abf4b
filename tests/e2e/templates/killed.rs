//! Processes that are killed while they make or use a template.

use std::os::unix::process::ExitStatusExt;

use super::{MAKING, Place, echo};
use crate::harness::{Finished, Launch, vmrun};

/// Kills vmrun at the `when`th call of `syscall`.
fn killed(place: &Place, syscall: &str, when: u32, words: &[&str]) {
    let run = struck(place, syscall, when, words);
    // strace ends as what it traces did.
    assert_eq!(run.status.signal(), Some(9), "{syscall} {when}: {run:?}");
}

/// Kills the first process of vmrun that gets to its `when`th call of `syscall`: the
/// kernel does it, before the call is carried out.
fn struck(place: &Place, syscall: &str, when: u32, words: &[&str]) -> Finished {
    let inject = format!("inject={syscall}:signal=KILL:when={when}");
    let launch = Launch::new("strace")
        .args([
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            &format!("trace={syscall}"),
        ])
        .args(["-e", &inject])
        .arg(vmrun())
        .args(words);
    place.on(launch.limit(2)).finish()
}

#[test]
fn a_maker_that_is_killed_leaves_nothing_to_the_next_start() {
    let bundle = echo();
    for (step, syscall, when) in [
        ("before the draft is there", "mkdirat", 1),
        ("while the guest boots", "ioctl", 400),
        ("while its memory is written", "pwrite64", 20),
        ("while it is brought to the disk", "fsync", 2),
        ("when it is renamed", "fsync", 5),
    ] {
        let place = Place::empty();
        killed(&place, syscall, when, &["template", "create"]);
        let run = place.launch(&bundle).limit(2).finish().success();
        assert_eq!(run.out(), "ran\n", "{step}");
        let expected = if step == "when it is renamed" {
            ""
        } else {
            MAKING
        };
        assert_eq!(run.err(), expected, "{step}");
        assert_eq!(place.left_overs(), [""; 0], "{step}");
        place.only();
    }
}

#[test]
fn a_signal_ends_the_making_cleanly() {
    let place = Place::empty();
    // In the thread that waits for signals, before the machine runs.
    let launch = Launch::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=ioctl"])
        .args(["-e", "inject=ioctl:signal=TERM:when=15"])
        .arg(vmrun())
        .args(["template", "create"]);
    let run = place.on(launch).finish();
    assert_eq!(run.code(), 128 + 15, "{run:?}");
    assert!(run.err().contains("ended by signal 15"), "{run:?}");
    assert_eq!(place.left_overs(), [""; 0]);
    assert!(place.list().is_empty());
}

#[test]
fn what_a_killed_maker_leaves_is_pruned() {
    let place = Place::empty();
    killed(&place, "pwrite64", 20, &["template", "create"]);
    assert_eq!(place.left_overs().len(), 1);
    assert!(place.list().is_empty());
    place.template(&["prune"]).success();
    assert_eq!(place.left_overs(), [""; 0]);
}

#[test]
fn a_removal_that_is_killed_is_finished_by_prune() {
    let place = Place::with_template();
    let key = place.only();
    let key = key.file_name().unwrap().to_str().unwrap();
    for (when, left) in [(1, 1), (2, 1)] {
        killed(&place, "unlinkat", when, &["template", "rm", key]);
        assert_eq!(place.left_overs().len(), left);
    }
    place.template(&["prune"]).success();
    assert_eq!(place.names(), [""; 0]);
}

#[test]
fn a_start_that_is_killed_leaves_the_template_alone() {
    let place = Place::with_template();
    let bundle = echo();
    let path = bundle.path().to_str().unwrap();
    // All but the first in the monitor, whose end `run` tells.
    for (syscall, when) in [("clone", 1), ("ioctl", 30), ("ioctl", 200)] {
        let run = struck(&place, syscall, when, &["run", path]);
        assert_ne!(run.code(), 0, "{syscall} {when}: {run:?}");
        assert_eq!(run.out(), "", "{syscall} {when}");
        assert_eq!(place.left_overs(), [""; 0], "{syscall} {when}");
    }
    let run = place.launch(&bundle).finish().success();
    assert_eq!((run.out().as_str(), run.err().as_str()), ("ran\n", ""));
}
