//! Digests of large files, remembered by what changes when a file does, so that a
//! start does not read them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize, de};
use sha2::{Digest as _, Sha256};

use super::store::Store;

/// A SHA-256 digest; hex in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if text.len() != 2 * bytes.len() || !text.is_ascii() {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).ok()?;
            *byte = u8::from_str_radix(pair, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("not a SHA-256 digest"))
    }
}

/// A file as stat(2) tells it apart from what it was before a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Self {
        let ns = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Long enough ago that a change from now on is sure to get another time
    /// stamp: file systems count in ticks.
    fn is_settled(&self, now: SystemTime) -> bool {
        const TICK_MAX: Duration = Duration::from_secs(2);
        let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH);
        let settled = since_1970.unwrap_or_default().saturating_sub(TICK_MAX);
        i128::try_from(settled.as_nanos()).is_ok_and(|settled| self.changed_ns < settled)
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Known {
    stamp: Stamp,
    digest: Digest,
}

/// Digests that are remembered in the folder of the templates.
#[derive(Debug, Default)]
pub struct Digests {
    known: Vec<Known>,
    learnt: bool,
}

impl Digests {
    /// Name of the file in the folder.
    pub const FILE: &str = "digests";

    /// Digests kept, the latest ones.
    const KNOWN_MAX: usize = 64;

    /// What `store` remembers: nothing, if its file cannot be used.
    pub fn load(store: &Store) -> Self {
        let known = match store.read(Self::FILE) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        Self {
            known,
            learnt: false,
        }
    }

    /// The digest of the file at `path`.
    pub fn of(&mut self, path: &Path) -> io::Result<Digest> {
        let stamp = Stamp::of(&std::fs::metadata(path)?);
        if let Some(known) = self.known.iter().find(|known| known.stamp == stamp) {
            return Ok(known.digest);
        }
        let mut file = File::open(path)?;
        let before = Stamp::of(&file.metadata()?);
        let digest = read_through(&mut file)?;
        let after = Stamp::of(&file.metadata()?);
        if before == after && after.is_settled(SystemTime::now()) {
            self.known.push(Known {
                stamp: after,
                digest,
            });
            self.learnt = true;
        }
        Ok(digest)
    }

    /// Remembers what was learnt. That it cannot be remembered costs time only.
    pub fn save(&mut self, store: &Store) {
        if !std::mem::take(&mut self.learnt) {
            return;
        }
        let first = self.known.len().saturating_sub(Self::KNOWN_MAX);
        let saved = serde_json::to_vec(&self.known[first..])
            .map_err(io::Error::from)
            .and_then(|bytes| store.replace(Self::FILE, &bytes));
        if let Err(error) = saved {
            log::debug!("cannot remember digests: {error}");
        }
    }
}

fn read_through(file: &mut File) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 256 << 10];
    loop {
        match file.read(&mut piece) {
            Ok(0) => return Ok(Digest(hasher.finalize().into())),
            Ok(n) => hasher.update(&piece[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// "abc" in FIPS 180-2's example.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn aged(path: &Path) {
        // The time of a change cannot be set: only that of the modification.
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }

    #[test]
    fn digests_in_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "abc").unwrap();
        let digest = Digests::default().of(&path).unwrap();
        assert_eq!(digest.to_string(), ABC);
        assert_eq!(Digest::parse(ABC), Some(digest));
        for wrong in ["", "ba78", &ABC.replace('b', "g"), &"é".repeat(32)] {
            assert_eq!(Digest::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_known_is_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "abc").unwrap();
        aged(&path);
        let lie = Digest([7; 32]);
        let mut digests = Digests {
            known: vec![Known {
                stamp: Stamp::of(&fs::metadata(&path).unwrap()),
                digest: lie,
            }],
            learnt: false,
        };
        assert_eq!(digests.of(&path).unwrap(), lie);
        fs::write(&path, "abd").unwrap();
        aged(&path);
        assert_ne!(digests.of(&path).unwrap(), lie, "another time of change");
    }

    #[test]
    fn a_file_that_has_just_changed_is_not_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "abc").unwrap();
        let mut digests = Digests::default();
        digests.of(&path).unwrap();
        assert!(!digests.learnt);
        let stamp = Stamp::of(&fs::metadata(&path).unwrap());
        assert!(!stamp.is_settled(SystemTime::now()));
        let later = SystemTime::now() + Duration::from_secs(10);
        assert!(stamp.is_settled(later));
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "abc").unwrap();
        let known = Known {
            stamp: Stamp::of(&fs::metadata(&path).unwrap()),
            digest: Digest([7; 32]),
        };
        let mut digests = Digests {
            known: vec![known; Digests::KNOWN_MAX + 9],
            learnt: true,
        };
        digests.save(&store);
        let mut loaded = Digests::load(&store);
        assert_eq!(loaded.known.len(), Digests::KNOWN_MAX);
        assert_eq!(loaded.of(&path).unwrap(), known.digest);

        store.replace(Digests::FILE, b"[{}, nonsense").unwrap();
        assert!(Digests::load(&store).known.is_empty());
    }
}
