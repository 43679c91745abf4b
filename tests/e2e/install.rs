//! What `scripts/install` puts in place runs by itself, and engines take the files
//! that name it.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::{Bundle, Launch, vmrun};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/install");
const ENGINES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/resources/engines");

#[test]
fn an_installation_needs_nothing_of_the_build() {
    let prefix = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let done = Command::new(SCRIPT).arg(prefix.path()).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }
    let bundle = Bundle::shell("echo hello");
    let vmrun = prefix.path().join("bin/vmrun");
    let run = Launch::new(&vmrun)
        .args(["run", "--no-template", "--bundle"])
        .arg(bundle.path())
        .arg("installed")
        .finish();
    assert_eq!(run.success().out(), "hello\n");
    let mut left: Vec<_> = walk(prefix.path());
    left.sort();
    let expected = [
        "bin/vmrun",
        "lib/vmrun/initramfs.cpio",
        "lib/vmrun/vmlinux",
        "lib/vmrun/vmlinux-smp",
    ];
    assert_eq!(left, expected);
}

/// Files below `folder`, by their paths in it.
fn walk(folder: &Path) -> Vec<String> {
    let found = Command::new("find")
        .arg(folder)
        .args(["-type", "f", "-printf", "%P\n"])
        .output()
        .unwrap();
    let names = String::from_utf8(found.stdout).unwrap();
    names.lines().map(str::to_owned).collect()
}

#[test]
fn podman_takes_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("containers.conf");
    let shipped = fs::read_to_string(format!("{ENGINES}/containers.conf")).unwrap();
    let here = vmrun().to_str().unwrap();
    fs::write(&config, shipped.replace("/usr/local/bin/vmrun", here)).unwrap();
    let shown = Command::new("podman")
        .env("CONTAINERS_CONF", &config)
        .args([
            "--runtime",
            "vmrun",
            "info",
            "--format",
            "{{.Host.OCIRuntime.Path}}",
        ])
        .output()
        .unwrap();
    let path = String::from_utf8_lossy(&shown.stdout);
    assert_eq!(path.trim_end(), here, "{shown:?}");
}
