//! What a guest can make the host hold.

use super::client::Guest;
use super::*;

#[test]
fn descriptors_are_limited_and_the_guest_is_told() {
    let top = tempfile::tempdir().unwrap();
    for i in 0..20 {
        std::fs::write(top.path().join(format!("{i:02}")), "").unwrap();
    }
    let mut guest = Guest::new(device_with(vec![export("root", top.path(), false)], 10));
    guest.init();
    let root = guest.walk("root").unwrap();
    let idle = open_below(top.path());
    let nodes: Vec<_> = (0..10)
        .map(|i| guest.lookup(root, &format!("{i:02}")).unwrap().nodeid)
        .collect();
    assert_eq!(open_below(top.path()), idle + 10);
    assert_eq!(guest.lookup(root, "10").unwrap_err(), libc::ENFILE);
    assert_eq!(
        guest.open(nodes[0], libc::O_RDONLY).unwrap_err(),
        libc::ENFILE
    );
    assert_eq!(open_below(top.path()), idle + 10);
    // Nothing is created that the guest could not be told about.
    assert_eq!(
        guest.create(root, "new", libc::O_RDWR, 0o600).unwrap_err(),
        libc::ENFILE
    );
    assert_eq!(guest.mkdir(root, "new").unwrap_err(), libc::ENFILE);
    assert!(!top.path().join("new").exists());
    // Known files still work, and there is room again after forgetting.
    guest.lookup(root, "00").unwrap();
    guest.forget(nodes[0], 1);
    assert_eq!(guest.lookup(root, "10").unwrap_err(), libc::ENFILE);
    guest.forget(nodes[0], 1);
    guest.lookup(root, "10").unwrap();
    assert_eq!(open_below(top.path()), idle + 10);
}

#[test]
fn a_list_that_does_not_fit_is_an_error_not_an_end() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for i in 0..8 {
        std::fs::write(one.path().join(format!("{i}")), "").unwrap();
        std::fs::write(two.path().join(format!("{i}")), "").unwrap();
    }
    let exports = vec![
        export("a", one.path(), false),
        export("b", two.path(), false),
    ];
    let mut guest = Guest::new(device_with(exports, 10));
    guest.init();
    for i in 0..8 {
        guest.walk(&format!("a/{i}")).unwrap();
    }
    let b = guest.walk("b").unwrap();
    let some = guest.list_some(b, 0, 4096).unwrap();
    assert_eq!(some.len(), 2);
    assert_eq!(
        guest.list_some(b, some[1].offset, 4096).err(),
        Some(libc::ENFILE)
    );
    assert_eq!(
        guest.list_some(b, some[1].offset, 4096).err(),
        Some(libc::ENFILE)
    );
    guest.forget(some[0].node, 1);
    guest.forget(some[1].node, 1);
    assert_eq!(guest.list_some(b, some[1].offset, 4096).unwrap().len(), 2);
    assert_eq!(guest.fs.share_held(), 10);
}
