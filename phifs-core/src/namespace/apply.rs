//! Effects on rows: the only way in which the tables change.

use crate::id::{AuthorId, DirId, Dot, InodeId};
use crate::store::StoreError;
use crate::time::{Hlc, Timestamp};
use crate::volume::FileKind;

use super::derive::{self, DirRow};
use super::op::{Effect, Field, InodeEffect, LinkEffect, MoveId, Op};
use super::position::{self, Move};
use super::privilege::Grant;
use super::register::{Entry, Register};
use super::row::{Birth, InodeRow, Mode, Owner, Place, Stamp};
use super::tables::{Rows, RowsMut, Table, TablesMut, content_key, suffixed_key};
use super::union;

type Result<T> = std::result::Result<T, StoreError>;

/// Applies one operation whose causes have all been applied, and brings the derived tables along.
///
/// An error comes from reading rows; the tables may then hold a part of the operation and must not be used further.
pub fn apply<T: TablesMut + ?Sized>(tables: &mut T, op: &Op) -> Result<()> {
    op.effects.iter().try_for_each(|effect| match effect {
        Effect::Inode(effect) => apply_inode(tables, op, effect),
        Effect::Link(effect) => apply_link(tables, op, effect),
        Effect::Move { dir, parent, name, folds } => {
            let id = MoveId { hlc: op.hlc, dot: op.dot };
            apply_move(tables, &Move { id, dir: *dir, parent: *parent, name: name.clone() })?;
            position::drop_moves(tables, *dir, folds)
        }
        Effect::Xattr { inode, name, value, drops } => {
            let mut row = tables.xattr(*inode, name)?;
            drops.iter().for_each(|dot| row.remove(*dot));
            if let Some(value) = value {
                row.insert(Entry { dot: op.dot, hlc: op.hlc, value: value.clone() });
            }
            tables.set_xattr(*inode, name, &row);
            Ok(())
        }
        Effect::Purge { inode, dots, folds } => purge(tables, *inode, dots, folds),
    })
}

/// What a volume holds before its first operation: an empty root directory, the same on every node.
pub fn genesis<T: TablesMut + ?Sized>(tables: &mut T) {
    let dot = DirId::ROOT.0;
    let hlc = Hlc::default();
    let time = Timestamp::default();
    let mut row = InodeRow::default();
    let birth = Birth { kind: FileKind::Directory, rdev: 0, time, target: Vec::new(), exclusive: false };
    row.birth.insert(Entry { dot, hlc, value: birth });
    row.alive.insert(Entry { dot, hlc, value: () });
    row.mode.insert(Entry { dot, hlc, value: Grant::of_dir(Mode { permissions: 0o755, acl: Vec::new() }) });
    row.owner.insert(Entry { dot, hlc, value: Owner { uid: 0, gid: 0 } });
    row.mtime.insert(Entry { dot, hlc, value: time });
    row.touched.insert(Entry { dot, hlc, value: time });
    tables.set_inode(DirId::ROOT.inode(), &row);
    tables.put(Table::Dirs, &DirId::ROOT.0.to_bytes(), &DirRow::root().encode());
}

/// The context that covers `genesis`.
pub const GENESIS_DOT: Dot = Dot { author: AuthorId::GENESIS, n: 1 };

