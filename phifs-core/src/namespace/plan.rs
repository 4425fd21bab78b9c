//! What each kind of change means as effects, given what the tables hold.
//!
//! Nothing here asks whether a call is allowed or names its errors: that is the volume's part.

use crate::id::{DirId, Dot, InodeId, LinkId};
use crate::store::StoreError;
use crate::time::Timestamp;
use crate::volume::FileKind;

use super::derive::{self, Child};
use super::op::{Effect, Field, InodeEffect, LinkEffect, MoveId, PlaceEffect};
use super::privilege::{self, Grant};
use super::register::Register;
use super::row::{Birth, InodeRow, Mode, Owner, Version};
use super::tables::{Rows, Table, Tables, suffixed_key};
use super::union;
use super::view;

type Result<T> = std::result::Result<T, StoreError>;

/// The observed dots of a field, to be replaced.
pub fn drops<V>(field: Field, register: &Register<V>) -> impl Iterator<Item = (Field, Dot)> + '_ {
    register.dots().map(move |dot| (field, dot))
}

/// A new inode and its name.
pub fn create(dot: Dot, birth: Birth, mode: Mode, owner: Owner, parent: DirId, name: &[u8]) -> [Effect; 2] {
    let (kind, time) = (birth.kind, birth.time);
    let inode = Effect::Inode(InodeEffect {
        birth: Some(birth),
        alive: kind == FileKind::Directory,
        mode: Some(Grant::of_new(mode, kind, dot)),
        owner: Some(owner),
        mtime: Some(time),
        touched: Some(time),
        ..InodeEffect::new(InodeId(dot))
    });
    let named = match kind {
        FileKind::Directory => Effect::Move { dir: DirId(dot), parent, name: name.to_vec(), folds: Vec::new() },
        _ => link(dot, InodeId(dot), kind, parent, name),
    };
    [inode, named]
}

/// A new name of a file.
pub fn link(dot: Dot, inode: InodeId, kind: FileKind, parent: DirId, name: &[u8]) -> Effect {
    let place = Some(PlaceEffect { since: None, parent, name: name.to_vec() });
    Effect::Link(LinkEffect { link: LinkId(dot), inode, kind, place, drops: Vec::new() })
}

/// A name of a file goes.
pub fn unlink<T: Tables + ?Sized>(tables: &T, link: LinkId, inode: InodeId, kind: FileKind) -> Result<Effect> {
    let drops = tables.link(link)?.map_or_else(Vec::new, |row| row.places.dots().collect());
    Ok(Effect::Link(LinkEffect { link, inode, kind, place: None, drops }))
}

/// A directory goes, unless somebody else puts something into it.
pub fn remove_dir(dir: DirId, row: &InodeRow) -> Effect {
    let drops = drops(Field::Alive, &row.alive).collect();
    Effect::Inode(InodeEffect { drops, ..InodeEffect::new(dir.inode()) })
}

/// Something gets another place, and is kept against a concurrent removal. `folds` says which of the earlier moves of a
/// directory are dropped: see `Effect::Move`.
pub fn place<T: Tables + ?Sized>(
    tables: &T,
    what: Child,
    parent: DirId,
    name: &[u8],
    folds: &dyn Fn(&[MoveId]) -> Result<Vec<MoveId>>,
) -> Result<Vec<Effect>> {
    let name = name.to_vec();
    Ok(match what {
        Child::Dir(dir) => {
            let folds = tables.dir(dir)?.map_or(Ok(Vec::new()), |row| folds(&row.moves))?;
            let inode = tables.inode(dir.inode())?.unwrap_or_default();
            let kept = InodeEffect {
                alive: true,
                drops: drops(Field::Alive, &inode.alive).collect(),
                ..InodeEffect::new(dir.inode())
            };
            vec![Effect::Move { dir, parent, name, folds }, Effect::Inode(kept)]
        }
        Child::Link { link, inode, kind } => {
            let drops = tables.link(link)?.map_or_else(Vec::new, |row| row.places.dots().collect());
            let place = Some(PlaceEffect { since: None, parent, name });
            vec![Effect::Link(LinkEffect { link, inode, kind, place, drops })]
        }
    })
}

