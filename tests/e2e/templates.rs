//! Machine templates: made once, used by every start, distinct machines all the
//! same; damaged, foreign, removed and half-made ones.

mod clones;
mod damage;
mod killed;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Bundle, Finished, Launch, Runtime, Sandbox, TEMPLATE_DIR, template_dir};

const MAKING: &str = "vmrun: making a machine template (128 MiB, 1 vCPU): once per shape\n";

/// A folder of templates of its own.
struct Place(TempDir);

impl Place {
    fn empty() -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        Self(folder)
    }

    /// With a copy of the template that all tests share.
    fn with_template() -> Self {
        let place = Self::empty();
        let list = Launch::vmrun(&["template", "list", "--format", "json"]).no_machine();
        let rows: Value = serde_json::from_slice(&list.finish().success().stdout).unwrap();
        let fits = |row: &&Value| row["memoryMiB"] == 128 && row["stale"].is_null();
        let row = rows.as_array().unwrap().iter().find(fits);
        let key = row.expect("the shared template")["key"].as_str().unwrap();
        let copied = Command::new("cp")
            .args(["--archive", "--sparse=always"])
            .args([&template_dir().join(key), place.path()])
            .status();
        assert!(copied.unwrap().success());
        place
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// `vmrun template WORDS`, which start no machine.
    fn template(&self, words: &[&str]) -> Finished {
        let launch = Launch::vmrun(&["template"]).args(words);
        self.on(launch.no_machine()).finish()
    }

    fn list(&self) -> Vec<Value> {
        let list = self.template(&["list", "--format", "json"]).success();
        let rows: Value = serde_json::from_slice(&list.stdout).unwrap();
        rows.as_array().unwrap().clone()
    }

    /// The only template's folder.
    fn only(&self) -> PathBuf {
        let rows = self.list();
        assert_eq!(rows.len(), 1, "{rows:?}");
        self.path().join(rows[0]["key"].as_str().unwrap())
    }

    fn launch(&self, bundle: &Bundle) -> Launch {
        self.on(Runtime::Vmrun.launch(bundle))
    }

    fn on(&self, launch: Launch) -> Launch {
        launch.env(TEMPLATE_DIR, self.path().to_str().unwrap())
    }

    /// Names of all that is there.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path()).unwrap();
        let name = |e: std::io::Result<fs::DirEntry>| e.unwrap().file_name().into_string();
        let mut names: Vec<_> = entries.map(|e| name(e).unwrap()).collect();
        names.sort();
        names
    }

    /// What is there but templates and what is known of the files they come from.
    fn left_overs(&self) -> Vec<String> {
        let mut names = self.names();
        names.retain(|name| name.starts_with('.'));
        names
    }
}

fn echo() -> Bundle {
    Bundle::shell("echo ran")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn made_on_first_need_without_anything_of_the_container() {
    const MARK: &str = "a tenant's secret 5f1c09e7";
    let place = Place::empty();
    let bundle = Bundle::program(&["/bin/sh", "-c", "cat /file; echo $SECRET", MARK]).with(
        "/process/env",
        json!(["PATH=/bin", format!("SECRET={MARK}")]),
    );
    fs::write(bundle.rootfs().join("file"), format!("{MARK}\n")).unwrap();
    let first = place.launch(&bundle).env("SECRET", MARK).finish().success();
    assert_eq!(first.err(), MAKING);
    assert_eq!(first.out(), format!("{MARK}\n{MARK}\n"));

    let template = place.only();
    assert_eq!(mode(place.path()), 0o700);
    assert_eq!(mode(&template), 0o700);
    let contains = |path: &Path| {
        let content = fs::read(path).unwrap();
        let mark = MARK.as_bytes();
        memchr(&content, mark)
    };
    for file in fs::read_dir(&template).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{path:?}");
        assert!(!contains(&path), "{path:?}");
    }
    assert!(contains(&bundle.rootfs().join("file")), "the search works");

    let second = place.launch(&bundle).finish().success();
    assert_eq!(second.err(), "", "nothing is made again");
    assert_eq!(second.out(), first.out());
    assert_eq!(place.left_overs(), [""; 0]);
}

