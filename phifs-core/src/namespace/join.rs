//! The lattice join of two whole states, row by row, each under its own context.
//!
//! A dot that one side holds survives unless the other side's context covers it: then that side has seen it and
//! removed it. The caller joins the contexts afterwards, never before.

use std::collections::BTreeSet;

use crate::id::{Dot, InodeId, LinkId};
use crate::store::StoreError;

use super::derive;
use super::position::Move;
use super::row::{InodeRow, LinkRow, check_xattr_name};
use super::tables::{REPLICATED, Rows, RowsMut, Table, Tables, TablesMut, malformed};

type Result<T> = std::result::Result<T, StoreError>;

/// One side of a join: its rows, and which dots its context contains.
pub struct Side<'a, T: ?Sized> {
    pub tables: &'a T,
    pub covers: &'a dyn Fn(Dot) -> bool,
}

/// Joins `theirs` into `mine`, and derives anew what follows.
pub fn join<T: TablesMut, U: Tables>(mine: &mut T, covers: &dyn Fn(Dot) -> bool, theirs: &Side<'_, U>) -> Result<()> {
    for table in REPLICATED {
        let mut keys: BTreeSet<Vec<u8>> = BTreeSet::new();
        keys.extend(mine.with_prefix(table, &[])?.into_iter().map(|(key, _)| key));
        keys.extend(theirs.tables.with_prefix(table, &[])?.into_iter().map(|(key, _)| key));
        for key in keys {
            match table {
                Table::Inodes => join_inode(mine, covers, theirs, InodeId(derive::dot_of(&key)?))?,
                Table::Links => join_link(mine, covers, theirs, LinkId(derive::dot_of(&key)?))?,
                Table::Xattrs => {
                    let (dot, name) = key.split_at(Dot::LEN.min(key.len()));
                    let id = InodeId(derive::dot_of(dot)?);
                    check_xattr_name(name).map_err(|e| malformed("xattr", &key, e))?;
                    let joined = mine.xattr(id, name)?.join(covers, theirs.tables.xattr(id, name)?, theirs.covers);
                    mine.set_xattr(id, name, &joined);
                }
                _ => join_dotted_row(mine, covers, theirs, table, &key)?,
            }
        }
    }
    derive::rebuild(mine)
}

fn join_inode<T: TablesMut, U: Tables>(
    mine: &mut T,
    covers: &dyn Fn(Dot) -> bool,
    theirs: &Side<'_, U>,
    id: InodeId,
) -> Result<()> {
    let a = mine.inode(id)?.unwrap_or_default();
    let b = theirs.tables.inode(id)?.unwrap_or_default();
    let joined = InodeRow {
        birth: a.birth.join(covers, b.birth, theirs.covers),
        alive: a.alive.join(covers, b.alive, theirs.covers),
        mode: a.mode.join(covers, b.mode, theirs.covers),
        owner: a.owner.join(covers, b.owner, theirs.covers),
        mtime: a.mtime.join(covers, b.mtime, theirs.covers),
        touched: a.touched.join(covers, b.touched, theirs.covers),
        versions: a.versions.join(covers, b.versions, theirs.covers),
    };
    mine.set_inode(id, &joined);
    Ok(())
}

fn join_link<T: TablesMut, U: Tables>(
    mine: &mut T,
    covers: &dyn Fn(Dot) -> bool,
    theirs: &Side<'_, U>,
    id: LinkId,
) -> Result<()> {
    let a = mine.link(id)?.unwrap_or_default();
    let b = theirs.tables.link(id)?.unwrap_or_default();
    mine.set_link(id, &LinkRow { places: a.places.join(covers, b.places, theirs.covers) });
    Ok(())
}

/// A row that stands for one dot: it is there or not.
fn join_dotted_row<T: TablesMut, U: Tables>(
    mine: &mut T,
    covers: &dyn Fn(Dot) -> bool,
    theirs: &Side<'_, U>,
    table: Table,
    key: &[u8],
) -> Result<()> {
    let (a, b) = (mine.get(table, key)?, theirs.tables.get(table, key)?);
    let dot = |value: &[u8]| match table {
        Table::Moves => Move::decode(key, value).map(|row| row.id.dot),
        _ => derive::dot_of(key.get(Dot::LEN..).unwrap_or_default()),
    };
    match (a, b) {
        (Some(value), None) if (theirs.covers)(dot(&value)?) => mine.delete(table, key),
        (None, Some(value)) if !covers(dot(&value)?) => mine.put(table, key, &value),
        _ => {}
    }
    Ok(())
}
