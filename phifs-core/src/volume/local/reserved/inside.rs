//! Inside a snapshot: the tree as it was, read where it lies. Nothing of it is loaded before it is asked for.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::content::reader::ContentReader;
use crate::id::{DirId, InodeId};
use crate::meta::Frozen;
use crate::namespace::derive::Child;
use crate::namespace::tables::Rows;
use crate::namespace::view::{self, Stat};
use crate::registry::Cut;
use crate::store::StoreError;
use crate::volume::local::LocalVolume;
use crate::volume::local::attrs::attr_of_stat;
use crate::volume::local::tree;
use crate::volume::{Attr, Entry, Ino, Named, Result, VolumeError};

use super::nodes::{Node, ViewId};

/// A snapshot, entered from a directory.
pub struct View {
    pub name: String,
    pub cut: Cut,
    /// Where it was entered.
    pub dir: DirId,
    pub tables: Frozen,
    /// The snapshot was deleted. What is left of it can go at any moment.
    gone: AtomicBool,
}

impl View {
    pub fn new(name: String, cut: Cut, dir: DirId, tables: Frozen) -> Self {
        Self { name, cut, dir, tables, gone: AtomicBool::new(false) }
    }

    /// Says whether that is news.
    pub fn mark_gone(&self) -> bool {
        !self.gone.swap(true, Ordering::AcqRel)
    }

    /// Reads something of the snapshot, unless it was deleted; if it is while reading, what is missing is no damage.
    pub fn look<T>(&self, read: impl FnOnce(&Frozen) -> Result<T>) -> Result<T> {
        let is_gone = || self.gone.load(Ordering::Acquire);
        if is_gone() {
            return Err(VolumeError::Stale);
        }
        match read(&self.tables) {
            Err(VolumeError::Store(_)) if is_gone() => Err(VolumeError::Stale),
            found => found,
        }
    }

    fn node(&self, id: ViewId, inode: InodeId) -> Node {
        if inode == self.dir.inode() { Node::Top { view: id, dir: self.dir } } else { Node::Inside { view: id, inode } }
    }

    fn node_above(&self, id: ViewId, tables: &Frozen, dir: DirId) -> Result<Node> {
        if dir == self.dir {
            return Ok(Node::Snapshots(dir));
        }
        let row = tables.dir(dir)?.ok_or(VolumeError::NotDirectory)?;
        Ok(self.node(id, row.parent.inode()))
    }
}

/// A directory in a state, if that has it somewhere in its tree: its row, and how many links it has.
fn entered(tables: &Frozen, dir: DirId) -> Result<(Stat, u32)> {
    let is_in = dir == DirId::ROOT || tables.dir(dir)?.is_some_and(|row| row.shown && row.is_placed());
    if is_in { tree::looked_at(tables, dir.inode()) } else { Err(VolumeError::NotFound) }
}

impl LocalVolume {
    /// The directory through which a snapshot is entered from a directory of the volume.
    pub(super) fn enter_snapshot(&self, dir: DirId, name: &[u8]) -> Result<Attr> {
        let name = std::str::from_utf8(name).map_err(|_| VolumeError::NotFound)?;
        self.settle_cuts()?;
        let cut_now = || {
            let cut = self.registry.read().snapshot(name)?.map(|snapshot| snapshot.cut);
            Ok::<_, StoreError>(cut.filter(|cut| !cut.is_pending()))
        };
        let cut = cut_now()?.ok_or(VolumeError::NotFound)?;
        let tables = self.frozen(&cut);
        let (stat, nlink) = match entered(&tables, dir) {
            // It was deleted meanwhile.
            Err(_) if cut_now()?.as_ref() != Some(&cut) => return Err(VolumeError::NotFound),
            found => found?,
        };
        // Held until the number is known: whoever deletes the snapshot looks for those who are in it after that.
        let registry = self.registry.read();
        if registry.snapshot(name)?.is_none_or(|snapshot| snapshot.cut != cut) {
            return Err(VolumeError::NotFound);
        }
        let make = || View::new(name.to_owned(), cut.clone(), dir, tables);
        let ino = self.reserved.nodes.enter(name, &cut, dir, make)?;
        Ok(attr_of_stat(ino, &stat, nlink))
    }

    pub(super) fn lookup_inside(&self, id: ViewId, inode: InodeId, name: &[u8]) -> Result<Attr> {
        let view = self.reserved.nodes.view(id)?;
        view.look(|tables| match name {
            b"." => self.reserved_attr_of(view.node(id, inode)),
            b".." => self.reserved_attr_of(view.node_above(id, tables, DirId(inode.0))?),
            _ => {
                let child = view::child(tables, DirId(inode.0), name)?.ok_or(VolumeError::NotFound)?;
                self.attr_of_child_inside(id, tables, child)
            }
        })
    }

    fn attr_of_child_inside(&self, id: ViewId, tables: &Frozen, child: Child) -> Result<Attr> {
        let (stat, nlink) = tree::child_looked_at(tables, child)?;
        // The number comes last: somebody has to forget it.
        let ino = self.reserved.nodes.number(Node::Inside { view: id, inode: child.inode() })?;
        Ok(attr_of_stat(ino, &stat, nlink))
    }

    pub(super) fn attr_inside(&self, id: ViewId, inode: InodeId, ino: impl FnOnce() -> Result<Ino>) -> Result<Attr> {
        let view = self.reserved.nodes.view(id)?;
        let (stat, nlink) = view.look(|tables| tree::looked_at(tables, inode))?;
        Ok(attr_of_stat(ino()?, &stat, nlink))
    }

    pub(super) fn list_inside(
        &self,
        id: ViewId,
        inode: InodeId,
        after: u64,
        each: &mut dyn FnMut(&Entry) -> bool,
    ) -> Result<()> {
        let attr = &mut |tables: &Frozen, child| self.attr_of_child_inside(id, tables, child);
        let each = &mut |name: &[u8], attr, next| each(&Entry { name: name.to_vec(), attr, next });
        self.list_inside_as(id, inode, after, |attr| attr, attr, each)
    }

    /// Reads no inode but those of "." and "..".
    pub(super) fn list_names_inside(
        &self,
        id: ViewId,
        inode: InodeId,
        after: u64,
        each: &mut dyn FnMut(&Named<'_>) -> bool,
    ) -> Result<()> {
        let number = &mut |_: &Frozen, child: Child| {
            let ino = self.reserved.nodes.number(Node::Inside { view: id, inode: child.inode() })?;
            Ok((ino, child.kind()))
        };
        let each = &mut |name: &[u8], (ino, kind), next| each(&Named { name, ino, kind, next });
        self.list_inside_as(id, inode, after, |attr| (attr.ino, attr.kind), number, each)
    }

    fn list_inside_as<T>(
        &self,
        id: ViewId,
        inode: InodeId,
        after: u64,
        above: fn(Attr) -> T,
        look: &mut dyn FnMut(&Frozen, Child) -> Result<T>,
        each: &mut dyn FnMut(&[u8], T, u64) -> bool,
    ) -> Result<()> {
        self.reserved.nodes.view(id)?.look(|tables| {
            let above = &mut |name: &[u8]| Ok(above(self.lookup_inside(id, inode, name)?));
            tree::list(tables, DirId(inode.0), after, above, &mut |child| look(tables, child), each)
        })
    }

    /// A reader of the bytes of a file in a snapshot.
    pub(super) fn open_inside(&self, view: &View, inode: InodeId) -> Result<ContentReader> {
        view.look(|tables| tree::open(tables, inode))
    }
}
