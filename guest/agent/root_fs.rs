//! The container's file system tree, made by its first process in its own mount
//! namespace: first below the agent's tree, through handles, then entered.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, makedev, mknodat,
    openat2, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{fchdir, getcwd, pivot_root};
use vmrun_protocol::ROOT_EXPORT;
use vmrun_protocol::message::Failure;
use vmrun_protocol::plan::{Bytes, DeviceKind, DeviceNode, FsType, Mount, MountSource};

use crate::copy_up::copy_up;
use crate::failure::{Named, quoted, setup};
use crate::inside::{Root, Symlinks, Target, file_type, is_root, own_folder, split_last};
use crate::mounts;

/// Where the agent has the host's exports, below its own root.
pub const SHARE: &str = "share";

/// The tree under construction.
pub struct RootFs {
    /// The agent's tree, in this process's mount namespace.
    agent: Root,
    /// The container's root, once bound.
    root: Option<Root>,
    /// A procfs of the container's namespaces that nobody else has touched.
    proc: Option<OwnedFd>,
    /// Whether there is no root yet, and what is made is prepared.
    preparing: bool,
    /// Mounts that were prepared, and where.
    prepared: Vec<(Bytes, OwnedFd)>,
    /// The agent's own /dev/null, where a prepared /dev may lie over it.
    null: Option<OwnedFd>,
    /// The empty read-only tmpfs that hides folders.
    empty: Option<OwnedFd>,
    /// The folder in which the last node or link was made, and its path: most
    /// are in /dev, and each look-up may ask the host.
    folder: Option<(Vec<u8>, OwnedFd)>,
}

impl RootFs {
    /// Nothing yet. Must be called in the new mount namespace.
    pub fn new() -> Result<Self, Failure> {
        Ok(Self {
            agent: Root::new(own_folder("/").named(|| "agent's root")?),
            root: None,
            proc: None,
            preparing: false,
            prepared: Vec::new(),
            null: None,
            empty: None,
            folder: None,
        })
    }

    /// That of a container which this process has joined.
    pub fn joined() -> Result<Self, Failure> {
        let what = || "container's root";
        let mut root_fs = Self::new()?;
        root_fs.root = Some(Root::new(own_folder("/").named(what)?));
        Ok(root_fs)
    }

    /// The container's root, for looking things up in it.
    pub fn root(&self) -> Result<&Root, Failure> {
        let missing = || setup("root file system", Errno::NOENT);
        self.root.as_ref().ok_or_else(missing)
    }

    /// Until the root is bound, what is made is prepared: below the agent's own
    /// root, of which only this process sees the mounts.
    pub fn prepare(&mut self) -> Result<(), Failure> {
        let null = self.agent.find(b"/dev/null", Symlinks::Refused);
        self.preparing = true;
        self.null = Some(null.named(|| "agent's \"/dev/null\"")?);
        self.root = Some(Root::new(own_folder("/").named(|| "agent's root")?));
        Ok(())
    }

    /// Binds the root export over itself: pivot_root needs a mount.
    pub fn bind_root(&mut self) -> Result<(), Failure> {
        self.folder = None;
        self.preparing = false;
        let path = format!("{SHARE}/{ROOT_EXPORT}");
        let bind = || {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let target = rustix::fs::openat(&self.agent, &path, flags, Mode::empty())?;
            let tree = mounts::clone_tree(target.as_fd(), b"", false)?;
            mounts::attach(tree.as_fd(), target.as_fd())?;
            leave_open(target);
            Ok(tree)
        };
        self.root = Some(Root::new(bind().named(|| "root file system")?));
        Ok(())
    }

