//! The lattice join of a second state into the tables, row by row, each under its own context.
//!
//! A dot that one side holds survives unless the other side's context covers it: then that side has seen it and removed
//! it. The caller joins the contexts afterwards, never before.
//!
//! Only rows that may differ are looked at: a row that both sides have alike is its own join, whatever the contexts. The
//! derived tables follow along what changed, so a join takes as long as the difference is large, and not the volume.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::id::{DirId, Dot, InodeId, LinkId};
use crate::store::StoreError;

use super::derive;
use super::op::MoveId;
use super::position::{self, Move};
use super::register::Register;
use super::row::{InodeRow, LinkRow, check_xattr_name, decode_xattr};
use super::tables::{Rows, RowsMut, Table, TablesMut, malformed};
use super::union;

type Result<T> = std::result::Result<T, StoreError>;

/// Which dots the contexts of the two sides contain.
pub struct Contexts<'a> {
    pub mine: &'a dyn Fn(Dot) -> bool,
    pub theirs: &'a dyn Fn(Dot) -> bool,
}

/// A row of the other side in which the two may differ; `None` if it has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TheirRow {
    pub table: Table,
    pub key: Bytes,
    pub value: Option<Bytes>,
}

/// Joins rows of another state into the tables, and brings the derived ones along. `rows` has every row in which the two
/// differ, and each only once; it may have others.
pub fn join<T: TablesMut + ?Sized>(mine: &mut T, contexts: &Contexts<'_>, rows: &[TheirRow]) -> Result<()> {
    // Directories that were removed or came alive are shown or hidden at the end: what is in them may change as well.
    let mut turned: Vec<DirId> = Vec::new();
    let mut moves = Moves::default();
    for row in rows {
        let (key, theirs) = (&row.key[..], row.value.as_ref());
        match (row.table, contexts.meet(row)?) {
            (Table::Moves, _) => moves.join(mine, contexts, key, theirs)?,
            // After the directories that they are in.
            (Table::Links, _) | (_, Meeting::OnlyMine) => {}
            (Table::Inodes, Meeting::OnlyTheirs(value)) => {
                let id = InodeId(derive::dot_of(key)?);
                let new = InodeRow::decode(id.0, value).map_err(|e| malformed("inode", key, e))?;
                mine.put(Table::Inodes, key, value);
                union::versions_changed(mine, id, 0, new.versions.entries().len())?;
            }
            (table, Meeting::OnlyTheirs(value)) => mine.put(table, key, value),
            (Table::Inodes, Meeting::Both) => {
                let id = InodeId(derive::dot_of(key)?);
                turned.extend(join_inode(mine, contexts, id, theirs)?.then_some(DirId(id.0)));
            }
            (Table::Xattrs, Meeting::Both) => join_xattr(mine, contexts, key, theirs)?,
            (_, Meeting::Both) => join_content(mine, contexts, key, theirs)?,
        }
    }
    position::change_moves(mine, moves.added, &moves.dropped)?;
    for row in rows.iter().filter(|row| row.table == Table::Links) {
        let id = LinkId(derive::dot_of(&row.key)?);
        match contexts.meet(row)? {
            Meeting::OnlyMine => {}
            Meeting::OnlyTheirs(value) => {
                let new = LinkRow::decode(id.0, value).map_err(|e| malformed("link", &row.key, e))?;
                mine.put(Table::Links, &row.key, value);
                derive::link_changed(mine, id, None, new.place())?;
            }
            Meeting::Both => join_link(mine, contexts, id, row.value.as_ref())?,
        }
    }
    turned.into_iter().try_for_each(|dir| derive::show(mine, dir))
}

/// Who knows of the inode or link that a row is about. (A context that has an operation on it has the one that made it.)
enum Meeting<'a> {
    /// The other side has never heard of it, so my row stays.
    OnlyMine,
    /// I have never heard of it, so their row is taken as it is.
    OnlyTheirs(&'a Bytes),
    Both,
}

