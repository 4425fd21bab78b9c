//! Union directories and names with several meanings, kept in step with the child index.
//!
//! Shown directories with one name in one union are one directory to everybody who looks: mkdir on two sides. What has
//! a name in it may lie in any of its members, so all of this is a matter of names within unions, not within
//! directories. Unions nest as directories do: when two become one, the directories in them that share a name do too.
//!
//! - `Table::Unions` holds the members of every union of two or more, under each of them.
//! - `Table::Conflicts` holds every child key whose name means more than one thing in its union (directories count as
//!   one), and every inode with more than one version.

use std::collections::BTreeSet;

use smallvec::{SmallVec, smallvec};

use crate::codec::{DecodeError, Encode, Reader};
use crate::id::{DirId, Dot, InodeId};
use crate::store::StoreError;
use crate::volume::FileKind;

use super::derive::{Child, Children, child_key, dot_of, name_in_rest, split_child_key};
use super::tables::{Rows, Table, Tables, TablesMut, malformed};
use super::view;

type Result<T> = std::result::Result<T, StoreError>;

const VERSION: u8 = 1;

/// The directories of a union, in order. The first is the canonical one: what is made in the union is made there.
pub type Members = SmallVec<[DirId; 1]>;

/// All directories that are one with this one, itself included; as a rule it is alone.
pub fn members<T: Tables + ?Sized>(tables: &T, dir: DirId) -> Result<Members> {
    let key = dir.0.to_bytes();
    match tables.get(Table::Unions, &key)? {
        None => Ok(smallvec![dir]),
        Some(bytes) => decode(&bytes).map_err(|e| malformed("union", &key, e)),
    }
}

/// All that a name means in a union.
pub fn meanings<T: Tables + ?Sized>(tables: &T, members: &[DirId], name: &[u8]) -> Result<Children> {
    let mut all = Children::default();
    for member in members {
        all.extend(&tables.children(&child_key(*member, name))?);
    }
    Ok(all)
}

pub(super) fn encode(members: &[DirId]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + members.len() * Dot::LEN);
    out.put_u8(VERSION);
    members.iter().for_each(|member| out.put_dot(member.0));
    out
}

fn decode(bytes: &[u8]) -> crate::codec::Result<Members> {
    let mut reader = Reader::new(bytes);
    reader.format("a union", VERSION)?;
    let mut members = Members::new();
    while !reader.is_empty() {
        let member = DirId(reader.dot()?);
        if members.last().is_some_and(|last| *last >= member) {
            return Err(DecodeError::NotCanonical("the order of members"));
        }
        members.push(member);
    }
    if members.len() < 2 { Err(DecodeError::NotCanonical("a union of one")) } else { Ok(members) }
}

/// A meaning of a name came or went; the name had `was` meanings in this directory and has `is`.
pub(super) fn meaning_changed<T: TablesMut + ?Sized>(
    tables: &mut T,
    dir: DirId,
    name: &[u8],
    child: Child,
    was: usize,
    is: usize,
) -> Result<()> {
    if let Child::Dir(moved) = child
        && is < was
    {
        let old = members(tables, moved)?;
        if old.len() > 1 {
            let rest = old.into_iter().filter(|member| *member != moved).collect();
            regroup(tables, vec![rest, smallvec![moved]])?;
        }
    }
    let union = members(tables, dir)?;
    if union.len() == 1 && was < 2 && is < 2 {
        return Ok(());
    }
    let dirs = review(tables, &union, name)?;
    if dirs.len() > 1 { regroup(tables, vec![dirs]) } else { Ok(()) }
}

/// Notes whether a name has several meanings. Returns the directories among them.
fn review<T: TablesMut + ?Sized>(tables: &mut T, union: &[DirId], name: &[u8]) -> Result<Members> {
    let mut all = Children::default();
    let mut holders: SmallVec<[(DirId, bool); 2]> = SmallVec::new();
    for member in union {
        let children = tables.children(&child_key(*member, name))?;
        holders.push((*member, !children.all().is_empty()));
        all.extend(&children);
    }
    let is_conflict = all.is_conflict();
    for (member, has) in holders {
        mark(tables, &child_key(member, name), is_conflict && has)?;
    }
    Ok(all.dirs().collect())
}

