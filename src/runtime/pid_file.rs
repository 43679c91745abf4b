//! `--pid-file`: who waits for it never sees half of it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The pid file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("pid file {path:?}")]
pub struct PidFileError {
    path: PathBuf,
    source: io::Error,
}

/// Writes `pid`, without a newline, as runc does.
pub fn write(path: &Path, pid: u32) -> Result<(), PidFileError> {
    replace(path, pid).map_err(|source| PidFileError {
        path: path.to_owned(),
        source,
    })
}

fn replace(path: &Path, pid: u32) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}", std::process::id()));
    let new = path.with_file_name(hidden);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o644);
    let mut file = options.open(&new)?;
    let written = file.write_all(pid.to_string().as_bytes());
    let replaced = written.and_then(|()| fs::rename(&new, path));
    if replaced.is_err() {
        // What failed first counts.
        let _ = fs::remove_file(&new);
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        write(&path, 4_194_304).unwrap();
        write(&path, 7).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "7");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn where_it_cannot_be() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("pid/x")).unwrap();
        write(&folder.path().join("pid"), 7).unwrap_err();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let error = write(Path::new("/nonexistent/pid"), 7).unwrap_err();
        assert_eq!(error.to_string(), "pid file \"/nonexistent/pid\"");
    }
}
