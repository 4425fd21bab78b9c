//! Where directories are: the fold of all moves in the order of their ids, without those that would close a cycle
//! (Kleppmann, Mulligan, Gomes, Beresford, "A highly-available move operation for replicated trees", TPDS 2021).
//!
//! A move that arrives late takes back the later ones and makes them again, which changes only their directories.
//! What always holds:
//! - A directory is where its last move that is not in the table of skipped ones puts it, and nowhere without one.
//! - Following the positions upwards from any directory ends at the root or at a directory that is nowhere.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
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
    let is_made_again = note_added(tables, new)?;
    if is_made_again {
        replay(tables, &new.key(), [new.dir])?;
    }
    // A directory that stays nowhere, as its only move is skipped, has got its row just now.
    derive::show(tables, new.dir)
}

/// Drops moves of a directory from the table and from what follows.
pub(super) fn drop_moves<T: TablesMut + ?Sized>(tables: &mut T, dir: DirId, ids: &[MoveId]) -> Result<()> {
    if let Some(from) = note_dropped(tables, dir, ids)? {
        replay(tables, &from, [dir])?;
    }
    Ok(())
}

/// Changes many moves at once: `added` are put into the table, `dropped` removed. Whatever they are, the moves after the
/// earliest of them are made again only once.
pub(super) fn change_moves<T: TablesMut + ?Sized>(
    tables: &mut T,
    mut added: Vec<Move>,
    dropped: &BTreeMap<DirId, Vec<MoveId>>,
) -> Result<()> {
    // A parent is mostly made before what is in it.
    added.sort_unstable_by_key(|new| (new.id, new.dir));
    let (mut from, mut again) = (None::<Vec<u8>>, Vec::new());
    let mut from_here = |dir: DirId, key: Vec<u8>| {
        from = Some(from.take().map_or(key.clone(), |from| from.min(key)));
        again.push(dir);
    };
    for (dir, ids) in dropped {
        if let Some(key) = note_dropped(tables, *dir, ids)? {
            from_here(*dir, key);
        }
    }
    for new in &added {
        tables.put(Table::Moves, &new.key(), &new.encode());
        if note_added(tables, new)? {
            from_here(new.dir, new.key());
        }
    }
    if let Some(from) = from {
        replay(tables, &from, again)?;
    }
    added.iter().try_for_each(|new| derive::show(tables, new.dir))
}

/// Enters a move into the row of its directory. Says whether it and those after it have to be made again.
fn note_added<T: TablesMut + ?Sized>(tables: &mut T, new: &Move) -> Result<bool> {
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
    }
    derive::put_dir(tables, new.dir, &row);
    if is_creation {
        derive::show(tables, new.dir)?;
    }
    Ok(!is_creation)
}

/// Takes moves out of the table and the row of their directory. Says from which key on moves have to be made again.
fn note_dropped<T: TablesMut + ?Sized>(tables: &mut T, dir: DirId, ids: &[MoveId]) -> Result<Option<Vec<u8>>> {
    if ids.is_empty() {
        return Ok(None);
    }
    let Some(mut row) = tables.dir(dir)? else { return Ok(None) };
    let (dropped, kept): (Vec<MoveId>, Vec<MoveId>) = row.moves.iter().partition(|id| ids.contains(id));
    let (Some(first), Some(last)) = (dropped.first(), dropped.last()) else { return Ok(None) };
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
        return Ok(Some(from));
    }
    // Without its oldest moves the directory was nowhere for a while, which closes no cycle; as no move waits for one
    // to open, only this directory can change.
    let position = position_before(tables, dir, None)?;
    if position != row.position() {
        reposition(tables, &BTreeMap::from([(dir, position)]))?;
    }
    Ok(None)
}

/// Whether any move from a key on is skipped.
pub fn is_any_skipped<T: Tables + ?Sized>(tables: &T, from: &[u8]) -> Result<bool> {
    let mut any = false;
    tables.scan(Table::Skipped, from, &mut |_, _| {
        any = true;
        ControlFlow::Break(())
    })?;
    Ok(any)
}

