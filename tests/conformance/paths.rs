//! Paths that are hidden, and those that are read-only. (validation:
//! linux_masked_paths, linux_readonly_paths; contest: the same, prohibit_symlink)

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use super::Promise;
use super::lab::Lab;
use crate::harness::Bundle;
use crate::suite::cases;

pub const CASES: &[(&str, Promise)] = cases![
    masked_file,
    masked_folder,
    masked_path_that_is_not_there,
    masked_link,
    masked_relative_path,
    read_only_file,
    read_only_folder,
    read_only_path_that_is_not_there,
    read_only_link,
    read_only_keeps_flags,
];

/// With /dir/file and /file, and /link to /dir.
fn bundle(script: &str) -> Bundle {
    let bundle = Bundle::shell(script);
    let at = |name: &str| bundle.rootfs().join(name);
    fs::create_dir(at("dir")).unwrap();
    fs::write(at("dir/file"), "in it\n").unwrap();
    fs::write(at("file"), "secret\n").unwrap();
    symlink("/dir", at("link")).unwrap();
    bundle
}

fn masked_file(lab: &Lab) {
    let seen =
        lab.output(bundle("cat /file; echo end").with("/linux/maskedPaths", json!(["/file"])));
    assert_eq!(seen, "end\n");
}

fn masked_folder(lab: &Lab) {
    let script = "ls -A /dir; (echo x >/dir/new) 2>&1; true";
    let seen = lab.output(bundle(script).with("/linux/maskedPaths", json!(["/dir"])));
    assert!(
        seen.contains("Read-only file system") && !seen.contains("in it"),
        "{seen}"
    );
    assert!(!seen.lines().any(|line| line == "file"), "{seen}");
}

fn masked_path_that_is_not_there(lab: &Lab) {
    let seen = lab.output(bundle("echo ran").with("/linux/maskedPaths", json!(["/not/there"])));
    assert_eq!(seen, "ran\n");
}

fn masked_link(lab: &Lab) {
    let run =
        lab.run(bundle("cat /dir/file; ls -A /link").with("/linux/maskedPaths", json!(["/link"])));
    // Either what it leads to is masked, or the start is refused.
    assert!(run.code() != 0 || !run.out().contains("in it"), "{run:?}");
}

fn masked_relative_path(lab: &Lab) {
    let run = lab.run(bundle("cat /file").with("/linux/maskedPaths", json!(["file"])));
    assert!(run.code() != 0 || run.out().is_empty(), "{run:?}");
}

fn read_only_file(lab: &Lab) {
    let seen = lab.output(
        bundle("cat /file; (echo x >/file) 2>&1; true")
            .with("/linux/readonlyPaths", json!(["/file"])),
    );
    assert!(
        seen.starts_with("secret\n") && seen.contains("Read-only file system"),
        "{seen}"
    );
}

fn read_only_folder(lab: &Lab) {
    let script = "cat /dir/file; (echo x >/dir/file) 2>&1; mkdir /dir/new 2>&1; true";
    let seen = lab.output(bundle(script).with("/linux/readonlyPaths", json!(["/dir"])));
    assert_eq!(seen.matches("Read-only file system").count(), 2, "{seen}");
}

fn read_only_path_that_is_not_there(lab: &Lab) {
    let seen = lab.output(bundle("echo ran").with("/linux/readonlyPaths", json!(["/not/there"])));
    assert_eq!(seen, "ran\n");
}

fn read_only_link(lab: &Lab) {
    let run = lab.run(
        bundle("(echo x >/dir/file) 2>&1; true").with("/linux/readonlyPaths", json!(["/link"])),
    );
    assert!(
        run.code() != 0 || run.out().contains("Read-only file system"),
        "{run:?}"
    );
}

fn read_only_keeps_flags(lab: &Lab) {
    let seen = lab.output(
        Bundle::shell("grep ' /proc/sys ' /proc/mounts")
            .with("/linux/readonlyPaths", json!(["/proc/sys"])),
    );
    for flag in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(
            seen.split([' ', ',']).any(|word| word == flag),
            "{flag}: {seen}"
        );
    }
}
