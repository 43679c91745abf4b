//! Volumes, copies, and what may be written.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::{Docker, Promise};
use crate::suite::cases;

pub const CASES: &[(&str, Promise)] = cases![
    read_only_root,
    temporary_file_systems,
    volume_of_a_folder,
    volume_of_a_file,
    read_only_volume,
    named_volume,
    copy_in_and_out,
    what_is_written_stays,
    hosts_file,
];

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn read_only_root(docker: &Docker) {
    let run = docker.run(&["--read-only"], &["touch", "/file"]);
    assert_eq!(run.code(), 1, "{run:?}");
    assert!(run.err().contains("Read-only file system"), "{run:?}");
    assert_eq!(
        docker.shell(
            &["--read-only", "--tmpfs", "/tmp"],
            "echo x >/tmp/x; cat /tmp/x"
        ),
        "x\n"
    );
}

fn temporary_file_systems(docker: &Docker) {
    let flags = ["--tmpfs", "/data:size=4m,mode=0700,noexec"];
    let seen = docker.shell(
        &flags,
        "stat -c %a /data; grep ' /data ' /proc/mounts; df -k /data | tail -n 1",
    );
    assert!(seen.starts_with("700\n"), "{seen}");
    assert!(
        seen.contains("tmpfs") && seen.contains("noexec") && seen.contains(" 4096 "),
        "{seen}"
    );
}

fn volume_of_a_folder(docker: &Docker) {
    let folder = folder();
    fs::write(folder.path().join("in"), "from the host\n").unwrap();
    let volume = format!("{}:/data", folder.path().display());
    let out = docker.shell(
        &["-v", &volume],
        "cat /data/in; echo from inside >/data/out; mkdir /data/sub",
    );
    assert_eq!(out, "from the host\n");
    assert_eq!(
        fs::read_to_string(folder.path().join("out")).unwrap(),
        "from inside\n"
    );
    assert!(folder.path().join("sub").is_dir());
}

fn volume_of_a_file(docker: &Docker) {
    let folder = folder();
    let file = folder.path().join("settings");
    fs::write(&file, "a=1\n").unwrap();
    let volume = format!("{}:/etc/settings", file.display());
    assert_eq!(
        docker.shell(
            &["-v", &volume],
            "cat /etc/settings; echo b=2 >>/etc/settings"
        ),
        "a=1\n"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), "a=1\nb=2\n");
}

fn read_only_volume(docker: &Docker) {
    let folder = folder();
    fs::write(folder.path().join("in"), "x\n").unwrap();
    let volume = format!("{}:/data:ro", folder.path().display());
    let run = docker.run(
        &["-v", &volume],
        &["sh", "-c", "cat /data/in; echo y >/data/in"],
    );
    assert_eq!(run.out(), "x\n");
    assert!(run.err().contains("Read-only file system"), "{run:?}");
    assert_eq!(fs::read_to_string(folder.path().join("in")).unwrap(), "x\n");
}

fn named_volume(docker: &Docker) {
    let name = format!("volume-{}", docker.runtime.name);
    let flag = format!("{name}:/data");
    docker.shell(&["-v", &flag], "echo kept >/data/file");
    assert_eq!(docker.shell(&["-v", &flag], "cat /data/file"), "kept\n");
    docker.cli(&["volume", "rm", &name]).finish().success();
}

fn copy_in_and_out(docker: &Docker) {
    let folder = folder();
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::create_dir(folder.path().join("tree")).unwrap();
    fs::write(folder.path().join("tree/file"), "copied in\n").unwrap();
    let container = docker.background(
        &[],
        "mkfifo /pipe; echo out >/made; echo up; read x </pipe; cat /in/file",
    );
    container.wait_for("up");
    let inside = |path: &str| format!("{}:{path}", container.id);
    docker
        .cli(&["cp", &at("tree"), &inside("/in")])
        .finish()
        .success();
    docker
        .cli(&["cp", &inside("/made"), &at("made")])
        .finish()
        .success();
    assert_eq!(fs::read_to_string(at("made")).unwrap(), "out\n");
    assert_eq!(
        container.shell("cat /in/file; echo go >/pipe"),
        "copied in\n"
    );
    assert_eq!(container.wait(), 0);
    assert_eq!(container.logs(), "up\ncopied in\n");
}

fn what_is_written_stays(docker: &Docker) {
    let container = docker.background(&[], "echo x >>/count; wc -l </count; rm -f /bin/tac");
    container.wait();
    container.cli(&["start", "--attach"]).success();
    assert_eq!(container.logs(), "1\n2\n");
    let diff = container.cli(&["diff"]).success().out();
    let mut diff: Vec<_> = diff.lines().collect();
    diff.sort_unstable();
    assert_eq!(diff, ["A /count", "C /bin", "D /bin/tac"]);
}

fn hosts_file(docker: &Docker) {
    let hosts = docker.shell(
        &["--add-host", "peer:10.1.2.3"],
        "cat /etc/hosts; cat /etc/hostname",
    );
    assert!(hosts.contains("10.1.2.3\tpeer"), "{hosts}");
}