/// Whether `haystack` has `needle`; quick where most bytes are zero.
fn memchr(haystack: &[u8], needle: &[u8]) -> bool {
    let first = needle[0];
    let mut rest = haystack;
    while let Some(at) = rest.iter().position(|byte| *byte == first) {
        rest = &rest[at..];
        if rest.starts_with(needle) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

#[test]
fn several_starts_at_once_make_one() {
    let place = Place::empty();
    let bundles = [echo(), echo(), echo()];
    let [first, second, third] = bundles.each_ref().map(|b| place.launch(b).limit(4));
    let running = [
        first.two_machines().start(),
        second.no_machine().start(),
        third.no_machine().start(),
    ];
    let finished = running.map(|running| running.finish().success());
    let errors: String = finished.iter().map(Finished::err).collect();
    assert_eq!(errors.matches(MAKING).count(), 1, "{errors}");
    for run in finished {
        assert_eq!(run.out(), "ran\n");
    }
    place.only();
    assert_eq!(place.left_overs(), [""; 0]);
}

#[test]
fn listed_removed_and_pruned() {
    let place = Place::with_template();
    let row = &place.list()[0];
    assert_eq!(row["vcpus"], 1);
    assert_eq!(row["memoryMiB"], 128);
    let stored = row["storedBytes"].as_u64().unwrap();
    assert!((1 << 20..64 << 20).contains(&stored), "{stored}: sparse");
    let key = row["key"].as_str().unwrap();
    let table = place.template(&["list"]).success().out();
    assert!(table.contains(key) && table.contains("128 MiB"), "{table}");
    assert!(table.ends_with("  fits\n"), "{table}");

    assert_eq!(place.template(&["prune"]).success().out(), "", "it fits");
    place.template(&["rm", key]).success();
    assert!(place.list().is_empty());
    let unknown = place.template(&["rm", key]);
    assert_eq!(unknown.code(), 1);
    assert!(unknown.err().contains("no template"), "{unknown:?}");

    let place = Place::with_template();
    let pruned = place.template(&["prune", "--all"]).success().out();
    assert!(pruned.contains("removed"), "{pruned}");
    assert!(place.list().is_empty());
    assert_eq!(place.left_overs(), [""; 0]);
}

#[test]
fn removed_while_a_container_of_it_runs() {
    let place = Place::with_template();
    let bundle = Bundle::shell("echo ready; read -r line; ls -lR /bin >/list; cat /list | wc -l");
    let mut running = place.launch(&bundle).open_stdin().start();
    running.wait_for("ready");
    let key = place.only();
    let key = key.file_name().unwrap().to_str().unwrap();
    place.template(&["rm", key]).success();
    assert!(!place.path().join(key).exists());
    running.write(b"go\n");
    let run = running.finish().success();
    let lines: u32 = run.out().lines().nth(1).unwrap().parse().unwrap();
    assert!(lines > 100, "{run:?}");
}

#[test]
fn a_start_without_a_template_makes_none() {
    let place = Place::empty();
    let bundle = echo();
    let launch = Runtime::Vmrun.launch_with(&bundle, &["--no-template"]);
    let run = place.on(launch).finish().success();
    assert_eq!((run.out().as_str(), run.err().as_str()), ("ran\n", ""));
    assert_eq!(place.names(), [""; 0]);
}

#[test]
fn a_pool_has_machines_that_were_booted_one_by_one() {
    let place = Place::empty();
    let words = ["create", "--template-pool", "2"];
    let created = place.template(&words).success().out();
    assert_eq!(created.matches(" made\n").count(), 2, "{created}");
    let again = place.template(&words).success().out();
    assert_eq!(again.matches(" there already\n").count(), 2, "{again}");
    let keys: Vec<_> = created.lines().map(|l| l.split(' ').next()).collect();
    let memory = |key: Option<&str>| fs::read(place.path().join(key.unwrap()).join("memory"));
    assert!(memory(keys[0]).unwrap() != memory(keys[1]).unwrap());
    let bundle = echo();
    let launch = Runtime::Vmrun.launch_with(&bundle, &["--template-pool", "2"]);
    let run = place.on(launch).finish().success();
    assert_eq!((run.out().as_str(), run.err().as_str()), ("ran\n", ""));
}

#[test]
fn a_full_disk_or_a_read_only_one_is_a_warning() {
    let bundle = echo();
    for (options, reason) in [("size=4m", "No space"), ("ro", "Read-only")] {
        let mount = format!("mount -t tmpfs -o mode=700,{options} tmpfs /mnt/templates");
        let sandbox = Sandbox::new().after(&mount);
        let seen = sandbox.run(Some(&bundle), &["run", "/mnt/bundle"], 1);
        let run = seen.run.success();
        assert_eq!(run.out(), "ran\n");
        let warning = "vmrun: warning: booting without a template: ";
        let err = run.err();
        let warnings: Vec<_> = err.lines().filter(|l| l.starts_with(warning)).collect();
        assert_eq!(warnings.len(), 1, "{options}: {err}");
        assert!(warnings[0].contains(reason), "{options}: {err}");
        assert_eq!(seen.left, "", "{options}");
    }
}

#[test]
fn no_place_for_a_template_is_a_warning() {
    let place = Place::empty();
    fs::write(place.path().join("file"), "").unwrap();
    let bundle = echo();
    let nowhere = place.path().join("file/templates");
    let launch = Runtime::Vmrun.launch(&bundle);
    let run = launch.env(TEMPLATE_DIR, nowhere.to_str().unwrap()).finish();
    let run = run.success();
    assert_eq!(run.out(), "ran\n");
    let warning = "vmrun: warning: booting without a template: ";
    assert!(run.err().starts_with(warning), "{run:?}");
    assert_eq!(run.err().lines().count(), 1, "{run:?}");
}

#[test]
fn two_gigabytes_when_asked_for() {
    let script = "while read -r name kib unit; do
        [ $name = MemFree: ] && echo $kib; done </proc/meminfo; exit 0";
    let bundle = Bundle::shell(script);
    let launch = Runtime::Vmrun.launch_with(&bundle, &["--memory", "2g"]);
    let run = launch.limit(4).finish().success();
    let free_kib: u64 = run.out().trim().parse().unwrap();
    assert!(free_kib > 1900 << 10, "{free_kib} KiB");
}
