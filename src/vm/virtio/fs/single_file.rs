//! One regular file as an export of its own, such as the host's resolv.conf.
//!
//! The passthrough wants a folder, and a folder would give the guest its siblings.
//! So the file's descriptor is all there is: no name is ever looked up, what is
//! rewritten in place is seen, what replaces the file is not, as with a bind mount.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::Attr;
use fuse_backend_rs::api::filesystem::{
    Context, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions, ROOT_ID,
    SetattrValid, ZeroCopyReader, ZeroCopyWriter,
};
use libc::{stat64, statvfs64};
use rustix::fs as sys;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps};

use super::{FILE_TIMEOUT, errno};

/// Serves one file, whose inode is [`ROOT_ID`].
pub(super) struct SingleFile {
    file: OwnedFd,
    handles: Mutex<Handles>,
}

#[derive(Default)]
struct Handles {
    open: BTreeMap<u64, Arc<File>>,
    last: u64,
}

impl SingleFile {
    /// `file` may be open with O_PATH.
    pub fn new(file: OwnedFd) -> Self {
        Self {
            file,
            handles: Mutex::default(),
        }
    }

    /// The file's own name in /proc, for calls that do not take an O_PATH
    /// descriptor. The kernel goes from there to the file without any lookup.
    fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }

    fn reopen(&self, flags: u32) -> io::Result<File> {
        let flags = OFlags::from_bits_retain(flags) | OFlags::CLOEXEC;
        Ok(sys::open(self.path(), flags, Mode::empty())?.into())
    }

    fn handle(&self, inode: u64, handle: u64) -> io::Result<Arc<File>> {
        this(inode)?;
        let open = self.handles().open.get(&handle).cloned();
        open.ok_or_else(|| errno(libc::EBADF))
    }

    fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attributes(&self) -> io::Result<stat64> {
        let st = sys::fstat(&self.file)?;
        Ok(stat64::from(Attr {
            ino: st.st_ino,
            size: st.st_size as u64,
            blocks: st.st_blocks as u64,
            atime: st.st_atime as u64,
            mtime: st.st_mtime as u64,
            ctime: st.st_ctime as u64,
            atimensec: st.st_atime_nsec as u32,
            mtimensec: st.st_mtime_nsec as u32,
            ctimensec: st.st_ctime_nsec as u32,
            mode: st.st_mode,
            nlink: st.st_nlink as u32,
            uid: st.st_uid,
            gid: st.st_gid,
            rdev: 0,
            blksize: st.st_blksize as u32,
            flags: 0,
        }))
    }

    fn set_owner(&self, attr: &stat64, valid: SetattrValid) -> io::Result<()> {
        let uid = valid.contains(SetattrValid::UID).then_some(attr.st_uid);
        let gid = valid.contains(SetattrValid::GID).then_some(attr.st_gid);
        if [uid, gid].contains(&Some(u32::MAX)) {
            return Err(errno(libc::EINVAL));
        }
        let uid = uid.map(sys::Uid::from_raw);
        let gid = gid.map(sys::Gid::from_raw);
        if uid.is_some() || gid.is_some() {
            sys::chownat(&self.file, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        Ok(())
    }

    fn set_times(&self, attr: &stat64, valid: SetattrValid) -> io::Result<()> {
        if !valid.intersects(SetattrValid::ATIME | SetattrValid::MTIME) {
            return Ok(());
        }
        let time =
            |asked, now, seconds, nanoseconds| match (valid.contains(asked), valid.contains(now)) {
                (_, true) => Timespec {
                    tv_sec: 0,
                    tv_nsec: sys::UTIME_NOW,
                },
                (true, false) => Timespec {
                    tv_sec: seconds,
                    tv_nsec: nanoseconds,
                },
                (false, false) => Timespec {
                    tv_sec: 0,
                    tv_nsec: sys::UTIME_OMIT,
                },
            };
        let times = Timestamps {
            last_access: time(
                SetattrValid::ATIME,
                SetattrValid::ATIME_NOW,
                attr.st_atime,
                attr.st_atime_nsec,
            ),
            last_modification: time(
                SetattrValid::MTIME,
                SetattrValid::MTIME_NOW,
                attr.st_mtime,
                attr.st_mtime_nsec,
            ),
        };
        Ok(sys::utimensat(CWD, self.path(), &times, AtFlags::empty())?)
    }
}

fn this(inode: u64) -> io::Result<()> {
    if inode == ROOT_ID {
        Ok(())
    } else {
        Err(errno(libc::EBADF))
    }
}

impl FileSystem for SingleFile {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        Ok(capable)
    }

    fn destroy(&self) {
        self.handles().open.clear();
    }

    fn lookup(
        &self,
        _: &Context,
        _: u64,
        _: &CStr,
    ) -> io::Result<fuse_backend_rs::api::filesystem::Entry> {
        Err(errno(libc::ENOTDIR))
    }

    fn getattr(&self, _: &Context, inode: u64, _: Option<u64>) -> io::Result<(stat64, Duration)> {
        this(inode)?;
        Ok((self.attributes()?, FILE_TIMEOUT))
    }

    fn setattr(
        &self,
        _: &Context,
        inode: u64,
        attr: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        this(inode)?;
        if valid.contains(SetattrValid::MODE) {
            let mode = Mode::from_raw_mode(attr.st_mode & 0o7777);
            sys::chmodat(CWD, self.path(), mode, AtFlags::empty())?;
        }
        self.set_owner(&attr, valid)?;
        if valid.contains(SetattrValid::SIZE) {
            let size = u64::try_from(attr.st_size).map_err(|_| errno(libc::EINVAL))?;
            match handle {
                Some(handle) => self.handle(inode, handle)?.set_len(size)?,
                None => self.reopen(libc::O_WRONLY as u32)?.set_len(size)?,
            }
        }
        self.set_times(&attr, valid)?;
        Ok((self.attributes()?, FILE_TIMEOUT))
    }

    fn open(
        &self,
        _: &Context,
        inode: u64,
        flags: u32,
        _: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        this(inode)?;
        let file = self.reopen(flags)?;
        let mut handles = self.handles();
        handles.last += 1;
        let handle = handles.last;
        handles.open.insert(handle, Arc::new(file));
        Ok((Some(handle), OpenOptions::empty(), None))
    }

    fn release(
        &self,
        _: &Context,
        inode: u64,
        _: u32,
        handle: u64,
        _: bool,
        _: bool,
        _: Option<u64>,
    ) -> io::Result<()> {
        this(inode)?;
        let closed = self.handles().open.remove(&handle);
        closed.map(drop).ok_or_else(|| errno(libc::EBADF))
    }

    fn read(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        w: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        _: Option<u64>,
        _: u32,
    ) -> io::Result<usize> {
        let file = self.handle(inode, handle)?;
        w.write_from(&mut file.try_clone()?, size as usize, offset)
    }

    fn write(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        r: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        _: Option<u64>,
        _: bool,
        _: u32,
        _: u32,
    ) -> io::Result<usize> {
        let file = self.handle(inode, handle)?;
        r.read_to(&mut file.try_clone()?, size as usize, offset)
    }

    fn flush(&self, _: &Context, inode: u64, handle: u64, _: u64) -> io::Result<()> {
        self.handle(inode, handle).map(drop)
    }

    fn fsync(&self, _: &Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        let file = self.handle(inode, handle)?;
        if datasync {
            file.sync_data()
        } else {
            file.sync_all()
        }
    }

    fn fallocate(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let file = self.handle(inode, handle)?;
        let mode = sys::FallocateFlags::from_bits_retain(mode);
        Ok(sys::fallocate(&*file, mode, offset, length)?)
    }

    fn lseek(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        let file = self.handle(inode, handle)?;
        let signed = || i64::try_from(offset).map_err(|_| errno(libc::EINVAL));
        let position = match whence as i32 {
            libc::SEEK_SET => sys::SeekFrom::Start(offset),
            libc::SEEK_CUR => sys::SeekFrom::Current(signed()?),
            libc::SEEK_END => sys::SeekFrom::End(signed()?),
            libc::SEEK_DATA => sys::SeekFrom::Data(offset),
            libc::SEEK_HOLE => sys::SeekFrom::Hole(offset),
            _ => return Err(errno(libc::EINVAL)),
        };
        Ok(sys::seek(&*file, position)?)
    }

    fn statfs(&self, _: &Context, inode: u64) -> io::Result<statvfs64> {
        this(inode)?;
        let host = sys::fstatvfs(&self.file)?;
        // SAFETY: all zeroes is a valid statvfs64.
        #[allow(unsafe_code)]
        let mut st: statvfs64 = unsafe { std::mem::zeroed() };
        st.f_bsize = host.f_bsize;
        st.f_frsize = host.f_frsize;
        st.f_blocks = host.f_blocks;
        st.f_bfree = host.f_bfree;
        st.f_bavail = host.f_bavail;
        st.f_files = host.f_files;
        st.f_ffree = host.f_ffree;
        st.f_namemax = host.f_namemax;
        Ok(st)
    }

    fn access(&self, _: &Context, inode: u64, _: u32) -> io::Result<()> {
        // The guest's kernel checks modes itself.
        this(inode)
    }

    fn setxattr(
        &self,
        _: &Context,
        inode: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> io::Result<()> {
        this(inode)?;
        let flags = sys::XattrFlags::from_bits_retain(flags);
        Ok(sys::setxattr(self.path(), name, value, flags)?)
    }

    fn getxattr(
        &self,
        _: &Context,
        inode: u64,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        this(inode)?;
        let mut value = vec![0; size as usize];
        let len = sys::getxattr(self.path(), name, &mut value[..])?;
        if size == 0 {
            return Ok(GetxattrReply::Count(len as u32));
        }
        value.truncate(len);
        Ok(GetxattrReply::Value(value))
    }

    fn listxattr(&self, _: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        this(inode)?;
        let mut names = vec![0; size as usize];
        let len = sys::listxattr(self.path(), &mut names[..])?;
        if size == 0 {
            return Ok(ListxattrReply::Count(len as u32));
        }
        names.truncate(len);
        Ok(ListxattrReply::Names(names))
    }

    fn removexattr(&self, _: &Context, inode: u64, name: &CStr) -> io::Result<()> {
        this(inode)?;
        Ok(sys::removexattr(self.path(), name)?)
    }
}
