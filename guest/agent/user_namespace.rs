//! What a container in a user namespace of its own needs from the agent, whose
//! privileges it does not have.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Access, CWD, Mode, OFlags, access, openat};
use rustix::io::{Errno, write};
use rustix::mount::{UnmountFlags, unmount};
use vmrun_protocol::message::Failure;
use vmrun_protocol::plan::{ContainerPlan, DeviceKind, DeviceNode, IdMapping};

use crate::failure::{Named, quoted};
use crate::inside::own_folder;
use crate::root_fs::make_node;
use crate::{mounts, steps};

/// Every id is itself, but for the last one, which means none.
const IDENTITY: IdMapping = IdMapping {
    inside: 0,
    outside: 0,
    count: u32::MAX,
};

/// Prepares the agent's own tree, of which the container's first process gets a
/// copy: the kernel lets it mount procfs and sysfs only where it can see one
/// already, and its device nodes are made here for it to bind.
pub fn prepare(plan: &ContainerPlan) -> Result<(), Failure> {
    mount_once("proc", b"", "/proc", "/proc/self")?;
    mount_once("sysfs", b"", "/sys", "/sys/kernel")?;
    let nodes = steps::device_nodes(plan);
    // The agent's /dev/null stays to be seen: it covers masked files.
    let null = DeviceNode {
        path: b"null".to_vec(),
        kind: DeviceKind::Char,
        major: 1,
        minor: 3,
        mode: 0o666,
        uid: 0,
        gid: 0,
    };
    if exists("/dev/0") {
        // Nodes of the container before this one.
        unmount("/dev", UnmountFlags::DETACH).named(|| "agent's \"/dev\"")?;
    }
    mount_once("tmpfs", b"mode=755", "/dev", "/dev/0")?;
    let folder = own_folder("/dev").named(|| "agent's \"/dev\"")?;
    let named = nodes.iter().enumerate().map(|(i, n)| (i.to_string(), n));
    for (name, node) in named.chain([("null".to_owned(), &null)]) {
        make_exactly(&folder, &name, node).named(|| format!("device {}", quoted(&node.path)))?;
    }
    Ok(())
}

/// As [`make_node`], with the mode as given, whatever the umask is.
fn make_exactly(folder: &OwnedFd, name: &str, node: &DeviceNode) -> rustix::io::Result<()> {
    let before = rustix::process::umask(Mode::empty());
    let made = make_node(folder, name.as_bytes(), node);
    rustix::process::umask(before);
    made
}

/// Mounts a file system on `target` unless `witness` shows that it is there.
fn mount_once(name: &str, options: &[u8], target: &str, witness: &str) -> Result<(), Failure> {
    if exists(witness) {
        return Ok(());
    }
    let mount = || {
        let made = mounts::new_file_system(name, b"", options, 0)?;
        mounts::attach(made.as_fd(), own_folder(target)?.as_fd())
    };
    mount().named(|| format!("mount {name} for the user namespace"))
}

fn exists(path: &str) -> bool {
    access(path, Access::EXISTS).is_ok()
}

/// Gives the process its user and group ids: those of the plan, or every one.
pub fn map_ids(pid: u32, plan: &ContainerPlan) -> Result<(), Failure> {
    for (map, mappings) in [
        ("uid_map", &plan.uid_mappings),
        ("gid_map", &plan.gid_mappings),
    ] {
        let text = if mappings.is_empty() {
            lines(&[IDENTITY])
        } else {
            lines(mappings)
        };
        let path = format!("/proc/{pid}/{map}");
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(CWD, path.as_str(), flags, Mode::empty()).named(|| map)?;
        // The kernel takes it whole or not at all.
        let written = write(&file, text.as_bytes()).named(|| map)?;
        if written != text.len() {
            return Err(crate::failure::setup(map, Errno::IO));
        }
    }
    Ok(())
}

fn lines(mappings: &[IdMapping]) -> String {
    let line = |m: &IdMapping| format!("{} {} {}\n", m.inside, m.outside, m.count);
    mappings.iter().map(line).collect()
}
