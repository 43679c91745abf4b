//! Where templates are kept.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::user::own_uid;

/// Environment variable that names the folder.
pub const FOLDER_VARIABLE: &str = "VMRUN_TEMPLATE_DIR";

/// Root's, for all starts on this machine.
const OF_ROOT: &str = "/var/cache/vmrun/templates";

/// Whether this is root, whose templates are all of this machine's.
pub fn is_root() -> bool {
    own_uid() == 0
}

/// The folder: the one asked for, else the one in the environment (read by
/// `variable`), else the usual one of this user, if there is one.
pub fn folder(
    asked: Option<&Path>,
    is_root: bool,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Option<PathBuf> {
    let named = |name| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(folder) = asked.map(Path::to_owned).or_else(|| named(FOLDER_VARIABLE)) {
        return Some(folder);
    }
    if is_root {
        return Some(OF_ROOT.into());
    }
    // Relative ones are to be ignored (XDG Base Directory Specification).
    let absolute = |name| named(name).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    cache.map(|cache| cache.join("vmrun/templates"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_folders() {
        let all = |name: &str| {
            Some(match name {
                FOLDER_VARIABLE => "/named".into(),
                "XDG_CACHE_HOME" => "/cache".into(),
                _ => "/home/me".into(),
            })
        };
        let asked = Path::new("asked");
        assert_eq!(folder(Some(asked), true, all), Some(asked.into()));
        assert_eq!(folder(None, true, all), Some("/named".into()));
        let unnamed = |name: &str| all(name).filter(|_| name != FOLDER_VARIABLE);
        assert_eq!(folder(None, true, unnamed), Some(OF_ROOT.into()));
        assert_eq!(
            folder(None, false, unnamed),
            Some("/cache/vmrun/templates".into())
        );
        let relative = |name: &str| match name {
            "XDG_CACHE_HOME" => Some("cache".into()),
            "HOME" => Some("/home/me".into()),
            _ => Some(OsString::new()),
        };
        assert_eq!(
            folder(None, false, relative),
            Some("/home/me/.cache/vmrun/templates".into())
        );
        assert_eq!(folder(None, false, |_| None), None);
    }
}
