//! Files of a cgroup: which the host may write, and how several are changed at
//! once or not at all.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{Errno, Result, read, retry_on_intr, write};
use vmrun_protocol::message::Failure;
use vmrun_protocol::plan::Bytes;

use crate::failure::{Named, quoted, setup};

/// Longest file that is read, in bytes: those that are read have a line per event
/// or device.
pub const FILE_MAX_BYTES: usize = 4096;

/// Files of the core that are limits. The others are the agent's: a group frozen,
/// or its controllers changed, behind its back would stop it.
const CORE_LIMITS: [&[u8]; 2] = [b"cgroup.max.depth", b"cgroup.max.descendants"];

/// Whether the host may write this file: one in the group's own folder, of a
/// controller or a limit of the core.
pub fn is_settable(file: &[u8]) -> bool {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let (controller, rest) = match file.iter().position(|b| *b == b'.') {
        Some(at) => file.split_at(at),
        None => return false,
    };
    let named = controller.iter().all(u8::is_ascii_lowercase) && !controller.is_empty();
    let named = named && rest.len() > 1 && rest.iter().all(plain);
    named && (controller != b"cgroup" || CORE_LIMITS.contains(&file))
}

/// Refuses files that are not [settable](is_settable).
pub fn check(writes: &[(Bytes, Bytes)]) -> std::result::Result<(), Failure> {
    match writes.iter().find(|(file, _)| !is_settable(file)) {
        Some((file, _)) => Err(setup(name(file), Errno::INVAL)),
        None => Ok(()),
    }
}

fn name(file: &[u8]) -> String {
    format!("cgroup {}", quoted(file))
}

/// Writes files of the group `folder`, in order; stops at the first that fails.
/// They have been [checked](check).
pub fn write_all(
    folder: BorrowedFd<'_>,
    writes: &[(Bytes, Bytes)],
) -> std::result::Result<(), Failure> {
    let write = |(file, value): &(Bytes, Bytes)| write_file(folder, file, value);
    writes
        .iter()
        .try_for_each(|one| write(one).named(|| name(&one.0)))
}

/// As [`write_all`]; what was written before a failure is set back.
pub fn update(
    folder: BorrowedFd<'_>,
    writes: &[(Bytes, Bytes)],
) -> std::result::Result<(), Failure> {
    let mut before: Vec<(&Bytes, Bytes)> = Vec::new();
    for (file, value) in writes {
        // Not every file that can be written can be read.
        let old = read_file(folder, file).ok();
        if let Err(failure) = write_file(folder, file, value).named(|| name(file)) {
            for (file, old) in before.iter().rev() {
                set_back(folder, file, old);
            }
            return Err(failure);
        }
        before.extend(old.map(|old| (file, old)));
    }
    Ok(())
}

/// Writes back what [`read_file`] has read, as far as the kernel takes it: a line at
/// a time, as files with a line per device want it.
fn set_back(folder: BorrowedFd<'_>, file: &[u8], old: &[u8]) {
    let lines = old.strip_suffix(b"\n").unwrap_or(old);
    for line in lines.split(|b| *b == b'\n') {
        let _ = write_file(folder, file, &[line, b"\n"].concat());
    }
}

/// Writes a file of the group `folder`, at once.
pub fn write_file(folder: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(folder, name, flags, Mode::empty())?;
    retry_on_intr(|| write(&file, value)).map(drop)
}

/// What a file of the group `folder` says, up to [`FILE_MAX_BYTES`].
pub fn read_file(folder: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>> {
    let file = open(folder, name)?;
    let mut text = vec![0; FILE_MAX_BYTES];
    let len = read_from(&file, &mut text)?;
    text.truncate(len);
    Ok(text)
}

/// Opens a file of the group `folder` for reading.
pub fn open(folder: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(folder, name, flags, Mode::empty())
}

/// Fills `text` as far as the file goes.
pub fn read_from(file: &OwnedFd, text: &mut [u8]) -> Result<usize> {
    let mut len = 0;
    loop {
        let rest = text.get_mut(len..).unwrap_or_default();
        match retry_on_intr(|| read(file.as_fd(), &mut *rest))? {
            0 => return Ok(len),
            more => len += more,
        }
    }
}

/// The number behind `key` in a file with a key and a number on each line.
pub fn number(text: &[u8], key: &[u8]) -> Option<u64> {
    let mut lines = text.split(|b| *b == b'\n');
    let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(b" "))?;
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn only_limits_of_the_group_itself_are_settable() {
        for file in [
            "memory.max",
            "memory.swap.max",
            "hugetlb.2MB.max",
            "cpu.max.burst",
            "cgroup.max.depth",
        ] {
            assert!(is_settable(file.as_bytes()), "{file}");
        }
        for file in [
            "",
            ".",
            "..",
            "memory",
            "memory.",
            "../memory.max",
            "sub/memory.max",
            "memory./max",
            "cgroup.procs",
            "cgroup.freeze",
            "cgroup.kill",
            "cgroup.subtree_control",
            "memory.max\n",
            "Memory.max",
        ] {
            assert!(!is_settable(file.as_bytes()), "{file}");
        }
    }

    #[test]
    fn an_update_that_fails_is_set_back() {
        let dir = tempfile::tempdir().unwrap();
        for (file, old) in [("memory.max", "max\n"), ("io.max", "8:0 a=1\n8:1 a=2\n")] {
            fs::write(dir.path().join(file), old).unwrap();
        }
        let folder = crate::inside::own_folder(dir.path().to_str().unwrap()).unwrap();
        let write = |file: &str, value: &str| (file.as_bytes().to_vec(), value.into());
        let mut writes = vec![
            write("memory.max", "7"),
            write("io.max", "8:0 a=3"),
            write("pids.max", "9"),
        ];
        let failure = update(folder.as_fd(), &writes).unwrap_err();
        assert_eq!(
            (failure.what.as_str(), failure.errno),
            ("cgroup \"pids.max\"", libc::ENOENT)
        );
        // A plain file keeps what is not written over.
        let now = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
        assert_eq!(now("memory.max"), "max\n");
        assert!(now("io.max").starts_with("8:1 a=2\n"), "{}", now("io.max"));
        writes.pop();
        update(folder.as_fd(), &writes).unwrap();
        assert!(now("memory.max").starts_with('7'));
    }

    #[test]
    fn numbers_have_a_whole_key() {
        let text = b"oom 1\noom_kill 23\noom_group_kill 4\nbad x\n";
        assert_eq!(number(text, b"oom_kill"), Some(23));
        assert_eq!(number(text, b"oom"), Some(1));
        assert_eq!(number(text, b"oom_"), None);
        assert_eq!(number(text, b"bad"), None);
    }
}
