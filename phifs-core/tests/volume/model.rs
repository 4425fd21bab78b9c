//! What POSIX says about a filesystem, as simply as it can be written down: the model that a volume is held against.

use std::collections::BTreeMap;

use phifs_core::time::Timestamp;
use phifs_core::volume::{Allocate, FileKind, Ino, RenameMode, SetAttr, SetTime, XattrMode};

/// Names an inode of the model.
pub type Id = usize;

pub const ROOT: Id = 0;

/// The name of a `VolumeError` variant.
pub type Errno = &'static str;
pub type Result<T> = std::result::Result<T, Errno>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    pub kind: FileKind,
    pub permissions: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub nlink: u32,
    pub bytes: Vec<u8>,
    pub target: Vec<u8>,
    pub entries: BTreeMap<Vec<u8>, Id>,
    pub parent: Id,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub btime: Timestamp,
    pub handles: u32,
    /// Its number in the volume, once that is known.
    pub ino: Option<Ino>,
}

#[derive(Clone, Debug)]
pub struct Model {
    pub inodes: BTreeMap<Id, Inode>,
    next: Id,
}

/// What can be seen from outside without a file's bytes and the times of files. Two states with one tree differ in
/// nothing that a metadata operation changed.
pub type Tree = BTreeMap<Vec<u8>, TreeEntry>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeEntry {
    pub kind: FileKind,
    pub permissions: u32,
    pub owner: (u32, u32),
    pub rdev: u32,
    pub nlink: u32,
    pub target: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of a directory only: a file's changes with its bytes.
    pub mtime: Option<Timestamp>,
}

impl Model {
    pub fn new(root_time: Timestamp) -> Self {
        let mut root = inode(FileKind::Directory, root_time);
        root.nlink = 2;
        root.permissions = 0o755;
        root.ino = Some(Ino::ROOT);
        Self { inodes: BTreeMap::from([(ROOT, root)]), next: 1 }
    }

    pub fn get(&self, id: Id) -> &Inode {
        &self.inodes[&id]
    }

    fn at(&mut self, id: Id) -> &mut Inode {
        self.inodes.get_mut(&id).expect("the inode is there")
    }

    fn dir(&self, id: Id) -> Result<&Inode> {
        let inode = self.get(id);
        if inode.kind == FileKind::Directory { Ok(inode) } else { Err("NotDirectory") }
    }

    pub fn child(&self, dir: Id, name: &[u8]) -> Option<Id> {
        self.get(dir).entries.get(name).copied()
    }

    /// `like` has the kind, permissions, owner, device and target.
    pub fn make(&mut self, dir: Id, name: &[u8], like: &Inode, now: Timestamp) -> Result<Id> {
        self.dir(dir)?;
        if self.child(dir, name).is_some() {
            return Err("Exists");
        }
        let id = self.next;
        self.next += 1;
        let nlink = if like.kind == FileKind::Directory { 2 } else { 1 };
        let times = inode(like.kind, now);
        self.inodes.insert(id, Inode { nlink, parent: dir, ..merge(like, times) });
        self.attach(dir, name, id, now);
        Ok(id)
    }

    fn attach(&mut self, dir: Id, name: &[u8], id: Id, now: Timestamp) {
        let is_dir = self.get(id).kind == FileKind::Directory;
        if is_dir {
            self.at(id).parent = dir;
        }
        let parent = self.at(dir);
        parent.entries.insert(name.to_vec(), id);
        parent.nlink += u32::from(is_dir);
        (parent.mtime, parent.ctime) = (now, now);
    }

    fn detach(&mut self, dir: Id, name: &[u8], now: Timestamp) -> Id {
        let id = self.at(dir).entries.remove(name).expect("it was listed");
        let is_dir = self.get(id).kind == FileKind::Directory;
        let parent = self.at(dir);
        parent.nlink -= u32::from(is_dir);
        (parent.mtime, parent.ctime) = (now, now);
        id
    }

    /// One name fewer.
    fn drop_link(&mut self, id: Id, now: Timestamp) {
        let inode = self.at(id);
        inode.nlink = if inode.kind == FileKind::Directory { 0 } else { inode.nlink - 1 };
        inode.ctime = now;
        self.reap(id);
    }

    fn reap(&mut self, id: Id) {
        let inode = self.get(id);
        if inode.nlink == 0 && inode.handles == 0 {
            self.inodes.remove(&id);
        }
    }

