//! `mounts` (config.md, "Mounts").

use std::path::PathBuf;

use oci_spec::runtime::Mount as SpecMount;
use vmrun_protocol::plan::{Bytes, FsType, Mount as PlanMount};

use crate::mount_options::{self, MountOptions, Recursive};
use crate::{Error, text};

/// Most mounts of one container.
const MAX_MOUNTS: usize = 512;

/// Most bind mounts: a share has 255 exports, and the root is one.
const MAX_BIND_MOUNTS: usize = 254;

/// One entry of `mounts`; the source of a bind mount is not opened yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Absolute path inside the container.
    pub destination: Bytes,
    /// What is mounted.
    pub source: Source,
    /// mount(2) flags of the mount point, and [`PlanMount::COPY_UP`].
    pub flags: u64,
    /// Propagation flags, applied by a second mount(2), in order.
    pub propagation: Vec<u64>,
    /// File system options.
    pub data: Bytes,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A new file system of the guest kernel.
    FileSystem {
        /// Which.
        fs_type: FsType,
        /// `source` of the entry.
        label: Bytes,
    },
    /// A folder or file of the host, relative to the bundle or absolute.
    Bind {
        /// Path on the host.
        path: PathBuf,
        /// `rbind` rather than `bind`.
        recursive: bool,
    },
}

impl Mount {
    /// Whether the mount is read-only.
    pub fn read_only(&self) -> bool {
        self.flags & libc::MS_RDONLY != 0
    }
}

/// Resolves the entries, in order.
pub fn resolve(entries: &[SpecMount]) -> Result<Vec<Mount>, Error> {
    text::at_most("mounts", entries.len(), MAX_MOUNTS)?;
    let mount = |(i, entry)| mount(&format!("mounts[{i}]"), entry);
    let mounts: Vec<Mount> = entries
        .iter()
        .enumerate()
        .map(mount)
        .collect::<Result<_, _>>()?;
    let is_bind = |m: &&Mount| matches!(m.source, Source::Bind { .. });
    let binds = mounts.iter().filter(is_bind).count();
    if binds > MAX_BIND_MOUNTS {
        let problem = format!("has {binds} bind mounts, more than {MAX_BIND_MOUNTS}");
        return Err(Error::property("mounts", problem));
    }
    Ok(mounts)
}

fn mount(path: &str, entry: &SpecMount) -> Result<Mount, Error> {
    let destination = text::container_path(&format!("{path}.destination"), entry.destination())?;
    let no_options = Vec::new();
    let options = entry.options().as_ref().unwrap_or(&no_options);
    let options = mount_options::resolve(path, options)?;
    let fs_type = entry.typ().as_deref().unwrap_or_default();
    // The option decides, as in runc: engines write all kinds of types beside it.
    let source = match (options.bind, fs_type) {
        (Some(Recursive(recursive)), _) => bind(path, entry, &options, recursive)?,
        (None, "bind") => bind(path, entry, &options, true)?,
        (None, name) => file_system(path, entry, name)?,
    };
    let is_tmpfs = matches!(
        source,
        Source::FileSystem {
            fs_type: FsType::Tmpfs,
            ..
        }
    );
    if options.flags & PlanMount::COPY_UP != 0 && !is_tmpfs {
        let problem = "tmpcopyup is only for a tmpfs";
        return Err(Error::property(format!("{path}.options"), problem));
    }
    Ok(Mount {
        destination,
        source,
        flags: options.flags,
        propagation: options.propagation,
        data: options.data.into_bytes(),
    })
}

fn bind(
    path: &str,
    entry: &SpecMount,
    options: &MountOptions,
    recursive: bool,
) -> Result<Source, Error> {
    if !options.data.is_empty() {
        let problem = format!("{:?} is not an option of a bind mount", options.data);
        return Err(Error::property(format!("{path}.options"), problem));
    }
    let source = entry.source().clone().unwrap_or_default();
    let source_path = format!("{path}.source");
    let text = text::bytes(&source_path, source.to_str().unwrap_or_default())?;
    if text.is_empty() {
        return Err(Error::property(source_path, "must not be empty"));
    }
    Ok(Source::Bind {
        path: source,
        recursive,
    })
}

