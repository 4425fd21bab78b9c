//! `.phi`: what the filesystem says about itself. It resolves in every directory and is listed in none.
//!
//! | path | what | module |
//! | --- | --- | --- |
//! | `.phi/status.json` | how the volume is | |
//! | `.phi/snapshots/NAME/..` | the directory as it was when the snapshot was taken | `inside` |
//! | `.phi/conflicts/PATH/RANK~AUTHOR~TIME` | what a disputed name may mean | `conflicts` |
//! | `.phi/orphans/ID/..` | directories that are nowhere | `conflicts` |
//! | `.phi/versions/FILE/TIME` | the published versions of a file that are kept | `versions` |
//!
//! Nothing of it can be changed. The lists are made at the moment of asking, and the kernel keeps nothing of them; what
//! is inside a snapshot it keeps for as long as it likes. `nodes` says what the inode numbers stand for.

mod conflicts;
mod inside;
mod nodes;
mod versions;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use crate::content::Content;
use crate::content::reader::ContentReader;
use crate::id::DirId;
use crate::namespace::derive::name_hash;
use crate::namespace::row::Mode;
use crate::namespace::tables::Rows;
use crate::namespace::view::Stat;
use crate::volume::{
    Attr, Entry, FileKind, Handle, Ino, Named, OpenHow, Opened, Path, Result, Seek, Volume, VolumeError,
};

use super::LocalVolume;
use super::acl;
use super::attrs::{target_of, xattr_of, xattrs_of};
use super::names::{ABOVE, SELF};
use super::state::State;
use inside::View;
pub use nodes::Node;
use nodes::Nodes;

pub const NAME: &[u8] = b".phi";
const STATUS_NAME: &[u8] = b"status.json";
const SNAPSHOTS_NAME: &[u8] = b"snapshots";
const VERSIONS_NAME: &[u8] = b"versions";
const CONFLICTS_NAME: &[u8] = b"conflicts";
const ORPHANS_NAME: &[u8] = b"orphans";

/// What somebody has in use of it.
#[derive(Default)]
pub struct Reserved {
    nodes: Nodes,
    readers: Mutex<HashMap<u64, Arc<OpenReader>>>,
}

/// An open file in a snapshot, or an open version.
struct OpenReader {
    view: Option<Arc<View>>,
    reader: Mutex<ContentReader>,
}

impl OpenReader {
    fn read<T>(&self, read: impl FnOnce(&mut ContentReader) -> Result<T>) -> Result<T> {
        let mut reader = self.reader.lock();
        match &self.view {
            Some(view) => view.look(|_| read(&mut reader)),
            None => read(&mut reader),
        }
    }
}

/// One entry of a list, before it has a number.
enum Listed {
    Node(Node),
    /// A snapshot, entered from this directory.
    Snapshot(DirId),
    /// A directory of the volume itself.
    Real(DirId),
}

