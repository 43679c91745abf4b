//! Files that are not what was written.

use std::fs::{self, Permissions};
use std::io::{Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::Instant;

use proptest::prelude::*;
use proptest::sample::Index;
use tempfile::NamedTempFile;

use super::*;
use crate::machine::testing::{Folder, build, counter, host, kernel, spec};
use crate::machine::{Machine, MachineError};
use crate::trace::Timeline;

/// A template, its bytes, and the kernel that its machine's spec names.
struct Made {
    folder: Folder,
    kernel: NamedTempFile,
}

impl Made {
    fn new() -> Self {
        let kernel = kernel(&counter(1_000_000_000));
        let folder = Folder::new();
        let machine = build(spec(&kernel)).resume().unwrap();
        machine.freeze(folder.open().as_fd()).unwrap();
        Self { folder, kernel }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.0.path().join(file)
    }

    fn bytes(&self, file: &str) -> Vec<u8> {
        fs::read(self.path(file)).unwrap()
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        fs::write(self.path(file), bytes).unwrap();
    }

    fn open(&self) -> Result<Template, SnapshotError> {
        self.folder.template()
    }

    fn restore(&self) -> Result<Machine, MachineError> {
        let timeline = Timeline::new(Instant::now());
        Machine::restore(self.open()?, spec(&self.kernel), host(), &timeline)
    }

    /// Records and writes a working set.
    fn learn(&self) {
        let running = self.restore().unwrap().resume().unwrap();
        let set = running.touched().unwrap();
        set.write(self.folder.open().as_fd()).unwrap();
    }
}

/// What comes behind magic, version, length and checksum.
const VALUE_AT: usize = 48;

/// The file with another value, and all that vouches for it.
fn resealed(bytes: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut value = bytes[VALUE_AT..].to_vec();
    change(&mut value);
    sealed::frame(&value)
}

fn refused(made: &Made) -> SnapshotError {
    let error = made.open().unwrap_err();
    assert!(error.is_unusable(), "{error}");
    error
}

#[test]
fn a_folder_without_a_state_is_no_template() {
    let made = Made::new();
    fs::remove_file(made.path("state")).unwrap();
    assert!(matches!(
        refused(&made),
        SnapshotError::Missing { file: "state" }
    ));
    let made = Made::new();
    fs::remove_file(made.path("memory")).unwrap();
    assert!(matches!(
        refused(&made),
        SnapshotError::Missing { file: "memory" }
    ));
}

#[test]
fn another_version_is_told_apart() {
    let made = Made::new();
    let mut bytes = made.bytes("state");
    bytes[8] += 1;
    made.write("state", &bytes);
    let found = FORMAT_VERSION + 1;
    assert!(matches!(refused(&made), SnapshotError::Version { found: f, .. } if f == found));
}

#[test]
fn files_that_others_may_open_are_foreign() {
    for file in ["state", "memory"] {
        for mode in [0o640, 0o604, 0o610, 0o700 | 0o002] {
            let made = Made::new();
            fs::set_permissions(made.path(file), Permissions::from_mode(mode)).unwrap();
            let error = refused(&made);
            assert!(matches!(error, SnapshotError::Foreign { .. }), "{error}");
        }
    }
}

#[test]
fn only_plain_files_are_opened() {
    for file in ["state", "memory"] {
        let made = Made::new();
        fs::rename(made.path(file), made.path("elsewhere")).unwrap();
        symlink("elsewhere", made.path(file)).unwrap();
        assert!(matches!(refused(&made), SnapshotError::Foreign { .. }));
        fs::remove_file(made.path(file)).unwrap();
        fs::create_dir(made.path(file)).unwrap();
        assert!(matches!(refused(&made), SnapshotError::Foreign { .. }));
        fs::remove_dir(made.path(file)).unwrap();
        // Nobody writes to it: opening must not wait.
        let fifo = rustix::fs::FileType::Fifo;
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(made.folder.open(), file, fifo, mode, 0).unwrap();
        assert!(matches!(refused(&made), SnapshotError::Foreign { .. }));
    }
}

#[test]
fn memory_that_was_changed_is_found_and_a_copy_is_taken() {
    let made = Made::new();
    let bytes = made.bytes("memory");
    // Another inode without holes, with the same content.
    made.write("copy", &bytes);
    fs::set_permissions(made.path("copy"), Permissions::from_mode(0o600)).unwrap();
    fs::rename(made.path("copy"), made.path("memory")).unwrap();
    assert!(made.open().is_ok());
    let file = fs::OpenOptions::new()
        .write(true)
        .open(made.path("memory"))
        .unwrap();
    for at in [0, 1 << 20, bytes.len() - 1] {
        let original = bytes[at];
        file.write_all_at(&[original ^ 1], at as u64).unwrap();
        let error = refused(&made);
        assert!(
            matches!(error, SnapshotError::Damaged { file: "memory", .. }),
            "{error}"
        );
        file.write_all_at(&[original], at as u64).unwrap();
        assert!(made.open().is_ok());
    }
    for len in [0, bytes.len() - 1, bytes.len() + 1] {
        file.set_len(len as u64).unwrap();
        let error = refused(&made);
        assert!(matches!(error, SnapshotError::Damaged { .. }), "{error}");
    }
}

#[test]
fn zero_pages_take_no_space() {
    let made = Made::new();
    let file = fs::File::open(made.path("memory")).unwrap();
    let stat = rustix::fs::fstat(&file).unwrap();
    assert_eq!(stat.st_size, 32 << 20);
    assert!(stat.st_blocks * 512 < 1 << 20, "{} blocks", stat.st_blocks);
}

#[test]
fn a_file_that_is_too_long_is_not_read() {
    let made = Made::new();
    let mut file = fs::OpenOptions::new()
        .write(true)
        .open(made.path("state"))
        .unwrap();
    file.seek(std::io::SeekFrom::Start(1 << 40)).unwrap();
    file.write_all(&[1]).unwrap();
    assert!(matches!(refused(&made), SnapshotError::Damaged { .. }));
}

#[test]
fn a_template_is_not_written_over_another() {
    let made = Made::new();
    let running = made.restore().unwrap().resume().unwrap();
    let error = running.freeze(made.folder.open().as_fd()).unwrap_err();
    assert!(matches!(error, SnapshotError::Host { .. }), "{error}");
    assert!(made.open().is_ok());
}

#[test]
fn a_changed_state_is_refused_whatever_byte_it_is() {
    let made = Made::new();
    let bytes = made.bytes("state");
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        let value: Result<template::Saved, _> = sealed::unseal("state", &changed);
        assert!(value.is_err(), "byte {at}");
        let value: Result<template::Saved, _> = sealed::unseal("state", &bytes[..at]);
        assert!(value.is_err(), "{at} bytes");
    }
    made.write("state", &[bytes, vec![0]].concat());
    assert!(matches!(refused(&made), SnapshotError::Damaged { .. }));
}

