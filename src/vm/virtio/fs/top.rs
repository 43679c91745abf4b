//! The share's top: a read-only folder with one entry per export.

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::Attr;
use fuse_backend_rs::api::filesystem::{DirEntry, Entry, ROOT_ID};
use libc::stat64;

use super::share::Share;
use super::{NAME_TIMEOUT, errno, policy};

impl Share {
    /// LOOKUP of an export. Its attributes are those of this moment.
    pub fn top_lookup(&self, name: &CStr) -> io::Result<Entry> {
        policy::check_name(name)?;
        self.find(name.to_bytes())
            .ok_or_else(|| errno(libc::ENOENT))?
            .root()
    }

    /// GETATTR of the top.
    pub fn top_attributes(&self) -> (stat64, Duration) {
        let attr = Attr {
            ino: ROOT_ID,
            mode: libc::S_IFDIR | 0o555,
            nlink: 2,
            blksize: 4096,
            ..Attr::default()
        };
        (attr.into(), NAME_TIMEOUT)
    }

    /// READDIR and READDIRPLUS: `offset` exports were listed before.
    pub fn top_list(
        &self,
        offset: u64,
        add: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        for (export, before) in self.exports_from(offset).iter().zip(offset..) {
            let entry = export.root()?;
            let name = DirEntry {
                ino: entry.inode,
                offset: before + 1,
                type_: u32::from(if export.is_folder {
                    libc::DT_DIR
                } else {
                    libc::DT_REG
                }),
                name: export.name.as_bytes(),
            };
            if add(name, entry)? == 0 {
                break;
            }
        }
        Ok(())
    }
}
