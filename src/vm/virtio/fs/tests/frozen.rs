//! A share that goes on with the session of a saved one.

use super::client::Guest;
use super::*;
use crate::virtio::device::Device;
use crate::virtio::state::DeviceState;

/// The state of a share without exports whose session has begun.
fn saved() -> DeviceState {
    let mut guest = Guest::new(device(vec![]));
    guest.init();
    guest.fs.freeze().unwrap()
}

#[test]
fn the_session_goes_on_with_exports_that_the_saved_share_did_not_have() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("hello"), "world").unwrap();
    let mut fs = device(vec![export("root", folder.path(), false)]);
    fs.thaw(saved()).unwrap();
    let exports = fs.exports();
    let mut guest = Guest::new(fs);
    let node = guest.walk("root/hello").unwrap();
    let handle = guest.open(node, libc::O_RDWR).unwrap();
    assert_eq!(guest.read(node, handle, 0, 10).unwrap(), b"world");
    guest.write(node, handle, 5, b"s").unwrap();
    assert_eq!(read_back(&folder.path().join("hello")), "worlds");
    assert_eq!(guest.list(1), ["root"]);

    exports.add(export("m0", folder.path(), true)).unwrap();
    assert!(guest.walk("m0/hello").is_ok());
    // The session has begun: a second beginning is refused, as ever.
    let again = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| guest.init()));
    assert!(again.is_err());
}

#[test]
fn what_was_agreed_stays_agreed() {
    let mut fs = device(vec![]);
    fs.thaw(saved()).unwrap();
    assert_eq!(fs.freeze().unwrap(), saved());
    // Before INIT there is nothing to go on with.
    let unused = device(vec![]).freeze().unwrap();
    assert_ne!(unused, saved());
    let mut fs = device(vec![]);
    fs.thaw(unused).unwrap();
    Guest::new(fs).init();
}

#[test]
fn a_share_with_exports_is_not_saved() {
    let folder = tempfile::tempdir().unwrap();
    let fs = device(vec![export("root", folder.path(), false)]);
    assert_eq!(fs.freeze(), Err("it has exports"));
}

#[test]
fn options_that_are_never_agreed_on_are_refused() {
    // FUSE_POSIX_LOCKS, FUSE_WRITEBACK_CACHE, one that does not exist.
    for bits in [1_u64 << 1, 1 << 16, 1 << 63] {
        let bytes = postcard::to_allocvec(&Some(bits)).unwrap();
        let state = DeviceState::Fs(postcard::from_bytes(&bytes).unwrap());
        assert!(device(vec![]).thaw(state).is_err(), "{bits:#x}");
    }
    assert!(device(vec![]).thaw(DeviceState::Rng).is_err());
}
