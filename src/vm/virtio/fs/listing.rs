//! READDIR and READDIRPLUS of an exported folder.

use std::io;

use fuse_backend_rs::api::filesystem::{Context, DirEntry, Entry};

use super::errno;
use super::export::Export;

/// Largest buffer that is filled with folder entries at once; the guest asks for
/// a page or a few.
const LIST_SIZE_MAX: u32 = 128 << 10;

/// How often a folder is read again when nothing came out of it. A file that is
/// deleted between reading its name and looking it up ends the list early; if it
/// was the first, that would look like the end of the folder.
const LIST_TRIES: usize = 3;

/// Lists names; nothing is looked up for longer than the request takes.
pub(super) fn names(
    export: &Export,
    ctx: &Context,
    inode: u64,
    handle: u64,
    size: u32,
    offset: u64,
    add: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
) -> io::Result<()> {
    let size = size.min(LIST_SIZE_MAX);
    let mut listed = false;
    for _ in 0..LIST_TRIES {
        let mut one = |mut name: DirEntry| {
            listed = true;
            name.ino = export.node(name.ino);
            add(name)
        };
        export
            .fs
            .readdir(ctx, inode, handle, size, offset, &mut one)?;
        if listed {
            break;
        }
    }
    Ok(())
}

/// Lists names with what a lookup of each would tell.
pub(super) fn entries(
    export: &Export,
    ctx: &Context,
    inode: u64,
    handle: u64,
    size: u32,
    offset: u64,
    add: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
) -> io::Result<()> {
    let size = size.min(LIST_SIZE_MAX);
    let mut list = List {
        export,
        listed: 0,
        failed: None,
    };
    for _ in 0..LIST_TRIES {
        let mut one = |name: DirEntry, entry: Entry| list.add(name, entry, add);
        export
            .fs
            .readdirplus(ctx, inode, handle, size, offset, &mut one)?;
        if list.listed > 0 {
            break;
        }
        // An empty list would mean that the folder ends here.
        if let Some(error) = list.failed.take() {
            return Err(error);
        }
    }
    Ok(())
}

/// A READDIRPLUS reply in the making: each entry in it counts as a lookup.
struct List<'a> {
    export: &'a Export,
    listed: usize,
    failed: Option<io::Error>,
}

impl List<'_> {
    fn add(
        &mut self,
        name: DirEntry,
        entry: Entry,
        add: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let inode = entry.inode;
        let entry = match self.export.keep(entry) {
            Ok(entry) => entry,
            Err(error) => {
                let code = error.raw_os_error().unwrap_or(libc::EIO);
                self.failed = Some(errno(code));
                return Err(error);
            }
        };
        let name = DirEntry {
            ino: entry.inode,
            ..name
        };
        let result = add(name, entry);
        match result {
            // No space: the caller takes the lookup back itself.
            Ok(0) => {
                self.export.uncount(inode, 1);
            }
            Ok(_) => self.listed += 1,
            Err(_) => self.export.forget(inode, 1),
        }
        result
    }
}