/// Says whether the inode came alive or stopped being alive.
fn join_inode<T: TablesMut + ?Sized>(
    mine: &mut T,
    contexts: &Contexts<'_>,
    id: InodeId,
    theirs: Option<&Bytes>,
) -> Result<bool> {
    let decode = |bytes: &Bytes| InodeRow::decode(id.0, bytes).map_err(|e| malformed("inode", &id.0.to_bytes(), e));
    let a = mine.inode(id)?.unwrap_or_default();
    let b = theirs.map(decode).transpose()?.unwrap_or_default();
    let (was_alive, versions) = (!a.alive.is_empty(), a.versions.entries().len());
    let joined = InodeRow {
        birth: contexts.join(a.birth, b.birth),
        alive: contexts.join(a.alive, b.alive),
        mode: contexts.join(a.mode, b.mode),
        owner: contexts.join(a.owner, b.owner),
        mtime: contexts.join(a.mtime, b.mtime),
        touched: contexts.join(a.touched, b.touched),
        versions: contexts.join(a.versions, b.versions),
    };
    mine.set_inode(id, &joined);
    union::versions_changed(mine, id, versions, joined.versions.entries().len())?;
    Ok(was_alive == joined.alive.is_empty())
}

fn join_link<T: TablesMut + ?Sized>(
    mine: &mut T,
    contexts: &Contexts<'_>,
    id: LinkId,
    theirs: Option<&Bytes>,
) -> Result<()> {
    let decode = |bytes: &Bytes| LinkRow::decode(id.0, bytes).map_err(|e| malformed("link", &id.0.to_bytes(), e));
    let a = mine.link(id)?.unwrap_or_default();
    let b = theirs.map(decode).transpose()?.unwrap_or_default();
    let before = a.place().cloned();
    let joined = LinkRow { places: contexts.join(a.places, b.places) };
    mine.set_link(id, &joined);
    derive::link_changed(mine, id, before.as_ref(), joined.place())
}

fn join_xattr<T: TablesMut + ?Sized>(
    mine: &mut T,
    contexts: &Contexts<'_>,
    key: &[u8],
    theirs: Option<&Bytes>,
) -> Result<()> {
    let (dot, name) = key.split_at(Dot::LEN.min(key.len()));
    let id = InodeId(derive::dot_of(dot)?);
    check_xattr_name(name).map_err(|e| malformed("xattr", key, e))?;
    let decode = |bytes: &Bytes| decode_xattr(id.0, bytes).map_err(|e| malformed("xattr", key, e));
    let theirs = theirs.map(decode).transpose()?.unwrap_or_default();
    let joined = contexts.join(mine.xattr(id, name)?, theirs);
    mine.set_xattr(id, name, &joined);
    Ok(())
}

/// The bytes of a version are there or not.
fn join_content<T: TablesMut + ?Sized>(
    mine: &mut T,
    contexts: &Contexts<'_>,
    key: &[u8],
    theirs: Option<&Bytes>,
) -> Result<()> {
    let version = derive::dot_of(key.get(Dot::LEN..).unwrap_or_default())?;
    match (mine.get(Table::Contents, key)?, theirs) {
        (Some(_), None) if (contexts.theirs)(version) => mine.delete(Table::Contents, key),
        (None, Some(bytes)) if !(contexts.mine)(version) => mine.put(Table::Contents, key, bytes),
        _ => {}
    }
    Ok(())
}

/// Moves that came and went, to be carried out together.
#[derive(Default)]
struct Moves {
    added: Vec<Move>,
    dropped: BTreeMap<DirId, Vec<MoveId>>,
}

impl Moves {
    fn join<T: TablesMut + ?Sized>(
        &mut self,
        mine: &T,
        contexts: &Contexts<'_>,
        key: &[u8],
        theirs: Option<&Bytes>,
    ) -> Result<()> {
        let decode = |bytes: &Bytes| Move::decode(key, bytes);
        match (mine.get(Table::Moves, key)?, theirs) {
            (Some(mine), None) => {
                let gone = Move::decode(key, &mine)?;
                if (contexts.theirs)(gone.id.dot) {
                    self.dropped.entry(gone.dir).or_default().push(gone.id);
                }
            }
            (None, Some(theirs)) => self.added.extend(Some(decode(theirs)?).filter(|new| !(contexts.mine)(new.id.dot))),
            _ => {}
        }
        Ok(())
    }
}

impl Contexts<'_> {
    fn meet<'a>(&self, row: &'a TheirRow) -> Result<Meeting<'a>> {
        if row.table == Table::Moves {
            return Ok(Meeting::Both);
        }
        let made = derive::dot_of(row.key.get(..Dot::LEN).unwrap_or_default())?;
        Ok(match &row.value {
            None if !(self.theirs)(made) => Meeting::OnlyMine,
            Some(value) if !(self.mine)(made) => Meeting::OnlyTheirs(value),
            _ => Meeting::Both,
        })
    }

    fn join<V>(&self, mine: Register<V>, theirs: Register<V>) -> Register<V> {
        mine.join(self.mine, theirs, self.theirs)
    }
}
