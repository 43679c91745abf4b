//! Which cgroup hierarchies this host has, and where this process is in them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::CgroupError;

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Controllers of a v1 hierarchy, `name=systemd` among them; none for v2.
    pub controllers: Vec<String>,
    /// Whether it is v2.
    pub unified: bool,
    /// This process's cgroup, below `mount_point`.
    pub own: PathBuf,
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// v1 first.
    pub hierarchies: Vec<Hierarchy>,
}

impl Layout {
    /// What /proc says.
    pub fn of_this_host() -> Result<Self, CgroupError> {
        let read = |path| fs::read(path).map_err(CgroupError::Layout);
        Ok(Self::parse(
            &String::from_utf8_lossy(&read("/proc/self/mountinfo")?),
            &String::from_utf8_lossy(&read("/proc/self/cgroup")?),
        ))
    }

    /// Of several mounts of one hierarchy the first counts.
    pub fn parse(mountinfo: &str, own: &str) -> Self {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for hierarchy in mountinfo.lines().filter_map(|line| mounted(line, own)) {
            let known = hierarchies.iter().any(|other| {
                other.unified == hierarchy.unified && other.controllers == hierarchy.controllers
            });
            if !known {
                hierarchies.push(hierarchy);
            }
        }
        hierarchies.sort_by_key(|h| h.unified);
        Self { hierarchies }
    }

    /// Whether v2 is all there is.
    pub fn is_pure_v2(&self) -> bool {
        self.hierarchies.iter().all(|h| h.unified)
    }
}

/// proc_pid_mountinfo(5): `id parent dev root point options [tags] - type source super`.
fn mounted(line: &str, own: &str) -> Option<Hierarchy> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, point) = (unescaped(mount.next()?), unescaped(mount.next()?));
    let mut file_system = file_system.split(' ');
    let (kind, super_options) = (file_system.next()?, file_system.nth(1)?);
    let unified = match kind {
        "cgroup2" => true,
        "cgroup" => false,
        _ => return None,
    };
    let mut controllers: Vec<String> = if unified {
        Vec::new()
    } else {
        let is_controller = |o: &&str| !["rw", "ro", "none", "clone_children"].contains(o);
        let options = super_options.split(',').filter(is_controller);
        let known = |o: &&str| o.starts_with("name=") || !o.contains('=');
        options.filter(known).map(str::to_owned).collect()
    };
    controllers.sort();
    if !unified && controllers.is_empty() {
        return None;
    }
    let own = own_path(own, &controllers).unwrap_or("/");
    // In a container without a cgroup namespace the mount shows a part of the tree.
    let inside = Path::new(own).strip_prefix(&root).unwrap_or(Path::new(""));
    Some(Hierarchy {
        mount_point: point.into(),
        controllers,
        unified,
        own: inside.to_owned(),
    })
}

/// cgroups(7), /proc/pid/cgroup: `id:controllers:path`.
fn own_path<'a>(own: &'a str, controllers: &[String]) -> Option<&'a str> {
    own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (id, names, path) = (parts.next()?, parts.next()?, parts.next()?);
        let fits = match controllers.first() {
            Some(first) => names.split(',').any(|name| name == first),
            None => id == "0" && names.is_empty(),
        };
        fits.then_some(path)
    })
}

/// `\040` for a space, and its kin.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = (first == b'\\').then(|| after.get(..3)).flatten();
        let byte = code
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match byte {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// For errors that are none.
pub fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
99 31 0:32 / /elsewhere rw,relatime - cgroup cgroup rw,memory
";
    const OWN: &str = "9:name=systemd:/s\n4:memory:/a/b\n2:cpuacct,cpu:/c\n0::/u\n";

    #[test]
    fn hybrid() {
        let layout = Layout::parse(HYBRID, OWN);
        let found: Vec<_> = layout
            .hierarchies
            .iter()
            .map(|h| (h.mount_point.to_str().unwrap(), h.own.to_str().unwrap()))
            .collect();
        assert_eq!(
            found,
            [
                ("/sys/fs/cgroup/cpu,cpuacct", "c"),
                ("/sys/fs/cgroup/memory", "a/b"),
                ("/sys/fs/cgroup/systemd", "s"),
                ("/sys/fs/cgroup/unified", "u"),
            ]
        );
        assert!(!layout.is_pure_v2());
        assert_eq!(layout.hierarchies[0].controllers, ["cpu", "cpuacct"]);
        assert!(
            layout.hierarchies[2]
                .controllers
                .contains(&"name=systemd".into())
        );
        assert!(layout.hierarchies[3].unified);
    }

    #[test]
    fn unified_in_a_container_and_with_odd_names() {
        let line = "5 4 0:30 /docker/x /a\\040b\\134 rw - cgroup2 cgroup rw,nsdelegate\n";
        let layout = Layout::parse(line, "0::/docker/x/y\n");
        assert!(layout.is_pure_v2());
        assert_eq!(layout.hierarchies[0].mount_point, Path::new("/a b\\"));
        assert_eq!(layout.hierarchies[0].own, Path::new("y"));
    }

    #[test]
    fn nothing_that_makes_no_sense() {
        for text in [
            "",
            "\n\n",
            "1 2 3",
            "a b c / - cgroup",
            "1 1 0:1 / /x rw - cgroup x rw\n",
        ] {
            assert_eq!(Layout::parse(text, text).hierarchies, []);
        }
    }
}
