//! Templates that fit, and those that do not.

use super::*;
use crate::template::key::{InputFile, tests::inputs};
use crate::template::store::tests::{name, names_of, store};
use std::fs;
use tempfile::TempDir;

/// Inputs that fit this process; their files are in `folder`.
fn fitting(folder: &TempDir) -> Inputs {
    let mut digests = Digests::default();
    let mut file = |name: &str| {
        let path = folder.path().join(name);
        fs::write(&path, name).unwrap();
        let digest = digests.of(&path).unwrap();
        InputFile { path, digest }
    };
    Inputs {
        cpu: cpu_digest(),
        format: FORMAT_VERSION,
        vmrun: file("vmrun"),
        kernel: file("kernel"),
        initramfs: file("initramfs"),
        ..inputs()
    }
}

fn why(inputs: &Inputs) -> Option<String> {
    why_stale(&Name::new(inputs.key(), 2), inputs, &mut Digests::default())
}

#[test]
fn what_makes_a_template_stale() {
    let folder = tempfile::tempdir().unwrap();
    let fits = fitting(&folder);
    assert_eq!(why(&fits), None);
    let other = Name::new(inputs().key(), 0);
    let stale = why_stale(&other, &fits, &mut Digests::default()).unwrap();
    assert!(stale.contains("another template"), "{stale}");

    let mut format = fits.clone();
    format.format += 1;
    assert!(why(&format).unwrap().starts_with("format "));
    let mut cpu = fits.clone();
    cpu.cpu = inputs().cpu;
    assert_eq!(why(&cpu).unwrap(), "made on another processor");

    fs::write(&fits.kernel.path, "changed").unwrap();
    assert!(why(&fits).unwrap().ends_with("kernel\" has changed"));
    fs::remove_file(&fits.vmrun.path).unwrap();
    assert!(why(&fits).unwrap().contains("No such file"));
}

#[test]
fn no_folder_is_an_empty_one_and_is_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none");
    assert!(list(&path).unwrap().is_empty());
    assert!(prune(&path, true).unwrap().is_empty());
    let key = name(0).to_string();
    assert_eq!(remove(&path, &key).unwrap(), Removal::Unknown);
    assert!(!path.exists());
}

/// A template without a machine in it.
fn publish(store: &Store, name: &Name, inputs: Option<Inputs>) {
    let lock = Lock::try_take(store, name).unwrap().unwrap();
    let draft = lock.begin().unwrap();
    if let Some(inputs) = inputs {
        About::now(inputs).write(draft).unwrap();
    }
    lock.publish().unwrap();
}

#[test]
fn listing_and_removing() {
    let (folder, store) = store();
    let fits = fitting(&folder);
    let named = Name::new(fits.key(), 0);
    publish(&store, &named, Some(fits.clone()));
    publish(&store, &name(0), None);
    let mut rows = list(store.path()).unwrap();
    rows.sort_by_key(|row| row.inputs.is_none());
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0].name, named.to_string());
    assert_eq!(rows[0].inputs, Some(fits));
    assert!(rows[0].made.is_some() && rows[0].used.is_some());
    let stale = rows[0].stale.as_deref().unwrap();
    assert_eq!(stale, "there is no 'state'");
    let stale = rows[1].stale.as_deref().unwrap();
    assert!(
        stale.starts_with("its description cannot be read"),
        "{stale}"
    );

    let gone = remove(store.path(), &named.to_string()).unwrap();
    assert_eq!(gone, Removal::Removed);
    for unknown in [named.to_string(), "../a".to_owned(), String::new()] {
        assert_eq!(remove(store.path(), &unknown).unwrap(), Removal::Unknown);
    }
    assert_eq!(prune(store.path(), false).unwrap().len(), 1);
    assert_eq!(names_of(&store), [""; 0]);
}

#[test]
fn what_is_being_made_is_left_alone() {
    let (_folder, store) = store();
    let lock = Lock::try_take(&store, &name(0)).unwrap().unwrap();
    // One that was killed.
    store.open_draft(&name(1)).unwrap();
    assert!(prune(store.path(), true).unwrap().is_empty());
    let key = name(0).to_string();
    assert_eq!(remove(store.path(), &key).unwrap(), Removal::Busy);
    assert_eq!(names_of(&store), [format!(".{key}.tmp")]);
    drop(lock);
}
