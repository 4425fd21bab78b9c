//! A volume in memory, as simple as the tests of the adapter allow. File bytes move to a temporary file of the host
//! once a caller can pass files to the kernel.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Barrier};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use phifs_core::disk::{File, Stamp};
use phifs_core::time::Timestamp;
use phifs_core::volume::*;

pub struct HostFile(fs::File);

impl File for HostFile {
    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset_bytes)
    }
    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.0.write_all_at(buf, offset_bytes)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync_all()
    }
    fn stamp(&self) -> io::Result<Stamp> {
        let len_bytes = self.0.metadata()?.len();
        Ok(Stamp { len_bytes, allocated_bytes: len_bytes, mtime: Timestamp::default() })
    }
    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.0.set_len(len_bytes)
    }
    fn allocate(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn punch_hole(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn seek_data(&self, _: u64) -> io::Result<Option<u64>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn seek_hole(&self, _: u64) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

enum Bytes {
    Here(Vec<u8>),
    Host(Arc<HostFile>),
}

impl Bytes {
    fn len(&self) -> u64 {
        match self {
            Self::Here(bytes) => bytes.len() as u64,
            Self::Host(file) => file.stamp().unwrap().len_bytes,
        }
    }

    fn set_len(&mut self, len: u64) {
        match self {
            Self::Here(bytes) => bytes.resize(len as usize, 0),
            Self::Host(file) => file.set_len(len).unwrap(),
        }
    }

    fn read(&self, offset: u64, len: u32) -> Vec<u8> {
        let end = self.len().min(offset + u64::from(len));
        let start = offset.min(end);
        match self {
            Self::Here(bytes) => bytes[start as usize..end as usize].to_vec(),
            Self::Host(file) => {
                let mut buf = vec![0; (end - start) as usize];
                file.read_exact_at(&mut buf, start).unwrap();
                buf
            }
        }
    }

    fn write(&mut self, offset: u64, new: &[u8]) {
        match self {
            Self::Here(bytes) => {
                let end = offset as usize + new.len();
                bytes.resize(bytes.len().max(end), 0);
                bytes[offset as usize..end].copy_from_slice(new);
            }
            Self::Host(file) => file.write_at(new, offset).unwrap(),
        }
    }

    fn host(&mut self) -> Arc<HostFile> {
        if let Self::Here(bytes) = self {
            let file = HostFile(tempfile::tempfile().unwrap());
            file.write_at(bytes, 0).unwrap();
            *self = Self::Host(Arc::new(file));
        }
        match self {
            Self::Host(file) => Arc::clone(file),
            Self::Here(_) => unreachable!(),
        }
    }
}

struct Node {
    attr: Attr,
    bytes: Bytes,
    target: Vec<u8>,
    names: HashMap<Vec<u8>, u64>,
    /// By cookie.
    entries: BTreeMap<u64, (Vec<u8>, Ino)>,
    parent: Ino,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Default)]
struct Inner {
    nodes: HashMap<Ino, Node>,
    handles: HashMap<Handle, Ino>,
    next: u64,
}

pub struct MemVolume {
    inner: Mutex<Inner>,
    /// How often each operation was asked for.
    calls: Mutex<HashMap<&'static str, usize>>,
    panics_in: Mutex<Option<&'static str>>,
    pub fsyncs_meet: Mutex<Option<Arc<Barrier>>>,
    pub write_takes: Mutex<Duration>,
    /// Reads and writes do not wait for anything.
    pub is_at_hand: Mutex<bool>,
    forgotten: Mutex<Vec<Ino>>,
}

const FIRST_COOKIE: u64 = 3;

fn now() -> Timestamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp::new(now.as_secs() as i64, now.subsec_nanos())
}

fn node(ino: Ino, parent: Ino, kind: FileKind, permissions: u32, rdev: u32) -> Node {
    let (now, nlink) = (now(), if kind == FileKind::Directory { 2 } else { 1 });
    let attr = Attr {
        ino,
        kind,
        permissions,
        nlink,
        uid: 0,
        gid: 0,
        rdev,
        size_bytes: 0,
        blocks: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
    };
    Node {
        attr,
        bytes: Bytes::Here(Vec::new()),
        target: Vec::new(),
        names: HashMap::new(),
        entries: BTreeMap::new(),
        parent,
        xattrs: BTreeMap::new(),
    }
}