/// The names that a key of the table of conflicts is about, each with its directory: one, or all of an inode.
pub(super) fn disputed_names<T: Tables + ?Sized>(tables: &T, key: &[u8]) -> Result<Vec<(DirId, Vec<u8>)>> {
    if key.len() == Dot::LEN {
        return view::names_of(tables, InodeId(dot_of(key)?), FileKind::File);
    }
    let (dir, name) = split_child_key(key)?;
    Ok(vec![(dir, name.to_vec())])
}

/// Those names of a file that mean something else as well.
pub fn disputed_names_of<T: Tables + ?Sized>(tables: &T, file: InodeId) -> Result<Vec<(DirId, Vec<u8>)>> {
    let mut disputed = Vec::new();
    for (dir, name) in view::names_of(tables, file, FileKind::File)? {
        if tables.get(Table::Conflicts, &child_key(dir, &name))?.is_some() {
            disputed.push((dir, name));
        }
    }
    Ok(disputed)
}

/// Puts a key into the table of conflicts, or out of it.
fn mark<T: TablesMut + ?Sized>(tables: &mut T, key: &[u8], is_conflict: bool) -> Result<()> {
    match (tables.get(Table::Conflicts, key)?.is_some(), is_conflict) {
        (false, true) => tables.put(Table::Conflicts, key, &[]),
        (true, false) => tables.delete(Table::Conflicts, key),
        _ => {}
    }
    Ok(())
}

/// The number of versions of an inode changed.
pub(super) fn versions_changed<T: TablesMut + ?Sized>(
    tables: &mut T,
    inode: InodeId,
    was: usize,
    is: usize,
) -> Result<()> {
    if was < 2 && is < 2 { Ok(()) } else { mark(tables, &inode.0.to_bytes(), is > 1) }
}

/// Makes each of the parts a union, and looks at the names in them that may now mean something else. The parts hold
/// all directories that any of theirs was one with.
fn regroup<T: TablesMut + ?Sized>(tables: &mut T, parts: Vec<Members>) -> Result<()> {
    // Not by recursion: trees may be deeper than a thread's stack.
    let mut todo = vec![parts];
    while let Some(parts) = todo.pop() {
        let mut changed = false;
        for part in &parts {
            for dir in part {
                if members(tables, *dir)? != *part {
                    changed = true;
                    let key = dir.0.to_bytes();
                    if part.len() > 1 {
                        tables.put(Table::Unions, &key, &encode(part));
                    } else {
                        tables.delete(Table::Unions, &key);
                    }
                }
            }
        }
        if !changed {
            continue;
        }
        for name in shared_names(tables, &parts)? {
            let mut below = Vec::new();
            for part in &parts {
                let dirs = review(tables, part, &name)?;
                if !dirs.is_empty() {
                    below.push(dirs);
                }
            }
            if below.iter().map(SmallVec::len).sum::<usize>() > 1 {
                todo.push(below);
            }
        }
    }
    Ok(())
}

/// The names that may be in two of the directories: those of all but the fullest.
fn shared_names<T: Tables + ?Sized>(tables: &T, parts: &[Members]) -> Result<BTreeSet<Vec<u8>>> {
    let mut dirs = Vec::new();
    for dir in parts.iter().flatten() {
        dirs.push((tables.dir(*dir)?.map_or(0, |row| row.entries), *dir));
    }
    dirs.sort_unstable();
    dirs.pop();
    let mut names = BTreeSet::new();
    for (_, dir) in dirs.into_iter().filter(|(entries, _)| *entries > 0) {
        for (rest, _) in tables.with_prefix(Table::Children, &dir.0.to_bytes())? {
            names.extend(name_in_rest(&rest).map(<[u8]>::to_vec));
        }
    }
    Ok(names)
}
