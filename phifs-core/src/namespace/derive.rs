//! What follows from the replicated rows and is kept beside them: the child index, directory positions, link counts.
//!
//! Each function here changes the derived tables for one change of a replicated row. `recompute` builds them from
//! nothing; the two must agree, and `phifs fsck` and the tests compare them.
//!
//! - A directory's position is the fold of all moves in (clock, author) order, skipping one that would close a cycle
//!   (Kleppmann, Mulligan, Gomes, Beresford, "A highly-available move operation for replicated trees", TPDS 2021).
//! - A directory is shown while it is alive or has a shown child.
//! - A file's links are those with a place.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bytes::Bytes;

use crate::codec::{DecodeError, Encode, Reader, Result as Decoded};
use crate::id::{AuthorId, DirId, Dot, InodeId, LinkId};
use crate::store::StoreError;
use crate::time::Hlc;
use crate::volume::FileKind;

use super::op::MoveId;
use super::row::{InodeRow, LinkRow, Place, kind_from_byte, kind_to_byte};
use super::tables::{DERIVED, Rows, Table, Tables, malformed, move_key, suffixed_key};

type Result<T> = std::result::Result<T, StoreError>;

/// Where a directory is and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirRow {
    pub parent: DirId,
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
    /// The meaning that is shown: a directory before a file, then the oldest directory or the youngest link.
    pub fn shown(&self) -> Option<Child> {
        match self.0.first()? {
            dir @ Child::Dir(_) => Some(*dir),
            Child::Link { .. } => self.0.last().copied(),
        }
    }

    pub fn all(&self) -> &[Child] {
        &self.0
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(28);
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
        let mut children = Vec::new();
        while !reader.is_empty() {
            let tag = reader.u8()?;
            let dot = reader.dot()?;
            children.push(match tag & 0xf {
                1 => Child::Dir(DirId(dot)),
                2 => Child::Link { link: LinkId(dot), inode: InodeId(dot), kind: kind_from_byte(tag >> 4)? },
                3 => Child::Link { link: LinkId(dot), inode: InodeId(reader.dot()?), kind: kind_from_byte(tag >> 4)? },
                value => return Err(DecodeError::Unknown { what: "a kind of child", value: u64::from(value) }),
            });
        }
        Ok(Self(children))
    }

    /// Whether this changed anything.
    fn set(&mut self, child: Child, present: bool) -> bool {
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
        Self { parent: DirId::ROOT, name: Vec::new(), entries: 0, subdirs: 0, shown: true, moves: Vec::new() }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        out.put_u8(u8::from(self.shown));
        out.put_dot(self.parent.0);
        out.put_blob(&self.name);
        out.put_varint(self.entries);
        out.put_varint(self.subdirs);
        for id in &self.moves {
            out.put_u64(id.hlc.0);
            out.put_bytes(&id.author.0);
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut reader = Reader::new(bytes);
        let shown = reader.u8()? == 1;
        let parent = DirId(reader.dot()?);
        let name = reader.blob()?.to_vec();
        let entries = reader.varint()?;
        let subdirs = reader.varint()?;
        let mut moves = Vec::new();
        while !reader.is_empty() {
            moves.push(MoveId { hlc: Hlc(reader.u64()?), author: AuthorId(reader.array()?) });
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

pub fn encode_links(links: &BTreeSet<LinkId>) -> Vec<u8> {
    let mut out = Vec::new();
    links.iter().for_each(|link| out.put_dot(link.0));
    out
}

/// The live links of an inode.
pub fn links_of<T: Tables + ?Sized>(tables: &T, inode: InodeId) -> Result<BTreeSet<LinkId>> {
    let key = inode.0.to_bytes();
    let Some(bytes) = tables.get(Table::LinksOf, &key)? else {
        return Ok(BTreeSet::from([LinkId(inode.0)]));
    };
    let mut reader = Reader::new(&bytes);
    let mut links = BTreeSet::new();
    while !reader.is_empty() {
        links.insert(LinkId(reader.dot().map_err(|e| malformed("links", &key, e))?));
    }
    Ok(links)
}

/// A link row became another one (or came, or went).
pub fn link_changed<T: Tables + ?Sized>(
    tables: &mut T,
    id: LinkId,
    before: Option<&LinkRow>,
    after: Option<&LinkRow>,
) -> Result<()> {
    let (old, new) = (before.and_then(LinkRow::place), after.and_then(LinkRow::place));
    let Some(row) = after.or(before) else { return Ok(()) };
    let child = Child::Link { link: id, inode: row.inode, kind: row.kind };
    let spot = |place: Option<&Place>| place.map(|place| (place.parent, place.name.clone()));
    let (old, new) = (spot(old), spot(new));
    if old == new {
        return Ok(());
    }
    // The new place first: a directory that loses its last child for a moment would be hidden and shown again.
    if let Some((parent, name)) = &new {
        set_child(tables, *parent, name, child, true)?;
    }
    if let Some((parent, name)) = &old {
        set_child(tables, *parent, name, child, false)?;
    }
    if old.is_some() != new.is_some() {
        let key = row.inode.0.to_bytes();
        // An inode seen for the first time has no row here, which would mean "its own link": right only if so.
        let fresh = old.is_none() && id.0 == row.inode.0 && tables.get(Table::LinksOf, &key)?.is_none();
        if !fresh {
            let mut links = links_of(tables, row.inode)?;
            if new.is_some() {
                links.insert(id)
            } else {
                links.remove(&id)
            };
            if links.len() == 1 && links.contains(&LinkId(row.inode.0)) {
                tables.delete(Table::LinksOf, &key);
            } else {
                tables.put(Table::LinksOf, &key, &encode_links(&links));
            }
        }
    }
    Ok(())
}

/// The link count row of an inode that is forgotten for good.
pub fn inode_purged<T: Tables + ?Sized>(tables: &mut T, inode: InodeId) {
    tables.delete(Table::LinksOf, &inode.0.to_bytes());
}

fn set_child<T: Tables + ?Sized>(tables: &mut T, dir: DirId, name: &[u8], child: Child, present: bool) -> Result<()> {
    let key = child_key(dir, name);
    let mut children = tables.children(&key)?;
    if !children.set(child, present) {
        return Ok(());
    }
    if children.all().is_empty() {
        tables.delete(Table::Children, &key);
    } else {
        tables.put(Table::Children, &key, &children.encode());
    }
    let mut row = dir_row(tables, dir)?;
    let is_dir = u64::from(matches!(child, Child::Dir(_)));
    if present {
        row.entries += 1;
        row.subdirs += is_dir;
    } else {
        row.entries -= 1;
        row.subdirs -= is_dir;
    }
    tables.put(Table::Dirs, &dir.0.to_bytes(), &row.encode());
    // Only the first and the last child can change whether the directory itself is shown.
    if row.entries == u64::from(present) { show(tables, dir) } else { Ok(()) }
}

/// Makes a directory appear in, or vanish from, its parent as its state demands, and so on upwards.
pub fn show<T: Tables + ?Sized>(tables: &mut T, dir: DirId) -> Result<()> {
    if dir == DirId::ROOT {
        return Ok(());
    }
    let mut row = dir_row(tables, dir)?;
    let alive = tables.inode(dir.inode())?.is_some_and(|inode| !inode.alive.is_empty());
    let wanted = alive || row.entries > 0;
    if wanted == row.shown {
        return Ok(());
    }
    row.shown = wanted;
    tables.put(Table::Dirs, &dir.0.to_bytes(), &row.encode());
    set_child(tables, row.parent, &row.name, Child::Dir(dir), wanted)
}

/// The alive dots of a directory changed.
pub fn alive_changed<T: Tables + ?Sized>(tables: &mut T, dir: DirId) -> Result<()> {
    if tables.dir(dir)?.is_some() { show(tables, dir) } else { Ok(()) }
}

/// A move was added to the table of moves.
pub fn move_added<T: Tables + ?Sized>(
    tables: &mut T,
    id: MoveId,
    dir: DirId,
    parent: DirId,
    name: &[u8],
) -> Result<()> {
    let mut row = tables.dir(dir)?.unwrap_or_else(|| DirRow {
        parent: DirId::ROOT,
        name: Vec::new(),
        entries: 0,
        subdirs: 0,
        shown: false,
        moves: Vec::new(),
    });
    let first = row.moves.is_empty();
    if let Err(at) = row.moves.binary_search(&id) {
        row.moves.insert(at, id);
    }
    tables.put(Table::Dirs, &dir.0.to_bytes(), &row.encode());
    if !is_last_move(tables, id, dir)? {
        return refold(tables);
    }
    if first {
        row.parent = parent;
        row.name = name.to_vec();
        tables.put(Table::Dirs, &dir.0.to_bytes(), &row.encode());
        return show(tables, dir);
    }
    if !is_inside(tables, parent, dir)? {
        reposition(tables, &BTreeMap::from([(dir, (parent, name.to_vec()))]))?;
    }
    Ok(())
}

/// Moves that everybody has seen were dropped from the table.
pub fn moves_folded<T: Tables + ?Sized>(tables: &mut T, dir: DirId, folds: &[MoveId]) -> Result<()> {
    if let Some(mut row) = tables.dir(dir)? {
        row.moves.retain(|id| !folds.contains(id));
        if row.moves.is_empty() {
            tables.delete(Table::Dirs, &dir.0.to_bytes());
        } else {
            tables.put(Table::Dirs, &dir.0.to_bytes(), &row.encode());
        }
    }
    Ok(())
}

/// Whether `dir` is `ancestor` or below it.
pub fn is_inside<T: Tables + ?Sized>(tables: &T, mut dir: DirId, ancestor: DirId) -> Result<bool> {
    while dir != ancestor {
        if dir == DirId::ROOT {
            return Ok(false);
        }
        dir = dir_row(tables, dir)?.parent;
    }
    Ok(true)
}

fn dir_row<T: Tables + ?Sized>(tables: &T, dir: DirId) -> Result<DirRow> {
    if let Some(row) = tables.dir(dir)? {
        return Ok(row);
    }
    if dir == DirId::ROOT {
        return Ok(DirRow::root());
    }
    Err(malformed("directory", &dir.0.to_bytes(), DecodeError::Truncated))
}

fn is_last_move<T: Tables + ?Sized>(tables: &T, id: MoveId, dir: DirId) -> Result<bool> {
    let mut after = move_key(id.hlc, id.author, dir);
    after.push(0);
    let mut last = true;
    tables.scan(Table::Moves, &after, &mut |_, _| {
        last = false;
        ControlFlow::Break(())
    })?;
    Ok(last)
}

/// The position of every directory, from all moves in order.
fn fold<T: Tables + ?Sized>(tables: &T) -> Result<BTreeMap<DirId, (DirId, Vec<u8>)>> {
    let mut positions: BTreeMap<DirId, (DirId, Vec<u8>)> = BTreeMap::new();
    for (key, value) in tables.with_prefix(Table::Moves, &[])? {
        let (_, dir, _, parent, name) = decode_move(&key, &value)?;
        let mut above = parent;
        while above != dir && above != DirId::ROOT {
            match positions.get(&above) {
                Some((next, _)) => above = *next,
                None => break,
            }
        }
        if above != dir {
            positions.insert(dir, (parent, name));
        }
    }
    Ok(positions)
}

/// Folds all moves again after one arrived that is not the latest.
pub fn refold<T: Tables + ?Sized>(tables: &mut T) -> Result<()> {
    let mut changed = BTreeMap::new();
    for (dir, (parent, name)) in fold(tables)? {
        let row = dir_row(tables, dir)?;
        if (row.parent, &row.name) != (parent, &name) {
            changed.insert(dir, (parent, name));
        }
    }
    reposition(tables, &changed)
}

/// Takes directories out of their places, then puts them where they belong, so that no order of steps matters.
fn reposition<T: Tables + ?Sized>(tables: &mut T, positions: &BTreeMap<DirId, (DirId, Vec<u8>)>) -> Result<()> {
    let mut old_parents = Vec::new();
    for (dir, (parent, name)) in positions {
        let mut row = dir_row(tables, *dir)?;
        let shown = row.shown;
        if shown {
            // The parent may be hidden by losing this child; it is looked at again at the end.
            unlist(tables, row.parent, &row.name, Child::Dir(*dir))?;
            old_parents.push(row.parent);
        }
        row = dir_row(tables, *dir)?;
        row.parent = *parent;
        row.name.clone_from(name);
        row.shown = false;
        tables.put(Table::Dirs, &dir.0.to_bytes(), &row.encode());
    }
    for dir in positions.keys() {
        show(tables, *dir)?;
    }
    old_parents.into_iter().try_for_each(|dir| show(tables, dir))
}

/// Removes a child without looking at what that means for the directory's own visibility.
fn unlist<T: Tables + ?Sized>(tables: &mut T, dir: DirId, name: &[u8], child: Child) -> Result<()> {
    let key = child_key(dir, name);
    let mut children = tables.children(&key)?;
    if children.set(child, false) {
        if children.all().is_empty() {
            tables.delete(Table::Children, &key);
        } else {
            tables.put(Table::Children, &key, &children.encode());
        }
        let mut row = dir_row(tables, dir)?;
        row.entries -= 1;
        row.subdirs -= u64::from(matches!(child, Child::Dir(_)));
        tables.put(Table::Dirs, &dir.0.to_bytes(), &row.encode());
    }
    Ok(())
}

/// A row of the moves table: id, directory, number of the operation, new parent, new name.
pub fn decode_move(key: &[u8], value: &[u8]) -> Result<(MoveId, DirId, Dot, DirId, Vec<u8>)> {
    let decode = || {
        let mut reader = Reader::new(key);
        let hlc = Hlc(u64::from_be_bytes(reader.array()?));
        let author = AuthorId(reader.array()?);
        let dir = DirId(Dot::from_bytes(&reader.array()?));
        reader.finish()?;
        let mut reader = Reader::new(value);
        let dot = Dot { author, n: reader.varint()? };
        let parent = DirId(reader.dot()?);
        let name = reader.blob()?.to_vec();
        reader.finish()?;
        Ok((MoveId { hlc, author }, dir, dot, parent, name))
    };
    decode().map_err(|e| malformed("move", key, e))
}

pub fn encode_move(dot: Dot, parent: DirId, name: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_varint(dot.n);
    out.put_dot(parent.0);
    out.put_blob(name);
    out
}

/// Rows of the derived tables, by table and key.
pub type DerivedRows = BTreeMap<(Table, Vec<u8>), Bytes>;

/// The derived tables as they are kept.
pub fn kept<T: Tables + ?Sized>(tables: &T) -> Result<DerivedRows> {
    let mut rows = BTreeMap::new();
    for table in DERIVED {
        for (key, value) in tables.with_prefix(table, &[])? {
            rows.insert((table, key), value);
        }
    }
    Ok(rows)
}

/// The derived tables as they follow from the replicated ones.
pub fn recompute<T: Tables + ?Sized>(tables: &T) -> Result<DerivedRows> {
    let mut dirs: BTreeMap<DirId, DirRow> = BTreeMap::from([(DirId::ROOT, DirRow::root())]);
    for (dir, (parent, name)) in fold(tables)? {
        dirs.insert(dir, DirRow { parent, name, entries: 0, subdirs: 0, shown: false, moves: Vec::new() });
    }
    for (key, value) in tables.with_prefix(Table::Moves, &[])? {
        let (id, dir, ..) = decode_move(&key, &value)?;
        if let Some(row) = dirs.get_mut(&dir) {
            row.moves.push(id);
        }
    }
    let mut children: BTreeMap<(DirId, Vec<u8>), Children> = BTreeMap::new();
    let mut links: BTreeMap<InodeId, BTreeSet<LinkId>> = BTreeMap::new();
    let mut shown: Vec<DirId> = Vec::new();
    for (key, value) in tables.with_prefix(Table::Inodes, &[])? {
        let id = dot_of(&key)?;
        let row = InodeRow::decode(id, &value).map_err(|e| malformed("inode", &key, e))?;
        if row.kind() != FileKind::Directory {
            links.entry(InodeId(id)).or_default();
        } else if !row.alive.is_empty() {
            shown.push(DirId(id));
        }
    }
    for (key, value) in tables.with_prefix(Table::Links, &[])? {
        let id = LinkId(dot_of(&key)?);
        let row = LinkRow::decode(id.0, &value).map_err(|e| malformed("link", &key, e))?;
        if let Some(place) = row.place() {
            let child = Child::Link { link: id, inode: row.inode, kind: row.kind };
            children.entry((place.parent, place.name.clone())).or_default().set(child, true);
            links.entry(row.inode).or_default().insert(id);
            shown.push(place.parent);
        }
    }
    while let Some(dir) = shown.pop() {
        let Some(row) = dirs.get_mut(&dir).filter(|row| !row.shown) else { continue };
        row.shown = true;
        children.entry((row.parent, row.name.clone())).or_default().set(Child::Dir(dir), true);
        shown.push(row.parent);
    }
    for ((dir, _), row) in &children {
        if let Some(dir) = dirs.get_mut(dir) {
            dir.entries += row.all().len() as u64;
            dir.subdirs += row.all().iter().filter(|child| matches!(child, Child::Dir(_))).count() as u64;
        }
    }
    let mut rows = BTreeMap::new();
    for ((dir, name), row) in children {
        rows.insert((Table::Children, child_key(dir, &name)), row.encode().into());
    }
    for (dir, row) in dirs {
        rows.insert((Table::Dirs, dir.0.to_bytes().to_vec()), row.encode().into());
    }
    for (inode, links) in links {
        if links.len() != 1 || !links.contains(&LinkId(inode.0)) {
            rows.insert((Table::LinksOf, inode.0.to_bytes().to_vec()), encode_links(&links).into());
        }
    }
    Ok(rows)
}

/// Replaces the derived tables by what follows from the replicated ones.
pub fn rebuild<T: Tables + ?Sized>(tables: &mut T) -> Result<()> {
    let recomputed = recompute(tables)?;
    for (table, key) in kept(tables)?.into_keys().filter(|row| !recomputed.contains_key(row)) {
        tables.delete(table, &key);
    }
    recomputed.iter().for_each(|((table, key), value)| tables.put(*table, key, value));
    Ok(())
}

/// The names of rows in which two sets of derived tables differ: nothing when all is well.
pub fn differences(kept: &DerivedRows, recomputed: &DerivedRows) -> Vec<String> {
    let keys: BTreeSet<_> = kept.keys().chain(recomputed.keys()).collect();
    let differ = keys.into_iter().filter(|key| kept.get(*key) != recomputed.get(*key));
    differ.map(|(table, key)| format!("{table:?} {}", key.escape_ascii())).collect()
}

pub fn dot_of(key: &[u8]) -> Result<Dot> {
    let bytes = key.first_chunk::<24>().filter(|_| key.len() == Dot::LEN);
    bytes.map(Dot::from_bytes).ok_or_else(|| malformed("dot", key, DecodeError::Truncated))
}

/// The prefix of the keys of a directory's children.
pub fn children_from(dir: DirId, after: u64) -> Vec<u8> {
    suffixed_key(dir.0, &after.to_be_bytes())
}
