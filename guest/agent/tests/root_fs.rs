//! Containers as file systems: mounts, devices, hidden paths, and images that
//! try to get out.

mod harness;

use std::fs;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use harness::{Host, export, mount, plan, terminal_plan};
use vmrun_protocol::message::ExitStatus;
use vmrun_protocol::plan::{
    ContainerPlan, DeviceKind, DeviceNode, FsType, IdMapping, Mount, namespace,
};

fn sh(script: &str) -> ContainerPlan {
    plan(&["sh", "-c", script])
}

#[test]
fn only_the_containers_mounts_are_there() {
    let mut host = Host::new();
    let script = "while read a b c d point e; do echo $point; done </proc/self/mountinfo";
    let text = host.sh(script).text();
    let mut points: Vec<_> = text.lines().collect();
    points.sort_unstable();
    let expected = [
        "/",
        "/dev",
        "/dev/mqueue",
        "/dev/pts",
        "/dev/shm",
        "/proc",
        "/sys",
    ];
    assert_eq!(points, expected);
    let names = host.sh("ls -a / ; ls -a /..").text();
    assert!(!names.contains("share") && names.contains("bin"), "{names}");
}

#[test]
fn default_devices_work() {
    let mut host = Host::new();
    let script = "head -c 3 /dev/zero | wc -c; cat /dev/null; head -c 5 /dev/urandom | wc -c; \
                  echo x >/dev/full || echo full; readlink /dev/ptmx; readlink /dev/fd; \
                  stat -c '%n %t:%T %a' /dev/null /dev/tty /dev/random";
    assert_eq!(
        host.sh(script).text(),
        "3\n5\nfull\npts/ptmx\n/proc/self/fd\n\
         /dev/null 1:3 666\n/dev/tty 5:0 666\n/dev/random 1:8 666\n"
    );
}

#[test]
fn devices_never_end_up_in_the_bundle() {
    let mut host = Host::new();
    let mut plan = sh("test -c /dev/null && echo yes");
    plan.mounts.retain(|mount| mount.destination == b"/proc");
    assert_eq!(host.run(&plan).text(), "yes\n");
    assert_eq!(fs::read_dir(host.path("dev")).unwrap().count(), 0);
}

#[test]
fn devices_of_the_plan_are_made() {
    let mut host = Host::new();
    let mut plan = sh("stat -c '%F %t:%T %a %u:%g' /dev/sub/mine /dev/fifo /dev/null");
    let node = DeviceNode {
        path: b"/dev/sub/mine".to_vec(),
        kind: DeviceKind::Block,
        major: 9,
        minor: 300,
        mode: 0o640,
        uid: 3,
        gid: 4,
    };
    let fifo = DeviceNode {
        path: b"/dev/fifo".to_vec(),
        kind: DeviceKind::Fifo,
        major: 0,
        minor: 0,
        mode: 0o622,
        uid: 0,
        gid: 0,
    };
    let null = DeviceNode {
        path: b"/dev/null".to_vec(),
        kind: DeviceKind::Char,
        major: 1,
        minor: 3,
        mode: 0o600,
        ..fifo.clone()
    };
    plan.devices = vec![node, fifo, null];
    assert_eq!(
        host.run(&plan).text(),
        "block special file 9:12c 640 3:4\nfifo 0:0 622 0:0\ncharacter special file 1:3 600 0:0\n"
    );
}

#[test]
fn a_tmpfs_begins_with_what_the_image_has_there() {
    let mut host = Host::new();
    fs::create_dir(host.path("kept")).unwrap();
    fs::write(host.path("kept/file"), "of the image\n").unwrap();
    symlink("/kept/file", host.path("kept/link")).unwrap();
    let script = "cat /kept/link; stat -c %a /kept; echo more >>/kept/file && cat /kept/file; \
                  ls /plain; touch /kept/ro/x || echo refused";
    let mut plan = sh(script);
    fs::create_dir(host.path("plain")).unwrap();
    fs::write(host.path("plain/file"), "hidden").unwrap();
    let mut kept = mount(FsType::Tmpfs, "/kept", "size=64k");
    kept.flags |= Mount::COPY_UP;
    let mut ro = mount(FsType::Tmpfs, "/kept/ro", "");
    ro.flags |= Mount::COPY_UP | libc::MS_RDONLY;
    plan.mounts.push(mount(FsType::Tmpfs, "/plain", ""));
    plan.mounts.extend([kept, ro]);
    assert_eq!(
        host.run(&plan).text(),
        "of the image\n755\nof the image\nmore\nrefused\n"
    );
    let after = fs::read_to_string(host.path("kept/file")).unwrap();
    assert_eq!(after, "of the image\n");
}

