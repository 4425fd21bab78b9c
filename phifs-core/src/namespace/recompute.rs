//! The derived tables from nothing: for `phifs fsck` and its repairs, and to hold the kept ones against.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::id::{DirId, InodeId, LinkId};
use crate::store::StoreError;

use super::derive::{Child, Children, DirRow, child_key, dot_of, encode_links};
use super::position;
use super::row::{InodeRow, LinkRow};
use super::tables::{DERIVED, Rows, Table, Tables, TablesMut, malformed};
use super::union;

type Result<T> = std::result::Result<T, StoreError>;

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
    let folded = position::fold(tables)?;
    let mut dirs: BTreeMap<DirId, DirRow> = BTreeMap::from([(DirId::ROOT, DirRow::root())]);
    for next in &folded.moves {
        dirs.entry(next.dir).or_insert_with(DirRow::nowhere).moves.push(next.id);
    }
    for (dir, (parent, name)) in folded.positions {
        let row = dirs.entry(dir).or_insert_with(DirRow::nowhere);
        (row.parent, row.name) = (parent, name);
    }
    let mut children: BTreeMap<(DirId, Vec<u8>), Children> = BTreeMap::new();
    let mut links: BTreeMap<InodeId, BTreeSet<LinkId>> = BTreeMap::new();
    let mut shown: Vec<DirId> = Vec::new();
    let mut conflicts: Vec<Vec<u8>> = Vec::new();
    for (key, value) in tables.with_prefix(Table::Inodes, &[])? {
        let id = dot_of(&key)?;
        let row = InodeRow::decode(id, &value).map_err(|e| malformed("inode", &key, e))?;
        if !row.alive.is_empty() && dirs.contains_key(&DirId(id)) {
            shown.push(DirId(id));
        }
        if row.versions.entries().len() > 1 {
            conflicts.push(key);
        }
    }
    for (key, value) in tables.with_prefix(Table::Links, &[])? {
        let id = LinkId(dot_of(&key)?);
        let row = LinkRow::decode(id.0, &value).map_err(|e| malformed("link", &key, e))?;
        if let Some(place) = row.place() {
            let child = Child::Link { link: id, inode: place.inode, kind: place.kind };
            children.entry((place.parent, place.name.clone())).or_default().set(child, true);
            links.entry(place.inode).or_default().insert(id);
            shown.push(place.parent);
        }
    }
    while let Some(dir) = shown.pop() {
        let row = dirs.entry(dir).or_insert_with(DirRow::nowhere);
        if row.shown {
            continue;
        }
        row.shown = true;
        if row.is_placed() {
            children.entry((row.parent, row.name.clone())).or_default().set(Child::Dir(dir), true);
            shown.push(row.parent);
        }
    }
    for ((dir, _), row) in &children {
        let dir = dirs.entry(*dir).or_insert_with(DirRow::nowhere);
        dir.entries += row.all().len() as u64;
        dir.subdirs += row.all().iter().filter(|child| matches!(child, Child::Dir(_))).count() as u64;
    }
    let mut rows = BTreeMap::new();
    for group in unions(&children) {
        note_conflicts(&children, &group, &mut conflicts);
        for member in group.iter().filter(|_| group.len() > 1) {
            rows.insert((Table::Unions, member.0.to_bytes().to_vec()), union::encode(&group).into());
        }
    }
    for key in conflicts {
        rows.insert((Table::Conflicts, key), Bytes::new());
    }
    for ((dir, name), row) in children {
        rows.insert((Table::Children, child_key(dir, &name)), row.encode().into());
    }
    for (dir, row) in dirs {
        rows.insert((Table::Dirs, dir.0.to_bytes().to_vec()), row.encode().into());
    }
    for (inode, links) in links {
        if links.iter().any(|link| link.0 != inode.0) {
            rows.insert((Table::LinksOf, inode.0.to_bytes().to_vec()), encode_links(&links).into());
        }
    }
    for key in folded.skipped {
        rows.insert((Table::Skipped, key), Bytes::new());
    }
    Ok(rows)
}

type Names = BTreeMap<(DirId, Vec<u8>), Children>;

/// All unions, those of one directory included, from those downwards that are in no other directory.
fn unions(children: &Names) -> Vec<Vec<DirId>> {
    let inside: BTreeSet<DirId> = children.values().flat_map(Children::dirs).collect();
    let tops: BTreeSet<DirId> = children.keys().map(|(dir, _)| *dir).filter(|dir| !inside.contains(dir)).collect();
    let mut unions: Vec<Vec<DirId>> = tops.into_iter().map(|dir| vec![dir]).collect();
    let mut at = 0;
    while let Some(union) = unions.get(at) {
        let mut below: BTreeMap<&[u8], BTreeSet<DirId>> = BTreeMap::new();
        for ((_, name), row) in union.iter().flat_map(|member| names_in(children, *member)) {
            below.entry(name).or_default().extend(row.dirs());
        }
        let below = below.into_values().filter(|dirs| !dirs.is_empty()).map(|dirs| dirs.into_iter().collect());
        unions.extend(below.collect::<Vec<_>>());
        at += 1;
    }
    unions
}

fn note_conflicts(children: &Names, union: &[DirId], conflicts: &mut Vec<Vec<u8>>) {
    let mut names: BTreeMap<&[u8], (Children, Vec<DirId>)> = BTreeMap::new();
    for ((member, name), row) in union.iter().flat_map(|member| names_in(children, *member)) {
        let (all, holders) = names.entry(name).or_default();
        all.extend(row);
        holders.push(*member);
    }
    for (name, (_, holders)) in names.into_iter().filter(|(_, (all, _))| all.is_conflict()) {
        conflicts.extend(holders.into_iter().map(|holder| child_key(holder, name)));
    }
}

fn names_in(children: &Names, dir: DirId) -> impl Iterator<Item = (&(DirId, Vec<u8>), &Children)> {
    children.range((dir, Vec::new())..).take_while(move |((at, _), _)| *at == dir)
}

/// Replaces the derived tables by what follows from the replicated ones.
pub fn rebuild<T: TablesMut + ?Sized>(tables: &mut T) -> Result<()> {
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
