//! A container whose process was made ahead is the same as one made from scratch:
//! the first container of these agents is the former, the second the latter.

mod harness;

use std::fs;

use harness::{Host, export, mount, plan};
use vmrun_protocol::plan::{
    Capabilities, ContainerPlan, DeviceKind, DeviceNode, FsType, WindowSize, namespace,
};

/// All that a container can see of how it was made. To stderr: what the kernel
/// lists as its oldest mount.
const DESCRIBE: &str = "\
    while read id parent device root point rest; do \
        echo mount $point $root $rest; done </proc/self/mountinfo | sort; \
    stat -c '%n %F %t:%T %a %u:%g' /dev /dev/* /dev/pts/ptmx /proc/bus /sys/firmware 2>&1; \
    for link in fd stdin stdout stderr ptmx; do readlink /dev/$link; done; \
    for file in kcore keys timer_list scsi bus; do head -c 1 /proc/$file | wc -c; done 2>&1; \
    grep -E 'Cap|NoNewPrivs|Groups|Umask|Sig[PBIC]' /proc/self/status; \
    cat /proc/self/cgroup /proc/self/oom_score_adj /proc/sys/net/ipv4/ip_default_ttl; \
    (echo 64 >/proc/sys/net/ipv4/ip_default_ttl) 2>&1; set -- /proc/[0-9]*; echo $#; \
    set -- /proc/$$/fd/*; echo $#; id; hostname; pwd; ip addr show lo | grep LOOPBACK; echo $$; \
    read id parent device root point rest </proc/self/mountinfo; echo $point >&2";

/// Runs `plan` in a prepared process, then in one from scratch. The former, in its
/// namespace, has `oldest` before its root.
fn alike(host: &mut Host, plan: &ContainerPlan, oldest: &str) -> String {
    let [prepared, scratch] = [(); 2].map(|()| host.run(plan));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    for (ours, theirs) in text(&prepared.stdout)
        .lines()
        .zip(text(&scratch.stdout).lines())
    {
        assert_eq!(ours, theirs);
    }
    assert_eq!(prepared.stdout.len(), scratch.stdout.len());
    assert_eq!(text(&prepared.stderr), oldest);
    assert_eq!(text(&scratch.stderr), "/\n");
    text(&prepared.stdout)
}

fn usual() -> ContainerPlan {
    let mut plan = plan(&["sh", "-c", DESCRIBE]);
    let paths = |paths: &[&str]| paths.iter().map(|p| p.as_bytes().to_vec()).collect();
    plan.masked_paths = paths(&[
        "/proc/acpi",
        "/proc/kcore",
        "/proc/keys",
        "/proc/timer_list",
        "/sys/firmware",
        "/proc/scsi",
    ]);
    plan.readonly_paths = paths(&["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"]);
    plan.process.capabilities = Some(Capabilities {
        bounding: 1 << 5 | 1 << 10,
        effective: 1 << 5,
        permitted: 1 << 5,
        ..Capabilities::default()
    });
    plan
}

fn closed() -> u64 {
    libc::MS_NOSUID | libc::MS_NOEXEC | libc::MS_NODEV
}

#[test]
fn the_usual_plan() {
    let mut host = Host::new();
    let text = alike(&mut host, &usual(), "/proc\n");
    assert!(text.contains("mount /proc/bus /bus ro,"), "{text}");
    assert!(text.contains("/dev/null character special file 1:3 666 0:0"));
}

#[test]
fn the_plan_of_an_engine() {
    let mut host = Host::new();
    let share = host.tree.path().join("share");
    fs::write(share.join("m0"), "127.0.0.1 localhost\n").unwrap();
    fs::create_dir(share.join("m1")).unwrap();
    let mut plan = usual();
    // Other attributes, no /dev/shm, other mounts behind.
    plan.mounts[0].flags = closed();
    plan.mounts.remove(3);
    plan.mounts.push(export("m1", "/dev/shm", true, closed()));
    plan.mounts
        .push(export("m0", "/etc/hosts", false, libc::MS_RDONLY));
    plan.mounts.push(mount(FsType::Tmpfs, "/run", "mode=755"));
    plan.masked_paths.retain(|path| path != b"/proc/keys");
    plan.masked_paths.push(b"/proc/interrupts".to_vec());
    plan.readonly_paths.retain(|path| path != b"/proc/irq");
    plan.sysctl = vec![(b"net/ipv4/ip_default_ttl".to_vec(), b"99".to_vec())];
    plan.root_readonly = true;
    plan.process.oom_score_adj = Some(500);
    plan.process.user.uid = 7;
    plan.process.no_new_privileges = true;
    let text = alike(&mut host, &plan, "/proc\n");
    assert!(
        text.contains("mount /proc/bus /bus ro,nosuid,nodev,noexec"),
        "{text}"
    );
    assert!(text.contains("\n99\n"), "{text}");
}

