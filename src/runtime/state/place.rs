//! Where the state of containers is kept.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::user::own_uid;

/// Root's, for the whole machine.
const OF_ROOT: &str = "/run/vmrun";

/// The folder: the one asked for, else the usual one of this user. `variable` reads
/// the environment; `exists` says whether a folder is there.
pub fn folder(
    asked: Option<&Path>,
    uid: u32,
    variable: impl Fn(&str) -> Option<OsString>,
    exists: impl Fn(&Path) -> bool,
) -> PathBuf {
    if let Some(folder) = asked {
        return folder.to_owned();
    }
    if uid == 0 {
        return OF_ROOT.into();
    }
    // Relative ones are to be ignored (XDG Base Directory Specification).
    let runtime = variable("XDG_RUNTIME_DIR").map(PathBuf::from);
    if let Some(folder) = runtime.filter(|path| path.is_absolute()) {
        return folder.join("vmrun");
    }
    let of_user = PathBuf::from(format!("/run/user/{uid}"));
    if exists(&of_user) {
        return of_user.join("vmrun");
    }
    // Anybody may make that one: its owner is checked when it is used.
    format!("/tmp/vmrun-{uid}").into()
}

/// [`folder`], of whoever runs this process.
pub fn own_folder(asked: Option<&Path>) -> PathBuf {
    folder(
        asked,
        own_uid(),
        |name| std::env::var_os(name),
        Path::is_dir,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_folders() {
        let asked = |asked: Option<&str>, uid, runtime: Option<&str>, exists: bool| {
            let variable = |name: &str| {
                assert_eq!(name, "XDG_RUNTIME_DIR");
                runtime.map(OsString::from)
            };
            folder(asked.map(Path::new), uid, variable, |_| exists)
        };
        assert_eq!(asked(Some("r"), 0, None, false), Path::new("r"));
        // Root's is one for all, whatever its session has.
        let root = asked(None, 0, Some("/x"), true);
        assert_eq!(root, Path::new("/run/vmrun"));
        let user = |runtime, exists| asked(None, 7, runtime, exists);
        assert_eq!(user(Some("/x"), true), Path::new("/x/vmrun"));
        assert_eq!(user(Some("x"), true), Path::new("/run/user/7/vmrun"));
        assert_eq!(user(Some(""), false), Path::new("/tmp/vmrun-7"));
        assert_eq!(user(None, false), Path::new("/tmp/vmrun-7"));
    }
}
