//! Where in each hierarchy a container's cgroup belongs.

use std::path::{Component, Path, PathBuf};

use super::folder::Folder;
use super::layout::{Hierarchy, Layout};
use super::{Asked, CgroupError};

/// One folder for each hierarchy.
pub fn folders(layout: &Layout, asked: &Asked) -> Result<Vec<Folder>, CgroupError> {
    let default = format!("vmrun-{}", asked.id);
    let path = Path::new(asked.path.unwrap_or(&default));
    let inner: PathBuf = path
        .components()
        .filter(|part| matches!(part, Component::Normal(_)))
        .collect();
    if inner.as_os_str().is_empty() {
        let problem = format!("{path:?} is the top of the tree, not a container's");
        return Err(CgroupError::Path(problem));
    }
    if looks_like_systemds(path) {
        let problem = format!("{path:?} is systemd's form of a path, which needs --systemd-cgroup");
        return Err(CgroupError::Path(problem));
    }
    let pure_v2 = layout.is_pure_v2();
    let place = |hierarchy: &Hierarchy| {
        let start = match (path.is_absolute(), pure_v2) {
            (true, _) => Path::new(""),
            (false, false) => &hierarchy.own,
            // A cgroup with processes cannot give controllers to its children.
            (false, true) => hierarchy.own.parent().unwrap_or(Path::new("")),
        };
        Folder::plan(hierarchy, &start.join(&inner))
    };
    Ok(layout.hierarchies.iter().map(place).collect())
}

/// One for each, at the place of systemd's unit. What is above it is systemd's.
pub fn of_unit(layout: &Layout, path: &Path) -> Vec<Folder> {
    let folder = |hierarchy| Folder::plan(hierarchy, path).alone();
    layout.hierarchies.iter().map(folder).collect()
}

/// `slice:prefix:name`, as runc refuses it without systemd.
fn looks_like_systemds(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let mut parts = text.split(':');
    let slice = parts.next().unwrap_or_default();
    parts.count() == 2 && (slice.is_empty() || slice.ends_with(".slice"))
}