    /// Takes off a prepared mount, if there is one.
    pub fn unmount_prepared(&mut self, path: &[u8]) -> Result<(), Failure> {
        // It may be the one that others are cloned from.
        self.empty = None;
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Err(Errno::INVAL | Errno::NOENT) => {}
            done => done.named(|| format!("unmount prepared {}", quoted(path)))?,
        }
        // The folder made for it; those of procfs and sysfs stay.
        let _ = unlinkat(CWD, path, AtFlags::REMOVEDIR);
        Ok(())
    }

    /// Removes a prepared node or link.
    pub fn remove_prepared(&self, path: &[u8]) -> Result<(), Failure> {
        unlinkat(CWD, path, AtFlags::empty()).named(|| format!("remove prepared {}", quoted(path)))
    }

    /// Gives a prepared mount, if there is one, exactly the attributes of mount(2)
    /// `flags`.
    pub fn set_prepared_attributes(&self, path: &[u8], flags: u64) -> Result<(), Failure> {
        let what = || format!("attributes of prepared {}", quoted(path));
        match self.agent.find(path, Symlinks::Refused) {
            Err(errno) if mounts::is_missing(errno) => Ok(()),
            found => mounts::set_attributes(found.named(what)?.as_fd(), flags).named(what),
        }
    }

    /// Moves a prepared mount, and what is mounted in it, to its place.
    pub fn move_prepared(&mut self, mount: &Mount) -> Result<(), Failure> {
        let what = || format!("move prepared {}", quoted(&mount.destination));
        let ready = self.prepared(&mount.destination).ok_or(Errno::NOENT);
        let ready = ready.named(what)?;
        let target = self.mount_target(mount).named(what)?;
        mounts::attach(ready, target.as_fd()).named(what)?;
        leave_open(target);
        Ok(())
    }

    fn prepared(&self, path: &[u8]) -> Option<BorrowedFd<'_>> {
        let (_, mount) = self.prepared.iter().find(|(other, _)| other == path)?;
        Some(mount.as_fd())
    }

    /// Where an entry of `mounts` that is a file system goes.
    fn mount_target(&self, mount: &Mount) -> rustix::io::Result<OwnedFd> {
        // An image that makes /proc or /sys a symlink wants the runtime's own
        // writes there to go elsewhere (CVE-2019-19921, CVE-2023-27561).
        let symlinks = match &mount.source {
            MountSource::FileSystem {
                fs_type: FsType::Proc | FsType::Sysfs,
                ..
            } => Symlinks::Refused,
            _ => Symlinks::Inside,
        };
        let root = self.root.as_ref().ok_or(Errno::NOENT)?;
        root.find_or_create(&mount.destination, Target::Folder, symlinks)
    }

    /// Makes an entry of `mounts`.
    pub fn mount(&mut self, mount: &Mount) -> Result<(), Failure> {
        match &mount.source {
            MountSource::FileSystem { fs_type, label } => {
                self.mount_file_system(mount, *fs_type, label)
            }
            MountSource::Export {
                name,
                is_dir,
                recursive,
            } => self.mount_export(mount, name, *is_dir, *recursive),
        }
    }

    fn mount_file_system(
        &mut self,
        mount: &Mount,
        fs_type: FsType,
        label: &[u8],
    ) -> Result<(), Failure> {
        let name = mounts::kernel_name(fs_type);
        let what = || format!("mount {name} on {}", quoted(&mount.destination));
        let copies_up = mount.flags & Mount::COPY_UP != 0;
        let at_first = if copies_up {
            mount.flags & !libc::MS_RDONLY
        } else {
            mount.flags
        };
        let made = mounts::new_file_system(name, label, &mount.data, at_first).named(what)?;
        let target = self.mount_target(mount).named(what)?;
        if copies_up {
            let what = || format!("copy {} into its tmpfs", quoted(&mount.destination));
            copy_up(target.as_fd(), made.as_fd(), &mount.data).named(what)?;
            mounts::set_attributes(made.as_fd(), mount.flags).named(what)?;
        }
        mounts::attach(made.as_fd(), target.as_fd()).named(what)?;
        propagate_all(&made, mount).named(what)?;
        if self.preparing {
            self.prepared.push((mount.destination.clone(), made));
        } else if fs_type == FsType::Proc && mount.flags & libc::MS_RDONLY == 0 {
            self.proc = Some(made);
        }
        Ok(())
    }

    fn mount_export(
        &mut self,
        mount: &Mount,
        name: &str,
        is_dir: bool,
        recursive: bool,
    ) -> Result<(), Failure> {
        let what = || format!("bind on {}", quoted(&mount.destination));
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(setup(format!("export {name:?}"), Errno::INVAL));
        }
        let path = format!("{SHARE}/{name}");
        let tree = mounts::clone_tree(self.agent.as_fd(), path.as_bytes(), recursive);
        let tree = tree.named(what)?;
        mounts::restrict(tree.as_fd(), mount.flags).named(what)?;
        let kind = if is_dir { Target::Folder } else { Target::File };
        let root = self.root()?;
        let target = root
            .find_or_create(&mount.destination, kind, Symlinks::Inside)
            .named(what)?;
        mounts::attach(tree.as_fd(), target.as_fd()).named(what)?;
        propagate_all(&tree, mount).named(what)
    }

    /// Mounts a tmpfs on /dev.
    pub fn mount_device_folder(&mut self) -> Result<(), Failure> {
        let what = || "mount tmpfs on \"/dev\"";
        let flags = libc::MS_NOSUID | libc::MS_STRICTATIME;
        let made = mounts::new_file_system("tmpfs", b"tmpfs", b"mode=755,size=64k", flags);
        let made = made.named(what)?;
        let root = self.root()?;
        let target = root.find_or_create(b"/dev", Target::Folder, Symlinks::Inside);
        mounts::attach(made.as_fd(), target.named(what)?.as_fd()).named(what)
    }

    /// Makes a device node, or binds the agent's.
    pub fn device(&mut self, node: &DeviceNode, bind: Option<&str>) -> Result<(), Failure> {
        let made = match bind {
            Some(name) => self.bind_device(node, name),
            None => self.make_device(node),
        };
        made.named(|| format!("device {}", quoted(&node.path)))
    }

    fn make_device(&mut self, node: &DeviceNode) -> rustix::io::Result<()> {
        let (folder, name) = self.parent_of(&node.path)?;
        make_node(folder, name, node)
    }

    /// The folder that holds `path`, created where missing, and the last name.
    fn parent_of<'p>(&mut self, path: &'p [u8]) -> rustix::io::Result<(&OwnedFd, &'p [u8])> {
        let (parent, name) = split_last(path).ok_or(Errno::INVAL)?;
        let folder = match self.folder.take() {
            Some((path, folder)) if path == parent => folder,
            _ => {
                let root = self.root.as_ref().ok_or(Errno::NOENT)?;
                root.find_or_create(parent, Target::Folder, Symlinks::Inside)?
            }
        };
        let (_, folder) = self.folder.insert((parent.to_vec(), folder));
        Ok((folder, name))
    }

    fn bind_device(&self, node: &DeviceNode, name: &str) -> rustix::io::Result<()> {
        let root = self.root.as_ref().ok_or(Errno::NOENT)?;
        let path = format!("dev/{name}");
        let tree = mounts::clone_tree(self.agent.as_fd(), path.as_bytes(), false)?;
        let target = root.find_or_create(&node.path, Target::File, Symlinks::Inside)?;
        mounts::attach(tree.as_fd(), target.as_fd())
    }

    /// Makes a symlink; what is there already stays.
    pub fn link(&mut self, path: &str, target: &str) -> Result<(), Failure> {
        let mut make = || {
            let (folder, name) = self.parent_of(path.as_bytes())?;
            match symlinkat(target, folder, name) {
                Err(Errno::EXIST) => Ok(()),
                made => made,
            }
        };
        make().named(|| format!("link {path:?}"))
    }

    /// Writes a file below /proc/sys.
    pub fn sysctl(&mut self, file: &[u8], value: &[u8]) -> Result<(), Failure> {
        self.write_proc("sys", file, value)
            .named(|| format!("sysctl {}", quoted(file)))
    }

    /// Writes this process's oom_score_adj.
    pub fn oom_score_adj(&mut self, value: i32) -> Result<(), Failure> {
        let own = rustix::process::getpid().as_raw_nonzero().to_string();
        let text = value.to_string();
        self.write_proc(&own, b"oom_score_adj", text.as_bytes())
            .named(|| format!("oomScoreAdj {value}"))
    }

    /// Writes a file of a procfs that was mounted by this process and is reached
    /// by its descriptor: whatever the image or a mount puts on /proc, the value
    /// cannot end up elsewhere (CVE-2025-52881).
    fn write_proc(&mut self, folder: &str, file: &[u8], value: &[u8]) -> rustix::io::Result<()> {
        let proc = match self.proc.take() {
            Some(proc) => proc,
            None => match self.prepared(b"/proc") {
                // Without the covers that are on it by now.
                Some(covered) => {
                    let proc = mounts::clone_tree(covered, b"", false)?;
                    mounts::set_attributes(proc.as_fd(), 0)?;
                    proc
                }
                None => mounts::new_file_system("proc", b"proc", b"", 0)?,
            },
        };
        let proc = self.proc.insert(proc);
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let open = |folder: &OwnedFd, path: &[u8], flags: OFlags| {
            openat2(
                folder,
                path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                resolve,
            )
        };
        let folder = open(proc, folder.as_bytes(), OFlags::PATH)?;
        let file = open(&folder, file, OFlags::WRONLY | OFlags::NOCTTY)?;
        rustix::io::write(&file, value).map(drop)
    }

    /// Hides a path: a file behind /dev/null, a folder behind an empty one. A path
    /// that does not exist is hidden well enough.
    pub fn mask(&mut self, path: &[u8]) -> Result<(), Failure> {
        let what = || format!("mask {}", quoted(path));
        let target = match self.root()?.find(path, Symlinks::Inside) {
            Err(errno) if mounts::is_missing(errno) => return Ok(()),
            found => found.named(what)?,
        };
        let folder = file_type(target.as_fd()).named(what)? == FileType::Directory;
        let cover = if folder {
            self.empty_folder()
        } else {
            // The agent's own, not what the image calls /dev/null (CVE-2025-31133).
            match &self.null {
                Some(null) => mounts::clone_tree(null.as_fd(), b"", false),
                None => mounts::clone_tree(self.agent.as_fd(), b"dev/null", false),
            }
        };
        let cover = cover.named(what)?;
        mounts::attach(cover.as_fd(), target.as_fd()).named(what)?;
        if folder && self.empty.is_none() {
            self.empty = Some(cover);
        }
        Ok(())
    }

    /// A detached mount of one empty read-only file system. The first use makes
    /// it, later ones bind it (which needs it attached somewhere).
    fn empty_folder(&self) -> rustix::io::Result<OwnedFd> {
        match &self.empty {
            Some(first) => mounts::clone_tree(first.as_fd(), b"", false),
            None => {
                let options = b"mode=755,nr_blocks=1,nr_inodes=1";
                mounts::new_file_system("tmpfs", b"tmpfs", options, libc::MS_RDONLY)
            }
        }
    }

    /// Makes a path read-only; one that does not exist is left out.
    pub fn make_path_readonly(&self, path: &[u8]) -> Result<(), Failure> {
        let what = || format!("read-only path {}", quoted(path));
        match self.root()?.find(path, Symlinks::Inside) {
            Err(errno) if mounts::is_missing(errno) => Ok(()),
            found => mounts::bind_readonly(found.named(what)?.as_fd()).named(what),
        }
    }

    /// Makes the container's root the root of the namespace, and lets go of
    /// everything else.
    pub fn enter(&self) -> Result<(), Failure> {
        let what = || "enter the root file system";
        fchdir(self.root()?).named(what)?;
        // The old root lands on top of the new one, and is taken off there.
        pivot_root(".", ".").named(what)?;
        unmount(".", UnmountFlags::DETACH).named(what)
    }

    /// Sets the propagation of the root mount.
    pub fn propagate(&self, flags: u64) -> Result<(), Failure> {
        mounts::propagate(self.root()?.as_fd(), flags).named(|| "root propagation")
    }

    /// Enters the working folder; where `create`, one that is missing is made. By
    /// handle and without magic links: it cannot be a descriptor of the agent's
    /// (CVE-2024-21626).
    pub fn enter_working_folder(&self, path: &[u8], create: bool) -> Result<(), Failure> {
        if is_root(path) {
            // Where pivot_root, or setns, has left us.
            return Ok(());
        }
        let what = || format!("cwd {}", quoted(path));
        let root = self.root()?;
        let folder = if create {
            root.find_or_create(path, Target::Folder, Symlinks::Inside)
        } else {
            root.find(path, Symlinks::Inside)
        };
        fchdir(folder.named(what)?).named(what)?;
        // The container may have moved it meanwhile; of a folder that is not below
        // the root the kernel says so instead of a path.
        match getcwd(Vec::new()) {
            Ok(path) if path.as_bytes().starts_with(b"/") => Ok(()),
            Ok(_) => Err(setup(what(), Errno::XDEV)),
            Err(errno) => Err(setup(what(), errno)),
        }
    }

    /// Makes the root mount read-only.
    pub fn make_readonly(&self) -> Result<(), Failure> {
        mounts::make_readonly(self.root()?.as_fd()).named(|| "read-only root")
    }
}