    pub fn open(&mut self, id: Id, truncate: bool, now: Timestamp) -> Result<()> {
        match self.get(id).kind {
            FileKind::File => {}
            FileKind::Directory => return Err("IsDirectory"),
            _ => return Err("Invalid"),
        }
        if truncate {
            self.truncate(id, 0, now);
        }
        self.at(id).handles += 1;
        Ok(())
    }

    pub fn release(&mut self, id: Id) {
        self.at(id).handles -= 1;
        self.reap(id);
    }

    pub fn write(&mut self, id: Id, offset: usize, bytes: &[u8], now: Timestamp) {
        let inode = self.at(id);
        let end = offset + bytes.len();
        if inode.bytes.len() < end {
            inode.bytes.resize(end, 0);
        }
        inode.bytes[offset..end].copy_from_slice(bytes);
        (inode.mtime, inode.ctime) = (now, now);
    }

    fn truncate(&mut self, id: Id, len: usize, now: Timestamp) {
        let inode = self.at(id);
        inode.bytes.resize(len, 0);
        (inode.mtime, inode.ctime) = (now, now);
    }

    pub fn allocate(&mut self, id: Id, offset: usize, len: usize, mode: Allocate, now: Timestamp) {
        let inode = self.at(id);
        let end = offset + len;
        if matches!(mode, Allocate::PunchHole | Allocate::ZeroRange | Allocate::ZeroRangeKeepSize) {
            let have = inode.bytes.len();
            inode.bytes[offset.min(have)..end.min(have)].fill(0);
        }
        if matches!(mode, Allocate::Reserve | Allocate::ZeroRange) && inode.bytes.len() < end {
            inode.bytes.resize(end, 0);
        }
        (inode.mtime, inode.ctime) = (now, now);
    }