/// An inode is forgotten, with all that is known of it. See `Effect::Purge` for when.
pub fn purge<T: Tables + ?Sized>(tables: &T, inode: InodeId, row: &InodeRow) -> Result<Effect> {
    let mut dots = row.dots();
    for (name, _) in tables.with_prefix(Table::Xattrs, &suffixed_key(inode.0, &[]))? {
        dots.extend(tables.xattr(inode, &name)?.dots());
    }
    dots.sort_unstable();
    dots.dedup();
    let may_be_dir = row.birth.latest().is_none_or(|birth| birth.value.kind == FileKind::Directory);
    let dir = if may_be_dir { tables.dir(DirId(inode.0))? } else { None };
    Ok(Effect::Purge { inode, dots, folds: dir.map_or_else(Vec::new, |row| row.moves) })
}

/// A version of a file's bytes, and its names where they are: an edit keeps them against a concurrent unlink, but
/// with their old stamps, so it does not keep them against a rename.
pub fn publish<T: Tables + ?Sized>(
    tables: &T,
    inode: InodeId,
    row: &InodeRow,
    version: (Version, Option<Vec<u8>>),
    touched: Timestamp,
) -> Result<Vec<Effect>> {
    let mut effects = vec![Effect::Inode(InodeEffect {
        version: Some(version),
        touched: Some(touched),
        drops: drops(Field::Version, &row.versions).chain(drops(Field::Touched, &row.touched)).collect(),
        ..InodeEffect::new(inode)
    })];
    for link in derive::links_of(tables, inode)? {
        let Some(row) = tables.link(link)? else { continue };
        let Some(place) = row.place() else { continue };
        effects.push(Effect::Link(LinkEffect {
            link,
            inode,
            kind: place.kind,
            place: Some(PlaceEffect { since: Some(place.since), parent: place.parent, name: place.name.clone() }),
            drops: row.places.dots().collect(),
        }));
    }
    Ok(effects)
}

/// Who writes to a file may keep its set-id bits: those that are shown are for the new version as well.
pub fn keep_set_id(dot: Dot, inode: InodeId, row: &InodeRow) -> Option<Effect> {
    let shown = row.mode.latest().filter(|_| privilege::has_set_id(&view::mode_of(row)))?;
    Some(Effect::Inode(InodeEffect {
        mode: Some(shown.value.renewed(row, dot)),
        drops: drops(Field::Mode, &row.mode).collect(),
        ..InodeEffect::new(inode)
    }))
}

/// An extended attribute is set, or removed.
pub fn set_xattr<T: Tables + ?Sized>(
    tables: &T,
    dot: Dot,
    inode: InodeId,
    name: &[u8],
    value: Option<Vec<u8>>,
) -> Result<Effect> {
    let drops = tables.xattr(inode, name)?.dots().collect();
    let row = tables.inode(inode)?.unwrap_or_default();
    let value = value.map(|value| privilege::stored_xattr(name, value, &row, dot));
    Ok(Effect::Xattr { inode, name: name.to_vec(), value, drops })
}

/// Something about an inode changed: its ctime.
pub fn touch(inode: InodeId, row: &InodeRow, time: Timestamp) -> Effect {
    Effect::Inode(InodeEffect {
        touched: Some(time),
        drops: drops(Field::Touched, &row.touched).collect(),
        ..InodeEffect::new(inode)
    })
}

/// The entries of a directory changed: its mtime and ctime.
///
/// Removed directories that are only shown for what somebody else put into them come alive again, so that they do not
/// vanish under the one who works there. Of a union one member that is alive will do.
pub fn touch_dir<T: Tables + ?Sized>(tables: &T, dir: DirId, row: &InodeRow, time: Timestamp) -> Result<Vec<Effect>> {
    let is_alive = |dir: DirId| -> Result<bool> {
        for member in union::members(tables, dir)? {
            if tables.inode(member.inode())?.is_none_or(|row| !row.alive.is_empty()) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    let mut alive = !row.alive.is_empty() || is_alive(dir)?;
    let mut effects = vec![Effect::Inode(InodeEffect {
        alive: !alive,
        mtime: Some(time),
        touched: Some(time),
        drops: drops(Field::Mtime, &row.mtime).chain(drops(Field::Touched, &row.touched)).collect(),
        ..InodeEffect::new(dir.inode())
    })];
    let mut below = dir;
    while !alive && let Some((above, _)) = tables.dir(below)?.and_then(|row| row.position()) {
        let above = union::members(tables, above)?[0];
        alive = is_alive(above)?;
        if !alive {
            effects.push(Effect::Inode(InodeEffect { alive: true, ..InodeEffect::new(above.inode()) }));
        }
        below = above;
    }
    Ok(effects)
}
