//! Where guest kernel and initramfs are.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use crate::Error;

/// Environment variable that names the folder.
pub const GUEST_DIR_VARIABLE: &str = "VMRUN_GUEST_DIR";

/// Kernel for machines with one vCPU.
pub const KERNEL: &str = "vmlinux";
/// Kernel for machines with more.
pub const KERNEL_SMP: &str = "vmlinux-smp";
/// Initial RAM file system that holds the agent.
pub const INITRAMFS: &str = "initramfs.cpio";

/// The two files a guest starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestImage {
    /// An uncompressed vmlinux.
    pub kernel: PathBuf,
    /// A cpio archive.
    pub initramfs: PathBuf,
}

/// The folder that holds the image: the one asked for, else the one in the
/// environment, else the first of the usual ones that is there.
pub fn folder(asked: Option<&Path>, variable: Option<OsString>) -> PathBuf {
    if let Some(folder) = asked {
        return folder.to_owned();
    }
    if let Some(folder) = variable.filter(|v| !v.is_empty()) {
        return folder.into();
    }
    let mut usual = Vec::new();
    if let Ok(executable) = std::env::current_exe()
        && let Some(prefix) = executable.parent().and_then(Path::parent)
    {
        usual.push(prefix.join("lib/vmrun"));
    }
    usual.push("/usr/local/lib/vmrun".into());
    usual.push("/usr/lib/vmrun".into());
    let there = usual.iter().find(|folder| folder.is_dir());
    there.unwrap_or(&usual[0]).clone()
}

/// The image for `vcpu_count` vCPUs; files named one by one come first.
pub fn find(
    folder: &Path,
    kernel: Option<&Path>,
    initramfs: Option<&Path>,
    vcpu_count: u8,
) -> Result<GuestImage, Error> {
    let (name, what) = if vcpu_count > 1 {
        (KERNEL_SMP, "guest kernel for several vCPUs")
    } else {
        (KERNEL, "guest kernel")
    };
    let named =
        |asked: Option<&Path>, name| asked.map_or_else(|| folder.join(name), Path::to_owned);
    let image = GuestImage {
        kernel: named(kernel, name),
        initramfs: named(initramfs, INITRAMFS),
    };
    check(what, &image.kernel)?;
    check("guest initramfs", &image.initramfs)?;
    Ok(image)
}

fn check(what: &'static str, path: &Path) -> Result<(), Error> {
    let path = path.to_owned();
    let source = match std::fs::metadata(&path) {
        Ok(metadata) if metadata.is_file() => return Ok(()),
        Ok(_) => io::Error::other("not a regular file"),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Error::GuestImage { what, path });
        }
        Err(e) => e,
    };
    Err(Error::GuestFile { what, path, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn order_of_folders() {
        let asked = Path::new("/asked");
        assert_eq!(folder(Some(asked), Some("/env".into())), asked);
        assert_eq!(folder(None, Some("/env".into())), Path::new("/env"));
        assert!(folder(None, Some("".into())).ends_with("lib/vmrun"));
    }

    #[test]
    fn files() {
        let dir = tempfile::tempdir().unwrap();
        let missing = find(dir.path(), None, None, 1).unwrap_err().to_string();
        assert!(missing.starts_with("no guest kernel at "), "{missing}");
        assert!(missing.contains("scripts/quickstart"), "{missing}");
        fs::write(dir.path().join(KERNEL), "").unwrap();
        let missing = find(dir.path(), None, None, 1).unwrap_err().to_string();
        assert!(missing.starts_with("no guest initramfs at "), "{missing}");
        fs::write(dir.path().join(INITRAMFS), "").unwrap();
        let image = find(dir.path(), None, None, 1).unwrap();
        assert_eq!(image.kernel, dir.path().join(KERNEL));
        let missing = find(dir.path(), None, None, 2).unwrap_err().to_string();
        assert!(
            missing.starts_with("no guest kernel for several vCPUs"),
            "{missing}"
        );
        let folder = find(dir.path(), Some(dir.path()), None, 1).unwrap_err();
        assert!(matches!(folder, Error::GuestFile { .. }), "{folder}");
        let own = dir.path().join(INITRAMFS);
        assert_eq!(find(dir.path(), Some(&own), None, 2).unwrap().kernel, own);
    }
}
