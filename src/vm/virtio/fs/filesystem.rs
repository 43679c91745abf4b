//! Every FUSE operation that is served: checked here, then passed to its export.
//! What is not here (locks, poll, ioctl, bmap, DAX) gets the trait's refusal.

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::CreateIn;
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, ZeroCopyReader, ZeroCopyWriter,
};
use libc::{stat64, statvfs64};

use super::export::Export;
use super::share::{Place, Share};
use super::{errno, listing, policy};

type Opened = (Option<u64>, OpenOptions, Option<u32>);

impl FileSystem for Share {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        self.begin_session(capable)
    }

    fn destroy(&self) {
        self.end_session();
    }

    fn lookup(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        match self.place(parent)? {
            Place::Top => self.top_lookup(name),
            Place::Inside(export, parent) => {
                policy::check_name(name)?;
                export.keep(export.fs.lookup(ctx, parent, name)?)
            }
        }
    }

    fn forget(&self, _ctx: &Context, node: u64, count: u64) {
        if let Ok(Place::Inside(export, inode)) = self.place(node) {
            export.forget(inode, count);
        }
    }

    fn getattr(
        &self,
        ctx: &Context,
        node: u64,
        handle: Option<u64>,
    ) -> io::Result<(stat64, Duration)> {
        match self.place(node)? {
            Place::Top => Ok(self.top_attributes()),
            Place::Inside(export, inode) => {
                let (attr, _) = export.fs.getattr(ctx, inode, handle)?;
                Ok(export.attributes(inode, attr))
            }
        }
    }

    fn setattr(
        &self,
        ctx: &Context,
        node: u64,
        mut attr: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        let (export, inode) = self.writable(node)?;
        self.owner.to_host(&mut attr);
        let (attr, _) = export.fs.setattr(ctx, inode, attr, handle, valid)?;
        Ok(export.attributes(inode, attr))
    }

    fn readlink(&self, ctx: &Context, node: u64) -> io::Result<Vec<u8>> {
        let (export, inode) = self.inside(node)?;
        export.fs.readlink(ctx, inode)
    }

    fn symlink(&self, ctx: &Context, target: &CStr, parent: u64, name: &CStr) -> io::Result<Entry> {
        let (export, parent) = self.for_creation(parent, name)?;
        let caller = self.owner.caller(ctx);
        export.keep(export.fs.symlink(&caller, target, parent, name)?)
    }

    fn mknod(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        device: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        let (export, parent) = self.for_creation(parent, name)?;
        let mode = policy::node_mode(mode, umask, device)?;
        let caller = self.owner.caller(ctx);
        export.keep(export.fs.mknod(&caller, parent, name, mode, device, 0)?)
    }

    fn mkdir(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        let (export, parent) = self.for_creation(parent, name)?;
        let caller = self.owner.caller(ctx);
        export.keep(export.fs.mkdir(&caller, parent, name, mode, umask)?)
    }

    fn unlink(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        let (export, parent) = self.writable(parent)?;
        policy::check_name(name)?;
        export.fs.unlink(ctx, parent, name)
    }

    fn rmdir(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        let (export, parent) = self.writable(parent)?;
        policy::check_name(name)?;
        export.fs.rmdir(ctx, parent, name)
    }

    fn rename(
        &self,
        ctx: &Context,
        from: u64,
        old: &CStr,
        to: u64,
        new: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        let (export, from, to) = self.both_writable(from, to)?;
        policy::check_name(old)?;
        policy::check_name(new)?;
        export.fs.rename(ctx, from, old, to, new, flags)
    }

    fn link(&self, ctx: &Context, node: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        let (export, inode, parent) = self.both_writable(node, parent)?;
        policy::check_name(name)?;
        export.room()?;
        export.keep(export.fs.link(ctx, inode, parent, name)?)
    }

    fn open(&self, ctx: &Context, node: u64, flags: u32, fuse_flags: u32) -> io::Result<Opened> {
        let (export, inode) = self.inside(node)?;
        let flags = policy::open_flags(flags, export.read_only)?;
        let (handle, options, _) = export.fs.open(ctx, inode, flags, fuse_flags)?;
        export.keep_handle(handle, |handle| {
            let _ = export.fs.release(ctx, inode, 0, handle, false, false, None);
        })?;
        Ok((handle, self.cached(options), None))
    }

    fn create(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        args: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        let (export, parent) = self.for_creation(parent, name)?;
        let args = CreateIn {
            flags: policy::create_flags(args.flags)?,
            ..args
        };
        let caller = self.owner.caller(ctx);
        let (entry, handle, options, _) = export.fs.create(&caller, parent, name, args)?;
        let inode = entry.inode;
        // Both fit, or nothing would have been created.
        let entry = export.keep(entry)?;
        export.keep_handle(handle, |handle| {
            let _ = export.fs.release(ctx, inode, 0, handle, false, false, None);
        })?;
        Ok((entry, handle, self.cached(options), None))
    }

    fn read(
        &self,
        ctx: &Context,
        node: u64,
        handle: u64,
        w: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        let (export, inode) = self.inside(node)?;
        let flags = policy::status_flags(flags);
        export
            .fs
            .read(ctx, inode, handle, w, size, offset, owner, flags)
    }

    fn write(
        &self,
        ctx: &Context,
        node: u64,
        handle: u64,
        r: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        owner: Option<u64>,
        delayed: bool,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        let (export, inode) = self.writable(node)?;
        let flags = policy::status_flags(flags);
        export.fs.write(
            ctx, inode, handle, r, size, offset, owner, delayed, flags, fuse_flags,
        )
    }

    fn flush(&self, ctx: &Context, node: u64, handle: u64, owner: u64) -> io::Result<()> {
        let (export, inode) = self.inside(node)?;
        export.fs.flush(ctx, inode, handle, owner)
    }

    fn fsync(&self, ctx: &Context, node: u64, datasync: bool, handle: u64) -> io::Result<()> {
        let (export, inode) = self.inside(node)?;
        export.fs.fsync(ctx, inode, datasync, handle)
    }

    fn fallocate(
        &self,
        ctx: &Context,
        node: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let (export, inode) = self.writable(node)?;
        export
            .fs
            .fallocate(ctx, inode, handle, mode, offset, length)
    }

    fn release(
        &self,
        ctx: &Context,
        node: u64,
        flags: u32,
        handle: u64,
        flush: bool,
        unlock: bool,
        owner: Option<u64>,
    ) -> io::Result<()> {
        let (export, inode) = self.inside(node)?;
        export
            .fs
            .release(ctx, inode, flags, handle, flush, unlock, owner)?;
        export.closed();
        Ok(())
    }

    fn statfs(&self, ctx: &Context, node: u64) -> io::Result<statvfs64> {
        match self.place(node)? {
            Place::Top => TopStat.statfs(ctx, node),
            Place::Inside(export, inode) => export.fs.statfs(ctx, inode),
        }
    }

    fn setxattr(
        &self,
        ctx: &Context,
        node: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> io::Result<()> {
        let (export, inode) = self.writable(node)?;
        served(name, libc::EPERM)?;
        export.fs.setxattr(ctx, inode, name, value, flags)
    }

    fn getxattr(
        &self,
        ctx: &Context,
        node: u64,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        let (export, inode) = self.inside(node)?;
        served(name, libc::ENODATA)?;
        let size = size.min(policy::XATTR_SIZE_MAX);
        export.fs.getxattr(ctx, inode, name, size)
    }

    fn listxattr(&self, ctx: &Context, node: u64, size: u32) -> io::Result<ListxattrReply> {
        let (export, inode) = self.inside(node)?;
        let size = size.min(policy::XATTR_SIZE_MAX);
        Ok(match export.fs.listxattr(ctx, inode, size)? {
            ListxattrReply::Names(list) => ListxattrReply::Names(policy::served_xattrs(&list)),
            // An upper bound, which is all that the caller may expect.
            count => count,
        })
    }

    fn removexattr(&self, ctx: &Context, node: u64, name: &CStr) -> io::Result<()> {
        let (export, inode) = self.writable(node)?;
        served(name, libc::EPERM)?;
        export.fs.removexattr(ctx, inode, name)
    }

    fn opendir(
        &self,
        ctx: &Context,
        node: u64,
        flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        if self.agreed(FsOptions::ZERO_MESSAGE_OPENDIR) {
            // From now on the guest lists folders without opening them.
            return Err(errno(libc::ENOSYS));
        }
        match self.place(node)? {
            Place::Top => Ok((None, OpenOptions::empty())),
            Place::Inside(export, inode) => {
                let flags = policy::open_flags(flags, true)?;
                let (handle, options) = export.fs.opendir(ctx, inode, flags)?;
                export.keep_handle(handle, |handle| {
                    let _ = export.fs.releasedir(ctx, inode, 0, handle);
                })?;
                Ok((handle, options))
            }
        }
    }

    fn readdir(
        &self,
        ctx: &Context,
        node: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
    ) -> io::Result<()> {
        match self.place(node)? {
            Place::Top => self.top_list(offset, &mut |name, _| add(name)),
            Place::Inside(export, inode) => {
                listing::names(&export, ctx, inode, handle, size, offset, add)
            }
        }
    }

    fn readdirplus(
        &self,
        ctx: &Context,
        node: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        match self.place(node)? {
            Place::Top => self.top_list(offset, add),
            Place::Inside(export, inode) => {
                listing::entries(&export, ctx, inode, handle, size, offset, add)
            }
        }
    }

    fn fsyncdir(&self, ctx: &Context, node: u64, datasync: bool, handle: u64) -> io::Result<()> {
        match self.place(node)? {
            Place::Top => Ok(()),
            Place::Inside(export, inode) => export.fs.fsyncdir(ctx, inode, datasync, handle),
        }
    }

    fn releasedir(&self, ctx: &Context, node: u64, flags: u32, handle: u64) -> io::Result<()> {
        match self.place(node)? {
            Place::Top => Ok(()),
            Place::Inside(export, inode) => {
                export.fs.releasedir(ctx, inode, flags, handle)?;
                export.closed();
                Ok(())
            }
        }
    }

    fn access(&self, ctx: &Context, node: u64, mask: u32) -> io::Result<()> {
        let writes = mask & libc::W_OK as u32 != 0;
        match self.place(node)? {
            Place::Top if writes => Err(errno(libc::EROFS)),
            Place::Top => Ok(()),
            Place::Inside(export, _) if writes && export.read_only => Err(errno(libc::EROFS)),
            Place::Inside(export, inode) => export.fs.access(&self.owner.caller(ctx), inode, mask),
        }
    }

    fn lseek(
        &self,
        ctx: &Context,
        node: u64,
        handle: u64,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        let (export, inode) = self.inside(node)?;
        export.fs.lseek(ctx, inode, handle, offset, whence)
    }
}

impl Share {
    fn for_creation(&self, parent: u64, name: &CStr) -> io::Result<(std::sync::Arc<Export>, u64)> {
        let (export, parent) = self.writable(parent)?;
        policy::check_name(name)?;
        export.room()?;
        Ok((export, parent))
    }

    /// Lets the guest keep the pages of a file from one open to the next, as long
    /// as it compares attributes to find out that they are stale.
    fn cached(&self, options: OpenOptions) -> OpenOptions {
        if self.agreed(FsOptions::AUTO_INVAL_DATA) {
            options | OpenOptions::KEEP_CACHE
        } else {
            options
        }
    }
}

fn served(name: &CStr, otherwise: i32) -> io::Result<()> {
    if policy::xattr_is_served(name.to_bytes()) {
        Ok(())
    } else {
        Err(errno(otherwise))
    }
}

/// The trait's own answer to STATFS.
struct TopStat;

impl FileSystem for TopStat {
    type Inode = u64;
    type Handle = u64;
}
