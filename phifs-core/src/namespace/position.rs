//! Where directories are: the fold of all moves in the order of their ids, without those that would close a cycle
//! (Kleppmann, Mulligan, Gomes, Beresford, "A highly-available move operation for replicated trees", TPDS 2021).
//!
//! A move that arrives late takes back the later ones and makes them again, which changes only their directories.
//! What always holds:
//! - A directory is where its last move that is not in the table of skipped ones puts it, and nowhere without one.
//! - Following the positions upwards from any directory ends at the root or at a directory that is nowhere.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::ControlFlow;

use bytes::Bytes;

use crate::codec::{DecodeError, Encode, Reader};
use crate::id::{DirId, Dot};
use crate::store::StoreError;
use crate::time::Hlc;

use super::derive::{self, DirRow};
use super::op::MoveId;
use super::row;
use super::tables::{Rows, Table, Tables, TablesMut, malformed, move_key};

type Result<T> = std::result::Result<T, StoreError>;

/// A row of the table of moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    pub id: MoveId,
    pub dir: DirId,
    pub parent: DirId,
    pub name: Vec<u8>,
}

/// Parent and name; `None` is nowhere.
pub type Position = Option<(DirId, Vec<u8>)>;

const VERSION: u8 = 1;

impl Move {
    pub fn key(&self) -> Vec<u8> {
        move_key(self.id, self.dir)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(20 + self.name.len());
        out.put_u8(VERSION);
        out.put_dot(self.parent.0);
        out.put_blob(&self.name);
        out
    }

    pub fn decode(key: &[u8], value: &[u8]) -> Result<Self> {
        let decode = || {
            let mut reader = Reader::new(key);
            let hlc = Hlc(u64::from_be_bytes(reader.array()?));
            let dot = Dot::from_bytes(&reader.array()?);
            let dir = DirId(Dot::from_bytes(&reader.array()?));
            reader.finish()?;
            if dir == DirId::ROOT {
                return Err(DecodeError::NotCanonical("a move of the root directory"));
            }
            let mut reader = Reader::new(value);
            reader.format("a move", VERSION)?;
            let parent = DirId(reader.dot()?);
            let name = row::get_name(&mut reader)?;
            reader.finish()?;
            Ok(Self { id: MoveId { hlc, dot }, dir, parent, name })
        };
        decode().map_err(|e| malformed("move", key, e))
    }
}

/// A move was added to the table of moves.
pub(super) fn move_added<T: TablesMut + ?Sized>(tables: &mut T, new: &Move) -> Result<()> {
    let known = tables.dir(new.dir)?;
    // Nothing that is known names a directory before its creation, so a creation changes no other move however late it
    // comes ("Move_Create.thy" beside the paper).
    let is_creation = known.is_none() && new.dir.0 == new.id.dot && !is_inside(tables, new.parent, new.dir)?;
    let mut row = known.unwrap_or_else(DirRow::nowhere);
    if let Err(at) = row.moves.binary_search(&new.id) {
        row.moves.insert(at, new.id);
    }
    if is_creation {
        row.parent = new.parent;
        row.name.clone_from(&new.name);
        derive::put_dir(tables, new.dir, &row);
        return derive::show(tables, new.dir);
    }
    derive::put_dir(tables, new.dir, &row);
    replay(tables, &new.key(), new.dir)?;
    // A directory that stays nowhere, as its only move is skipped, has got its row just now.
    derive::show(tables, new.dir)
}

/// Drops moves of a directory from the table and from what follows.
pub(super) fn drop_moves<T: TablesMut + ?Sized>(tables: &mut T, dir: DirId, ids: &[MoveId]) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let Some(mut row) = tables.dir(dir)? else { return Ok(()) };
    let (dropped, kept): (Vec<MoveId>, Vec<MoveId>) = row.moves.iter().partition(|id| ids.contains(id));
    let (Some(first), Some(last)) = (dropped.first(), dropped.last()) else { return Ok(()) };
    for id in &dropped {
        let key = move_key(*id, dir);
        tables.delete(Table::Moves, &key);
        tables.delete(Table::Skipped, &key);
    }
    let are_oldest = kept.first().is_none_or(|kept| kept > last);
    row.moves = kept;
    derive::put_dir(tables, dir, &row);
    let from = move_key(*first, dir);
    if !are_oldest || is_any_skipped(tables, &from)? {
        return replay(tables, &from, dir);
    }
    // Without its oldest moves the directory was nowhere for a while, which closes no cycle; as no move waits for one
    // to open, only this directory can change.
    let position = position_before(tables, dir, None)?;
    if position == row.position() {
        return Ok(());
    }
    reposition(tables, &BTreeMap::from([(dir, position)]))
}

fn is_any_skipped<T: Tables + ?Sized>(tables: &T, from: &[u8]) -> Result<bool> {
    let mut any = false;
    tables.scan(Table::Skipped, from, &mut |_, _| {
        any = true;
        ControlFlow::Break(())
    })?;
    Ok(any)
}