fn apply_inode<T: TablesMut + ?Sized>(tables: &mut T, op: &Op, effect: &InodeEffect) -> Result<()> {
    let mut row = tables.inode(effect.inode)?.unwrap_or_default();
    let (was_alive, versions) = (!row.alive.is_empty(), row.versions.entries().len());
    for (field, dot) in &effect.drops {
        match field {
            Field::Birth => row.birth.remove(*dot),
            Field::Alive => row.alive.remove(*dot),
            Field::Mode => row.mode.remove(*dot),
            Field::Owner => row.owner.remove(*dot),
            Field::Mtime => row.mtime.remove(*dot),
            Field::Touched => row.touched.remove(*dot),
            Field::Version => {
                row.versions.remove(*dot);
                tables.delete(Table::Contents, &content_key(effect.inode, *dot));
            }
        }
    }
    set(&mut row.birth, op, effect.birth.clone());
    set(&mut row.alive, op, effect.alive.then_some(()));
    set(&mut row.mode, op, effect.mode.clone());
    set(&mut row.owner, op, effect.owner);
    set(&mut row.mtime, op, effect.mtime);
    set(&mut row.touched, op, effect.touched);
    if let Some((version, inline)) = &effect.version {
        let is_new = row.versions.insert(Entry { dot: op.dot, hlc: op.hlc, value: version.clone() });
        if let Some(inline) = inline.as_ref().filter(|_| is_new) {
            tables.put(Table::Contents, &content_key(effect.inode, op.dot), inline);
        }
    }
    store_inode(tables, effect.inode, was_alive, versions, &row)
}

/// Stores a row that was or was not alive, and had so many versions.
pub(super) fn store_inode<T: TablesMut + ?Sized>(
    tables: &mut T,
    id: InodeId,
    was_alive: bool,
    versions: usize,
    row: &InodeRow,
) -> Result<()> {
    tables.set_inode(id, row);
    union::versions_changed(tables, id, versions, row.versions.entries().len())?;
    if was_alive == row.alive.is_empty() { derive::show(tables, DirId(id.0)) } else { Ok(()) }
}

fn set<V>(register: &mut Register<V>, op: &Op, value: Option<V>) {
    if let Some(value) = value {
        register.insert(Entry { dot: op.dot, hlc: op.hlc, value });
    }
}

fn apply_link<T: TablesMut + ?Sized>(tables: &mut T, op: &Op, effect: &LinkEffect) -> Result<()> {
    let mut row = tables.link(effect.link)?.unwrap_or_default();
    let before = row.place().cloned();
    effect.drops.iter().for_each(|dot| row.places.remove(*dot));
    if let Some(place) = &effect.place {
        let own = Stamp { hlc: op.hlc, author: op.dot.author };
        let value = Place {
            inode: effect.inode,
            kind: effect.kind,
            since: place.since.unwrap_or(own),
            parent: place.parent,
            name: place.name.clone(),
        };
        row.places.insert(Entry { dot: op.dot, hlc: op.hlc, value });
    }
    tables.set_link(effect.link, &row);
    derive::link_changed(tables, effect.link, before.as_ref(), row.place())
}

/// One operation moves a directory once: the first of its moves counts, as one id never names two values.
fn apply_move<T: TablesMut + ?Sized>(tables: &mut T, new: &Move) -> Result<()> {
    let key = new.key();
    if tables.get(Table::Moves, &key)?.is_some() {
        return Ok(());
    }
    tables.put(Table::Moves, &key, &new.encode());
    position::move_added(tables, new)
}

fn purge<T: TablesMut + ?Sized>(tables: &mut T, inode: InodeId, dots: &[Dot], folds: &[MoveId]) -> Result<()> {
    if let Some(mut row) = tables.inode(inode)? {
        let (was_alive, versions) = (!row.alive.is_empty(), row.versions.entries().len());
        for dot in dots {
            row.birth.remove(*dot);
            row.alive.remove(*dot);
            row.mode.remove(*dot);
            row.owner.remove(*dot);
            row.mtime.remove(*dot);
            row.touched.remove(*dot);
            row.versions.remove(*dot);
            tables.delete(Table::Contents, &content_key(inode, *dot));
        }
        store_inode(tables, inode, was_alive, versions, &row)?;
    }
    for (name, _) in tables.with_prefix(Table::Xattrs, &suffixed_key(inode.0, &[]))? {
        let mut row = tables.xattr(inode, &name)?;
        dots.iter().for_each(|dot| row.remove(*dot));
        tables.set_xattr(inode, &name, &row);
    }
    position::drop_moves(tables, DirId(inode.0), folds)
}
