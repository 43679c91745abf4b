//! `root` and `mounts`. (validation: mounts, root_readonly_true,
//! linux_rootfs_propagation; contest: mounts_recursive, mount_propagation,
//! rootfs_propagation, root_readonly_true, no_pivot, prohibit_symlink)

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::Promise;
use super::lab::Lab;
use crate::harness::Bundle;
use crate::suite::cases;

pub const CASES: &[(&str, Promise)] = cases![
    writable_root,
    read_only_root,
    root_is_missing,
    order_of_mounts,
    options_of_mounts,
    options_of_tmpfs,
    bind_of_a_folder,
    bind_of_a_file,
    bind_makes_its_destination,
    bind_of_nothing,
    bind_read_only,
    bind_with_submounts,
    bind_without_submounts,
    read_only_recursively,
    nosuid_nodev_noexec_recursively,
    tmpfs_keeps_what_was_there,
    relative_destination,
    destination_through_a_link,
    unknown_type,
    no_pivot,
    propagation_private,
    propagation_shared,
];

fn tmpfs(destination: &str, options: Value) -> Value {
    json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options})
}

/// A folder of the host, with a file in it, bound to /data.
fn bound(options: Value) -> (TempDir, Value) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::write(folder.path().join("file"), "from the host\n").unwrap();
    let mount = json!({"destination": "/data", "type": "bind", "source": folder.path(), "options": options});
    (folder, mount)
}

fn writable_root(lab: &Lab) {
    assert_eq!(lab.output(Bundle::shell("echo x >/file; cat /file")), "x\n");
}

fn read_only_root(lab: &Lab) {
    let bundle =
        Bundle::shell("(echo x >/file) 2>&1; mkdir /x 2>&1; echo x >/dev/shm/x && echo dev")
            .with("/root/readonly", json!(true));
    let seen = lab.output(bundle.mount(tmpfs("/dev/shm", json!([]))));
    assert_eq!(seen.matches("Read-only file system").count(), 2, "{seen}");
    assert!(seen.ends_with("dev\n"), "{seen}");
}

fn root_is_missing(lab: &Lab) {
    lab.refused(
        Bundle::shell("true").with("/root/path", json!("nowhere")),
        &["no such file", "not found", "does not exist"],
    );
}

fn order_of_mounts(lab: &Lab) {
    let bundle = Bundle::shell("cat /a/b/file; ls /a").mount(tmpfs("/a", json!(["mode=755"])));
    let (_folder, mut mount) = bound(json!(["bind"]));
    mount["destination"] = json!("/a/b");
    assert_eq!(lab.output(bundle.mount(mount)), "from the host\nb\n");
}

fn options_of_mounts(lab: &Lab) {
    let bundle = Bundle::shell("grep ' /t ' /proc/mounts").mount(tmpfs(
        "/t",
        json!(["ro", "nosuid", "nodev", "noexec", "noatime"]),
    ));
    let seen = lab.output(bundle);
    for option in ["ro", "nosuid", "nodev", "noexec", "noatime"] {
        assert!(
            seen.split([' ', ',']).any(|word| word == option),
            "{option}: {seen}"
        );
    }
}

fn options_of_tmpfs(lab: &Lab) {
    let script = "stat -c '%a %u %g' /t; df -k /t | tail -n 1; df -i /t | tail -n 1";
    let options = json!(["mode=1711", "uid=7", "gid=8", "size=4096k", "nr_inodes=50"]);
    let seen = lab.output(Bundle::shell(script).mount(tmpfs("/t", options)));
    assert!(seen.starts_with("1711 7 8\n"), "{seen}");
    assert!(seen.contains(" 4096 ") && seen.contains(" 50 "), "{seen}");
}

fn bind_of_a_folder(lab: &Lab) {
    let (folder, mount) = bound(json!(["rbind", "rw"]));
    let bundle = Bundle::shell("cat /data/file; echo from inside >/data/new").mount(mount);
    assert_eq!(lab.output(bundle), "from the host\n");
    assert_eq!(
        fs::read_to_string(folder.path().join("new")).unwrap(),
        "from inside\n"
    );
}

fn bind_of_a_file(lab: &Lab) {
    let (folder, mut mount) = bound(json!(["bind"]));
    mount["source"] = json!(folder.path().join("file"));
    mount["destination"] = json!("/etc/new/name");
    let bundle = Bundle::shell("cat /etc/new/name; echo more >>/etc/new/name").mount(mount);
    assert_eq!(lab.output(bundle), "from the host\n");
    assert_eq!(
        fs::read_to_string(folder.path().join("file")).unwrap(),
        "from the host\nmore\n"
    );
}

fn bind_makes_its_destination(lab: &Lab) {
    let (_folder, mut mount) = bound(json!(["bind"]));
    mount["destination"] = json!("/a/new/folder");
    assert_eq!(
        lab.output(Bundle::shell("cat /a/new/folder/file").mount(mount)),
        "from the host\n"
    );
}