#[test]
fn a_readonly_root_is_one() {
    let mut host = Host::new();
    let mut plan = sh("touch /x || echo refused; touch /dev/shm/y && echo writable");
    plan.root_readonly = true;
    let outcome = host.run(&plan);
    assert_eq!(outcome.text(), "refused\nwritable\n");
    assert!(!host.path("x").exists());
}

#[test]
fn exports_are_bound_with_their_flags() {
    let mut host = Host::new();
    let share = host.tree.path().join("share");
    fs::create_dir(share.join("m0")).unwrap();
    fs::write(share.join("m0/file"), "in m0\n").unwrap();
    fs::write(share.join("m1"), "a file\n").unwrap();
    let mut plan = sh("cat /data/a/file /etc/one; touch /data/a/x || echo ro; \
                       echo changed >/etc/one");
    plan.mounts
        .push(export("m0", "/data/a", true, libc::MS_RDONLY));
    plan.mounts
        .push(export("m1", "/etc/one", false, libc::MS_NOATIME));
    assert_eq!(host.run(&plan).text(), "in m0\na file\nro\n");
    assert_eq!(fs::read(share.join("m1")).unwrap(), b"changed\n");
    plan.mounts.push(export("../dev", "/data/b", true, 0));
    assert_eq!(host.create(&plan).unwrap_err().what, "export \"../dev\"");
}

#[test]
fn paths_are_hidden_and_protected() {
    let mut host = Host::new();
    fs::write(host.path("etc/secret"), "secret").unwrap();
    for folder in ["hidden", "hidden2", "fixed"] {
        fs::create_dir(host.path(folder)).unwrap();
        fs::write(host.path(folder).join("file"), "x").unwrap();
    }
    let mut plan = sh(
        "cat /etc/secret; ls /hidden /hidden2; touch /hidden/x || echo 1; \
                       touch /fixed/file || echo 2; cat /fixed/file; \
                       echo 5 >/proc/sys/kernel/panic || echo 3; cat /etc/readonly_missing",
    );
    plan.masked_paths = [
        "/etc/secret",
        "/hidden",
        "/hidden2",
        "/none",
        "/etc/passwd/x",
    ]
    .map(|path| path.as_bytes().to_vec())
    .to_vec();
    plan.readonly_paths = ["/fixed", "/proc/sys", "/nothing"]
        .map(|path| path.as_bytes().to_vec())
        .to_vec();
    let outcome = host.run(&plan);
    assert_eq!(
        String::from_utf8(outcome.stdout).unwrap(),
        "/hidden:\n\n/hidden2:\n1\n2\nx3\n"
    );
}

#[test]
fn an_image_cannot_redirect_proc_or_sys() {
    for (path, target) in [
        ("proc", "/"),
        ("proc", "tmp"),
        ("sys", "/etc"),
        ("sys", "../.."),
    ] {
        let mut host = Host::new();
        symlink(target, host.path(path)).unwrap();
        let failure = host.create(&sh("true")).unwrap_err();
        assert_eq!(failure.errno, libc::ELOOP, "{failure:?}");
        assert!(
            failure.what.contains(&format!("\"/{path}\"")),
            "{failure:?}"
        );
    }
}