/// Takes back all moves from the key `from` on, and makes those again that are in the table. `dirs` have moves there
/// that came or went.
fn replay<T: TablesMut + ?Sized>(tables: &mut T, from: &[u8], dirs: impl IntoIterator<Item = DirId>) -> Result<()> {
    let later = moves_from(tables, from)?;
    let mut was_skipped = BTreeSet::new();
    tables.scan(Table::Skipped, from, &mut |key, _| {
        was_skipped.insert(key.to_vec());
        ControlFlow::Continue(())
    })?;
    let mut forest = Forest::default();
    let mut last: HashMap<DirId, Option<usize>> = HashMap::new();
    for dir in later.iter().map(|later| later.dir).chain(dirs) {
        if let Entry::Vacant(unknown) = last.entry(dir) {
            unknown.insert(None);
            let position = position_before(tables, dir, Some(from))?;
            forest.put(dir, position.as_ref().map(|(parent, _)| *parent));
        }
    }
    for (at, again) in later.iter().enumerate() {
        let key = again.key();
        let is_skipped = forest.leads_to(tables, again.parent, again.dir)?;
        if !is_skipped {
            forest.put(again.dir, Some(again.parent));
            last.insert(again.dir, Some(at));
        }
        match (was_skipped.contains(&key), is_skipped) {
            (false, true) => tables.put(Table::Skipped, &key, &[]),
            (true, false) => tables.delete(Table::Skipped, &key),
            _ => {}
        }
    }
    let mut changed = BTreeMap::new();
    for (dir, at) in last {
        let position = match at {
            Some(at) => Some((later[at].parent, later[at].name.clone())),
            None => position_before(tables, dir, Some(from))?,
        };
        if tables.dir(dir)?.and_then(|row| row.position()) != position {
            changed.insert(dir, position);
        }
    }
    reposition(tables, &changed)
}

/// The parents of directories while moves are made again. Each is looked up once; a way upwards, which somebody can make
/// as long as there are directories, is then a walk along numbers.
#[derive(Default)]
struct Forest {
    numbers: HashMap<DirId, u32>,
    dirs: Vec<DirId>,
    parents: Vec<u32>,
}

impl Forest {
    const UNKNOWN: u32 = u32::MAX;
    const NOWHERE: u32 = u32::MAX - 1;

    fn number(&mut self, dir: DirId) -> u32 {
        let next = self.dirs.len() as u32;
        let number = *self.numbers.entry(dir).or_insert(next);
        if number == next {
            self.dirs.push(dir);
            self.parents.push(if dir == DirId::ROOT { Self::NOWHERE } else { Self::UNKNOWN });
        }
        number
    }

    fn put(&mut self, dir: DirId, parent: Option<DirId>) {
        let number = self.number(dir);
        self.parents[number as usize] = parent.map_or(Self::NOWHERE, |parent| self.number(parent));
    }

    /// Whether the way upwards from `dir` comes to `ancestor`.
    fn leads_to<T: Tables + ?Sized>(&mut self, tables: &T, dir: DirId, ancestor: DirId) -> Result<bool> {
        let (mut at, ancestor) = (self.number(dir), self.number(ancestor));
        while at != ancestor {
            let mut above = self.parents[at as usize];
            if above == Self::UNKNOWN {
                let dir = self.dirs[at as usize];
                self.put(dir, tables.dir(dir)?.and_then(|row| row.position()).map(|(parent, _)| parent));
                above = self.parents[at as usize];
            }
            if above == Self::NOWHERE {
                return Ok(false);
            }
            at = above;
        }
        Ok(true)
    }
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
pub fn is_inside<T: Tables + ?Sized>(tables: &T, mut dir: DirId, ancestor: DirId) -> Result<bool> {
    while dir != ancestor {
        if dir == DirId::ROOT {
            return Ok(false);
        }
        let Some((parent, _)) = tables.dir(dir)?.and_then(|row| row.position()) else { return Ok(false) };
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