/// Leaves a descriptor to be closed with all others, at once.
fn leave_open(descriptor: OwnedFd) {
    std::mem::forget(descriptor);
}

fn propagate_all(mount: &OwnedFd, plan: &Mount) -> rustix::io::Result<()> {
    let mut kinds = plan.propagation.iter();
    kinds.try_for_each(|flags| mounts::propagate(mount.as_fd(), *flags))
}

/// Makes `node` as `name` in `folder`. The same node there already is fine.
pub fn make_node(folder: &OwnedFd, name: &[u8], node: &DeviceNode) -> rustix::io::Result<()> {
    let kind = match node.kind {
        DeviceKind::Char => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Fifo => FileType::Fifo,
    };
    let number = makedev(node.major, node.minor);
    let mode = Mode::from_raw_mode(node.mode & 0o7777);
    match mknodat(folder, name, kind, mode, number) {
        Err(Errno::EXIST) => {
            let there = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let same = FileType::from_raw_mode(there.st_mode) == kind && there.st_rdev == number;
            return if same { Ok(()) } else { Err(Errno::EXIST) };
        }
        made => made?,
    }
    if node.uid == 0 && node.gid == 0 {
        return Ok(());
    }
    if node.uid == u32::MAX || node.gid == u32::MAX {
        return Err(Errno::INVAL);
    }
    let owner = Some(Uid::from_raw(node.uid));
    let group = Some(Gid::from_raw(node.gid));
    chownat(folder, name, owner, group, AtFlags::SYMLINK_NOFOLLOW)
}
