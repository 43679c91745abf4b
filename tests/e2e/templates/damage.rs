//! Templates that are not what was written.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::Path;

use super::{Place, echo};

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Offset of the first byte that is not zero.
fn first_byte(path: &Path) -> u64 {
    let content = fs::read(path).unwrap();
    content.iter().position(|byte| *byte != 0).unwrap() as u64
}

/// What was done to a template's folder, and a word of what is said about it.
type Case = (&'static str, fn(&Path), &'static str);

const CASES: &[Case] = &[
    ("magic", |t| flip(&t.join("state"), 0), "does not begin"),
    ("version", |t| flip(&t.join("state"), 8), "version"),
    ("length", |t| flip(&t.join("state"), 12), "length"),
    ("checksum", |t| flip(&t.join("state"), 20), "checksum"),
    ("state", |t| flip(&t.join("state"), 100), "checksum"),
    (
        "no state",
        |t| fs::remove_file(t.join("state")).unwrap(),
        "state",
    ),
    (
        "no memory",
        |t| fs::remove_file(t.join("memory")).unwrap(),
        "memory",
    ),
    (
        "short memory",
        |t| {
            let file = OpenOptions::new().write(true).open(t.join("memory"));
            file.unwrap().set_len(1 << 20).unwrap();
        },
        "length",
    ),
    (
        "memory",
        |t| flip(&t.join("memory"), first_byte(&t.join("memory"))),
        "changed",
    ),
    ("open state", |t| chmod(&t.join("state"), 0o640), "others"),
    (
        "another's memory",
        |t| chown(t.join("memory"), Some(12345), None).unwrap(),
        "another user",
    ),
    (
        "linked state",
        |t| {
            fs::rename(t.join("state"), t.join("elsewhere")).unwrap();
            symlink("elsewhere", t.join("state")).unwrap();
        },
        "link",
    ),
    (
        "about",
        |t| fs::write(t.join("about"), "{}").unwrap(),
        "description",
    ),
];

#[test]
fn every_damage_is_named_and_pruned() {
    for (name, damage, word) in CASES {
        let place = Place::with_template();
        let template = place.only();
        damage(&template);
        let stale = place.list()[0]["stale"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        assert!(stale.contains(word), "{name}: {stale:?}");
        place.template(&["prune"]).success();
        assert!(place.list().is_empty(), "{name}");
        assert_eq!(place.left_overs(), [""; 0], "{name}");
    }
}

#[test]
fn a_damaged_template_is_made_again() {
    let place = Place::with_template();
    let template = place.only();
    flip(&template.join("state"), 100);
    let bundle = echo();
    let run = place.launch(&bundle).limit(3).finish().success();
    assert_eq!(run.out(), "ran\n");
    let key = template.file_name().unwrap().to_str().unwrap();
    let warning = format!("vmrun: warning: template {key} is not used and made again: ");
    assert!(run.err().starts_with(&warning), "{run:?}");
    assert!(run.err().ends_with(super::MAKING), "{run:?}");
    assert_eq!(run.err().lines().count(), 2, "{run:?}");
    let next = place.launch(&bundle).finish().success();
    assert_eq!((next.out().as_str(), next.err().as_str()), ("ran\n", ""));
}

#[test]
fn a_copied_template_is_used_as_it_is() {
    let place = Place::with_template();
    let bundle = echo();
    let run = place.launch(&bundle).finish().success();
    assert_eq!((run.out().as_str(), run.err().as_str()), ("ran\n", ""));
}

#[test]
fn what_is_not_ours_is_refused_and_stays() {
    let place = Place::with_template();
    let template = place.only();
    chmod(&template, 0o750);
    let bundle = echo();
    let run = place.launch(&bundle).limit(2).finish().success();
    assert_eq!(run.out(), "ran\n");
    assert_eq!(run.err().lines().count(), 1, "{run:?}");
    assert!(run.err().contains("is refused: its mode 750"), "{run:?}");
    assert!(template.join("state").exists());
    place.template(&["prune", "--all"]).success();
    let stale = place.list()[0]["stale"].as_str().unwrap().to_owned();
    assert!(stale.contains("is refused"), "{stale}");

    // The folder of all templates, too.
    chmod(&template, 0o700);
    chmod(place.path(), 0o701);
    let list = place.template(&["list"]);
    assert_eq!(list.code(), 1, "{list:?}");
    assert!(list.err().contains("its mode 701"), "{list:?}");
    File::open(template.join("memory")).unwrap();
}
