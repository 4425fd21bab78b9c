//! The state of another machine as a filesystem that can be read, while a store is made of it. What is not here yet is
//! asked for when somebody looks at it, and stored, so that the pull that is under way finds it.
//!
//! Nothing of it ever changes. The numbers of inodes are those of the volume that is being made.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::content::reader::ContentReader;
use crate::disk::Disk;
use crate::id::{DirId, GlyphId, InodeId};
use crate::merkle::{Node, NodeCache};
use crate::meta::{Frozen, Roots, TableId};
use crate::namespace::tables::Rows as _;
use crate::namespace::view::{self, Stat};
use crate::namespace::{Table, derive::Child};
use crate::snapshot::Record;
use crate::snapshot::pull::take;
use crate::store::{GlyphKind, GlyphSource, GlyphStore, StoreError, StoredGlyph};
use crate::volume::{
    Allocate, Attr, Caller, Entry, Handle, Ino, Named, NewNode, OpenHow, Opened, Path, RenameMode, Result, Seek,
    SetAttr, StatFs, Volume, VolumeError, XattrMode,
};

use super::LocalVolume;
use super::attrs::{attr_of_stat, target_of, xattr_of, xattrs_of};
use super::remote::{Ahead, lacking, missing_ahead};
use super::state::Authors;
use super::tree;
use super::upkeep::stat_fs;

/// Along with a node so many are fetched that follow it: each time means to wait for another machine, and the pull needs them
/// anyway.
const SIBLINGS_MAX: usize = 7;
/// Of so many inner nodes it is remembered what is below them.
const INNER_NODES_MAX: usize = 64;

/// Asks others for glyphs, from any thread. What nobody has is not among the answers. It must give up in time: somebody
/// waits in a call of the kernel.
pub type AskAnytime = Arc<dyn Fn(GlyphKind, &[GlyphId]) -> io::Result<Vec<(GlyphId, Bytes)>> + Send + Sync>;

pub struct Preview {
    disk: Arc<dyn Disk>,
    glyphs: Arc<OnDemand>,
    tables: Frozen,
    authors: Authors,
    readers: Mutex<HashMap<u64, Arc<Mutex<ContentReader>>>>,
    next_handle: AtomicU64,
    successor: OnceLock<Successor>,
}

/// The volume that was made of it. Whoever still looks at the preview then reads by way of it.
struct Successor {
    volume: Arc<LocalVolume>,
    _kept: Arc<Roots>,
}