#[test]
fn an_image_cannot_lead_mounts_outside() {
    let mut host = Host::new();
    let outside = host.tree.path().join("outside");
    fs::create_dir(&outside).unwrap();
    symlink("../../../outside", host.path("up")).unwrap();
    symlink("/outside", host.path("absolute")).unwrap();
    symlink(&outside, host.path("dev")).unwrap();
    let mut plan = sh("test -c /dev/null && echo /outside/*");
    plan.mounts = vec![
        mount(FsType::Proc, "/proc", ""),
        mount(FsType::Tmpfs, "/up/a", ""),
        mount(FsType::Tmpfs, "/absolute/b", ""),
        mount(FsType::Tmpfs, "/../../outside/c", ""),
    ];
    // /dev dangles: it is refused rather than made somewhere.
    assert!(host.create(&plan).is_err());
    fs::remove_file(host.path("dev")).unwrap();
    symlink("/outside", host.path("dev")).unwrap();
    fs::create_dir(host.path("outside")).unwrap();
    let text = host.run(&plan).text();
    assert!(text.contains("/outside/a"), "{text}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn an_image_cannot_lead_device_nodes_outside() {
    let mut host = Host::new();
    let share = host.tree.path().join("share/m0");
    fs::create_dir(&share).unwrap();
    symlink("/etc/passwd", share.join("null")).unwrap();
    let mut plan = sh("true");
    plan.mounts.retain(|mount| mount.destination == b"/proc");
    // The image's own /dev is covered; nodes on top of links are refused.
    fs::create_dir(host.path("dev")).unwrap();
    symlink("/etc/passwd", host.path("dev/null")).unwrap();
    assert_eq!(host.run(&plan).status, ExitStatus::Code(0));
    plan.devices = vec![DeviceNode {
        path: b"/bin/sh".to_vec(),
        kind: DeviceKind::Char,
        major: 1,
        minor: 3,
        mode: 0o666,
        uid: 0,
        gid: 0,
    }];
    let failure = host.create(&plan).unwrap_err();
    assert_eq!(
        (failure.what.as_str(), failure.errno),
        ("device \"/bin/sh\"", libc::EEXIST)
    );
    assert!(host.path("bin/sh").is_symlink());
}

#[test]
fn an_image_cannot_fake_a_terminal_or_null() {
    let mut host = Host::new();
    let share = host.tree.path().join("share/m0");
    fs::create_dir_all(share.join("pts")).unwrap();
    fs::write(share.join("pts/ptmx"), "").unwrap();
    let mut plan = terminal_plan(&["true"]);
    plan.mounts
        .retain(|mount| !mount.destination.starts_with(b"/dev"));
    plan.mounts.push(export("m0", "/dev", true, 0));
    let failure = host.create(&plan).unwrap_err();
    assert_eq!(failure.what, "terminal in \"/dev/pts\"");
    // A /dev/null of the image's is not what files are masked with.
    fs::write(share.join("null"), "fake").unwrap();
    fs::write(host.path("secret"), "secret").unwrap();
    plan = sh("stat -c %t:%T /secret");
    plan.mounts
        .retain(|mount| !mount.destination.starts_with(b"/dev"));
    plan.mounts.push(export("m0", "/dev", true, 0));
    plan.masked_paths = vec![b"/secret".to_vec()];
    assert_eq!(host.run(&plan).text(), "1:3\n");
}

#[test]
fn the_working_folder_stays_inside() {
    let mut host = Host::new();
    for cwd in ["/proc/self/fd/3", "/proc/self/cwd", "/proc/1/root"] {
        let mut plan = sh("pwd");
        plan.process.cwd = cwd.into();
        let failure = host.create(&plan).unwrap_err();
        assert_eq!(failure.what, format!("cwd {cwd:?}"), "{failure:?}");
    }
    let mut plan = sh("pwd");
    plan.process.cwd = b"/../../..".to_vec();
    assert_eq!(host.run(&plan).text(), "/\n");
    plan.process.cwd = b"/etc/passwd".to_vec();
    assert_eq!(host.create(&plan).unwrap_err().errno, libc::ENOTDIR);
}

#[test]
fn a_failed_mount_is_named_and_leaves_nothing() {
    let mut host = Host::new();
    let mut plan = sh("true");
    plan.mounts.push(mount(FsType::Tmpfs, "/t", "size=banana"));
    let failure = host.create(&plan).unwrap_err();
    assert_eq!(
        (failure.what.as_str(), failure.errno),
        ("mount tmpfs on \"/t\"", libc::EINVAL)
    );
    plan.mounts.pop();
    plan.mounts.push(export("m9", "/t", true, 0));
    let failure = host.create(&plan).unwrap_err();
    assert_eq!(
        (failure.what.as_str(), failure.errno),
        ("bind on \"/t\"", libc::ENOENT)
    );
    assert_eq!(host.sh("echo fine").text(), "fine\n");
}

#[test]
fn a_missing_root_is_named() {
    let mut host = Host::new();
    fs::rename(host.path(""), host.tree.path().join("gone")).unwrap();
    let failure = host.create(&sh("true")).unwrap_err();
    assert_eq!(
        (failure.what.as_str(), failure.errno),
        ("root file system", libc::ENOENT)
    );
}

#[test]
fn propagation_is_set() {
    let mut host = Host::new();
    let mut plan = sh("grep -c shared: /proc/self/mountinfo; grep ' /t ' /proc/self/mountinfo");
    plan.root_propagation = libc::MS_SHARED | libc::MS_REC;
    let mut made = mount(FsType::Tmpfs, "/t", "size=64k");
    made.propagation = vec![libc::MS_UNBINDABLE];
    plan.mounts.push(made);
    // Making a tree shared changes unbindable mounts, too.
    let text = host.run(&plan).text();
    assert!(text.starts_with("8\n"), "{text}");
    plan.root_propagation = 0;
    let text = host.run(&plan);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(
        text.starts_with("0\n") && text.contains("unbindable"),
        "{text}"
    );
}

#[test]
fn a_user_namespace_works_whole() {
    let mut host = Host::new();
    let mut plan = terminal_plan(&[
        "sh",
        "-c",
        "cat /proc/self/uid_map; id -u; test -c /dev/null && echo x >/dev/null && echo null; \
         stat -c %t:%T /dev/tty; ls /sys/kernel >/dev/null && echo sys; ls /; ls /dev/share",
    ]);
    plan.namespaces |= namespace::USER | namespace::TIME;
    plan.process.user.uid = 1000;
    plan.masked_paths = vec![b"/etc/group".to_vec()];
    host.create(&plan).unwrap();
    let terminal = harness::collect(host.connect(vmrun_protocol::message::Stream::Terminal));
    host.start().unwrap();
    host.exited();
    let text = String::from_utf8(terminal.join().unwrap()).unwrap();
    let words: Vec<_> = text.split_whitespace().collect();
    assert_eq!(
        words.get(..14).unwrap_or_default().join(" "),
        "0 0 4294967295 1000 null 5:0 sys bin dev etc proc sys tmp ls:",
        "{text}"
    );
}

#[test]
fn ids_are_mapped_as_the_plan_says() {
    const ROOT: u32 = 100_000;
    let mut host = Host::new();
    // As an engine leaves the folders of a container with mapped ids.
    let own = |path: &std::path::Path| {
        std::os::unix::fs::lchown(path, Some(ROOT), Some(ROOT)).unwrap();
    };
    fs::set_permissions(host.tree.path(), Permissions::from_mode(0o755)).unwrap();
    own(&host.path(""));
    for folder in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(host.path(folder)).unwrap();
        own(&host.path(folder));
    }
    let script = "cat /proc/self/uid_map /proc/self/gid_map; id -u; id -g; stat -c %u /tmp; \
                  echo x >/tmp/made; echo x >/dev/null && echo null; echo y >/dev/shm/z && \
                  stat -c %u:%g /dev/shm/z; cat /proc/self/oom_score_adj; hostname";
    let mut plan = sh(script);
    plan.namespaces |= namespace::USER;
    plan.process.oom_score_adj = Some(100);
    plan.uid_mappings = vec![IdMapping {
        inside: 0,
        outside: ROOT,
        count: 65_536,
    }];
    plan.gid_mappings = plan.uid_mappings.clone();
    plan.hostname = Some(b"mapped".to_vec());
    let outcome = host.run(&plan);
    assert_eq!(
        String::from_utf8_lossy(&outcome.stdout)
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" "),
        "0 100000 65536 0 100000 65536 0 0 0 null 0:0 100 mapped",
        "{outcome:?}"
    );
    let made = fs::metadata(host.path("tmp/made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (ROOT, ROOT));
    plan.process.user.uid = 1000;
    plan.process.user.gid = 1000;
    plan.process.args = vec![b"sh".to_vec(), b"-c".to_vec(), b"id -u; id -g".to_vec()];
    assert_eq!(host.run(&plan).text(), "1000\n1000\n");
}
