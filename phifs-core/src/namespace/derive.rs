//! What follows from the replicated rows and is kept beside them: the child index, directory positions, link counts.
//!
//! Each function here changes the derived tables for one change of a replicated row; `position` does so for moves.
//! `recompute` builds them from nothing; the two must agree, and `phifs fsck` and the tests compare them.
//!
//! - A directory is shown while it is alive or has a shown child.
//! - A file's links are those with a place.
//! - A directory that something lies in but no move puts anywhere (its moves were dropped by somebody who did not know
//!   of that) keeps its children and is itself listed nowhere.

use std::collections::BTreeSet;

use crate::codec::{DecodeError, Encode, Reader, Result as Decoded};
use crate::id::{DirId, Dot, InodeId, LinkId};
use crate::store::StoreError;
use crate::time::Hlc;
use crate::volume::FileKind;

use super::op::MoveId;
use super::position::Position;
use super::row::{Place, get_link_kind, kind_to_byte};
use super::tables::{Rows, Table, Tables, TablesMut, malformed, suffixed_key};
use super::union;

pub use super::position::is_inside;
pub use super::recompute::{DerivedRows, differences, kept, rebuild, recompute};

type Result<T> = std::result::Result<T, StoreError>;

const VERSION: u8 = 1;

/// Where a directory is and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirRow {
    pub parent: DirId,
    /// Empty for the root, and for a directory that is nowhere.
    pub name: Vec<u8>,
    /// Shown children, directories included.
    pub entries: u64,
    pub subdirs: u64,
    pub shown: bool,
    /// All its moves, oldest first.
    pub moves: Vec<MoveId>,
}

/// One meaning of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Child {
    Dir(DirId),
    Link { link: LinkId, inode: InodeId, kind: FileKind },
}

impl Child {
    pub fn inode(self) -> InodeId {
        match self {
            Self::Dir(dir) => dir.inode(),
            Self::Link { inode, .. } => inode,
        }
    }

    pub fn kind(self) -> FileKind {
        match self {
            Self::Dir(_) => FileKind::Directory,
            Self::Link { kind, .. } => kind,
        }
    }
}

/// All meanings of one name, in order: one, unless concurrent operations gave it more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Children(Vec<Child>);

impl Children {
    /// The meaning that is shown: a directory before a file, then the directory with the smallest id or the link with
    /// the largest.
    pub fn shown(&self) -> Option<Child> {
        match self.0.first()? {
            dir @ Child::Dir(_) => Some(*dir),
            Child::Link { .. } => self.0.last().copied(),
        }
    }

    pub fn all(&self) -> &[Child] {
        &self.0
    }