impl Preview {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        store: Arc<GlyphStore>,
        cache_bytes: u64,
        record: &Record,
        ask: AskAnytime,
    ) -> Self {
        let mut authors = Authors::new();
        for author in &record.authors {
            authors.add(*author);
        }
        let glyphs = Arc::new(OnDemand { store, ask: RwLock::new(Some(ask)), siblings: Mutex::default() });
        let nodes = Arc::new(NodeCache::new(glyphs.clone(), cache_bytes));
        Self {
            disk,
            glyphs,
            tables: Frozen::new(nodes, record.roots.clone()),
            authors,
            readers: Mutex::default(),
            next_handle: AtomicU64::new(1),
            successor: OnceLock::new(),
        }
    }

    /// The store is made, and its volume open: what is still read here must outlive collections, and what has not come yet
    /// is that volume's to fetch.
    pub fn leave_to(&self, volume: Arc<LocalVolume>) {
        let kept = volume.in_use.keep(self.tables.roots());
        let _ = self.successor.set(Successor { volume, _kept: kept });
        *self.glyphs.ask.write() = None;
    }

    fn inode(&self, ino: Ino) -> Result<InodeId> {
        self.authors.inode_id(ino)
    }

    fn dir(&self, ino: Ino) -> Result<DirId> {
        Ok(DirId(self.inode(ino)?.0))
    }

    /// The rows have not been checked yet.
    fn ino(&self, inode: InodeId) -> Result<Ino> {
        let ino = self.authors.ino(inode).filter(|ino| self.inode(*ino).is_ok_and(|back| back == inode));
        ino.ok_or_else(|| VolumeError::Internal(format!("the author of inode {} is not known", inode.0)))
    }

    fn attr(&self, inode: InodeId, (stat, nlink): (Stat, u32)) -> Result<Attr> {
        Ok(attr_of_stat(self.ino(inode)?, &stat, nlink))
    }

    fn attr_of(&self, inode: InodeId) -> Result<Attr> {
        self.attr(inode, tree::looked_at(&self.tables, inode)?)
    }

    fn attr_of_child(&self, child: Child) -> Result<Attr> {
        self.attr(child.inode(), tree::child_looked_at(&self.tables, child)?)
    }

    fn attr_in(&self, dir: DirId, name: &[u8]) -> Result<Attr> {
        match name {
            b"." => self.attr_of(dir.inode()),
            b".." if dir == DirId::ROOT => self.attr_of(dir.inode()),
            b".." => self.attr_of(self.tables.dir(dir)?.ok_or(VolumeError::NotDirectory)?.parent.inode()),
            _ => self.attr_of_child(view::child(&self.tables, dir, name)?.ok_or(VolumeError::NotFound)?),
        }
    }

    fn reader(&self, handle: Handle) -> Result<Arc<Mutex<ContentReader>>> {
        self.readers.lock().get(&handle.0).cloned().ok_or(VolumeError::BadHandle)
    }

    /// Reads with whatever can bring what is missing.
    fn having<T>(&self, ahead: Ahead, read: impl FnOnce(&dyn GlyphSource) -> Result<T>) -> Result<T> {
        match self.successor.get() {
            Some(Successor { volume, .. }) => read(&volume.fetching(None, ahead)),
            None => read(&ReadAhead { glyphs: &self.glyphs, ahead }),
        }
    }
}

/// What is in the store, and what others have.
struct OnDemand {
    store: Arc<GlyphStore>,
    /// As long as there is no volume that does it better.
    ask: RwLock<Option<AskAnytime>>,
    /// The nodes below those inner ones that were read last: who reads one of them will read the next ones.
    siblings: Mutex<VecDeque<Vec<GlyphId>>>,
}

impl GlyphSource for OnDemand {
    fn read(&self, kind: GlyphKind, id: &GlyphId) -> std::result::Result<Bytes, StoreError> {
        let plain = self.read_with(kind, id, || self.next_siblings(kind, id))?;
        if kind == GlyphKind::Node
            && let Ok(node) = Node::decode(id, plain.clone())
            && node.level() > 0
        {
            let mut siblings = self.siblings.lock();
            siblings.truncate(INNER_NODES_MAX - 1);
            siblings.push_front(node.children().filter_map(|child| child.id).collect());
        }
        Ok(plain)
    }
}

impl OnDemand {
    /// What is not here of the nodes that follow this one.
    fn next_siblings(&self, kind: GlyphKind, id: &GlyphId) -> Vec<GlyphId> {
        let siblings = self.siblings.lock();
        let after = |all: &Vec<GlyphId>| Some(all[all.iter().position(|sibling| sibling == id)? + 1..].to_vec());
        let next = siblings.iter().find_map(after).unwrap_or_default();
        let is_missing = |id: &GlyphId| matches!(self.store.contains(kind, id), Ok(false));
        next.into_iter().filter(is_missing).take(SIBLINGS_MAX).collect()
    }