#[test]
fn a_changed_working_set_is_ignored_whatever_byte_it_is() {
    let made = Made::new();
    made.learn();
    assert!(made.open().unwrap().working_set().is_some());
    let bytes = made.bytes("working-set");
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        made.write("working-set", &changed);
        assert!(made.open().unwrap().working_set().is_none(), "byte {at}");
        made.write("working-set", &bytes[..at]);
        assert!(made.open().unwrap().working_set().is_none(), "{at} bytes");
    }
    fs::remove_file(made.path("working-set")).unwrap();
    made.learn();
    assert!(made.open().unwrap().working_set().is_some());
}

/// What replaces some bytes of a value: noise, or a length beyond all bounds as
/// postcard writes it.
fn splice() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..16),
        Just(vec![0xff, 0xff, 0xff, 0xff, 0x0f]),
        Just(vec![
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01
        ]),
    ]
}

fn spliced(value: &mut Vec<u8>, at: Index, cut: usize, splice: Vec<u8>) {
    let at = at.index(value.len());
    let end = (at + cut).min(value.len());
    value.splice(at..end, splice);
}

thread_local! {
    static MADE: Made = {
        let made = Made::new();
        made.learn();
        made
    };
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// The checksum is right, so that what is behind it is reached: a machine comes
    /// of it or does not, and nothing else happens.
    #[test]
    fn a_state_that_was_made_up_is_refused_or_harmless(
        at in any::<Index>(),
        cut in 0_usize..16,
        splice in splice(),
    ) {
        MADE.with(|made| {
            let bytes = made.bytes("state");
            made.write("state", &resealed(&bytes, |value| spliced(value, at, cut, splice)));
            let _ = made.restore();
            made.write("state", &bytes);
        });
    }

    #[test]
    fn a_working_set_that_was_made_up_is_ignored_or_harmless(
        at in any::<Index>(),
        cut in 0_usize..16,
        splice in splice(),
    ) {
        MADE.with(|made| {
            let bytes = made.bytes("working-set");
            let changed = resealed(&bytes, |value| spliced(value, at, cut, splice));
            made.write("working-set", &changed);
            let template = made.open().unwrap();
            let pages = (32_u64 << 20) / memory_file::PAGE as u64;
            if let Some(set) = template.working_set() {
                assert!(set.runs().len() < 100);
                let end = |run: &working_set::Run| u64::from(run.first_page) + u64::from(run.pages);
                assert!(set.runs().iter().all(|run| end(run) <= pages));
            }
            made.write("working-set", &bytes);
        });
    }
}