fn file_system(path: &str, entry: &SpecMount, name: &str) -> Result<Source, Error> {
    let fs_type = match name {
        "proc" => FsType::Proc,
        "sysfs" => FsType::Sysfs,
        "tmpfs" => FsType::Tmpfs,
        "devpts" => FsType::Devpts,
        "mqueue" => FsType::Mqueue,
        // The guest has only the unified hierarchy, whatever the host has.
        "cgroup" | "cgroup2" => FsType::Cgroup2,
        other => {
            let shown: String = other.chars().take(32).collect();
            let problem = format!("file system {shown:?} is not supported");
            return Err(Error::property(format!("{path}.type"), problem));
        }
    };
    let label = match entry.source().as_ref().and_then(|s| s.to_str()) {
        Some(label) if !label.is_empty() => {
            if label.len() > text::MAX_PATH_BYTES {
                let problem = format!("is longer than {} bytes", text::MAX_PATH_BYTES);
                return Err(Error::property(format!("{path}.source"), problem));
            }
            text::bytes(&format!("{path}.source"), label)?
        }
        _ => name.as_bytes().to_vec(),
    };
    Ok(Source::FileSystem { fs_type, label })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(json: &str) -> Result<Mount, String> {
        let entries: Vec<SpecMount> = serde_json::from_str(&format!("[{json}]")).unwrap();
        resolve(&entries)
            .map(|mut m| m.remove(0))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn file_systems() {
        let m = resolved(
            r#"{"destination":"/dev/shm","type":"tmpfs","source":"shm",
                "options":["nosuid","noexec","nodev","mode=1777","size=65536k"]}"#,
        )
        .unwrap();
        assert_eq!(
            m.source,
            Source::FileSystem {
                fs_type: FsType::Tmpfs,
                label: b"shm".to_vec()
            }
        );
        assert_eq!(m.data, b"mode=1777,size=65536k");
        assert!(!m.read_only());
        let cgroup = resolved(r#"{"destination":"/c","type":"cgroup","options":["ro"]}"#).unwrap();
        assert_eq!(
            cgroup.source,
            Source::FileSystem {
                fs_type: FsType::Cgroup2,
                label: b"cgroup".to_vec()
            }
        );
        assert!(cgroup.read_only());
    }

    #[test]
    fn binds() {
        for (json, recursive) in [
            (
                r#"{"destination":"/d","type":"none","source":"data","options":["bind"]}"#,
                false,
            ),
            (
                r#"{"destination":"/d","source":"data","options":["rbind","rprivate"]}"#,
                true,
            ),
            (
                r#"{"destination":"/d","type":"bind","source":"data"}"#,
                true,
            ),
        ] {
            assert_eq!(
                resolved(json).unwrap().source,
                Source::Bind {
                    path: "data".into(),
                    recursive
                },
                "{json}"
            );
        }
    }

    #[test]
    fn refusals() {
        for (json, message) in [
            (
                r#"{"destination":"data","type":"tmpfs"}"#,
                "mounts[0].destination: must be an absolute path",
            ),
            (
                r#"{"destination":"/a/../../etc","type":"tmpfs"}"#,
                "mounts[0].destination: must not contain \"..\"",
            ),
            (
                r#"{"destination":"/d","type":"overlay"}"#,
                "mounts[0].type: file system \"overlay\" is not supported",
            ),
            (
                r#"{"destination":"/d"}"#,
                "mounts[0].type: file system \"\" is not supported",
            ),
            (
                r#"{"destination":"/d","type":"bind"}"#,
                "mounts[0].source: must not be empty",
            ),
            (
                r#"{"destination":"/d","source":"/a\u0000b","options":["bind"]}"#,
                "mounts[0].source: must not contain a NUL character",
            ),
            (
                r#"{"destination":"/d","type":"proc","options":["tmpcopyup"]}"#,
                "mounts[0].options: tmpcopyup is only for a tmpfs",
            ),
            (
                r#"{"destination":"/d","source":"/a","options":["bind","size=1"]}"#,
                "mounts[0].options: \"size=1\" is not an option of a bind mount",
            ),
        ] {
            assert_eq!(resolved(json), Err(message.to_owned()));
        }
    }

    #[test]
    fn a_hundred_thousand_mounts() {
        let one = SpecMount::default();
        let message = resolve(&vec![one; 100_000]).unwrap_err().to_string();
        assert_eq!(message, "mounts: has 100000 entries, more than 512");
    }

    #[test]
    fn more_bind_mounts_than_a_share_has_exports() {
        let bind = r#"{"destination":"/d","source":"/s","options":["bind"]}"#;
        let one: SpecMount = serde_json::from_str(bind).unwrap();
        assert!(resolve(&vec![one.clone(); 254]).is_ok());
        let message = resolve(&vec![one; 255]).unwrap_err().to_string();
        assert_eq!(message, "mounts: has 255 bind mounts, more than 254");
    }
}