    /// With what is missing, others come along.
    fn read_with(
        &self,
        kind: GlyphKind,
        id: &GlyphId,
        along: impl FnOnce() -> Vec<GlyphId>,
    ) -> std::result::Result<Bytes, StoreError> {
        let missing = match self.store.read(kind, id) {
            Err(error) if lacking(&error).is_some() => error,
            read => return read,
        };
        let Some(ask) = self.ask.read().clone() else { return Err(missing) };
        let ids: Vec<GlyphId> = std::iter::once(*id).chain(along()).collect();
        let sent = match ask(kind, &ids) {
            Ok(sent) => sent,
            Err(error) => {
                tracing::warn!(glyph = %id, %error, "what is looked at cannot be had yet");
                return Err(missing);
            }
        };
        let mut found = None;
        for (sent, bytes) in sent.into_iter().filter(|(sent, _)| ids.contains(sent)) {
            match take(&self.store, kind, sent, &bytes) {
                Err(StoreError::Malformed { what, .. }) => tracing::warn!(what, "another machine has sent wrong bytes"),
                // Without room it is read all the same.
                Err(_) if sent == *id => found = StoredGlyph::decode(sent, &bytes).ok().and_then(|glyph| glyph.plain()),
                Ok(_) | Err(_) => {}
            }
        }
        found.map_or_else(|| self.store.read(kind, id), Ok)
    }
}

/// Of a file that is read, what follows comes along.
struct ReadAhead<'a> {
    glyphs: &'a OnDemand,
    ahead: Ahead,
}

impl GlyphSource for ReadAhead<'_> {
    fn read(&self, kind: GlyphKind, id: &GlyphId) -> std::result::Result<Bytes, StoreError> {
        let store = &self.glyphs.store;
        self.glyphs.read_with(kind, id, || missing_ahead(store, &**store, *id, self.ahead))
    }
}

impl Volume for Preview {
    fn lookup(&self, _: &Caller, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.attr_in(self.dir(parent)?, name)
    }

    fn forget(&self, _: Ino) {}

    fn getattr(&self, ino: Ino, _: Option<Handle>) -> Result<Attr> {
        self.attr_of(self.inode(ino)?)
    }

    fn setattr(&self, _: &Caller, _: Ino, _: &SetAttr) -> Result<Attr> {
        Err(VolumeError::ReadOnly)
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        target_of(&self.tables, self.inode(ino)?)
    }

    fn make(&self, _: &Caller, _: Ino, _: &[u8], _: &NewNode<'_>) -> Result<Attr> {
        Err(VolumeError::ReadOnly)
    }

    fn create(&self, _: &Caller, _: Ino, _: &[u8], _: &NewNode<'_>, _: &OpenHow) -> Result<(Attr, Opened)> {
        Err(VolumeError::ReadOnly)
    }

    fn link(&self, _: Ino, _: Ino, _: &[u8]) -> Result<Attr> {
        Err(VolumeError::ReadOnly)
    }

    fn unlink(&self, _: Ino, _: &[u8]) -> Result<()> {
        Err(VolumeError::ReadOnly)
    }

    fn rmdir(&self, _: Ino, _: &[u8]) -> Result<()> {
        Err(VolumeError::ReadOnly)
    }

    fn rename(&self, _: Ino, _: &[u8], _: Ino, _: &[u8], _: RenameMode) -> Result<()> {
        Err(VolumeError::ReadOnly)
    }

    fn open(&self, _: &Caller, ino: Ino, how: &OpenHow) -> Result<Opened> {
        if how.write || how.truncate {
            return Err(VolumeError::ReadOnly);
        }
        let reader = tree::open(&self.tables, self.inode(ino)?)?;
        let handle = Handle(self.next_handle.fetch_add(1, Ordering::Relaxed));
        self.readers.lock().insert(handle.0, Arc::new(Mutex::new(reader)));
        let path = if how.direct { Path::Direct } else { Path::Cached { keep_cache: true } };
        Ok(Opened { handle, path })
    }

    fn open_may_wait(&self, _: Ino, _: &OpenHow) -> bool {
        true
    }

    fn refuse_passthrough(&self, _: Handle) -> bool {
        true
    }