impl Inner {
    fn node(&mut self, ino: Ino) -> Result<&mut Node> {
        self.nodes.get_mut(&ino).ok_or(VolumeError::Stale)
    }

    fn attr(&mut self, ino: Ino) -> Result<Attr> {
        let node = self.node(ino)?;
        if node.attr.kind == FileKind::File {
            node.attr.size_bytes = node.bytes.len();
            node.attr.blocks = node.attr.size_bytes.div_ceil(512);
        }
        Ok(node.attr)
    }

    fn find(&mut self, parent: Ino, name: &[u8]) -> Result<Ino> {
        let parent = self.node(parent)?;
        let cookie = parent.names.get(name).ok_or(VolumeError::NotFound)?;
        Ok(parent.entries[cookie].1)
    }

    fn add_name(&mut self, parent: Ino, name: &[u8], ino: Ino) -> Result<()> {
        if name.len() > 255 {
            return Err(VolumeError::NameTooLong);
        }
        self.next += 1;
        let cookie = self.next + FIRST_COOKIE;
        let dir = self.node(parent)?;
        if dir.names.contains_key(name) {
            return Err(VolumeError::Exists);
        }
        dir.names.insert(name.to_vec(), cookie);
        dir.entries.insert(cookie, (name.to_vec(), ino));
        dir.attr.mtime = now();
        Ok(())
    }

    fn remove_name(&mut self, parent: Ino, name: &[u8]) -> Result<Ino> {
        let dir = self.node(parent)?;
        let cookie = dir.names.remove(name).ok_or(VolumeError::NotFound)?;
        dir.attr.mtime = now();
        Ok(dir.entries.remove(&cookie).unwrap().1)
    }

    fn new_ino(&mut self) -> Ino {
        self.next += 1;
        Ino(1 << 44 | self.next)
    }

    fn make(&mut self, parent: Ino, name: &[u8], new: &NewNode<'_>) -> Result<Ino> {
        let (kind, rdev, target) = match new.kind {
            NewKind::File => (FileKind::File, 0, &b""[..]),
            NewKind::Directory => (FileKind::Directory, 0, &b""[..]),
            NewKind::Symlink(target) => (FileKind::Symlink, 0, target),
            NewKind::Fifo => (FileKind::Fifo, 0, &b""[..]),
            NewKind::Socket => (FileKind::Socket, 0, &b""[..]),
            NewKind::CharDevice(rdev) => (FileKind::CharDevice, rdev, &b""[..]),
            NewKind::BlockDevice(rdev) => (FileKind::BlockDevice, rdev, &b""[..]),
        };
        let ino = self.new_ino();
        self.add_name(parent, name, ino)?;
        let mut made = node(ino, parent, kind, new.permissions & !new.umask, rdev);
        made.target = target.to_vec();
        made.attr.size_bytes = target.len() as u64;
        self.nodes.insert(ino, made);
        Ok(ino)
    }

    fn open(&mut self, ino: Ino, how: &OpenHow) -> Result<Opened> {
        self.next += 1;
        let handle = Handle(self.next);
        self.handles.insert(handle, ino);
        let node = self.node(ino)?;
        if how.truncate {
            node.bytes.set_len(0);
        }
        let path = if how.passthrough {
            Path::Passthrough { file: node.bytes.host() }
        } else {
            Path::Cached { keep_cache: true }
        };
        Ok(Opened { handle, path })
    }

    fn drop_if_gone(&mut self, ino: Ino) {
        if self.nodes.get(&ino).is_some_and(|node| node.attr.nlink == 0) {
            self.nodes.remove(&ino);
        }
    }
}

impl MemVolume {
    pub fn new() -> Arc<Self> {
        let mut inner = Inner::default();
        inner.nodes.insert(Ino::ROOT, node(Ino::ROOT, Ino::ROOT, FileKind::Directory, 0o755, 0));
        Arc::new(Self {
            inner: Mutex::new(inner),
            calls: Mutex::default(),
            panics_in: Mutex::default(),
            fsyncs_meet: Mutex::default(),
            write_takes: Mutex::default(),
            is_at_hand: Mutex::default(),
            forgotten: Mutex::default(),
        })
    }