impl LocalVolume {
    pub(super) fn reserved_lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        if !parent.is_virtual() {
            let dir = DirId(self.state.read().inode_id(parent)?.0);
            return self.reserved_attr_of(Node::Phi(dir));
        }
        let node = self.reserved.nodes.get(parent)?;
        match (node, name) {
            (Node::Top { view, dir }, name) => return self.lookup_inside(view, dir.inode(), name),
            (Node::Inside { view, inode }, name) => return self.lookup_inside(view, inode, name),
            (Node::Status | Node::Version { .. }, _) => return Err(VolumeError::NotDirectory),
            (_, b".") => return self.reserved_attr_of(node),
            (_, b"..") => return self.attr_above(node),
            _ => {}
        }
        let found = match (node, name) {
            (Node::Phi(_), STATUS_NAME) => Node::Status,
            (Node::Phi(dir), SNAPSHOTS_NAME) => Node::Snapshots(dir),
            (Node::Phi(dir), VERSIONS_NAME) => Node::Versions(dir),
            (Node::Phi(dir), CONFLICTS_NAME) => Node::Conflicts { from: dir, dir },
            (Node::Phi(dir), ORPHANS_NAME) => Node::Orphans(dir),
            (Node::Conflicts { from, dir }, name) => self.conflicts_named(from, dir, name)?,
            (Node::Choices { link, .. }, name) => self.choice_named(link, name)?,
            (Node::Orphans(_), name) => return self.orphan_named(name),
            (Node::Snapshots(dir), name) => return self.enter_snapshot(dir, name),
            (Node::Versions(dir), name) => self.versions_named(dir, name)?,
            (Node::VersionsOf(link), name) => self.version_named(link, name)?,
            _ => return Err(VolumeError::NotFound),
        };
        self.reserved_attr_of(found)
    }

    pub(super) fn reserved_attr(&self, ino: Ino) -> Result<Attr> {
        self.attr_of_node(self.reserved.nodes.get(ino)?, || Ok(ino))
    }

    /// The attributes of a node that is handed out.
    fn reserved_attr_of(&self, node: Node) -> Result<Attr> {
        self.attr_of_node(node, || self.reserved.nodes.number(node))
    }

    /// The number is asked for last, as somebody has to forget it.
    fn attr_of_node(&self, node: Node, ino: impl FnOnce() -> Result<Ino>) -> Result<Attr> {
        match node {
            Node::Top { view, dir } => self.attr_inside(view, dir.inode(), ino),
            Node::Inside { view, inode } => self.attr_inside(view, inode, ino),
            Node::Version { inode, version } => self.attr_of_version(inode, version, ino),
            // Itself, and the four directories that are in it.
            Node::Phi(dir) => self.attr_of_list(&self.state.read(), dir, 6, ino),
            // One, for a number of subdirectories that is not known.
            Node::Snapshots(dir) | Node::Versions(dir) | Node::Conflicts { dir, .. } | Node::Orphans(dir) => {
                self.attr_of_list(&self.state.read(), dir, 1, ino)
            }
            Node::VersionsOf(link) | Node::Choices { link, .. } => {
                let state = self.state.read();
                let dir = versions::place_of(&state, link)?.parent;
                self.attr_of_list(&state, dir, 2, ino)
            }
            Node::Status => {
                let now = self.env.now();
                let size_bytes = self.status_json().len() as u64;
                Ok(Attr {
                    ino: ino()?,
                    kind: FileKind::File,
                    permissions: 0o444,
                    nlink: 1,
                    uid: 0,
                    gid: 0,
                    rdev: 0,
                    size_bytes,
                    blocks: 0,
                    atime: now,
                    mtime: now,
                    ctime: now,
                    btime: now,
                })
            }
        }
    }

    /// A directory that says something about another one. It tells nobody more than that does.
    fn attr_of_list(&self, state: &State, dir: DirId, nlink: u32, ino: impl FnOnce() -> Result<Ino>) -> Result<Attr> {
        let stat = Stat::of(&state.inode(dir.inode())?.ok_or(VolumeError::Stale)?);
        if stat.kind != FileKind::Directory {
            return Err(VolumeError::NotDirectory);
        }
        let now = self.env.now();
        Ok(Attr {
            ino: ino()?,
            kind: FileKind::Directory,
            permissions: read_only(&stat.mode),
            nlink,
            uid: stat.owner.uid,
            gid: stat.owner.gid,
            rdev: 0,
            size_bytes: 4096,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
        })
    }

    fn attr_above(&self, node: Node) -> Result<Attr> {
        match node {
            Node::Phi(dir) => {
                let ino = self.state.read().ino(dir.inode());
                self.getattr(ino, None)
            }
            Node::Snapshots(dir) | Node::Versions(dir) | Node::Orphans(dir) => self.reserved_attr_of(Node::Phi(dir)),
            Node::Conflicts { from, dir } if from == dir => self.reserved_attr_of(Node::Phi(from)),
            Node::Conflicts { from, dir } => {
                let dir = self.state.read().dir(dir)?.ok_or(VolumeError::Stale)?.parent;
                self.reserved_attr_of(Node::Conflicts { from, dir })
            }
            Node::Choices { from, link } => {
                let dir = versions::place_of(&self.state.read(), link)?.parent;
                self.reserved_attr_of(Node::Conflicts { from, dir })
            }
            Node::VersionsOf(link) => {
                let dir = versions::place_of(&self.state.read(), link)?.parent;
                self.reserved_attr_of(Node::Versions(dir))
            }
            Node::Top { .. } | Node::Inside { .. } | Node::Status | Node::Version { .. } => {
                Err(VolumeError::NotDirectory)
            }
        }
    }

    pub(super) fn reserved_list(&self, ino: Ino, after: u64, each: &mut dyn FnMut(&Entry) -> bool) -> Result<()> {
        let node = self.reserved.nodes.get(ino)?;
        let listed = match node {
            Node::Top { view, dir } => return self.list_inside(view, dir.inode(), after, each),
            Node::Inside { view, inode } => return self.list_inside(view, inode, after, each),
            Node::Status | Node::Version { .. } => return Err(VolumeError::NotDirectory),
            Node::Versions(dir) => return self.list_files(dir, after, each),
            Node::Conflicts { from, dir } => self.conflicts_in(from, dir)?,
            Node::Choices { link, .. } => self.choices_in(link)?,
            Node::Orphans(_) => self.orphans()?,
            Node::Phi(dir) => vec![
                (CONFLICTS_NAME.to_vec(), Listed::Node(Node::Conflicts { from: dir, dir })),
                (ORPHANS_NAME.to_vec(), Listed::Node(Node::Orphans(dir))),
                (SNAPSHOTS_NAME.to_vec(), Listed::Node(Node::Snapshots(dir))),
                (STATUS_NAME.to_vec(), Listed::Node(Node::Status)),
                (VERSIONS_NAME.to_vec(), Listed::Node(Node::Versions(dir))),
            ],
            Node::Snapshots(dir) => {
                let entries = self.registry.read().entries(crate::registry::Key::SNAPSHOTS)?;
                entries.into_iter().map(|(name, _)| (name, Listed::Snapshot(dir))).collect()
            }
            Node::VersionsOf(link) => self.versions_in(link)?,
        };
        let Some(after) = self.list_above(node, after, each)? else { return Ok(()) };
        // In the order of the hashes of their names, like any directory: the list may change while it is read.
        let mut listed: Vec<_> = listed.into_iter().map(|(name, what)| (name_hash(&name), name, what)).collect();
        listed.sort_by_key(|(hash, ..)| *hash);
        for (next, name, what) in listed.into_iter().filter(|(hash, ..)| *hash > after) {
            let attr = match what {
                Listed::Node(node) => self.reserved_attr_of(node),
                Listed::Snapshot(dir) => self.enter_snapshot(dir, &name),
                Listed::Real(dir) => self.attr(&self.state.read(), dir.inode()),
            };
            let attr = match attr {
                // It went while it was listed, or the snapshot does not have the directory.
                Err(VolumeError::NotFound | VolumeError::Stale) => continue,
                other => other?,
            };
            if !each(&Entry { name, attr, next }) {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn reserved_list_names(
        &self,
        ino: Ino,
        after: u64,
        each: &mut dyn FnMut(&Named<'_>) -> bool,
    ) -> Result<()> {
        match self.reserved.nodes.get(ino)? {
            Node::Top { view, dir } => self.list_names_inside(view, dir.inode(), after, each),
            Node::Inside { view, inode } => self.list_names_inside(view, inode, after, each),
            _ => self.reserved_list(ino, after, &mut |Entry { name, attr, next }| {
                each(&Named { name, ino: attr.ino, kind: attr.kind, next: *next })
            }),
        }
    }

    /// Lists "." and "..". Says behind what to go on, if there is room for more.
    fn list_above(&self, node: Node, after: u64, each: &mut dyn FnMut(&Entry) -> bool) -> Result<Option<u64>> {
        if after < SELF && !each(&Entry { name: b".".to_vec(), attr: self.reserved_attr_of(node)?, next: SELF }) {
            return Ok(None);
        }
        if after < ABOVE && !each(&Entry { name: b"..".to_vec(), attr: self.attr_above(node)?, next: ABOVE }) {
            return Ok(None);
        }
        Ok(Some(after.max(ABOVE)))
    }

    pub(super) fn reserved_open(&self, ino: Ino, how: &OpenHow) -> Result<Opened> {
        if how.write || how.truncate {
            return Err(VolumeError::ReadOnly);
        }
        let (view, reader) = match self.reserved.nodes.get(ino)? {
            Node::Status => return Ok(Opened { handle: self.new_handle(), path: Path::Direct }),
            Node::Inside { view, inode } => {
                let view = self.reserved.nodes.view(view)?;
                let reader = self.open_inside(&view, inode)?;
                (Some(view), reader)
            }
            Node::Version { inode, version } => (None, self.open_version(inode, version)?),
            _ => return Err(VolumeError::IsDirectory),
        };
        let handle = self.new_handle();
        let open = OpenReader { view, reader: Mutex::new(reader) };
        self.reserved.readers.lock().insert(handle.0, Arc::new(open));
        // Neither ever changes.
        let path = if how.direct { Path::Direct } else { Path::Cached { keep_cache: true } };
        Ok(Opened { handle, path })
    }

    fn new_handle(&self) -> Handle {
        Handle(self.next_handle.fetch_add(1, Ordering::Relaxed))
    }

    fn open_reader(&self, handle: Handle) -> Result<Arc<OpenReader>> {
        self.reserved.readers.lock().get(&handle.0).cloned().ok_or(VolumeError::BadHandle)
    }

    pub(super) fn reserved_read(&self, ino: Ino, handle: Handle, offset: u64, len: u32) -> Result<Vec<u8>> {
        if self.reserved.nodes.get(ino)? == Node::Status {
            let bytes = self.status_json().into_bytes();
            let from = bytes.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
            let to = bytes.len().min(from.saturating_add(len as usize));
            return Ok(bytes[from..to].to_vec());
        }
        self.open_reader(handle)?.read(|reader| {
            let left = reader.content().len_bytes().saturating_sub(offset);
            let mut buf = vec![0; u64::from(len).min(left) as usize];
            let glyphs = self.fetching(None, Some((*reader.content(), offset)));
            let got = reader.read_at(&glyphs, &mut buf, offset)?;
            buf.truncate(got);
            Ok(buf)
        })
    }

    pub(super) fn reserved_seek(&self, handle: Handle, offset: u64, seek: Seek) -> Result<u64> {
        self.open_reader(handle)?.read(|reader| {
            if offset >= reader.content().len_bytes() {
                return Err(VolumeError::NoData);
            }
            match seek {
                Seek::Data => reader.seek_data(&self.fetching(None, None), offset)?.ok_or(VolumeError::NoData),
                Seek::Hole => Ok(reader.seek_hole(&self.fetching(None, None), offset)?),
            }
        })
    }

    pub(super) fn reserved_release(&self, handle: Handle) {
        self.reserved.readers.lock().remove(&handle.0);
    }

    pub(super) fn reserved_forget(&self, ino: Ino) {
        self.reserved.nodes.forget(ino);
    }

    /// What is being read. It stays readable, even if it is a version that is not kept any longer.
    pub(super) fn contents_being_read(&self) -> Vec<Content> {
        let readers: Vec<_> = self.reserved.readers.lock().values().cloned().collect();
        readers.iter().map(|open| *open.reader.lock().content()).collect()
    }

    pub(super) fn reserved_link(&self, ino: Ino) -> Result<Vec<u8>> {
        match self.reserved.nodes.get(ino)? {
            Node::Inside { view, inode } => self.reserved.nodes.view(view)?.look(|tables| target_of(tables, inode)),
            _ => Err(VolumeError::Invalid("not a symlink")),
        }
    }

    pub(super) fn reserved_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let (view, inode) = match self.reserved.nodes.get(ino)? {
            Node::Top { view, dir } => (view, dir.inode()),
            Node::Inside { view, inode } => (view, inode),
            other if name == acl::ACCESS => return self.acl_of(other),
            _ => return Err(VolumeError::NoAttribute),
        };
        self.reserved.nodes.view(view)?.look(|tables| xattr_of(tables, inode, name))
    }

    /// The access ACL that goes with the mode of what is in no snapshot.
    fn acl_of(&self, node: Node) -> Result<Vec<u8>> {
        let state = self.state.read();
        let dir = match node {
            Node::Phi(dir) | Node::Snapshots(dir) | Node::Versions(dir) => dir,
            Node::Conflicts { dir, .. } | Node::Orphans(dir) => dir,
            Node::VersionsOf(link) | Node::Choices { link, .. } => versions::place_of(&state, link)?.parent,
            Node::Version { inode, version } => {
                let acl = self.kept_version(&state, inode, version)?.mode.acl;
                return if acl.is_empty() { Err(VolumeError::NoAttribute) } else { Ok(acl) };
            }
            Node::Status | Node::Top { .. } | Node::Inside { .. } => return Err(VolumeError::NoAttribute),
        };
        xattr_of(&*state, dir.inode(), acl::ACCESS)
    }

    pub(super) fn reserved_xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let (view, inode) = match self.reserved.nodes.get(ino)? {
            Node::Top { view, dir } => (view, dir.inode()),
            Node::Inside { view, inode } => (view, inode),
            _ => return Ok(Vec::new()),
        };
        self.reserved.nodes.view(view)?.look(|tables| xattrs_of(tables, inode))
    }

    /// After a change of the registry: whoever is in a snapshot that was deleted finds nothing more there.
    pub(super) fn leave_deleted_snapshots(&self) {
        for (id, view) in self.reserved.nodes.views() {
            let now = self.registry.read().snapshot(&view.name);
            // What cannot be told now is no reason to turn anybody out.
            let is_there = now.map_or(true, |now| now.is_some_and(|now| now.cut == view.cut));
            if is_there || !view.mark_gone() {
                continue;
            }
            if let Some(sink) = self.kernel() {
                self.reserved.nodes.within(id).into_iter().for_each(|ino| sink.inode(ino, true));
            }
        }
    }
}

/// The permissions of something, without those to change it.
fn read_only(mode: &Mode) -> u32 {
    u32::from(mode.permissions & 0o555)
}
