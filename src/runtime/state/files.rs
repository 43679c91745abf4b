//! The files in a container's folder.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, renameat, statat, unlinkat};
use rustix::io::Errno;

/// See [`super::Record`].
pub const RECORD: &str = "state.json";
/// The next one, while it is written.
const NEW_RECORD: &str = "state.json.new";
/// Copy of the bundle's.
pub const CONFIG: &str = "config.json";
/// Where the monitor listens.
pub const SOCKET: &str = "monitor.sock";

/// Largest file that is read: a config.json, whose annotations are in the record.
const MAX_BYTES: u64 = 32 << 20;

/// Opens the folder `name`, which may not be a symbolic link.
pub fn open_folder(parent: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// Whether `folder` is still what `name` in `parent` leads to.
pub fn is_linked(parent: impl AsFd, name: &str, folder: impl AsFd) -> bool {
    let (Ok(there), Ok(open)) = (
        statat(parent, name, AtFlags::SYMLINK_NOFOLLOW),
        rustix::fs::fstat(folder),
    ) else {
        return false;
    };
    (there.st_dev, there.st_ino) == (open.st_dev, open.st_ino)
}

/// Writes a new file.
pub fn write_new(folder: impl AsFd, name: &str, content: &[u8]) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(folder, name, flags, Mode::RUSR | Mode::WUSR)?;
    File::from(file).write_all(content)
}

/// Replaces the record: whoever reads it gets the old or the new one. It need not
/// outlive a crash of the host, where no container does.
pub fn replace_record(folder: impl AsFd, content: &[u8]) -> io::Result<()> {
    let folder = folder.as_fd();
    match write_new(folder, NEW_RECORD, content) {
        // Somebody was killed while writing it.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            remove_file(folder, NEW_RECORD)?;
            write_new(folder, NEW_RECORD, content)?;
        }
        result => result?,
    }
    renameat(folder, NEW_RECORD, folder, RECORD)?;
    Ok(())
}

/// The content of a file.
pub fn read(folder: impl AsFd, name: &str) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(openat(folder, name, flags, Mode::empty())?);
    let mut content = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut content)?;
    Ok(content)
}

fn remove_file(folder: impl AsFd, name: &str) -> Result<(), Errno> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes everything in `folder`, the record last, and then the folder itself.
pub fn remove_folder(parent: impl AsFd, name: &str, folder: impl AsFd) -> Result<(), Errno> {
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        let file = entry.file_name().to_bytes();
        if file != b"." && file != b".." && file != RECORD.as_bytes() {
            unlinkat(&folder, entry.file_name(), AtFlags::empty())?;
        }
    }
    remove_file(&folder, RECORD)?;
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}