#[test]
fn nodes_of_its_own() {
    let mut host = Host::new();
    let mut plan = usual();
    let node = |path: &str, minor, mode| DeviceNode {
        path: path.into(),
        kind: DeviceKind::Char,
        major: 1,
        minor,
        mode,
        uid: 5,
        gid: 6,
    };
    plan.devices = vec![node("/dev/null", 3, 0o600), node("/dev/mine", 5, 0o640)];
    let text = alike(&mut host, &plan, "/proc\n");
    assert!(
        text.contains("/dev/null character special file 1:3 600 5:6"),
        "{text}"
    );
    assert!(
        text.contains("/dev/mine character special file 1:5 640 5:6"),
        "{text}"
    );
}

#[test]
fn mounts_over_what_was_prepared() {
    let mut host = Host::new();
    let mut plan = usual();
    // What is mounted on a path to hide or to protect is so, too.
    plan.mounts.push(mount(FsType::Tmpfs, "/proc/fs", ""));
    plan.mounts
        .push(mount(FsType::Tmpfs, "/sys/firmware", "mode=700"));
    alike(&mut host, &plan, "/proc\n");
    let mut host = Host::new();
    let mut plan = usual();
    plan.mounts
        .push(mount(FsType::Tmpfs, "//dev/.", "mode=700"));
    alike(&mut host, &plan, "/proc\n");
}

#[test]
fn other_file_systems_from_the_start() {
    let mut host = Host::new();
    let mut plan = usual();
    plan.mounts[1].data = b"mode=755,size=1m".to_vec();
    let text = alike(&mut host, &plan, "/proc\n");
    assert!(text.contains("size=1024k"), "{text}");
    let mut host = Host::new();
    let mut plan = usual();
    plan.mounts.swap(0, 1);
    plan.mounts.remove(2);
    alike(&mut host, &plan, "/proc\n");
}

#[test]
fn what_does_not_fit_is_made_from_scratch() {
    let full = Capabilities {
        bounding: 1 << 21,
        ..Capabilities::default()
    };
    let changes: [fn(&mut ContainerPlan, Capabilities); 4] = [
        |plan, _| plan.namespaces |= namespace::USER,
        |plan, _| plan.namespaces &= !namespace::IPC,
        |plan, full| plan.process.capabilities = Some(full),
        // Longer than the socket takes.
        |plan, _| plan.process.env.push([b"A=", &[b'a'; 70_000][..]].concat()),
    ];
    for change in changes {
        let mut host = Host::new();
        let mut plan = usual();
        change(&mut plan, full);
        alike(&mut host, &plan, "/\n");
    }
}

#[test]
fn a_terminal() {
    let mut host = Host::new();
    let mut plan = usual();
    plan.process.terminal = Some(WindowSize {
        rows: 7,
        columns: 9,
    });
    plan.process.args = vec![b"sh".to_vec(), b"-c".to_vec(), b"stty size; tty".to_vec()];
    for _ in 0..2 {
        host.create(&plan).unwrap();
        let terminal = harness::collect(host.connect(vmrun_protocol::message::Stream::Terminal));
        host.start().unwrap();
        host.exited();
        let text = String::from_utf8(terminal.join().unwrap()).unwrap();
        assert_eq!(text, "7 9\r\n/dev/pts/0\r\n");
    }
}

#[test]
fn a_failure_leaves_room_for_the_next() {
    let mut host = Host::new();
    let mut plan = usual();
    plan.process.cwd = b"/etc/passwd".to_vec();
    let failure = host.create(&plan).unwrap_err();
    assert_eq!(failure.what, "cwd \"/etc/passwd\"");
    assert_eq!(host.sh("echo next").text(), "next\n");
}
