//! A FUSE client that speaks through the device's queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fuse_backend_rs::abi::fuse_abi::*;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use crate::virtio::device::{Active, Device};
use crate::virtio::fs::Fs;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::testing::{GuestQueue, WRITE, memory};

const RAM_SIZE: usize = 4 << 20;
const REQUEST_AT: u64 = 0x10_0000;
const REPLY_AT: u64 = 0x28_0000;

pub const FATTR_MODE: u32 = SetattrValid::MODE.bits();
pub const FATTR_UID: u32 = SetattrValid::UID.bits();
pub const FATTR_GID: u32 = SetattrValid::GID.bits();
pub const FATTR_SIZE: u32 = SetattrValid::SIZE.bits();
pub const FATTR_ATIME: u32 = SetattrValid::ATIME.bits();
pub const FATTR_MTIME: u32 = SetattrValid::MTIME.bits();

/// Bytes of a name with its NUL.
pub fn nul(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// A guest with the device, whose kernel is this test.
pub struct Guest {
    pub fs: Fs,
    pub memory: GuestMemoryMmap,
    pub queue: GuestQueue,
    pub interrupt: Arc<Interrupt>,
    pub uid: u32,
    pub gid: u32,
    unique: AtomicU64,
}

/// An entry of a folder as READDIRPLUS tells it.
pub struct Listed {
    pub name: String,
    pub node: u64,
    pub offset: u64,
    pub attr: Attr,
}

impl Guest {
    /// Sets the driver up; no FUSE request is made.
    pub fn new(fs: Fs) -> Self {
        Self::with_features(fs, 0)
    }

    pub fn with_features(fs: Fs, features: u64) -> Self {
        let memory = memory(RAM_SIZE);
        let interrupt = Arc::new(Interrupt::new().unwrap());
        let queue = GuestQueue::new(&memory, 0, 64);
        let mut guest = Self {
            fs,
            memory,
            queue,
            interrupt,
            uid: 0,
            gid: 0,
            unique: AtomicU64::new(1),
        };
        guest.activate(features);
        guest
    }

    /// Gives the device fresh queues.
    pub fn activate(&mut self, features: u64) {
        let hiprio = GuestQueue::new(&self.memory, 0x8000, 16);
        self.queue = GuestQueue::new(&self.memory, 0, 64);
        let event_idx = features & 1 << 29 != 0;
        let active = Active {
            features,
            memory: self.memory.clone(),
            queues: vec![
                hiprio.device_queue(event_idx),
                self.queue.device_queue(event_idx),
            ],
            interrupt: self.interrupt.clone(),
        };
        self.fs.activate(active).unwrap();
    }

    pub fn memory_write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    /// Sends bytes as one request with room for `room` bytes of reply; returns what
    /// the device says it wrote, or nothing if it did not use the chain.
    pub fn raw(&mut self, request: &[u8], room: u32) -> Vec<u8> {
        self.memory
            .write_slice(request, GuestAddress(REQUEST_AT))
            .unwrap();
        let mut chain = vec![(REQUEST_AT, request.len() as u32, 0)];
        if room > 0 {
            chain.push((REPLY_AT, room, WRITE));
        }
        let head = self.queue.add(&chain);
        self.fs.queue_event(1).unwrap();
        let (used, len) = self.queue.next_used().expect("the chain is used");
        assert_eq!(used, head);
        assert!(len <= room, "{len} bytes written into {room}");
        let mut reply = vec![0; len as usize];
        self.memory
            .read_slice(&mut reply, GuestAddress(REPLY_AT))
            .unwrap();
        reply
    }

    pub fn header(&self, opcode: u32, node: u64, len: usize) -> InHeader {
        InHeader {
            len: len as u32,
            opcode,
            unique: self.unique.fetch_add(1, Ordering::Relaxed),
            nodeid: node,
            uid: self.uid,
            gid: self.gid,
            pid: 1,
            ..InHeader::default()
        }
    }

    /// A request as Linux makes it; returns the reply's body or its errno.
    pub fn call(
        &mut self,
        opcode: Opcode,
        node: u64,
        args: &[&[u8]],
        room: u32,
    ) -> Result<Vec<u8>, i32> {
        let body = args.concat();
        let header = self.header(opcode as u32, node, size_of::<InHeader>() + body.len());
        let request = [header.as_slice(), &body].concat();
        let reply = self.raw(&request, size_of::<OutHeader>() as u32 + room);
        parse(&reply, header.unique)
    }

    pub fn get<T: ByteValued>(
        &mut self,
        opcode: Opcode,
        node: u64,
        args: &[&[u8]],
    ) -> Result<T, i32> {
        let reply = self.call(opcode, node, args, size_of::<T>() as u32)?;
        Ok(first(&reply))
    }

    pub fn init(&mut self) -> InitOut {
        let options = !0x4000_0000u32; // without FUSE_INIT_EXT
        let args = InitIn {
            major: 7,
            minor: 36,
            max_readahead: 1 << 17,
            flags: options,
        };
        self.get(Opcode::Init, 0, &[args.as_slice()]).unwrap()
    }

    pub fn lookup(&mut self, parent: u64, name: &str) -> Result<EntryOut, i32> {
        self.get(Opcode::Lookup, parent, &[&nul(name)])
    }

    /// Walks down from the share's top.
    pub fn walk(&mut self, path: &str) -> Result<u64, i32> {
        let mut node = 1;
        for name in path.split('/') {
            node = self.lookup(node, name)?.nodeid;
        }
        Ok(node)
    }

    pub fn forget(&mut self, node: u64, nlookup: u64) {
        let header = self.header(Opcode::Forget as u32, node, size_of::<InHeader>() + 8);
        let args = ForgetIn { nlookup };
        let reply = self.raw(&[header.as_slice(), args.as_slice()].concat(), 0);
        assert!(reply.is_empty());
    }

    pub fn getattr(&mut self, node: u64) -> Result<Attr, i32> {
        let args = GetattrIn::default();
        Ok(self
            .get::<AttrOut>(Opcode::Getattr, node, &[args.as_slice()])?
            .attr)
    }

    pub fn setattr(&mut self, node: u64, args: SetattrIn) -> Result<Attr, i32> {
        Ok(self
            .get::<AttrOut>(Opcode::Setattr, node, &[args.as_slice()])?
            .attr)
    }

    pub fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        let args = OpenIn {
            flags: flags as u32,
            fuse_flags: 0,
        };
        Ok(self
            .get::<OpenOut>(Opcode::Open, node, &[args.as_slice()])?
            .fh)
    }

    pub fn release(&mut self, node: u64, fh: u64) -> Result<(), i32> {
        let args = ReleaseIn {
            fh,
            ..ReleaseIn::default()
        };
        self.call(Opcode::Release, node, &[args.as_slice()], 0)
            .map(drop)
    }

    pub fn read(&mut self, node: u64, fh: u64, offset: u64, size: u32) -> Result<Vec<u8>, i32> {
        let args = ReadIn {
            fh,
            offset,
            size,
            ..ReadIn::default()
        };
        self.call(Opcode::Read, node, &[args.as_slice()], size)
    }

    pub fn write(&mut self, node: u64, fh: u64, offset: u64, data: &[u8]) -> Result<u32, i32> {
        let args = WriteIn {
            fh,
            offset,
            size: data.len() as u32,
            ..WriteIn::default()
        };
        Ok(self
            .get::<WriteOut>(Opcode::Write, node, &[args.as_slice(), data])?
            .size)
    }

    pub fn create(
        &mut self,
        parent: u64,
        name: &str,
        flags: i32,
        mode: u32,
    ) -> Result<(EntryOut, u64), i32> {
        let args = CreateIn {
            flags: flags as u32,
            mode,
            umask: 0,
            fuse_flags: 0,
        };
        let room = size_of::<EntryOut>() + size_of::<OpenOut>();
        let reply = self.call(
            Opcode::Create,
            parent,
            &[args.as_slice(), &nul(name)],
            room as u32,
        )?;
        let open: OpenOut = first(&reply[size_of::<EntryOut>()..]);
        Ok((first(&reply), open.fh))
    }

    pub fn mkdir(&mut self, parent: u64, name: &str) -> Result<EntryOut, i32> {
        let args = MkdirIn {
            mode: 0o755,
            umask: 0,
        };
        self.get(Opcode::Mkdir, parent, &[args.as_slice(), &nul(name)])
    }

    pub fn mknod(
        &mut self,
        parent: u64,
        name: &str,
        mode: u32,
        rdev: u32,
    ) -> Result<EntryOut, i32> {
        let args = MknodIn {
            mode,
            rdev,
            umask: 0,
            padding: 0,
        };
        self.get(Opcode::Mknod, parent, &[args.as_slice(), &nul(name)])
    }

    pub fn symlink(&mut self, parent: u64, name: &str, target: &str) -> Result<EntryOut, i32> {
        self.get(Opcode::Symlink, parent, &[&nul(name), &nul(target)])
    }

    pub fn link(&mut self, node: u64, parent: u64, name: &str) -> Result<EntryOut, i32> {
        let args = LinkIn { oldnodeid: node };
        self.get(Opcode::Link, parent, &[args.as_slice(), &nul(name)])
    }

    pub fn rename(&mut self, from: u64, old: &str, to: u64, new: &str) -> Result<(), i32> {
        let args = RenameIn { newdir: to };
        self.call(
            Opcode::Rename,
            from,
            &[args.as_slice(), &nul(old), &nul(new)],
            0,
        )
        .map(drop)
    }

    pub fn remove(&mut self, opcode: Opcode, parent: u64, name: &str) -> Result<(), i32> {
        self.call(opcode, parent, &[&nul(name)], 0).map(drop)
    }

    pub fn setxattr(&mut self, node: u64, name: &str, value: &[u8]) -> Result<(), i32> {
        let args = SetxattrIn {
            size: value.len() as u32,
            flags: 0,
        };
        self.call(
            Opcode::Setxattr,
            node,
            &[args.as_slice(), &nul(name), value],
            0,
        )
        .map(drop)
    }

    pub fn getxattr(&mut self, node: u64, name: &str) -> Result<Vec<u8>, i32> {
        let args = GetxattrIn {
            size: 256,
            padding: 0,
        };
        self.call(Opcode::Getxattr, node, &[args.as_slice(), &nul(name)], 256)
    }

    pub fn listxattr(&mut self, node: u64) -> Result<Vec<u8>, i32> {
        let args = GetxattrIn {
            size: 4096,
            padding: 0,
        };
        self.call(Opcode::Listxattr, node, &[args.as_slice()], 4096)
    }

    /// One READDIRPLUS.
    pub fn list_some(&mut self, node: u64, offset: u64, size: u32) -> Result<Vec<Listed>, i32> {
        let args = ReadIn {
            offset,
            size,
            ..ReadIn::default()
        };
        // The server wants room for the size and the header's size again.
        let reply = self.call(Opcode::Readdirplus, node, &[args.as_slice()], size)?;
        let (mut rest, mut list) = (&reply[..], Vec::new());
        while !rest.is_empty() {
            let entry: EntryOut = first(rest);
            let dirent: Dirent = first(&rest[size_of::<EntryOut>()..]);
            let at = size_of::<EntryOut>() + size_of::<Dirent>();
            let name = &rest[at..at + dirent.namelen as usize];
            list.push(Listed {
                name: String::from_utf8(name.to_vec()).unwrap(),
                node: entry.nodeid,
                offset: dirent.off,
                attr: entry.attr,
            });
            rest = &rest[(at + name.len()).next_multiple_of(8)..];
        }
        Ok(list)
    }

    /// All names of a folder, sorted; each is forgotten again.
    pub fn list(&mut self, node: u64) -> Vec<String> {
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let some = self.list_some(node, offset, 4096).unwrap();
            let Some(last) = some.last() else { break };
            offset = last.offset;
            for Listed { name, node, .. } in some {
                self.forget(node, 1);
                names.push(name);
            }
        }
        names.sort();
        names
    }
}

fn first<T: ByteValued>(bytes: &[u8]) -> T {
    let mut value = T::zeroed();
    value
        .as_mut_slice()
        .copy_from_slice(&bytes[..size_of::<T>()]);
    value
}

fn parse(reply: &[u8], unique: u64) -> Result<Vec<u8>, i32> {
    let header: OutHeader = first(reply);
    assert_eq!(header.unique, unique);
    assert_eq!(header.len as usize, reply.len());
    if header.error == 0 {
        Ok(reply[size_of::<OutHeader>()..].to_vec())
    } else {
        assert_eq!(reply.len(), size_of::<OutHeader>());
        Err(-header.error)
    }
}
