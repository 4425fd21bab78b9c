//! Effects on rows: the only way in which the tables change.

use crate::id::{AuthorId, DirId, Dot, InodeId, LinkId};
use crate::store::StoreError;
use crate::time::{Hlc, Timestamp};
use crate::volume::FileKind;

use super::derive::{self, DirRow};
use super::op::{Effect, Field, InodeEffect, LinkEffect, MoveId, Op};
use super::register::{Entry, Register};
use super::row::{Birth, InodeRow, LinkRow, Mode, Owner, Place};
use super::tables::{Rows, Table, Tables, content_key, move_key, suffixed_key};

type Result<T> = std::result::Result<T, StoreError>;

/// Applies one operation whose causes have all been applied, and brings the derived tables along.
///
/// An error comes from reading rows; the tables may then hold a part of the operation and must not be used further.
pub fn apply<T: Tables + ?Sized>(tables: &mut T, op: &Op) -> Result<()> {
    op.effects.iter().try_for_each(|effect| match effect {
        Effect::Inode(effect) => apply_inode(tables, op, effect),
        Effect::Link(effect) => apply_link(tables, op, effect),
        Effect::Move { dir, parent, name, folds } => {
            let id = MoveId { hlc: op.hlc, author: op.dot.author };
            tables.put(Table::Moves, &move_key(id.hlc, id.author, *dir), &derive::encode_move(op.dot, *parent, name));
            derive::move_added(tables, id, *dir, *parent, name)?;
            fold_moves(tables, *dir, folds)
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
pub fn genesis<T: Tables + ?Sized>(tables: &mut T) {
    let dot = DirId::ROOT.0;
    let hlc = Hlc::default();
    let time = Timestamp::default();
    let mut row = InodeRow::default();
    let birth = Birth { kind: FileKind::Directory, rdev: 0, time, target: Vec::new() };
    row.birth.insert(Entry { dot, hlc, value: birth });
    row.alive.insert(Entry { dot, hlc, value: () });
    row.mode.insert(Entry { dot, hlc, value: Mode { permissions: 0o755, acl: Vec::new() } });
    row.owner.insert(Entry { dot, hlc, value: Owner { uid: 0, gid: 0 } });
    row.mtime.insert(Entry { dot, hlc, value: time });
    row.touched.insert(Entry { dot, hlc, value: time });
    tables.set_inode(DirId::ROOT.inode(), &row);
    tables.put(Table::Dirs, &DirId::ROOT.0.to_bytes(), &DirRow::root().encode());
}

/// The context that covers `genesis`.
pub const GENESIS_DOT: Dot = Dot { author: AuthorId::GENESIS, n: 1 };

fn apply_inode<T: Tables + ?Sized>(tables: &mut T, op: &Op, effect: &InodeEffect) -> Result<()> {
    let mut row = tables.inode(effect.inode)?.unwrap_or_default();
    let was_alive = !row.alive.is_empty();
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
        set(&mut row.versions, op, Some(version.clone()));
        if let Some(inline) = inline {
            tables.put(Table::Contents, &content_key(effect.inode, op.dot), inline);
        }
    }
    tables.set_inode(effect.inode, &row);
    if was_alive == row.alive.is_empty() {
        derive::alive_changed(tables, DirId(effect.inode.0))?;
    }
    Ok(())
}

fn set<V>(register: &mut Register<V>, op: &Op, value: Option<V>) {
    if let Some(value) = value {
        register.insert(Entry { dot: op.dot, hlc: op.hlc, value });
    }
}

fn apply_link<T: Tables + ?Sized>(tables: &mut T, op: &Op, effect: &LinkEffect) -> Result<()> {
    let before = tables.link(effect.link)?;
    let mut after = before.clone().unwrap_or_else(|| LinkRow {
        inode: effect.inode,
        kind: effect.kind,
        places: Register::default(),
    });
    effect.drops.iter().for_each(|dot| after.places.remove(*dot));
    if let Some(place) = &effect.place {
        let since = place.since.unwrap_or(MoveId { hlc: op.hlc, author: op.dot.author });
        let value = Place { hlc: since.hlc, author: since.author, parent: place.parent, name: place.name.clone() };
        after.places.insert(Entry { dot: op.dot, hlc: op.hlc, value });
    }
    store_link(tables, effect.link, before.as_ref(), &after)
}

/// Stores a link row and what follows from it.
pub(super) fn store_link<T: Tables + ?Sized>(
    tables: &mut T,
    id: LinkId,
    before: Option<&LinkRow>,
    after: &LinkRow,
) -> Result<()> {
    tables.set_link(id, after);
    derive::link_changed(tables, id, before, Some(after))
}

fn fold_moves<T: Tables + ?Sized>(tables: &mut T, dir: DirId, folds: &[MoveId]) -> Result<()> {
    if folds.is_empty() {
        return Ok(());
    }
    folds.iter().for_each(|id| tables.delete(Table::Moves, &move_key(id.hlc, id.author, dir)));
    derive::moves_folded(tables, dir, folds)
}

fn purge<T: Tables + ?Sized>(tables: &mut T, inode: InodeId, dots: &[Dot], folds: &[MoveId]) -> Result<()> {
    if let Some(mut row) = tables.inode(inode)? {
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
        tables.set_inode(inode, &row);
        if row.is_empty() {
            derive::inode_purged(tables, inode);
        }
    }
    for (name, _) in tables.with_prefix(Table::Xattrs, &suffixed_key(inode.0, &[]))? {
        let mut row = tables.xattr(inode, &name)?;
        dots.iter().for_each(|dot| row.remove(*dot));
        tables.set_xattr(inode, &name, &row);
    }
    fold_moves(tables, DirId(inode.0), folds)
}
