//! The words of `mounts[].options` (config.md, "Linux mount options").

use vmrun_protocol::plan::Mount as PlanMount;

use crate::{Error, text};

/// mount(2) copies one page of file system options.
const MAX_DATA_BYTES: usize = 4095;
const MAX_OPTIONS: usize = 256;

/// `MS_NOSYMFOLLOW` of linux/mount.h.
const MS_NOSYMFOLLOW: u64 = 256;

/// What the options of one mount say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MountOptions {
    /// mount(2) flags of the mount point, without `MS_BIND` and `MS_REC`.
    pub flags: u64,
    /// Propagation flags in order, each for a mount(2) of its own.
    pub propagation: Vec<u64>,
    /// What is left for the file system, comma-separated.
    pub data: String,
    /// `bind` or `rbind` is among them.
    pub bind: Option<Recursive>,
}

/// Whether a bind mount takes what is mounted below its source along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recursive(pub bool);

enum Word {
    Set(u64),
    Clear(u64),
    Propagation(u64),
    Bind(Recursive),
    Refused(&'static str),
    Data,
}

/// Resolves the options of the mount at `path`. The last word about a flag counts.
pub fn resolve(path: &str, options: &[String]) -> Result<MountOptions, Error> {
    let path = format!("{path}.options");
    text::at_most(&path, options.len(), MAX_OPTIONS)?;
    let mut resolved = MountOptions::default();
    let mut data: Vec<&str> = Vec::new();
    for (i, option) in options.iter().enumerate() {
        text::bytes(&format!("{path}[{i}]"), option)?;
        match word(option) {
            Word::Set(flag) => resolved.flags |= flag,
            Word::Clear(flag) => resolved.flags &= !flag,
            Word::Propagation(flags) => resolved.propagation.push(flags),
            Word::Bind(recursive) => resolved.bind = Some(recursive),
            Word::Refused(why) => {
                let problem = format!("{option:?} {why}");
                return Err(Error::property(format!("{path}[{i}]"), problem));
            }
            Word::Data => data.push(option),
        }
    }
    resolved.data = data.join(",");
    if resolved.data.len() > MAX_DATA_BYTES {
        let problem = format!("are longer than {MAX_DATA_BYTES} bytes");
        return Err(Error::property(path, problem));
    }
    Ok(resolved)
}

/// Flags of a propagation word, also the values of `linux.rootfsPropagation`.
pub fn propagation(word: &str) -> Option<u64> {
    let (rec, word) = match word.strip_prefix('r') {
        Some(rest) => (libc::MS_REC, rest),
        None => (0, word),
    };
    Some(
        rec | match word {
            "private" => libc::MS_PRIVATE,
            "shared" => libc::MS_SHARED,
            "slave" => libc::MS_SLAVE,
            "unbindable" => libc::MS_UNBINDABLE,
            _ => return None,
        },
    )
}

fn word(option: &str) -> Word {
    if let Some(flags) = propagation(option) {
        return Word::Propagation(flags);
    }
    match option {
        "bind" => return Word::Bind(Recursive(false)),
        "rbind" => return Word::Bind(Recursive(true)),
        "tmpcopyup" => return Word::Set(PlanMount::COPY_UP),
        "iversion" => {
            return Word::Refused("is not supported: no file system of it counts changes");
        }
        "remount" => return Word::Refused("is not supported: a mount is made once"),
        "idmap" | "ridmap" => {
            return Word::Refused("is not supported: the guest's kernel maps no ids of mounts");
        }
        _ => {}
    }
    let of = |table: &[Flag], name: &str| table.iter().find(|f| f.0 == name).copied();
    // In the guest every mount is a single one, so what is asked of the mounts below
    // it too (`rro`) is what is asked of the mount itself.
    let recursive = || of(WITH_RECURSIVE, option.strip_prefix('r')?);
    match of(PLAIN, option)
        .or_else(|| of(WITH_RECURSIVE, option))
        .or_else(recursive)
    {
        Some((_, Change::Set, flag)) => Word::Set(flag),
        Some((_, Change::Clear, flag)) => Word::Clear(flag),
        None => Word::Data,
    }
}

/// Every word that is understood and done, for `vmrun features`.
pub fn understood() -> impl Iterator<Item = String> {
    let fixed = ["bind", "rbind", "tmpcopyup"].map(str::to_owned);
    let propagations = ["private", "shared", "slave", "unbindable"];
    let with_r = |word: &'static str| [word.to_owned(), format!("r{word}")];
    fixed
        .into_iter()
        .chain(propagations.into_iter().flat_map(with_r))
        .chain(PLAIN.iter().map(|f| f.0.to_owned()))
        .chain(WITH_RECURSIVE.iter().flat_map(move |f| with_r(f.0)))
}

/// A word, and what it does to which flag of mount(2).
type Flag = (&'static str, Change, u64);

#[derive(Clone, Copy)]
enum Change {
    Set,
    Clear,
}

/// Flags without a recursive form.
#[rustfmt::skip]
const PLAIN: &[Flag] = &[
    ("defaults", Change::Set, 0),
    ("async", Change::Clear, libc::MS_SYNCHRONOUS),
    ("sync", Change::Set, libc::MS_SYNCHRONOUS),
    ("dirsync", Change::Set, libc::MS_DIRSYNC),
    ("noiversion", Change::Clear, libc::MS_I_VERSION),
    ("lazytime", Change::Set, libc::MS_LAZYTIME),
    ("nolazytime", Change::Clear, libc::MS_LAZYTIME),
    ("loud", Change::Clear, libc::MS_SILENT),
    ("silent", Change::Set, libc::MS_SILENT),
    ("mand", Change::Set, libc::MS_MANDLOCK),
    ("nomand", Change::Clear, libc::MS_MANDLOCK),
];

/// Flags that have one.
#[rustfmt::skip]
const WITH_RECURSIVE: &[Flag] = &[
    ("ro", Change::Set, libc::MS_RDONLY),
    ("rw", Change::Clear, libc::MS_RDONLY),
    ("nosuid", Change::Set, libc::MS_NOSUID),
    ("suid", Change::Clear, libc::MS_NOSUID),
    ("nodev", Change::Set, libc::MS_NODEV),
    ("dev", Change::Clear, libc::MS_NODEV),
    ("noexec", Change::Set, libc::MS_NOEXEC),
    ("exec", Change::Clear, libc::MS_NOEXEC),
    ("noatime", Change::Set, libc::MS_NOATIME),
    ("atime", Change::Clear, libc::MS_NOATIME),
    ("nodiratime", Change::Set, libc::MS_NODIRATIME),
    ("diratime", Change::Clear, libc::MS_NODIRATIME),
    ("relatime", Change::Set, libc::MS_RELATIME),
    ("norelatime", Change::Clear, libc::MS_RELATIME),
    ("strictatime", Change::Set, libc::MS_STRICTATIME),
    ("nostrictatime", Change::Clear, libc::MS_STRICTATIME),
    ("nosymfollow", Change::Set, MS_NOSYMFOLLOW),
    ("symfollow", Change::Clear, MS_NOSYMFOLLOW),
];

#[cfg(test)]
mod tests {
    use super::*;
    use libc::*;

    fn options(words: &[&str]) -> Result<MountOptions, String> {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        resolve("mounts[1]", &words).map_err(|e| e.to_string())
    }

    #[test]
    fn flags_and_data() {
        let o = options(&["nosuid", "strictatime", "mode=755", "size=65536k"]).unwrap();
        assert_eq!(o.flags, MS_NOSUID | MS_STRICTATIME);
        assert_eq!(o.data, "mode=755,size=65536k");
        assert_eq!(o.bind, None);
        assert!(o.propagation.is_empty());
    }

    #[test]
    fn every_understood_word_is_taken_and_none_is_given_to_the_file_system() {
        for word in understood() {
            let options = options(&[word.as_str()]);
            assert_eq!(options.map(|o| o.data), Ok(String::new()), "{word}");
        }
        for word in ["size=1", "noswap", "rsync", "ruid=1"] {
            assert_eq!(options(&[word]).unwrap().data, word);
        }
    }

    #[test]
    fn last_word_counts() {
        assert_eq!(options(&["ro", "rw"]).unwrap().flags, 0);
        assert_eq!(options(&["rw", "ro"]).unwrap().flags, MS_RDONLY);
    }

    #[test]
    fn recursive_words_are_the_plain_ones() {
        let o = options(&["rbind", "rro", "rnosuid", "rdev", "rprivate"]).unwrap();
        assert_eq!(o.flags, MS_RDONLY | MS_NOSUID);
        assert_eq!(o.bind, Some(Recursive(true)));
        assert_eq!(o.propagation, [MS_REC | MS_PRIVATE]);
    }

    #[test]
    fn every_propagation_word() {
        assert_eq!(propagation("rprivate"), Some(MS_REC | MS_PRIVATE));
        assert_eq!(propagation("shared"), Some(MS_SHARED));
        assert_eq!(propagation("rslave"), Some(MS_REC | MS_SLAVE));
        assert_eq!(propagation("unbindable"), Some(MS_UNBINDABLE));
        assert_eq!(propagation(""), None);
        assert_eq!(propagation("rr"), None);
    }

    #[test]
    fn refusals() {
        for (word, message) in [
            (
                "ridmap",
                "mounts[1].options[0]: \"ridmap\" is not supported: the guest's kernel maps no \
                 ids of mounts",
            ),
            (
                "remount",
                "mounts[1].options[0]: \"remount\" is not supported: a mount is made once",
            ),
            (
                "a\0b",
                "mounts[1].options[0]: must not contain a NUL character",
            ),
        ] {
            assert_eq!(options(&[word]), Err(message.to_owned()));
        }
        assert_eq!(
            options(&["a".repeat(4096).as_str()]),
            Err("mounts[1].options: are longer than 4095 bytes".to_owned())
        );
    }
}