    pub fn dirs(&self) -> impl Iterator<Item = DirId> + '_ {
        self.0.iter().map_while(|child| match child {
            Child::Dir(dir) => Some(*dir),
            Child::Link { .. } => None,
        })
    }

    pub fn links(&self) -> &[Child] {
        &self.0[self.dirs().count()..]
    }

    pub fn of_links(links: &[Child]) -> Self {
        Self(links.to_vec())
    }

    /// Whether the name means a file and something else; directories are united.
    pub fn is_conflict(&self) -> bool {
        let links = self.links().len();
        links > 1 || links == 1 && self.0.len() > 1
    }

    /// Adds the meanings that the name has in another member of the union.
    pub fn extend(&mut self, other: &Self) {
        for child in &other.0 {
            self.set(*child, true);
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(28);
        out.put_u8(VERSION);
        for child in &self.0 {
            match child {
                Child::Dir(dir) => {
                    out.put_u8(1);
                    out.put_dot(dir.0);
                }
                Child::Link { link, inode, kind } if link.0 == inode.0 => {
                    out.put_u8(2 | kind_to_byte(*kind) << 4);
                    out.put_dot(link.0);
                }
                Child::Link { link, inode, kind } => {
                    out.put_u8(3 | kind_to_byte(*kind) << 4);
                    out.put_dot(link.0);
                    out.put_dot(inode.0);
                }
            }
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut reader = Reader::new(bytes);
        reader.format("a directory entry", VERSION)?;
        let mut children: Vec<Child> = Vec::new();
        while !reader.is_empty() {
            let tag = reader.u8()?;
            let dot = reader.dot()?;
            let (link, inode) = (LinkId(dot), InodeId(dot));
            let child = match tag & 0xf {
                1 if tag == 1 => Child::Dir(DirId(dot)),
                2 => Child::Link { link, inode, kind: get_link_kind(tag >> 4)? },
                3 => Child::Link { link, inode: InodeId(reader.dot()?), kind: get_link_kind(tag >> 4)? },
                _ => return Err(DecodeError::Unknown { what: "a kind of child", value: u64::from(tag) }),
            };
            let ascends = children.last().is_none_or(|last| *last < child);
            if !ascends || tag & 0xf == 3 && child.inode() == inode {
                return Err(DecodeError::NotCanonical("a directory entry"));
            }
            children.push(child);
        }
        Ok(Self(children))
    }

    /// Whether this changed anything.
    pub(super) fn set(&mut self, child: Child, present: bool) -> bool {
        match (self.0.binary_search(&child), present) {
            (Err(at), true) => self.0.insert(at, child),
            (Ok(at), false) => drop(self.0.remove(at)),
            _ => return false,
        }
        true
    }
}

impl DirRow {
    pub fn root() -> Self {
        Self { shown: true, ..Self::nowhere() }
    }

    pub(super) fn nowhere() -> Self {
        Self { parent: DirId::ROOT, name: Vec::new(), entries: 0, subdirs: 0, shown: false, moves: Vec::new() }
    }

    /// Whether it is listed in its parent as long as it is shown.
    pub fn is_placed(&self) -> bool {
        !self.name.is_empty()
    }

    pub fn position(&self) -> Position {
        self.is_placed().then(|| (self.parent, self.name.clone()))
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(96);
        out.put_u8(VERSION);
        out.put_u8(u8::from(self.shown));
        out.put_dot(self.parent.0);
        out.put_blob(&self.name);
        out.put_varint(self.entries);
        out.put_varint(self.subdirs);
        for id in &self.moves {
            out.put_u64(id.hlc.0);
            out.put_dot(id.dot);
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut reader = Reader::new(bytes);
        reader.format("a directory", VERSION)?;
        let shown = match reader.u8()? {
            0 => false,
            1 => true,
            value => return Err(DecodeError::Unknown { what: "a flag", value: u64::from(value) }),
        };
        let parent = DirId(reader.dot()?);
        let name = reader.blob()?.to_vec();
        let entries = reader.varint()?;
        let subdirs = reader.varint()?;
        let mut moves: Vec<MoveId> = Vec::new();
        while !reader.is_empty() {
            let id = MoveId { hlc: Hlc(reader.u64()?), dot: reader.dot()? };
            if moves.last().is_some_and(|last| *last >= id) {
                return Err(DecodeError::NotCanonical("the order of moves"));
            }
            moves.push(id);
        }
        Ok(Self { parent, name, entries, subdirs, shown, moves })
    }
}

/// The place of a name in the order of its directory, and the cookie that resumes a listing there: 63 bits, never
/// one of the cookies of "." and "..".
pub fn name_hash(name: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(name).as_bytes()[..8]);
    (u64::from_be_bytes(first) >> 1).max(3)
}

pub fn child_key(dir: DirId, name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(Dot::LEN + 8 + name.len());
    key.extend_from_slice(&dir.0.to_bytes());
    key.extend_from_slice(&name_hash(name).to_be_bytes());
    key.extend_from_slice(name);
    key
}

/// The directory and the name of such a key.
pub fn split_child_key(key: &[u8]) -> Result<(DirId, &[u8])> {
    let dir = dot_of(key.get(..Dot::LEN).unwrap_or_default())?;
    Ok((DirId(dir), key.get(Dot::LEN..).and_then(name_in_rest).unwrap_or_default()))
}

/// The name in what follows the directory in such a key; nothing if the key is no such.
pub(super) fn name_in_rest(rest: &[u8]) -> Option<&[u8]> {
    const HASH_BYTES: usize = 8;
    rest.get(HASH_BYTES..)
}

pub(super) fn encode_links(links: &BTreeSet<LinkId>) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u8(VERSION);
    links.iter().for_each(|link| out.put_dot(link.0));
    out
}