    fn read(&self, _: Ino, handle: Handle, offset: u64, len: u32) -> Result<Vec<u8>> {
        let reader = self.reader(handle)?;
        let mut reader = reader.lock();
        let content = *reader.content();
        let left = content.len_bytes().saturating_sub(offset);
        let mut buf = vec![0; u64::from(len).min(left) as usize];
        let got = self.having(Some((content, offset)), |glyphs| Ok(reader.read_at(glyphs, &mut buf, offset)?))?;
        buf.truncate(got);
        Ok(buf)
    }

    fn read_now(&self, _: Handle, _: u64, _: u32) -> Option<Vec<u8>> {
        None
    }

    fn write(&self, _: &Caller, _: Ino, _: Handle, _: u64, _: &[u8], _: bool) -> Result<u32> {
        Err(VolumeError::ReadOnly)
    }

    fn write_now(&self, _: Handle, _: u64, _: &[u8]) -> Option<u32> {
        None
    }

    fn flush(&self, _: Ino, _: Handle) -> Result<()> {
        Ok(())
    }

    fn release(&self, _: Ino, handle: Handle) {
        self.readers.lock().remove(&handle.0);
    }

    fn fsync(&self, _: Ino, _: Option<Handle>, _: bool) -> Result<()> {
        Ok(())
    }

    fn record_now(&self, _: Ino) -> bool {
        true
    }

    fn commit(&self) -> Result<()> {
        Ok(())
    }

    fn fallocate(&self, _: &Caller, _: Ino, _: Handle, _: u64, _: u64, _: Allocate) -> Result<()> {
        Err(VolumeError::ReadOnly)
    }

    fn seek(&self, _: Ino, handle: Handle, offset: u64, seek: Seek) -> Result<u64> {
        let reader = self.reader(handle)?;
        let mut reader = reader.lock();
        if offset >= reader.content().len_bytes() {
            return Err(VolumeError::NoData);
        }
        self.having(None, |glyphs| match seek {
            Seek::Data => reader.seek_data(glyphs, offset)?.ok_or(VolumeError::NoData),
            Seek::Hole => Ok(reader.seek_hole(glyphs, offset)?),
        })
    }

    fn copy_range(&self, _: &Caller, _: (Ino, Handle, u64), _: (Ino, Handle, u64), _: u64) -> Result<u64> {
        Err(VolumeError::ReadOnly)
    }

    fn readdir(&self, ino: Ino, after: u64, each: &mut dyn FnMut(&Entry) -> bool) -> Result<()> {
        let dir = self.dir(ino)?;
        let each = &mut |name: &[u8], attr, next| each(&Entry { name: name.to_vec(), attr, next });
        let (above, look) = (&mut |name: &[u8]| self.attr_in(dir, name), &mut |child| self.attr_of_child(child));
        tree::list(&self.tables, dir, after, above, look, each)
    }

    fn readdir_names(&self, ino: Ino, after: u64, each: &mut dyn FnMut(&Named<'_>) -> bool) -> Result<()> {
        let dir = self.dir(ino)?;
        let each = &mut |name: &[u8], (ino, kind), next| each(&Named { name, ino, kind, next });
        let above = &mut |name: &[u8]| self.attr_in(dir, name).map(|attr| (attr.ino, attr.kind));
        let look = &mut |child: Child| Ok((self.ino(child.inode())?, child.kind()));
        tree::list(&self.tables, dir, after, above, look, each)
    }

    fn statfs(&self) -> Result<StatFs> {
        let inodes = self.tables.roots().get(TableId(Table::Inodes as u8)).rows;
        stat_fs(&*self.disk, self.glyphs.store.reserve_bytes(), inodes)
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        xattr_of(&self.tables, self.inode(ino)?, name)
    }

    fn setxattr(&self, _: &Caller, _: Ino, _: &[u8], _: &[u8], _: XattrMode) -> Result<()> {
        Err(VolumeError::ReadOnly)
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        xattrs_of(&self.tables, self.inode(ino)?)
    }

    fn removexattr(&self, _: &Caller, _: Ino, _: &[u8]) -> Result<()> {
        Err(VolumeError::ReadOnly)
    }
}