    fn enter(&self, op: &'static str) {
        *self.calls.lock().entry(op).or_insert(0) += 1;
        let panics = *self.panics_in.lock();
        assert!(panics != Some(op), "deliberate panic in {op}");
    }

    pub fn calls(&self, op: &str) -> usize {
        self.calls.lock().get(op).copied().unwrap_or(0)
    }

    pub fn panic_in(&self, op: Option<&'static str>) {
        *self.panics_in.lock() = op;
    }

    /// Nothing unless bytes are at hand.
    fn at_hand<T>(&self, handle: Handle, work: impl FnOnce(&mut Bytes) -> T) -> Option<T> {
        let mut inner = self.is_at_hand.lock().then(|| self.inner.lock())?;
        let ino = *inner.handles.get(&handle)?;
        Some(work(&mut inner.node(ino).ok()?.bytes))
    }

    pub fn open_handles(&self) -> usize {
        self.inner.lock().handles.len()
    }

    pub fn forgotten(&self) -> Vec<Ino> {
        self.forgotten.lock().clone()
    }

    pub fn ino(&self, parent: Ino, name: &str) -> Ino {
        self.inner.lock().find(parent, name.as_bytes()).unwrap()
    }

    /// A file that comes from elsewhere: the kernel is not told.
    pub fn put(&self, parent: Ino, name: &str, bytes: &[u8]) -> Ino {
        let mut inner = self.inner.lock();
        let ino = inner.find(parent, name.as_bytes()).unwrap_or_else(|_| {
            let new = NewNode { kind: NewKind::File, permissions: 0o644, umask: 0 };
            inner.make(parent, name.as_bytes(), &new).unwrap()
        });
        let node = inner.node(ino).unwrap();
        node.bytes = Bytes::Here(bytes.to_vec());
        node.attr.mtime = now();
        ino
    }

    pub fn content(&self, parent: Ino, name: &str) -> Vec<u8> {
        let mut inner = self.inner.lock();
        let ino = inner.find(parent, name.as_bytes()).unwrap();
        inner.node(ino).unwrap().bytes.read(0, u32::MAX)
    }
}

impl Volume for MemVolume {
    fn lookup(&self, _: &Caller, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.enter("lookup");
        let mut inner = self.inner.lock();
        let ino = inner.find(parent, name)?;
        inner.attr(ino)
    }

    fn forget(&self, ino: Ino) {
        self.enter("forget");
        self.forgotten.lock().push(ino);
        self.inner.lock().drop_if_gone(ino);
    }

    fn getattr(&self, ino: Ino, _: Option<Handle>) -> Result<Attr> {
        self.enter("getattr");
        self.inner.lock().attr(ino)
    }

    fn setattr(&self, _: &Caller, ino: Ino, change: &SetAttr) -> Result<Attr> {
        self.enter("setattr");
        let mut inner = self.inner.lock();
        let node = inner.node(ino)?;
        if let Some(size) = change.size_bytes {
            node.bytes.set_len(size);
        }
        let attr = &mut node.attr;
        attr.permissions = change.permissions.unwrap_or(attr.permissions);
        attr.uid = change.uid.unwrap_or(attr.uid);
        attr.gid = change.gid.unwrap_or(attr.gid);
        let time = |set: Option<SetTime>, old| match set {
            None => old,
            Some(SetTime::Now) => now(),
            Some(SetTime::At(time)) => time,
        };
        attr.atime = time(change.atime, attr.atime);
        attr.mtime = time(change.mtime, attr.mtime);
        inner.attr(ino)
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        self.enter("readlink");
        Ok(self.inner.lock().node(ino)?.target.clone())
    }

    fn make(&self, _: &Caller, parent: Ino, name: &[u8], node: &NewNode<'_>) -> Result<Attr> {
        self.enter("make");
        let mut inner = self.inner.lock();
        let ino = inner.make(parent, name, node)?;
        inner.attr(ino)
    }

