//! Folders of containers, and what is left of them.

use super::*;
use crate::monitor::client::ClientError;
use crate::state::{ProcessName, Status, VERSION};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

fn root() -> (TempDir, Root) {
    let folder = tempfile::tempdir().unwrap();
    // Longer than the address of a socket may be.
    let path = folder.path().join("a".repeat(120)).join("root");
    let root = Root::make(&path).unwrap();
    (folder, root)
}

fn id(text: &str) -> Id {
    Id::new(text).unwrap()
}

fn record(id: &Id) -> Record {
    Record {
        version: VERSION,
        id: id.clone(),
        monitor: ProcessName::of(std::process::id()).unwrap(),
        bundle: "/bundle".into(),
        rootfs: "/bundle/rootfs".into(),
        created_ns: 7,
        annotations: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
        owner_uid: 0,
        cgroup: None,
        hooks: Default::default(),
    }
}

#[test]
fn a_life() {
    let (_folder, root) = root();
    let id = id("one");
    let reserved = root.reserve(&id).unwrap();
    assert!(matches!(root.container(&id), Err(StateError::Unknown)));
    assert!(matches!(root.reserve(&id), Err(StateError::Exists)));
    let listener = reserved.listen().unwrap();
    reserved.keep_config(b"{}").unwrap();
    let mut first = record(&id);
    reserved.record(&first).unwrap();
    first.created_ns = 8;
    reserved.record(&first).unwrap();
    drop(reserved);
    let container = root.container(&id).unwrap();
    assert_eq!(container.record(), &first);
    assert_eq!(container.config().unwrap(), b"{}");
    assert!(container.is_alive());
    container.connect().unwrap();
    drop(listener);
    let error = container.connect().unwrap_err();
    assert!(matches!(error, ClientError::NotRunning), "{error}");
    assert_eq!(container.status().unwrap(), Status::Stopped);
    assert_eq!(root.ids().unwrap(), std::slice::from_ref(&id));
    assert!(!root.remove_broken(&id).unwrap());
    root.claim(&container).unwrap().unwrap().remove().unwrap();
    assert!(root.claim(&container).unwrap().is_none());
    assert!(root.ids().unwrap().is_empty());
}

#[test]
fn only_its_owner_sees_it() {
    let (_folder, root) = root();
    let id = id("one");
    let reserved = root.reserve(&id).unwrap();
    let _listener = reserved.listen().unwrap();
    reserved.keep_config(b"{}").unwrap();
    reserved.record(&record(&id)).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let folder = root.path.join("one");
    assert_eq!((mode(&root.path), mode(&folder)), (0o700, 0o700));
    for file in ["state.json", "config.json", "monitor.sock"] {
        assert_eq!(mode(&folder.join(file)), 0o600, "{file}");
    }
}

#[test]
fn what_a_killed_create_leaves() {
    let (_folder, root) = root();
    let id = id("broken");
    assert!(!root.remove_broken(&id).unwrap());
    let reserved = root.reserve(&id).unwrap();
    let _listener = reserved.listen().unwrap();
    drop(reserved);
    let folder = root.path.join("broken");
    fs::write(folder.join("state.json.new"), "{").unwrap();
    assert!(matches!(root.container(&id), Err(StateError::Unknown)));
    assert!(root.remove_broken(&id).unwrap());
    assert!(!folder.exists());
}

#[test]
fn giving_up_frees_the_id() {
    let (_folder, root) = root();
    let id = id("one");
    let reserved = root.reserve(&id).unwrap();
    reserved.record(&record(&id)).unwrap();
    reserved.give_up().unwrap();
    root.reserve(&id).unwrap();
}

#[test]
fn a_claim_is_that_of_one_container() {
    let (_folder, root) = root();
    let id = id("one");
    let make = || root.reserve(&id).unwrap().record(&record(&id)).unwrap();
    make();
    let old = root.container(&id).unwrap();
    root.claim(&old).unwrap().unwrap().remove().unwrap();
    make();
    assert!(root.claim(&old).unwrap().is_none());
    let new = root.container(&id).unwrap();
    assert!(root.claim(&new).unwrap().is_some());
    // The one before was given back.
    assert!(root.claim(&new).unwrap().is_some());
}

#[test]
fn records_that_cannot_be_used() {
    let (_folder, root) = root();
    let id = id("one");
    drop(root.reserve(&id).unwrap());
    let path = root.path.join("one/state.json");
    for (text, expected) in [
        ("", "container one: state.json"),
        ("{\"version\":1}", "container one: state.json"),
        (
            "{\"version\":7}",
            "container one: its state has version 7, vmrun knows 1",
        ),
    ] {
        fs::write(&path, text).unwrap();
        assert_eq!(root.container(&id).unwrap_err().to_string(), expected);
    }
}

#[test]
fn roots_that_others_can_write_to() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Root::open(&folder.path().join("none")).unwrap().is_none());
    let path = folder.path().join("open");
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    let error = Root::make(&path).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(source, "others may write to it");
}