/// Takes back all moves from the key `from` on, and makes those again that are in the table. `dir` has a move there
/// that came or went.
fn replay<T: TablesMut + ?Sized>(tables: &mut T, from: &[u8], dir: DirId) -> Result<()> {
    let later = moves_from(tables, from)?;
    let mut positions: BTreeMap<DirId, Position> = BTreeMap::new();
    for dir in later.iter().map(|later| later.dir).chain([dir]) {
        if let Entry::Vacant(unknown) = positions.entry(dir) {
            unknown.insert(position_before(tables, dir, Some(from))?);
        }
    }
    for again in later {
        let key = again.key();
        if leads_to(tables, &positions, again.parent, again.dir)? {
            tables.put(Table::Skipped, &key, &[]);
        } else {
            tables.delete(Table::Skipped, &key);
            positions.insert(again.dir, Some((again.parent, again.name)));
        }
    }
    let mut changed = BTreeMap::new();
    for (dir, position) in positions {
        if tables.dir(dir)?.and_then(|row| row.position()) != position {
            changed.insert(dir, position);
        }
    }
    reposition(tables, &changed)
}

fn moves_from<T: Tables + ?Sized>(tables: &T, from: &[u8]) -> Result<Vec<Move>> {
    let mut rows: Vec<(Vec<u8>, Bytes)> = Vec::new();
    tables.scan(Table::Moves, from, &mut |key, value| {
        rows.push((key.to_vec(), value.clone()));
        ControlFlow::Continue(())
    })?;
    rows.iter().map(|(key, value)| Move::decode(key, value)).collect()
}

/// Where the moves with smaller keys put a directory, or all moves.
fn position_before<T: Tables + ?Sized>(tables: &T, dir: DirId, before: Option<&[u8]>) -> Result<Position> {
    let Some(row) = tables.dir(dir)? else { return Ok(None) };
    for id in row.moves.iter().rev() {
        let key = move_key(*id, dir);
        if before.is_some_and(|before| key.as_slice() >= before) || tables.get(Table::Skipped, &key)?.is_some() {
            continue;
        }
        let value = tables.get(Table::Moves, &key)?;
        let value = value.ok_or_else(|| malformed("move", &key, DecodeError::Truncated))?;
        let found = Move::decode(&key, &value)?;
        return Ok(Some((found.parent, found.name)));
    }
    Ok(None)
}

/// Whether `dir` is `ancestor` or below it.
pub fn is_inside<T: Tables + ?Sized>(tables: &T, dir: DirId, ancestor: DirId) -> Result<bool> {
    leads_to(tables, &BTreeMap::new(), dir, ancestor)
}

/// Whether the way upwards from `dir` comes to `ancestor`, where `positions` overrule the table.
fn leads_to<T: Tables + ?Sized>(
    tables: &T,
    positions: &BTreeMap<DirId, Position>,
    mut dir: DirId,
    ancestor: DirId,
) -> Result<bool> {
    while dir != ancestor {
        if dir == DirId::ROOT {
            return Ok(false);
        }
        let parent = match positions.get(&dir) {
            Some(position) => position.as_ref().map(|(parent, _)| *parent),
            None => tables.dir(dir)?.and_then(|row| row.position()).map(|(parent, _)| parent),
        };
        let Some(parent) = parent else { return Ok(false) };
        dir = parent;
    }
    Ok(true)
}

/// Takes directories out of their places, then puts them where they belong, so that no order of steps matters.
fn reposition<T: TablesMut + ?Sized>(tables: &mut T, positions: &BTreeMap<DirId, Position>) -> Result<()> {
    let mut left = Vec::new();
    for dir in positions.keys() {
        if let Some(row) = tables.dir(*dir)?.filter(|row| row.shown && row.is_placed()) {
            // A parent that loses its last child may have to vanish; it is looked at at the end.
            derive::list(tables, row.parent, &row.name, derive::Child::Dir(*dir), false)?;
            left.push(row.parent);
        }
    }
    for (dir, position) in positions {
        let mut row = tables.dir(*dir)?.unwrap_or_else(DirRow::nowhere);
        (row.parent, row.name) = position.clone().unwrap_or((DirId::ROOT, Vec::new()));
        row.shown = false;
        derive::put_dir(tables, *dir, &row);
    }
    positions.keys().chain(&left).try_for_each(|dir| derive::show(tables, *dir))
}

/// What all moves in order come to.
pub(super) struct Folded {
    pub moves: Vec<Move>,
    pub positions: BTreeMap<DirId, (DirId, Vec<u8>)>,
    /// The keys of the moves that would have closed a cycle.
    pub skipped: Vec<Vec<u8>>,
}

/// Folds all moves from nothing.
pub(super) fn fold<T: Tables + ?Sized>(tables: &T) -> Result<Folded> {
    let moves = moves_from(tables, &[])?;
    let mut positions: BTreeMap<DirId, (DirId, Vec<u8>)> = BTreeMap::new();
    let mut skipped = Vec::new();
    for next in &moves {
        let mut above = Some(next.parent);
        while let Some(dir) = above.filter(|dir| *dir != next.dir) {
            above = positions.get(&dir).map(|(parent, _)| *parent);
        }
        if above.is_some() {
            skipped.push(next.key());
        } else {
            positions.insert(next.dir, (next.parent, next.name.clone()));
        }
    }
    Ok(Folded { moves, positions, skipped })
}