fn decode_links(bytes: &[u8]) -> Decoded<BTreeSet<LinkId>> {
    let mut reader = Reader::new(bytes);
    reader.format("the links of an inode", VERSION)?;
    let mut links = BTreeSet::new();
    while !reader.is_empty() {
        let link = LinkId(reader.dot()?);
        if links.last().is_some_and(|last| *last >= link) {
            return Err(DecodeError::NotCanonical("the order of links"));
        }
        links.insert(link);
    }
    Ok(links)
}

/// The live links of an inode.
pub fn links_of<T: Tables + ?Sized>(tables: &T, inode: InodeId) -> Result<BTreeSet<LinkId>> {
    match stored_links(tables, inode)? {
        Some(links) => Ok(links),
        None => own_link(tables, inode),
    }
}

/// Unless the only one is the link of the same dot: that one is not stored.
pub(super) fn stored_links<T: Tables + ?Sized>(tables: &T, inode: InodeId) -> Result<Option<BTreeSet<LinkId>>> {
    let key = inode.0.to_bytes();
    let bytes = tables.get(Table::LinksOf, &key)?;
    bytes.map(|bytes| decode_links(&bytes).map_err(|e| malformed("links", &key, e))).transpose()
}

/// The link of the same dot, if it is alive.
fn own_link<T: Tables + ?Sized>(tables: &T, inode: InodeId) -> Result<BTreeSet<LinkId>> {
    let own = LinkId(inode.0);
    let row = tables.link(own)?;
    let is_alive = row.as_ref().and_then(|row| row.place()).is_some_and(|place| place.inode == inode);
    Ok(if is_alive { BTreeSet::from([own]) } else { BTreeSet::new() })
}

/// A link came to another place, or into being, or went.
pub(super) fn link_changed<T: TablesMut + ?Sized>(
    tables: &mut T,
    id: LinkId,
    before: Option<&Place>,
    after: Option<&Place>,
) -> Result<()> {
    let child = |place: &Place| Child::Link { link: id, inode: place.inode, kind: place.kind };
    let is_same = |a: &Place, b: &Place| (a.parent, &a.name, child(a)) == (b.parent, &b.name, child(b));
    match (before, after) {
        (None, None) => {}
        (Some(before), Some(after)) if is_same(before, after) => return Ok(()),
        // The new place first: a directory that loses its last child for a moment would be hidden and shown again.
        (Some(before), Some(after)) if before.parent == after.parent => {
            let added = put_child(tables, after.parent, &after.name, child(after), true)?;
            let removed = put_child(tables, before.parent, &before.name, child(before), false)?;
            if added != removed && count_child(tables, after.parent, child(after), added)? {
                show(tables, after.parent)?;
            }
        }
        _ => {
            if let Some(place) = after {
                set_child(tables, place.parent, &place.name, child(place), true)?;
            }
            if let Some(place) = before {
                set_child(tables, place.parent, &place.name, child(place), false)?;
            }
        }
    }
    let (was, is) = (before.map(|place| place.inode), after.map(|place| place.inode));
    if was == is {
        return Ok(());
    }
    if let Some(inode) = is {
        count_link(tables, inode, id, true)?;
    }
    if let Some(inode) = was {
        count_link(tables, inode, id, false)?;
    }
    Ok(())
}

/// An inode has a row here only while a link of another dot leads to it.
fn count_link<T: TablesMut + ?Sized>(tables: &mut T, inode: InodeId, id: LinkId, present: bool) -> Result<()> {
    let own = LinkId(inode.0);
    let mut links = match stored_links(tables, inode)? {
        Some(links) => links,
        None if id == own => return Ok(()),
        None => own_link(tables, inode)?,
    };
    if present {
        links.insert(id)
    } else {
        links.remove(&id)
    };
    let key = inode.0.to_bytes();
    if links.iter().all(|link| *link == own) {
        tables.delete(Table::LinksOf, &key);
    } else {
        tables.put(Table::LinksOf, &key, &encode_links(&links));
    }
    Ok(())
}

