//! The bundle: its config.json, and every path in it opened once.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;
use vmrun_oci::{Container, mounts};

use crate::Error;

/// A bundle that was read and checked; nothing of it is looked up by name again.
#[derive(Debug)]
pub struct Bundle {
    /// What config.json asks for.
    pub container: Container,
    /// Its text.
    pub config: Vec<u8>,
    /// Where the bundle is: absolute, without symbolic links.
    pub path: PathBuf,
    /// The root file system's folder (`O_PATH`).
    pub root: OwnedFd,
    /// For every entry of `container.mounts`: the source, if it is a bind mount.
    pub sources: Vec<Option<BindSource>>,
}

/// What a bind mount shows.
#[derive(Debug)]
pub struct BindSource {
    /// Folder or regular file (`O_PATH`).
    pub source: OwnedFd,
    /// Whether it is a folder.
    pub is_dir: bool,
}

impl Bundle {
    /// Opens the bundle in the folder `path`.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat(CWD, path, flags, Mode::empty()).map_err(|e| Error::Bundle {
            path: path.to_owned(),
            source: e.into(),
        })?;
        let config = vmrun_oci::load::read(&folder)?;
        let container = vmrun_oci::load::parse(&config)?;
        let root = open_root(&folder, &container.root_path)?;
        let sources = open_sources(&folder, &container.mounts)?;
        let own = format!("/proc/self/fd/{}", folder.as_raw_fd());
        let path = std::fs::read_link(own).map_err(Error::host("find the bundle's path"))?;
        Ok(Self {
            container,
            config,
            path,
            root,
            sources,
        })
    }

    /// Where the container's root is.
    pub fn rootfs(&self) -> PathBuf {
        self.path.join(&self.container.root_path)
    }
}

/// The root may not be a symbolic link nor be reached through one, as in runc: the
/// folder that was checked is the one that is shared.
fn open_root(bundle: impl AsFd, path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(
        bundle,
        path,
        flags,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS,
    )
    .map_err(|e| Error::Path {
        property: "root.path".to_owned(),
        path: path.to_owned(),
        source: match e {
            Errno::LOOP => io::Error::other("is a symbolic link, or leads through one"),
            other => other.into(),
        },
    })
}

fn open_sources(
    bundle: impl AsFd,
    mounts: &[mounts::Mount],
) -> Result<Vec<Option<BindSource>>, Error> {
    let source = |(i, mount): (usize, &mounts::Mount)| match &mount.source {
        mounts::Source::FileSystem { .. } => Ok(None),
        mounts::Source::Bind { path, .. } => {
            open_source(&bundle, path)
                .map(Some)
                .map_err(|source| Error::Path {
                    property: format!("mounts[{i}].source"),
                    path: path.clone(),
                    source,
                })
        }
    };
    mounts.iter().enumerate().map(source).collect()
}

/// Symbolic links are followed, as mount(2) does.
fn open_source(bundle: impl AsFd, path: &Path) -> io::Result<BindSource> {
    let source = openat(bundle, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let kind = FileType::from_raw_mode(fstat(&source)?.st_mode);
    let what = match kind {
        FileType::Directory | FileType::RegularFile => {
            return Ok(BindSource {
                source,
                is_dir: kind == FileType::Directory,
            });
        }
        FileType::Socket => "a socket",
        FileType::Fifo => "a fifo",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "of an unknown kind",
    };
    Err(io::Error::other(format!(
        "is {what}: only folders and regular files can be shared with a machine"
    )))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::error::Error as _;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use tempfile::TempDir;

    /// A bundle with an empty root file system and a config.json with these mounts.
    pub(crate) fn bundle(root_path: &str, mounts: Value) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("rootfs")).unwrap();
        let config = json!({
            "ociVersion": "1.0.2",
            "root": {"path": root_path, "readonly": true},
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["true"], "cwd": "/"},
            "mounts": mounts,
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"},
                                     {"type": "network"}, {"type": "ipc"}]}
        });
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        folder
    }

    fn message(folder: &TempDir) -> String {
        let error = Bundle::open(folder.path()).unwrap_err();
        match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        }
    }

    fn bind(source: &str) -> Value {
        json!([{"destination": "/d", "source": source, "options": ["bind"]}])
    }

    #[test]
    fn sources_are_relative_to_the_bundle_and_links_are_followed() {
        let folder = bundle("rootfs", bind("link"));
        fs::write(folder.path().join("file"), "x").unwrap();
        symlink("file", folder.path().join("link")).unwrap();
        let opened = Bundle::open(folder.path()).unwrap();
        assert!(!opened.sources[0].as_ref().unwrap().is_dir);
    }

    #[test]
    fn absolute_root() {
        let folder = bundle("rootfs", json!([]));
        let elsewhere = bundle(folder.path().join("rootfs").to_str().unwrap(), json!([]));
        assert!(Bundle::open(elsewhere.path()).is_ok());
    }

    #[test]
    fn roots_that_are_none() {
        assert_eq!(
            message(&bundle("missing", json!([]))),
            "root.path: \"missing\": No such file or directory (os error 2)"
        );
        assert_eq!(
            message(&bundle("config.json", json!([]))),
            "root.path: \"config.json\": Not a directory (os error 20)"
        );
        let folder = bundle("link", json!([]));
        symlink("rootfs", folder.path().join("link")).unwrap();
        assert_eq!(
            message(&folder),
            "root.path: \"link\": is a symbolic link, or leads through one"
        );
    }

    #[test]
    fn sources_that_cannot_be_shared() {
        assert_eq!(
            message(&bundle("rootfs", bind("missing"))),
            "mounts[0].source: \"missing\": No such file or directory (os error 2)"
        );
        assert!(message(&bundle("rootfs", bind("/dev/null"))).contains("is a device"));
        let folder = bundle("rootfs", bind("socket"));
        let _listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        assert!(message(&folder).contains("is a socket"));
    }

    #[test]
    fn no_bundle() {
        let error = Bundle::open(Path::new("/nonexistent")).unwrap_err();
        assert_eq!(error.to_string(), "bundle \"/nonexistent\"");
        assert_eq!(error.exit_code(), 1);
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            message(&folder),
            "config.json: No such file or directory (os error 2)"
        );
    }
}