fn bind_of_nothing(lab: &Lab) {
    let mount =
        json!({"destination": "/data", "type": "bind", "source": "/nowhere", "options": ["bind"]});
    lab.refused(Bundle::shell("true").mount(mount), &["no such file"]);
}

fn bind_read_only(lab: &Lab) {
    let (folder, mount) = bound(json!(["bind", "ro"]));
    let run = lab.run(Bundle::shell("cat /data/file; echo x >/data/file").mount(mount));
    assert_eq!(run.out(), "from the host\n");
    assert!(run.err().contains("Read-only file system"), "{run:?}");
    assert_eq!(
        fs::read_to_string(folder.path().join("file")).unwrap(),
        "from the host\n"
    );
}

/// Mounts a tmpfs with a file on `sub` of the folder, runs, unmounts.
fn with_submount(lab: &Lab, options: Value, script: &str) -> String {
    let (folder, mount) = bound(options);
    let sub = folder.path().join("sub");
    fs::create_dir(&sub).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &sub, "tmpfs", flags, None).unwrap();
    fs::write(sub.join("below"), "below\n").unwrap();
    let null = Command::new("mknod")
        .arg(sub.join("null"))
        .args(["c", "1", "3"])
        .status();
    assert!(null.unwrap().success());
    let run = lab.run(Bundle::shell(script).mount(mount));
    rustix::mount::unmount(&sub, rustix::mount::UnmountFlags::DETACH).unwrap();
    run.success().out()
}

fn bind_with_submounts(lab: &Lab) {
    assert_eq!(
        with_submount(lab, json!(["rbind"]), "cat /data/sub/below"),
        "below\n"
    );
}

fn bind_without_submounts(lab: &Lab) {
    assert_eq!(
        with_submount(lab, json!(["bind"]), "cat /data/file; ls /data/sub"),
        "from the host\n"
    );
}

fn read_only_recursively(lab: &Lab) {
    let seen = with_submount(
        lab,
        json!(["rbind", "rro"]),
        "(echo x >/data/file) 2>&1; (echo x >/data/sub/below) 2>&1; true",
    );
    assert_eq!(seen.matches("Read-only file system").count(), 2, "{seen}");
}

fn nosuid_nodev_noexec_recursively(lab: &Lab) {
    let script =
        "cp /bin/busybox /data/sub/true; /data/sub/true 2>&1; (: </data/sub/null) 2>&1; true";
    let seen = with_submount(
        lab,
        json!(["rbind", "rnosuid", "rnodev", "rnoexec"]),
        script,
    );
    assert_eq!(seen.matches("Permission denied").count(), 2, "{seen}");
}

fn tmpfs_keeps_what_was_there(lab: &Lab) {
    let bundle = Bundle::shell("ls /kept").mount(tmpfs("/kept", json!(["tmpcopyup"])));
    fs::create_dir(bundle.rootfs().join("kept")).unwrap();
    fs::write(bundle.rootfs().join("kept/file"), "").unwrap();
    assert_eq!(lab.output(bundle), "file\n");
}

/// Deprecated, and from the root then.
fn relative_destination(lab: &Lab) {
    let run = lab.run(Bundle::shell("grep -c ' /t ' /proc/mounts").mount(tmpfs("t", json!([]))));
    assert!(
        run.out() == "1\n" || run.code() != 0 && run.err().contains("absolute"),
        "{run:?}"
    );
}

/// A link in the root that leads out of it is followed inside the root.
fn destination_through_a_link(lab: &Lab) {
    let outside = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (_folder, mut mount) = bound(json!(["bind"]));
    mount["destination"] = json!("/link/data");
    let bundle = Bundle::shell("cat /link/data/file").mount(mount);
    symlink(outside.path(), bundle.rootfs().join("link")).unwrap();
    let run = lab.run(bundle);
    assert!(run.code() != 0 || run.out() == "from the host\n", "{run:?}");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

fn unknown_type(lab: &Lab) {
    let mount = json!({"destination": "/t", "type": "nosuchfs", "source": "none"});
    lab.refused(
        Bundle::shell("true").mount(mount),
        &["nosuchfs", "no such device"],
    );
}

fn no_pivot(lab: &Lab) {
    let container = lab.container(Bundle::shell("echo ran"));
    let path = container.bundle.path().to_str().unwrap();
    let run = lab.call(&["run", "--no-pivot", "--bundle", path, &container.id]);
    assert_eq!(run.success().out(), "ran\n");
}

const ROOT: &str =
    "grep ' / / \\| /rootfs / ' /proc/self/mountinfo | tail -n 1; grep ' / ' /proc/self/mountinfo";

fn propagation_private(lab: &Lab) {
    let seen = lab.output(Bundle::shell(ROOT).with("/linux/rootfsPropagation", json!("private")));
    assert!(
        !seen.contains("shared:") && !seen.contains("master:"),
        "{seen}"
    );
}

fn propagation_shared(lab: &Lab) {
    let seen = lab.output(Bundle::shell(ROOT).with("/linux/rootfsPropagation", json!("shared")));
    assert!(seen.contains("shared:"), "{seen}");
}
