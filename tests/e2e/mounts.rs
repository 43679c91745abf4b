//! Mounts of every type, devices, masked and read-only paths, seen from inside.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::LazyLock;

use serde_json::json;

use crate::harness::{Bundle, Runtime, Sections};

const SCRIPT: &str = r#"
dump() { while IFS= read -r line || [ -n "$line" ]; do printf '%s\n' "$line"; done <"$1"; }
try() { if eval "$1" 2>/dev/null; then echo yes; else echo no; fi; }
echo "== mounts"; dump /proc/self/mounts
echo "== folder"; dump /folder/file; try 'echo new >/folder/new'
echo "== read-only folder"; dump /ro/file; try 'echo new >/ro/new'
echo "== file"; dump /etc/conf; try 'echo changed >/etc/conf'
echo "== read-only file"; dump /etc/fixed; try 'echo changed >/etc/fixed'
echo "== tmpfs"; try 'echo x >/scratch/file'
echo "== noexec"; try /noexec/script
echo "== masked"; try '[ -s /proc/version ]'; for f in /sys/kernel/*; do echo "$f"; done
echo "== read-only path"; try 'echo x >/proc/sys/kernel/domainname'
echo "== devices"; for d in null zero full random urandom tty ptmx; do [ -c /dev/$d ] && echo $d; done
try 'echo x >/dev/null'; try '[ -c /dev/extra ]'; try '(: </dev/extra)'
echo "== links"; for l in fd stdin stdout stderr; do [ -L /dev/$l ] && echo $l; done
echo "== stat"; stat -c '%n %a %u:%g %t:%T %F' /scratch /dev/null /dev/extra /folder/file
"#;

struct Seen {
    runtime: Runtime,
    inside: Sections,
    /// Of the shared folders and files, afterwards.
    new_file: String,
    conf: String,
    fixed: String,
}

fn all() -> &'static [Seen; 2] {
    static SEEN: LazyLock<[Seen; 2]> = LazyLock::new(|| Runtime::ALL.map(run));
    &SEEN
}

fn run(runtime: Runtime) -> Seen {
    let bundle = Bundle::shell(SCRIPT);
    let at = |name: &str| bundle.path().join(name);
    for folder in ["shared", "shared-ro", "programs"] {
        fs::create_dir(at(folder)).unwrap();
    }
    fs::write(at("shared/file"), "shared\n").unwrap();
    fs::set_permissions(at("shared/file"), fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(at("shared/file"), Some(1000), Some(1001)).unwrap();
    fs::write(at("shared-ro/file"), "only read\n").unwrap();
    fs::write(at("conf"), "configured\n").unwrap();
    fs::write(at("fixed"), "fixed\n").unwrap();
    fs::write(at("programs/script"), "#!/bin/sh\nexit 0\n").unwrap();
    fs::set_permissions(at("programs/script"), fs::Permissions::from_mode(0o755)).unwrap();
    let (shared, shared_ro) = (at("shared"), at("shared-ro"));
    let (conf, fixed, programs) = (at("conf"), at("fixed"), at("programs"));
    let bind = |destination: &str, source, more: &[&str]| {
        let options = [&["rbind"], more].concat();
        json!({"destination": destination, "type": "bind", "source": source, "options": options})
    };
    let bundle = bundle
        .mount(bind("/folder", &shared, &["nosuid"]))
        .mount(bind("/ro", &shared_ro, &["ro"]))
        .mount(bind("/etc/conf", &conf, &[]))
        .mount(bind("/etc/fixed", &fixed, &["ro"]))
        .mount(bind("/noexec", &programs, &["noexec"]))
        .mount(
            json!({"destination": "/scratch", "type": "tmpfs", "source": "scratch",
            "options": ["nosuid", "nodev", "size=1m", "mode=1750", "uid=12", "gid=13"]}),
        )
        .mount(
            json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"]}),
        )
        .mount(
            json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=64k"]}),
        )
        .with(
            "/linux/maskedPaths",
            json!(["/proc/version", "/sys/kernel", "/proc/missing"]),
        )
        .with(
            "/linux/readonlyPaths",
            json!(["/proc/sys", "/proc/missing"]),
        )
        .with(
            "/linux/devices",
            json!([{"path": "/dev/extra", "type": "c", "major": 1, "minor": 5,
                    "fileMode": 0o640, "uid": 3, "gid": 4}]),
        )
        .with(
            "/linux/resources/devices",
            json!([{"allow": false, "access": "rwm"},
                   {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "r"}]),
        );
    let inside = runtime.run(&bundle).success().sections();
    let read = |path| fs::read_to_string(path).unwrap_or_else(|e| e.to_string());
    Seen {
        runtime,
        inside,
        new_file: read(shared.join("new")),
        conf: read(conf),
        fixed: read(fixed),
    }
}

impl Seen {
    /// Type and options of the mount at `path`.
    fn mounted(&self, path: &str) -> (&str, Vec<&str>) {
        let lines = self.inside["mounts"].lines();
        let mut words = lines.map(|line| line.split(' ').skip(1).collect::<Vec<_>>());
        let found = words.find(|words| words[0] == path);
        let found = found.unwrap_or_else(|| panic!("{:?}: no mount at {path}", self.runtime));
        (found[1], found[2].split(',').collect())
    }
}

#[test]
fn every_type_is_mounted_with_its_options() {
    for seen in all() {
        for (path, fs_type, options) in [
            ("/proc", "proc", &["nosuid", "noexec", "nodev"][..]),
            ("/dev", "tmpfs", &["nosuid", "mode=755", "size=65536k"]),
            (
                "/dev/pts",
                "devpts",
                &["noexec", "mode=620", "gid=5", "ptmxmode=666"],
            ),
            ("/sys", "sysfs", &["ro", "nosuid"]),
            ("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            ("/dev/shm", "tmpfs", &["noexec", "size=64k"]),
            (
                "/scratch",
                "tmpfs",
                &["nosuid", "nodev", "size=1024k", "mode=1750", "uid=12"],
            ),
        ] {
            let (mounted, with) = seen.mounted(path);
            assert_eq!(mounted, fs_type, "{:?} {path}", seen.runtime);
            for option in options {
                assert!(with.contains(option), "{:?} {path}: {with:?}", seen.runtime);
            }
        }
        assert!(
            seen.mounted("/folder").1.contains(&"nosuid"),
            "{:?}",
            seen.runtime
        );
        assert_eq!(seen.inside["tmpfs"], "yes\n", "{:?}", seen.runtime);
    }
}

#[test]
fn a_bound_folder_is_shared_both_ways() {
    for seen in all() {
        assert_eq!(seen.inside["folder"], "shared\nyes\n", "{:?}", seen.runtime);
        assert_eq!(seen.new_file, "new\n", "{:?}", seen.runtime);
    }
}

#[test]
fn a_bound_file_is_shared_both_ways() {
    for seen in all() {
        assert_eq!(
            seen.inside["file"], "configured\nyes\n",
            "{:?}",
            seen.runtime
        );
        assert_eq!(seen.conf, "changed\n", "{:?}", seen.runtime);
    }
}

#[test]
fn read_only_binds_are() {
    for seen in all() {
        assert_eq!(
            seen.inside["read-only folder"], "only read\nno\n",
            "{:?}",
            seen.runtime
        );
        assert_eq!(
            seen.inside["read-only file"], "fixed\nno\n",
            "{:?}",
            seen.runtime
        );
        assert_eq!(seen.fixed, "fixed\n", "{:?}", seen.runtime);
    }
}

#[test]
fn noexec_binds_run_nothing() {
    for seen in all() {
        assert_eq!(seen.inside["noexec"], "no\n", "{:?}", seen.runtime);
    }
}

#[test]
fn masked_paths_show_nothing() {
    for seen in all() {
        // The pattern itself: there is no file.
        assert_eq!(
            seen.inside["masked"], "no\n/sys/kernel/*\n",
            "{:?}",
            seen.runtime
        );
    }
}

#[test]
fn read_only_paths_cannot_be_written() {
    for seen in all() {
        assert_eq!(seen.inside["read-only path"], "no\n", "{:?}", seen.runtime);
    }
}

#[test]
fn devices_are_the_default_ones_and_those_asked_for() {
    let expected = "null\nzero\nfull\nrandom\nurandom\ntty\nptmx\nyes\nyes\nyes\n";
    for seen in all() {
        assert_eq!(seen.inside["devices"], expected, "{:?}", seen.runtime);
        assert_eq!(
            seen.inside["links"], "fd\nstdin\nstdout\nstderr\n",
            "{:?}",
            seen.runtime
        );
    }
}

#[test]
fn modes_owners_and_numbers() {
    for seen in all() {
        assert_eq!(
            seen.inside["stat"],
            "/scratch 1750 12:13 0:0 directory\n\
             /dev/null 666 0:0 1:3 character special file\n\
             /dev/extra 640 3:4 1:5 character special file\n\
             /folder/file 640 1000:1001 0:0 regular file\n",
            "{:?}",
            seen.runtime
        );
    }
}