fn set_child<T: TablesMut + ?Sized>(
    tables: &mut T,
    dir: DirId,
    name: &[u8],
    child: Child,
    present: bool,
) -> Result<()> {
    if list(tables, dir, name, child, present)? { show(tables, dir) } else { Ok(()) }
}

/// Adds or removes a child without looking at what that means for the directory's own visibility. Says whether that
/// may have changed, as it does with the first and the last child only.
pub(super) fn list<T: TablesMut + ?Sized>(
    tables: &mut T,
    dir: DirId,
    name: &[u8],
    child: Child,
    present: bool,
) -> Result<bool> {
    Ok(put_child(tables, dir, name, child, present)? && count_child(tables, dir, child, present)?)
}

/// Adds a meaning to a name or removes it. Says whether that changed anything.
fn put_child<T: TablesMut + ?Sized>(
    tables: &mut T,
    dir: DirId,
    name: &[u8],
    child: Child,
    present: bool,
) -> Result<bool> {
    let key = child_key(dir, name);
    let mut children = tables.children(&key)?;
    let before = children.all().len();
    if !children.set(child, present) {
        return Ok(false);
    }
    if children.all().is_empty() {
        tables.delete(Table::Children, &key);
    } else {
        tables.put(Table::Children, &key, &children.encode());
    }
    union::meaning_changed(tables, dir, name, child, before, children.all().len())?;
    Ok(true)
}

/// Counts a child that came or went. Says whether it is the first or was the last.
fn count_child<T: TablesMut + ?Sized>(tables: &mut T, dir: DirId, child: Child, present: bool) -> Result<bool> {
    let mut row = dir_row(tables, dir)?;
    let is_dir = u64::from(matches!(child, Child::Dir(_)));
    let counts = if present {
        row.entries.checked_add(1).zip(row.subdirs.checked_add(is_dir))
    } else {
        row.entries.checked_sub(1).zip(row.subdirs.checked_sub(is_dir))
    };
    let wrong = || malformed("directory", &dir.0.to_bytes(), DecodeError::NotCanonical("the number of entries"));
    (row.entries, row.subdirs) = counts.ok_or_else(wrong)?;
    put_dir(tables, dir, &row);
    Ok(row.entries == u64::from(present))
}

/// Makes a directory appear in, or vanish from, its parent as its state demands, and so on upwards.
pub(super) fn show<T: TablesMut + ?Sized>(tables: &mut T, mut dir: DirId) -> Result<()> {
    while dir != DirId::ROOT {
        let mut row = dir_row(tables, dir)?;
        let shown = row.entries > 0 || tables.inode(dir.inode())?.is_some_and(|inode| !inode.alive.is_empty());
        if shown == row.shown {
            break;
        }
        row.shown = shown;
        put_dir(tables, dir, &row);
        if !row.is_placed() || !list(tables, row.parent, &row.name, Child::Dir(dir), shown)? {
            break;
        }
        dir = row.parent;
    }
    Ok(())
}

fn dir_row<T: Tables + ?Sized>(tables: &T, dir: DirId) -> Result<DirRow> {
    let missing = || if dir == DirId::ROOT { DirRow::root() } else { DirRow::nowhere() };
    Ok(tables.dir(dir)?.unwrap_or_else(missing))
}

/// Stores a directory's row; one that neither has a place nor contains anything is removed.
pub(super) fn put_dir<T: TablesMut + ?Sized>(tables: &mut T, dir: DirId, row: &DirRow) {
    let key = dir.0.to_bytes();
    if dir != DirId::ROOT && row.moves.is_empty() && row.entries == 0 && !row.is_placed() {
        tables.delete(Table::Dirs, &key);
    } else {
        tables.put(Table::Dirs, &key, &row.encode());
    }
}

pub fn dot_of(key: &[u8]) -> Result<Dot> {
    let bytes = key.first_chunk::<24>().filter(|_| key.len() == Dot::LEN);
    bytes.map(Dot::from_bytes).ok_or_else(|| malformed("dot", key, DecodeError::Truncated))
}

/// The prefix of the keys of a directory's children.
pub fn children_from(dir: DirId, after: u64) -> Vec<u8> {
    suffixed_key(dir.0, &after.to_be_bytes())
}
