//! The bundle's folder as the container's root, and nothing else of the host.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::{CWD, FileType, Mode, RenameFlags, makedev, mknodat, renameat_with};
use serde_json::json;

use crate::harness::{Bundle, Runtime};

fn mode_and_owner(path: &std::path::Path) -> (u32, u32, u32) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
}

#[test]
fn files_have_content_owner_and_mode_on_both_sides() {
    let script = r#"
        stat -c '%a %u:%g' /from-host; read -r line </from-host; echo "$line"
        umask 022; echo from guest >/from-guest; mkdir -m 0750 /folder
        chmod 4751 /from-guest; chown 1234:4321 /folder; ln -s target /link
        ln /from-guest /folder/hard; mv /old /new; rm /gone; echo more >>/appended"#;
    for runtime in Runtime::ALL {
        let bundle = Bundle::shell(script);
        let at = |name: &str| bundle.rootfs().join(name);
        fs::write(at("from-host"), "from host\n").unwrap();
        fs::set_permissions(at("from-host"), fs::Permissions::from_mode(0o604)).unwrap();
        chown(at("from-host"), Some(77), Some(88)).unwrap();
        for name in ["old", "gone", "appended"] {
            fs::write(at(name), "as before\n").unwrap();
        }
        let run = runtime.run(&bundle).success();
        assert_eq!(run.out(), "604 77:88\nfrom host\n", "{runtime:?}: {run:?}");
        assert_eq!(run.err(), "", "{runtime:?}");
        assert_eq!(
            fs::read_to_string(at("from-guest")).unwrap(),
            "from guest\n"
        );
        assert_eq!(
            mode_and_owner(&at("from-guest")),
            (0o4751, 0, 0),
            "{runtime:?}"
        );
        assert_eq!(
            mode_and_owner(&at("folder")),
            (0o750, 1234, 4321),
            "{runtime:?}"
        );
        assert_eq!(fs::read_link(at("link")).unwrap().to_str(), Some("target"));
        let inode = |name| fs::metadata(at(name)).unwrap().ino();
        assert_eq!(inode("folder/hard"), inode("from-guest"), "{runtime:?}");
        assert!(at("new").exists() && !at("old").exists() && !at("gone").exists());
        assert_eq!(
            fs::read_to_string(at("appended")).unwrap(),
            "as before\nmore\n"
        );
    }
}

#[test]
fn a_read_only_root_is_read_only() {
    let script = "(echo x >/new) 2>&1; (echo x >>/etc/passwd) 2>&1; (: >/bin/busybox) 2>&1
        mount -o remount,rw / 2>/dev/null && echo remounted
        echo x >/dev/shm-file && echo devices are writable";
    for runtime in Runtime::ALL {
        let bundle = Bundle::shell(script).with("/root/readonly", json!(true));
        let run = runtime.run(&bundle).success();
        assert_eq!(
            run.out().matches("Read-only file system").count(),
            3,
            "{runtime:?}: {run:?}"
        );
        assert!(
            run.out().ends_with("devices are writable\n"),
            "{runtime:?}: {run:?}"
        );
        assert!(!run.out().contains("remounted"), "{runtime:?}: {run:?}");
        assert!(!bundle.rootfs().join("new").exists());
        let passwd = fs::read_to_string(bundle.rootfs().join("etc/passwd")).unwrap();
        assert_eq!(passwd, "root:x:0:0:root:/root:/bin/sh\n");
    }
}

/// All attempts in one container; each line of its output is one that came through.
fn attempts() -> &'static str {
    static OUTPUT: LazyLock<String> = LazyLock::new(|| {
        let script = r#"
            look() { { read -r line <"$1"; } 2>/dev/null && echo "$2: $line"; }
            look /absolute "absolute link"
            look /climbing "climbing link"
            look /folder/link/secret "link to a folder"
            look /../secret "dots"
            look /../../../../../../../../../../$SECRET "many dots"
            look /proc/1/root/../secret "proc"
            look /proc/self/cwd/../../secret "cwd"
            n=0; while [ $n -lt 300 ]; do look /swapped/secret race; n=$((n+1)); done
            { read -r line </mem; } 2>&1
            { read -r line </null && echo null read; } 2>&1
            { echo x >/disk; } 2>&1
            echo done"#;
        let bundle = Bundle::shell(script);
        let secret = bundle.path().join("secret");
        fs::write(&secret, "the host's\n").unwrap();
        let relative = secret.strip_prefix("/").unwrap().to_str().unwrap();
        let bundle = bundle.with(
            "/process/env",
            json!(["PATH=/bin", format!("SECRET={relative}")]),
        );
        let rootfs = bundle.rootfs();
        symlink(&secret, rootfs.join("absolute")).unwrap();
        symlink("../../../../../../../../secret", rootfs.join("climbing")).unwrap();
        fs::create_dir(rootfs.join("folder")).unwrap();
        symlink(bundle.path(), rootfs.join("folder/link")).unwrap();
        for (name, kind, major, minor) in [
            ("mem", FileType::CharacterDevice, 1, 1),
            ("null", FileType::CharacterDevice, 1, 3),
            ("disk", FileType::BlockDevice, 254, 0),
        ] {
            let mode = Mode::from_raw_mode(0o666);
            mknodat(CWD, rootfs.join(name), kind, mode, makedev(major, minor)).unwrap();
        }
        run_while_swapping(&bundle)
    });
    &OUTPUT
}

/// Runs `bundle` while `/swapped` changes between a folder and a link out of the
/// root, as fast as the host can.
fn run_while_swapping(bundle: &Bundle) -> String {
    let rootfs = bundle.rootfs();
    let (swapped, other) = (rootfs.join("swapped"), rootfs.join("other"));
    fs::create_dir(&swapped).unwrap();
    symlink(bundle.path(), &other).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, &swapped, CWD, &other, RenameFlags::EXCHANGE).unwrap();
                // As fast as the guest looks, and not a processor of its own.
                thread::sleep(std::time::Duration::from_micros(200));
            }
        });
        let running = Runtime::Vmrun.launch(bundle).start();
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| running.finish()));
        stop.store(true, Ordering::Relaxed);
        run.unwrap().success().out()
    })
}

#[test]
fn links_dots_and_races_lead_nowhere_outside() {
    assert!(attempts().ends_with("done\n"), "{}", attempts());
    assert!(!attempts().contains("the host's"), "{}", attempts());
}

#[test]
fn device_nodes_of_the_host_open_nothing_of_it() {
    // The guest's own null device would be harmless, but nodes in a share are not
    // devices at all.
    let failed = attempts().matches("can't ").count();
    assert_eq!(failed, 3, "{}", attempts());
    assert!(!attempts().contains("null read"), "{}", attempts());
}