    fn create(
        &self,
        _: &Caller,
        parent: Ino,
        name: &[u8],
        node: &NewNode<'_>,
        how: &OpenHow,
    ) -> Result<(Attr, Opened)> {
        self.enter("create");
        let mut inner = self.inner.lock();
        let ino = inner.make(parent, name, node)?;
        let opened = inner.open(ino, how)?;
        Ok((inner.attr(ino)?, opened))
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.enter("link");
        let mut inner = self.inner.lock();
        inner.add_name(parent, name, ino)?;
        inner.node(ino)?.attr.nlink += 1;
        inner.attr(ino)
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.enter("unlink");
        let mut inner = self.inner.lock();
        let ino = inner.remove_name(parent, name)?;
        inner.node(ino)?.attr.nlink -= 1;
        Ok(())
    }

    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.enter("rmdir");
        let mut inner = self.inner.lock();
        let ino = inner.find(parent, name)?;
        if !inner.node(ino)?.names.is_empty() {
            return Err(VolumeError::NotEmpty);
        }
        inner.remove_name(parent, name)?;
        inner.node(ino)?.attr.nlink = 0;
        Ok(())
    }

    fn rename(&self, parent: Ino, name: &[u8], new_parent: Ino, new_name: &[u8], mode: RenameMode) -> Result<()> {
        self.enter("rename");
        let mut inner = self.inner.lock();
        let there = inner.find(new_parent, new_name).ok();
        match (mode, there) {
            (RenameMode::NoReplace, Some(_)) => return Err(VolumeError::Exists),
            (RenameMode::Exchange, None) => return Err(VolumeError::NotFound),
            _ => {}
        }
        let ino = inner.remove_name(parent, name)?;
        if there.is_some() {
            inner.remove_name(new_parent, new_name)?;
        }
        inner.add_name(new_parent, new_name, ino)?;
        match (mode, there) {
            (RenameMode::Exchange, Some(there)) => inner.add_name(parent, name, there),
            (_, Some(there)) => {
                inner.node(there)?.attr.nlink -= 1;
                Ok(())
            }
            (_, None) => Ok(()),
        }
    }

    fn open(&self, _: &Caller, ino: Ino, how: &OpenHow) -> Result<Opened> {
        self.enter("open");
        self.inner.lock().open(ino, how)
    }

    fn refuse_passthrough(&self, _: Handle) -> bool {
        self.enter("refuse_passthrough");
        false
    }

    fn read(&self, ino: Ino, _: Handle, offset_bytes: u64, len_bytes: u32) -> Result<Vec<u8>> {
        self.enter("read");
        Ok(self.inner.lock().node(ino)?.bytes.read(offset_bytes, len_bytes))
    }

    fn write(&self, _: &Caller, ino: Ino, _: Handle, offset_bytes: u64, bytes: &[u8], _: bool) -> Result<u32> {
        self.enter("write");
        std::thread::sleep(*self.write_takes.lock());
        self.inner.lock().node(ino)?.bytes.write(offset_bytes, bytes);
        Ok(bytes.len() as u32)
    }

    fn open_may_wait(&self, _: Ino, _: &OpenHow) -> bool {
        true
    }

    fn read_now(&self, handle: Handle, offset_bytes: u64, len_bytes: u32) -> Option<Vec<u8>> {
        self.at_hand(handle, |bytes| bytes.read(offset_bytes, len_bytes))
    }

    fn write_now(&self, handle: Handle, offset_bytes: u64, bytes: &[u8]) -> Option<u32> {
        self.at_hand(handle, |all| all.write(offset_bytes, bytes))?;
        Some(bytes.len() as u32)
    }

    fn flush(&self, _: Ino, _: Handle) -> Result<()> {
        self.enter("flush");
        Ok(())
    }

    fn release(&self, ino: Ino, handle: Handle) {
        self.enter("release");
        assert_eq!(self.inner.lock().handles.remove(&handle), Some(ino), "released twice, or never opened");
    }

    fn fsync(&self, _: Ino, handle: Option<Handle>, _: bool) -> Result<()> {
        self.enter(if handle.is_some() { "fsync" } else { "fsyncdir" });
        let meeting = self.fsyncs_meet.lock().clone();
        if let Some(barrier) = meeting {
            barrier.wait();
        }
        Ok(())
    }

    fn record_now(&self, _: Ino) -> bool {
        false
    }

    fn commit(&self) -> Result<()> {
        Ok(())
    }

    fn fallocate(
        &self,
        _: &Caller,
        ino: Ino,
        _: Handle,
        offset_bytes: u64,
        len_bytes: u64,
        mode: Allocate,
    ) -> Result<()> {
        self.enter("fallocate");
        let mut inner = self.inner.lock();
        let bytes = &mut inner.node(ino)?.bytes;
        match mode {
            Allocate::Reserve => bytes.set_len(bytes.len().max(offset_bytes + len_bytes)),
            Allocate::ReserveKeepSize => {}
            Allocate::PunchHole => bytes.write(offset_bytes, &vec![0; len_bytes as usize]),
            Allocate::ZeroRange | Allocate::ZeroRangeKeepSize => return Err(VolumeError::NotSupported("zero range")),
        }
        Ok(())
    }

    fn seek(&self, ino: Ino, _: Handle, offset_bytes: u64, seek: Seek) -> Result<u64> {
        self.enter("seek");
        let len = self.inner.lock().node(ino)?.bytes.len();
        match seek {
            _ if offset_bytes >= len => Err(VolumeError::NoData),
            Seek::Data => Ok(offset_bytes),
            Seek::Hole => Ok(len),
        }
    }

    fn copy_range(&self, _: &Caller, from: (Ino, Handle, u64), to: (Ino, Handle, u64), len_bytes: u64) -> Result<u64> {
        self.enter("copy_range");
        let mut inner = self.inner.lock();
        let bytes = inner.node(from.0)?.bytes.read(from.2, len_bytes.try_into().unwrap());
        inner.node(to.0)?.bytes.write(to.2, &bytes);
        Ok(bytes.len() as u64)
    }

    fn readdir(&self, ino: Ino, after: u64, each: &mut dyn FnMut(&Entry) -> bool) -> Result<()> {
        self.enter("readdir");
        let mut inner = self.inner.lock();
        let parent = inner.node(ino)?.parent;
        let mut listed = vec![(1, b".".to_vec(), ino), (2, b"..".to_vec(), parent)];
        listed.extend(inner.node(ino)?.entries.iter().map(|(&cookie, (name, ino))| (cookie, name.clone(), *ino)));
        for (next, name, ino) in listed.into_iter().filter(|(cookie, ..)| *cookie > after) {
            let attr = inner.attr(ino)?;
            if !each(&Entry { name, attr, next }) {
                break;
            }
        }
        Ok(())
    }

    fn statfs(&self) -> Result<StatFs> {
        self.enter("statfs");
        Ok(StatFs {
            block_bytes: 4096,
            blocks: 1000,
            blocks_free: 500,
            blocks_available: 400,
            inodes: 99,
            inodes_free: 9,
            name_bytes_max: 255,
        })
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        self.enter("getxattr");
        self.inner.lock().node(ino)?.xattrs.get(name).cloned().ok_or(VolumeError::NoAttribute)
    }

    fn setxattr(&self, _: &Caller, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        self.enter("setxattr");
        let mut inner = self.inner.lock();
        let xattrs = &mut inner.node(ino)?.xattrs;
        match mode {
            XattrMode::Create if xattrs.contains_key(name) => return Err(VolumeError::Exists),
            XattrMode::Replace if !xattrs.contains_key(name) => return Err(VolumeError::NoAttribute),
            _ => {}
        }
        xattrs.insert(name.to_vec(), value.to_vec());
        Ok(())
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        self.enter("listxattr");
        Ok(self.inner.lock().node(ino)?.xattrs.keys().cloned().collect())
    }

    fn removexattr(&self, _: &Caller, ino: Ino, name: &[u8]) -> Result<()> {
        self.enter("removexattr");
        self.inner.lock().node(ino)?.xattrs.remove(name).map(drop).ok_or(VolumeError::NoAttribute)
    }
}
