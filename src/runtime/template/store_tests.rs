//! The folder of the templates, and what could be there instead.

use super::*;
use crate::template::key::tests::inputs;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use tempfile::TempDir;

/// An empty store, in a folder that goes when dropped.
pub(crate) fn store() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("a/templates")).unwrap();
    (folder, store)
}

pub(crate) fn name(index: u8) -> Name {
    Name::new(inputs().key(), index)
}

/// Everything in the store's folder.
pub(crate) fn names_of(store: &Store) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(store.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn why_refused(result: Result<impl Sized, StoreError>) -> String {
    match result {
        Err(StoreError::Refused { why, .. }) => why,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("not refused"),
    }
}

#[test]
fn names() {
    for index in [0, 1, 9, 15] {
        let name = name(index);
        assert_eq!(Name::parse(&name.to_string()), Some(name.clone()));
        assert!(name.is_of(inputs().key()));
        assert_eq!(Name::of_draft(&name.draft()), Some(name));
    }
    let key = name(0).to_string();
    let upper = key.to_uppercase();
    for wrong in [
        "",
        ".",
        "..",
        "digests",
        &key[1..],
        &upper,
        &format!("{key}.0"),
        &format!("{key}.16"),
        &format!("{key}.01"),
        &format!("{key}."),
        &format!("{key}/x"),
        &format!("../{key}"),
    ] {
        assert_eq!(Name::parse(wrong), None, "{wrong}");
    }
    assert_eq!(Name::of_draft(".digests.tmp"), None);
}

#[test]
fn a_new_folder_is_ours_alone() {
    let (_folder, store) = store();
    let mode = fs::metadata(store.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
    Store::open(store.path()).unwrap();
}

#[test]
fn folders_that_others_could_write_are_refused() {
    let (_folder, store) = store();
    chmod(store.path(), 0o750);
    let why = why_refused(Store::open(store.path()));
    assert_eq!(why, "its mode 750 lets others in");
    chmod(store.path(), 0o700);

    let template = store.path().join(name(0).to_string());
    fs::create_dir(&template).unwrap();
    chmod(&template, 0o707);
    let why = why_refused(store.find(&name(0)));
    assert_eq!(why, "its mode 707 lets others in");
    chmod(&template, 0o700);
    assert!(store.find(&name(0)).unwrap().is_some());
}

#[test]
fn links_and_files_are_no_folders() {
    let (folder, store) = store();
    let link = folder.path().join("link");
    symlink(store.path(), &link).unwrap();
    assert_eq!(why_refused(Store::open(&link)), "not a folder");
    let target = store.path().join("target");
    fs::create_dir(&target).unwrap();
    chmod(&target, 0o700);
    symlink(&target, store.path().join(name(0).to_string())).unwrap();
    assert_eq!(why_refused(store.find(&name(0))), "not a folder");
    fs::write(store.path().join(name(1).to_string()), "").unwrap();
    assert_eq!(why_refused(store.find(&name(1))), "not a folder");
}

#[test]
fn a_place_where_no_folder_can_be() {
    let (folder, _store) = store();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert_eq!(why_refused(Store::open(&file)), "not a folder");
    let error = Store::open(&file.join("templates")).unwrap_err();
    assert!(matches!(
        error,
        StoreError::Refused { .. } | StoreError::Io { .. }
    ));
}

#[test]
fn making_and_removing() {
    let (_folder, store) = store();
    let draft = store.open_draft(&name(0)).unwrap();
    assert!(store.is_draft(&name(0), &draft).unwrap());
    write_small(draft.as_fd(), "memory", &[1; 5000]).unwrap();
    assert!(store.find(&name(0)).unwrap().is_none());
    store.publish(&name(0), draft.as_fd()).unwrap();
    assert!(!store.is_draft(&name(0), &draft).unwrap());
    let found = store.find(&name(0)).unwrap().unwrap();
    assert_eq!(names_in(found.as_fd()).unwrap(), ["memory"]);
    assert!(stored_bytes(found.as_fd()).unwrap() >= 5000);
    assert_eq!(store.list().unwrap().templates, [name(0)]);

    store.withdraw(&name(0)).unwrap();
    assert!(store.is_draft(&name(0), &found).unwrap());
    assert!(store.remove_draft(&name(0)).is_err(), "not empty");
    empty(found.as_fd()).unwrap();
    store.remove_draft(&name(0)).unwrap();
    assert_eq!(names_of(&store), [""; 0]);
}

#[test]
fn a_draft_that_is_no_folder() {
    let (folder, store) = store();
    let precious = folder.path().join("precious");
    fs::create_dir(&precious).unwrap();
    symlink(&precious, store.path().join(name(0).draft())).unwrap();
    assert!(store.open_draft(&name(0)).is_err());
    assert!(precious.exists());
}

#[test]
fn drafts_are_told_from_templates() {
    let (_folder, store) = store();
    store.open_draft(&name(1)).unwrap();
    fs::write(store.path().join("something else"), "").unwrap();
    let listing = store.list().unwrap();
    assert!(listing.templates.is_empty());
    assert_eq!(listing.drafts, [name(1)]);
}

#[test]
fn small_files() {
    let (_folder, store) = store();
    assert!(store.read("digests").is_err());
    store.replace("digests", b"long content").unwrap();
    // What a writer that was killed has left.
    fs::write(store.path().join(".digests.tmp"), "longer than what comes").unwrap();
    store.replace("digests", b"short").unwrap();
    assert_eq!(store.read("digests").unwrap(), b"short");
    assert_eq!(names_of(&store), ["digests"]);
    let huge = vec![b' '; SMALL_MAX_BYTES as usize + 9];
    store.replace("digests", &huge).unwrap();
    let read = store.read("digests").unwrap();
    assert_eq!(read.len() as u64, SMALL_MAX_BYTES, "no more is read");
}
