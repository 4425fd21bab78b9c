//! Reading the tables: what a name means and what an inode looks like.

use crate::id::{DirId, Dot, InodeId};
use crate::store::StoreError;
use crate::time::Timestamp;
use crate::volume::FileKind;

use super::derive::{self, Child, child_key};
use super::row::{InodeRow, Mode, Owner, Version};
use super::tables::{Rows, Table, Tables};

type Result<T> = std::result::Result<T, StoreError>;

/// What a name in a directory means.
pub fn child<T: Tables + ?Sized>(tables: &T, dir: DirId, name: &[u8]) -> Result<Option<Child>> {
    Ok(tables.children(&child_key(dir, name))?.shown())
}

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    Child(Child),
    Nothing,
    /// A name before the last one means no directory.
    NotDirectory,
}

/// Follows a path from the root. Symlinks are not followed; empty names and `.` are passed over.
pub fn follow<T: Tables + ?Sized>(tables: &T, path: &[u8]) -> Result<Reached> {
    let mut at = Child::Dir(DirId::ROOT);
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
        let Child::Dir(dir) = at else { return Ok(Reached::NotDirectory) };
        match child(tables, dir, name)? {
            Some(child) => at = child,
            None => return Ok(Reached::Nothing),
        }
    }
    Ok(Reached::Child(at))
}

/// Where a name leads to this from; nothing if none does.
pub fn place_of<T: Tables + ?Sized>(tables: &T, child: Child) -> Result<Option<(DirId, Vec<u8>)>> {
    Ok(match child {
        Child::Dir(dir) => tables.dir(dir)?.filter(|row| row.shown).and_then(|row| row.position()),
        Child::Link { link, .. } => {
            tables.link(link)?.and_then(|row| row.place().map(|place| (place.parent, place.name.clone())))
        }
    })
}

/// All names of an inode.
pub fn names_of<T: Tables + ?Sized>(tables: &T, inode: InodeId, kind: FileKind) -> Result<Vec<(DirId, Vec<u8>)>> {
    if kind == FileKind::Directory {
        return Ok(place_of(tables, Child::Dir(DirId(inode.0)))?.into_iter().collect());
    }
    let mut names = Vec::new();
    for link in derive::links_of(tables, inode)? {
        names.extend(place_of(tables, Child::Link { link, inode, kind })?);
    }
    Ok(names)
}

/// One name of a directory listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: Vec<u8>,
    pub hash: u64,
    pub child: Child,
}

/// Up to `limit` names of a directory, in the order of their hashes, beginning with the first whose hash is at least
/// `from`; one more than the limit where hashes are equal, so that a listing can resume behind a hash.
pub fn list<T: Tables + ?Sized>(tables: &T, dir: DirId, from: u64, limit: usize) -> Result<Vec<Listed>> {
    use std::ops::ControlFlow::{Break, Continue};
    let prefix = dir.0.to_bytes();
    let mut listed: Vec<Listed> = Vec::new();
    let mut damaged = None;
    tables.scan(Table::Children, &derive::children_from(dir, from), &mut |key, value| {
        let Some((hash, name)) = key.strip_prefix(&prefix[..]).and_then(|rest| rest.split_first_chunk::<8>()) else {
            return Break(());
        };
        let hash = u64::from_be_bytes(*hash);
        if listed.len() >= limit && listed.last().is_some_and(|last| last.hash != hash) {
            return Break(());
        }
        match derive::Children::decode(value) {
            Ok(children) => listed.extend(children.shown().map(|child| Listed { name: name.to_vec(), hash, child })),
            Err(e) => {
                damaged = Some(super::tables::malformed("child", key, e));
                return Break(());
            }
        }
        Continue(())
    })?;
    damaged.map_or(Ok(listed), Err)
}

/// What an inode looks like as far as the replicated tables know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    pub kind: FileKind,
    pub rdev: u32,
    pub target: Vec<u8>,
    pub mode: Mode,
    pub owner: Owner,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub btime: Timestamp,
    pub version: Option<(Dot, Version)>,
}

impl Stat {
    pub fn of(row: &InodeRow) -> Self {
        let birth = row.birth.latest().map(|entry| &entry.value);
        let version = row.versions.latest();
        // Written bytes and utimensat(2) both set the mtime; the later of them holds.
        let set = row.mtime.latest().map(|entry| (entry.hlc, entry.dot.author, entry.value));
        let written = version.map(|entry| (entry.hlc, entry.dot.author, entry.value.mtime));
        Self {
            kind: row.kind(),
            rdev: birth.map_or(0, |birth| birth.rdev),
            target: birth.map_or_else(Vec::new, |birth| birth.target.clone()),
            mode: mode_of(row),
            owner: row.owner.latest().map_or(Owner { uid: 0, gid: 0 }, |entry| entry.value),
            mtime: set.max(written).map_or_else(Timestamp::default, |(_, _, time)| time),
            ctime: row.touched.latest().map_or_else(Timestamp::default, |entry| entry.value),
            btime: birth.map_or_else(Timestamp::default, |birth| birth.time),
            version: version.map(|entry| (entry.dot, entry.value.clone())),
        }
    }
}

/// Concurrent modes grant to group and others only what all of them grant, and no set-id bit; the owner keeps the
/// latest.
fn mode_of(row: &InodeRow) -> Mode {
    let Some(latest) = row.mode.latest() else { return Mode { permissions: 0, acl: Vec::new() } };
    let mut mode = latest.value.clone();
    if row.mode.entries().len() > 1 {
        let all = row.mode.entries().iter().fold(0o077, |bits, entry| bits & entry.value.permissions);
        mode.permissions = mode.permissions & 0o1700 | all;
    }
    mode
}

/// The number of names an inode has; for a directory, 2 and one for each subdirectory.
pub fn nlink<T: Tables + ?Sized>(tables: &T, id: InodeId, kind: FileKind) -> Result<u32> {
    if kind == FileKind::Directory {
        let row = tables.dir(DirId(id.0))?;
        return Ok(row.map_or(0, |row| if row.shown { 2 + row.subdirs as u32 } else { 0 }));
    }
    Ok(derive::links_of(tables, id)?.len() as u32)
}

/// The same for the inode of a shown name: that it has this name is known.
pub fn nlink_of_child<T: Tables + ?Sized>(tables: &T, child: Child) -> Result<u32> {
    match child {
        Child::Dir(dir) => nlink(tables, dir.inode(), FileKind::Directory),
        Child::Link { inode, .. } => Ok(derive::stored_links(tables, inode)?.map_or(1, |links| links.len() as u32)),
    }
}
