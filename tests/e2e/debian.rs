//! A Debian 12 root file system: dynamic programs, many files, real packages.

use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::harness::{Bundle, Finished, Runtime};

/// Made by `scripts/make-debian-root`, which scripts/test runs.
fn cached_root() -> PathBuf {
    let cache = std::env::var_os("VMRUN_TEST_DEBIAN_ROOT")
        .expect("VMRUN_TEST_DEBIAN_ROOT: name the folder that scripts/make-debian-root prints");
    PathBuf::from(cache)
}

/// Hundreds of processes, each with libraries to map and data to get right, and some
/// that talk through pipes.
const MANY_PROCESSES: &str = r#"set -eo pipefail
    export LC_ALL=C
    cd usr/bin
    find . -maxdepth 1 -type f -size -100k | sort | head -n 200 | while read -r file; do
        md5sum "$file"
    done
    find . -type f -size -60k -print0 | sort -z | xargs -0 cat | gzip -n1 | gzip -d | sha256sum
    seq 1 30000 | sort -r | sort -n | tail -n 1"#;

#[test]
fn hundreds_of_processes_compute_what_they_do_on_the_host() {
    let mut bash = Command::new("/bin/bash");
    let host = bash.args(["-c", MANY_PROCESSES]).current_dir(cached_root());
    let host = host.output().unwrap();
    let expected = String::from_utf8(host.stdout).unwrap();
    assert!(
        host.status.success() && expected.lines().count() > 150,
        "{expected}"
    );
    assert_eq!(run(MANY_PROCESSES, true).success().out(), expected);
}

fn run(script: &str, readonly: bool) -> Finished {
    let bundle = Bundle::with_rootfs(&["/bin/bash", "-c", script], |rootfs| {
        let mut copy = Command::new("cp");
        copy.args(["-a", "--reflink=auto"]);
        let copied = copy.arg(cached_root().join(".")).arg(rootfs).status();
        assert!(copied.unwrap().success());
    });
    Runtime::Vmrun.run(&bundle.with("/root/readonly", json!(readonly)))
}

#[test]
fn programs_of_a_distribution_run() {
    let script = r#"set -eo pipefail
        apt-get --version
        perl -e 'print join(",", map { $_ ** 2 } 1..5), "\n"'
        dpkg -l | grep -c ^ii
        printf '%s\n' c a b | sort | tr '\n' ' '; echo
        echo "a file" >/root/new; cat /root/new"#;
    let run = run(script, false).success();
    let out = run.out();
    assert!(out.starts_with("apt 2."), "{run:?}");
    let lines: Vec<_> = out.lines().collect();
    let [squares, packages, sorted, file] = lines[lines.len() - 4..] else {
        panic!("{run:?}")
    };
    assert_eq!((squares, sorted, file), ("1,4,9,16,25", "a b c ", "a file"));
    assert!(packages.parse::<u32>().unwrap() > 50, "{run:?}");
}

#[test]
fn on_a_read_only_root_too() {
    let script = "set -o pipefail; perl -v | head -n 2 | tail -n 1; : >/new || echo refused";
    let run = run(script, true).success();
    assert!(run.out().starts_with("This is perl 5"), "{run:?}");
    assert!(run.out().ends_with("refused\n"), "{run:?}");
    assert!(run.err().contains("Read-only file system"), "{run:?}");
}
