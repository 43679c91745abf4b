//! Many runs leave nothing behind.

use std::thread;

use crate::harness::{Bundle, Sandbox};

/// In each of two places at a time.
const RUNS: u32 = 25;

#[test]
fn fifty_runs_leave_nothing() {
    let one = || {
        let bundle = Bundle::shell("echo x >/file; rm /file; echo ran");
        let before = listing(&bundle);
        let sandboxed = Sandbox::new().run(Some(&bundle), &["run", "/mnt/bundle"], RUNS);
        let expected = "ran\n".repeat(RUNS as usize);
        assert_eq!(sandboxed.run.clone().success().out(), expected);
        // The root folder's time: the container made a file and removed it.
        let left = sandboxed.left.lines();
        let left: Vec<_> = left
            .filter(|l| !l.starts_with("file /mnt/bundle/rootfs d "))
            .collect();
        assert!(left.is_empty(), "{sandboxed:?}");
        assert_eq!(listing(&bundle), before);
    };
    thread::scope(|scope| {
        let other = scope.spawn(one);
        one();
        other.join().unwrap();
    });
}

fn listing(bundle: &Bundle) -> Vec<std::ffi::OsString> {
    let entries = std::fs::read_dir(bundle.rootfs()).unwrap().flatten();
    let mut names: Vec<_> = entries.map(|e| e.file_name()).collect();
    names.sort();
    names
}