    pub fn setattr(&mut self, id: Id, change: &SetAttr, now: Timestamp) -> Result<()> {
        if let Some(len) = change.size_bytes {
            match self.get(id).kind {
                FileKind::File => self.truncate(id, len as usize, now),
                FileKind::Directory => return Err("IsDirectory"),
                _ => return Err("Invalid"),
            }
        }
        let inode = self.at(id);
        if let Some(permissions) = change.permissions {
            inode.permissions = permissions & 0o7777;
        }
        if change.uid.is_some() || change.gid.is_some() {
            inode.uid = change.uid.unwrap_or(inode.uid);
            inode.gid = change.gid.unwrap_or(inode.gid);
            if inode.kind != FileKind::Directory {
                drop_set_id(inode);
            }
        }
        let time_of = |set| match set {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        inode.mtime = change.mtime.map_or(inode.mtime, time_of);
        inode.atime = change.atime.map_or(inode.atime, time_of);
        inode.ctime = now;
        Ok(())
    }

    /// What a write by somebody without privilege leaves of the mode.
    pub fn drop_set_id(&mut self, id: Id) {
        drop_set_id(self.at(id));
    }

    pub fn link(&mut self, id: Id, dir: Id, name: &[u8], now: Timestamp) -> Result<()> {
        if self.get(id).kind == FileKind::Directory {
            return Err("NotPermitted");
        }
        if self.get(id).nlink == 0 {
            return Err("NotFound");
        }
        self.dir(dir)?;
        if self.child(dir, name).is_some() {
            return Err("Exists");
        }
        let inode = self.at(id);
        inode.nlink += 1;
        inode.ctime = now;
        self.attach(dir, name, id, now);
        Ok(())
    }

    pub fn unlink(&mut self, dir: Id, name: &[u8], now: Timestamp) -> Result<()> {
        self.dir(dir)?;
        let id = self.child(dir, name).ok_or("NotFound")?;
        if self.get(id).kind == FileKind::Directory {
            return Err("IsDirectory");
        }
        self.detach(dir, name, now);
        self.drop_link(id, now);
        Ok(())
    }

    pub fn rmdir(&mut self, dir: Id, name: &[u8], now: Timestamp) -> Result<()> {
        self.dir(dir)?;
        let id = self.child(dir, name).ok_or("NotFound")?;
        if self.get(id).kind != FileKind::Directory {
            return Err("NotDirectory");
        }
        if !self.get(id).entries.is_empty() {
            return Err("NotEmpty");
        }
        self.detach(dir, name, now);
        self.drop_link(id, now);
        Ok(())
    }

    fn is_inside(&self, mut dir: Id, above: Id) -> bool {
        loop {
            if dir == above {
                return true;
            }
            if dir == ROOT {
                return false;
            }
            dir = self.get(dir).parent;
        }
    }

    pub fn rename(
        &mut self,
        (from, name): (Id, &[u8]),
        (to, new_name): (Id, &[u8]),
        mode: RenameMode,
        now: Timestamp,
    ) -> Result<()> {
        self.dir(from)?;
        self.dir(to)?;
        let source = self.child(from, name).ok_or("NotFound")?;
        let target = self.child(to, new_name);
        let is_dir = |model: &Self, id: Id| model.get(id).kind == FileKind::Directory;
        if mode == RenameMode::NoReplace && target.is_some() {
            return Err("Exists");
        }
        if mode == RenameMode::Exchange {
            let target = target.ok_or("NotFound")?;
            if (from, name) == (to, new_name) || source == target {
                return Ok(());
            }
            if is_dir(self, source) && self.is_inside(to, source)
                || is_dir(self, target) && self.is_inside(from, target)
            {
                return Err("Invalid");
            }
            self.detach(from, name, now);
            self.detach(to, new_name, now);
            self.attach(to, new_name, source, now);
            self.attach(from, name, target, now);
            self.at(source).ctime = now;
            self.at(target).ctime = now;
            return Ok(());
        }
        if is_dir(self, source) && self.is_inside(to, source) {
            return Err("Invalid");
        }
        if let Some(target) = target {
            if source == target {
                return Ok(());
            }
            match (is_dir(self, source), is_dir(self, target)) {
                (true, true) if !self.get(target).entries.is_empty() => return Err("NotEmpty"),
                (true, false) => return Err("NotDirectory"),
                (false, true) => return Err("IsDirectory"),
                _ => {}
            }
            self.detach(to, new_name, now);
            self.drop_link(target, now);
        }
        self.detach(from, name, now);
        self.attach(to, new_name, source, now);
        self.at(source).ctime = now;
        Ok(())
    }

    pub fn set_xattr(&mut self, id: Id, name: &[u8], value: &[u8], how: XattrMode, now: Timestamp) -> Result<()> {
        let inode = self.at(id);
        match (how, inode.xattrs.contains_key(name)) {
            (XattrMode::Create, true) => return Err("Exists"),
            (XattrMode::Replace, false) => return Err("NoAttribute"),
            _ => {}
        }
        inode.xattrs.insert(name.to_vec(), value.to_vec());
        inode.ctime = now;
        Ok(())
    }

    pub fn remove_xattr(&mut self, id: Id, name: &[u8], now: Timestamp) -> Result<()> {
        let inode = self.at(id);
        inode.xattrs.remove(name).ok_or("NoAttribute")?;
        inode.ctime = now;
        Ok(())
    }

    /// Every path there is, and the inode behind it.
    pub fn paths(&self) -> BTreeMap<Vec<u8>, Id> {
        let mut paths = BTreeMap::new();
        let mut todo = vec![(Vec::new(), ROOT)];
        while let Some((path, id)) = todo.pop() {
            for (name, child) in &self.get(id).entries {
                todo.push(([&path[..], b"/", name].concat(), *child));
            }
            paths.insert(path, id);
        }
        paths
    }

    pub fn tree(&self) -> Tree {
        let entry = |id: Id| {
            let inode = self.get(id);
            TreeEntry {
                kind: inode.kind,
                permissions: inode.permissions,
                owner: (inode.uid, inode.gid),
                rdev: inode.rdev,
                nlink: inode.nlink,
                target: inode.target.clone(),
                xattrs: inode.xattrs.clone(),
                mtime: (inode.kind == FileKind::Directory).then_some(inode.mtime),
            }
        };
        self.paths().into_iter().map(|(path, id)| (path, entry(id))).collect()
    }
}

pub fn inode(kind: FileKind, now: Timestamp) -> Inode {
    Inode {
        kind,
        permissions: 0o644,
        uid: 0,
        gid: 0,
        rdev: 0,
        nlink: 1,
        bytes: Vec::new(),
        target: Vec::new(),
        entries: BTreeMap::new(),
        parent: ROOT,
        xattrs: BTreeMap::new(),
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        handles: 0,
        ino: None,
    }
}

fn merge(like: &Inode, times: Inode) -> Inode {
    Inode {
        permissions: like.permissions,
        uid: like.uid,
        gid: like.gid,
        rdev: like.rdev,
        target: like.target.clone(),
        ..times
    }
}

fn drop_set_id(inode: &mut Inode) {
    inode.permissions &= !0o4000;
    if inode.permissions & 0o010 != 0 {
        inode.permissions &= !0o2000;
    }
}
