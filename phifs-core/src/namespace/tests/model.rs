//! The reference: a set of dotted cells, without storage, registers or anything kept.

use std::collections::{BTreeMap, BTreeSet};

use super::super::derive::{Child, Children, DirRow, child_key, links_of};
use super::super::op::{Effect, Field, Op};
use super::super::position::Move;
use super::super::privilege::{Grant, SET_ID_BITS};
use super::super::register::Register;
use super::super::row::{InodeRow, LinkRow, Place, Stamp, decode_xattr};
use super::super::tables::{Rows, Table};
use super::super::{union, view};
use super::MapTables;
use crate::causal::VersionVector;
use crate::id::{DirId, Dot, InodeId, LinkId};
use crate::time::Hlc;
use crate::volume::FileKind;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cell {
    Field(InodeId, Field),
    Content(InodeId),
    Xattr(InodeId, Vec<u8>),
    Place(LinkId),
    Move(DirId),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Plain(String),
    Grant(Hlc, Grant),
    Place(Hlc, Place),
    Move(Hlc, DirId, Vec<u8>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    cells: BTreeMap<(Cell, Dot), Value>,
}

impl Model {
    pub fn of(tables: &MapTables) -> Self {
        let mut model = Self::default();
        for ((table, key), value) in &tables.0 {
            let dot = |at: usize| Dot::from_bytes(key[at..].first_chunk().unwrap());
            match table {
                Table::Inodes => {
                    let (id, row) = (InodeId(dot(0)), InodeRow::decode(dot(0), value).unwrap());
                    model.register(|| Cell::Field(id, Field::Birth), &row.birth);
                    model.register(|| Cell::Field(id, Field::Alive), &row.alive);
                    for entry in row.mode.entries() {
                        let grant = Value::Grant(entry.hlc, entry.value.clone());
                        model.cells.insert((Cell::Field(id, Field::Mode), entry.dot), grant);
                    }
                    model.register(|| Cell::Field(id, Field::Owner), &row.owner);
                    model.register(|| Cell::Field(id, Field::Mtime), &row.mtime);
                    model.register(|| Cell::Field(id, Field::Touched), &row.touched);
                    model.register(|| Cell::Field(id, Field::Version), &row.versions);
                }
                Table::Links => {
                    for entry in LinkRow::decode(dot(0), value).unwrap().places.entries() {
                        let place = Value::Place(entry.hlc, entry.value.clone());
                        model.cells.insert((Cell::Place(LinkId(dot(0))), entry.dot), place);
                    }
                }
                Table::Moves => {
                    let row = Move::decode(key, value).unwrap();
                    let cell = (Cell::Move(row.dir), row.id.dot);
                    model.cells.insert(cell, Value::Move(row.id.hlc, row.parent, row.name));
                }
                Table::Xattrs => {
                    let row = decode_xattr(dot(0), value).unwrap();
                    model.register(|| Cell::Xattr(InodeId(dot(0)), key[Dot::LEN..].to_vec()), &row);
                }
                Table::Contents => {
                    let cell = (Cell::Content(InodeId(dot(0))), dot(Dot::LEN));
                    model.cells.insert(cell, Value::Plain(format!("{value:?}")));
                }
                _ => {}
            }
        }
        model
    }

    fn register<V: std::fmt::Debug>(&mut self, cell: impl Fn() -> Cell, register: &Register<V>) {
        for entry in register.entries() {
            self.cells.insert((cell(), entry.dot), plain(entry.hlc, &entry.value));
        }
    }

    pub fn apply(&mut self, op: &Op) {
        for effect in &op.effects {
            match effect {
                Effect::Inode(effect) => {
                    let cell = |field| Cell::Field(effect.inode, field);
                    for (field, dot) in &effect.drops {
                        self.cells.remove(&(cell(*field), *dot));
                        if *field == Field::Version {
                            self.cells.remove(&(Cell::Content(effect.inode), *dot));
                        }
                    }
                    let version = effect.version.as_ref();
                    let values = [
                        (Field::Birth, effect.birth.as_ref().map(|value| plain(op.hlc, value))),
                        (Field::Alive, effect.alive.then(|| plain(op.hlc, &()))),
                        (Field::Mode, effect.mode.as_ref().map(|grant| Value::Grant(op.hlc, grant.clone()))),
                        (Field::Owner, effect.owner.as_ref().map(|value| plain(op.hlc, value))),
                        (Field::Mtime, effect.mtime.as_ref().map(|value| plain(op.hlc, value))),
                        (Field::Touched, effect.touched.as_ref().map(|value| plain(op.hlc, value))),
                        (Field::Version, version.map(|(version, _)| plain(op.hlc, version))),
                    ];
                    let bytes = version.and_then(|(_, inline)| inline.clone());
                    if let Some(bytes) = bytes.filter(|_| !self.cells.contains_key(&(cell(Field::Version), op.dot))) {
                        let bytes = Value::Plain(format!("{:?}", bytes::Bytes::from(bytes)));
                        self.cells.insert((Cell::Content(effect.inode), op.dot), bytes);
                    }
                    for (field, value) in values {
                        self.add(op, cell(field), value);
                    }
                }
                Effect::Link(effect) => {
                    let cell = Cell::Place(effect.link);
                    self.drop_dots(&cell, &effect.drops);
                    let own = Stamp { hlc: op.hlc, author: op.dot.author };
                    let place = effect.place.as_ref().map(|place| Place {
                        inode: effect.inode,
                        kind: effect.kind,
                        since: place.since.unwrap_or(own),
                        parent: place.parent,
                        name: place.name.clone(),
                    });
                    self.add(op, cell, place.map(|place| Value::Place(op.hlc, place)));
                }
                Effect::Move { dir, parent, name, folds } => {
                    self.add(op, Cell::Move(*dir), Some(Value::Move(op.hlc, *parent, name.clone())));
                    folds.iter().for_each(|id| self.drop_dots(&Cell::Move(*dir), &[id.dot]));
                }
                Effect::Xattr { inode, name, value, drops } => {
                    let cell = Cell::Xattr(*inode, name.clone());
                    self.drop_dots(&cell, drops);
                    self.add(op, cell, value.as_ref().map(|value| plain(op.hlc, value)));
                }
                Effect::Purge { inode, dots, folds } => {
                    self.cells.retain(|(cell, dot), _| match cell {
                        Cell::Field(id, _) | Cell::Xattr(id, _) | Cell::Content(id) if id == inode => {
                            !dots.contains(dot)
                        }
                        Cell::Move(dir) if dir.inode() == *inode => !folds.iter().any(|id| id.dot == *dot),
                        _ => true,
                    });
                }
            }
        }
    }

    fn add(&mut self, op: &Op, cell: Cell, value: Option<Value>) {
        if let Some(value) = value {
            self.cells.entry((cell, op.dot)).or_insert(value);
        }
    }

    fn drop_dots(&mut self, cell: &Cell, dots: &[Dot]) {
        dots.iter().for_each(|dot| drop(self.cells.remove(&(cell.clone(), *dot))));
    }

    pub fn join(&mut self, context: &VersionVector, other: &Self, other_context: &VersionVector) {
        let mine: BTreeSet<(Cell, Dot)> = self.cells.keys().cloned().collect();
        self.cells.retain(|key, _| other.cells.contains_key(key) || !other_context.contains(key.1));
        for (key, value) in &other.cells {
            if !mine.contains(key) && !context.contains(key.1) {
                self.cells.insert(key.clone(), value.clone());
            }
        }
    }

    /// Holds what the tables derive against what follows from the cells in the most naive way.
    pub fn check_derived(&self, tables: &MapTables) {
        let mut moves: Vec<(Hlc, Dot, DirId, DirId, &[u8])> = Vec::new();
        let mut places: BTreeMap<LinkId, &Place> = BTreeMap::new();
        let mut wanted: BTreeSet<DirId> = BTreeSet::from([DirId::ROOT]);
        for ((cell, dot), value) in &self.cells {
            match (cell, value) {
                (Cell::Move(dir), Value::Move(hlc, parent, name)) => moves.push((*hlc, *dot, *dir, *parent, name)),
                (Cell::Place(link), Value::Place(_, place)) => {
                    let at = places.entry(*link).or_insert(place);
                    if place.since >= at.since {
                        *at = place;
                    }
                }
                (Cell::Field(inode, Field::Alive), _) => drop(wanted.insert(DirId(inode.0))),
                _ => {}
            }
        }
        moves.sort_unstable();
        let mut positions: BTreeMap<DirId, (DirId, &[u8])> = BTreeMap::new();
        let mut skipped = 0;
        for (_, _, dir, parent, name) in &moves {
            let chain: Vec<DirId> =
                std::iter::successors(Some(*parent), |at| positions.get(at).map(|(parent, _)| *parent)).collect();
            if chain.contains(dir) {
                skipped += 1;
            } else {
                positions.insert(*dir, (*parent, *name));
            }
        }
        assert_eq!(tables.with_prefix(Table::Skipped, &[]).unwrap().len(), skipped);

        wanted.extend(places.values().map(|place| place.parent));
        for dir in wanted.clone() {
            wanted.extend(std::iter::successors(Some(dir), |at| positions.get(at).map(|(parent, _)| *parent)));
        }
        let mut listing: Listing = BTreeMap::new();
        for (dir, (parent, name)) in positions.iter().filter(|(dir, _)| wanted.contains(dir)) {
            listing.entry((*parent, name.to_vec())).or_default().insert(Child::Dir(*dir));
        }
        let mut names: BTreeMap<InodeId, BTreeSet<LinkId>> = BTreeMap::new();
        for (link, place) in &places {
            let child = Child::Link { link: *link, inode: place.inode, kind: place.kind };
            listing.entry((place.parent, place.name.clone())).or_default().insert(child);
            names.entry(place.inode).or_default().insert(*link);
        }
        self.check_listing(tables, &listing);
        assert_eq!(listed(tables), paths(&listing), "what is listed");
        let united = self.check_unions(tables, &listing);
        let inodes = self.cells.keys().filter_map(|(cell, _)| match cell {
            Cell::Field(inode, _) => Some(*inode),
            _ => None,
        });
        for inode in names.keys().copied().chain(inodes).collect::<BTreeSet<_>>() {
            assert_eq!(links_of(tables, inode).unwrap(), names.get(&inode).cloned().unwrap_or_default(), "{inode:?}");
            self.check_set_id(tables, inode);
        }
        for (key, value) in tables.with_prefix(Table::Dirs, &[]).unwrap() {
            let (dir, row) = (DirId(Dot::from_bytes(key[..].first_chunk().unwrap())), DirRow::decode(&value).unwrap());
            assert_eq!(row.position(), positions.get(&dir).map(|(parent, name)| (*parent, name.to_vec())), "{dir:?}");
            assert_eq!(row.shown, wanted.contains(&dir), "{dir:?}");
            let inside = || listing.iter().filter(|((parent, _), _)| *parent == dir).flat_map(|(_, children)| children);
            let subdirs = inside().filter(|child| matches!(child, Child::Dir(_))).count();
            assert_eq!((row.entries, row.subdirs), (inside().count() as u64, subdirs as u64), "{dir:?}");
            let nlink = match (united.contains(&dir), row.shown) {
                (true, _) => 1,
                (false, true) => 2 + subdirs as u32,
                (false, false) => 0,
            };
            assert_eq!(view::nlink(tables, dir.inode(), FileKind::Directory).unwrap(), nlink);
        }
        let rows: BTreeSet<DirId> =
            positions.keys().copied().filter(|dir| tables.dir(*dir).unwrap().is_none()).collect();
        assert_eq!(rows, BTreeSet::new(), "directories without a row");
    }

    /// Set-id bits are shown if one mode has them, and it is for all that there is.
    fn check_set_id(&self, tables: &MapTables, inode: InodeId) {
        let row = tables.inode(inode).unwrap().unwrap_or_default();
        if row.kind() == FileKind::Directory {
            return;
        }
        let of = |wanted: Field| {
            let is_it = move |cell: &Cell| *cell == Cell::Field(inode, wanted);
            self.cells.iter().filter(move |((cell, _), _)| is_it(cell))
        };
        let granted = match &of(Field::Mode).collect::<Vec<_>>()[..] {
            [(_, Value::Grant(_, grant))] => {
                let mut there = of(Field::Version).chain(of(Field::Owner)).map(|((_, dot), _)| dot);
                if there.all(|dot| grant.seen.contains(dot)) { grant.mode.permissions & SET_ID_BITS } else { 0 }
            }
            _ => 0,
        };
        assert_eq!(view::stat(tables, inode, &row).unwrap().mode.permissions & SET_ID_BITS, granted, "{inode:?}");
    }

    /// Directories are one if their names are the same and so are, or are one, the directories that they are in.
    /// Returns those that are not alone.
    fn check_unions(&self, tables: &MapTables, listing: &Listing) -> BTreeSet<DirId> {
        let above = above(listing);
        let way = |dir| way(&above, dir);
        let mut unions: BTreeMap<Way<'_>, BTreeSet<DirId>> = BTreeMap::new();
        for dir in above.keys() {
            unions.entry(way(*dir)).or_default().insert(*dir);
        }
        let mut united = BTreeSet::new();
        for members in unions.values().filter(|members| members.len() > 1) {
            for member in members {
                assert!(union::members(tables, *member).unwrap().iter().eq(members), "{member:?}");
                united.insert(*member);
            }
        }
        assert_eq!(tables.with_prefix(Table::Unions, &[]).unwrap().len(), united.len());
        let mut names: BTreeMap<_, (Vec<Vec<u8>>, BTreeSet<Child>)> = BTreeMap::new();
        for ((parent, name), children) in listing {
            let (keys, all) = names.entry((way(*parent), name)).or_default();
            keys.push(child_key(*parent, name));
            all.extend(children);
        }
        let mut wanted: BTreeSet<Vec<u8>> = BTreeSet::new();
        for (keys, all) in names.into_values() {
            let links = all.iter().filter(|child| matches!(child, Child::Link { .. })).count();
            if links > 1 || links == 1 && all.len() > 1 {
                wanted.extend(keys);
            }
        }
        let mut versions: BTreeMap<InodeId, usize> = BTreeMap::new();
        for (cell, _) in self.cells.keys() {
            if let Cell::Field(inode, Field::Version) = cell {
                *versions.entry(*inode).or_default() += 1;
            }
        }
        wanted.extend(versions.into_iter().filter(|(_, count)| *count > 1).map(|(id, _)| id.0.to_bytes().to_vec()));
        let found = tables.with_prefix(Table::Conflicts, &[]).unwrap();
        assert_eq!(found.into_iter().map(|(key, _)| key).collect::<BTreeSet<_>>(), wanted);
        united
    }

    fn check_listing(&self, tables: &MapTables, listing: &Listing) {
        let mut found: Listing = BTreeMap::new();
        for (key, value) in tables.with_prefix(Table::Children, &[]).unwrap() {
            let dir = DirId(Dot::from_bytes(key[..].first_chunk().unwrap()));
            let children = Children::decode(&value).unwrap();
            found.insert((dir, key[Dot::LEN + 8..].to_vec()), children.all().iter().copied().collect());
        }
        assert_eq!(&found, listing);
    }
}

/// Directories and names in them, with all that a name means there.
type Listing = BTreeMap<(DirId, Vec<u8>), BTreeSet<Child>>;
/// Where the way up from a directory ends, and the names on it.
type Way<'a> = (DirId, Vec<&'a [u8]>);

fn above(listing: &Listing) -> BTreeMap<DirId, (DirId, &[u8])> {
    let dirs = listing.iter().flat_map(|((parent, name), children)| {
        children.iter().filter_map(move |child| match child {
            Child::Dir(dir) => Some((*dir, (*parent, &name[..]))),
            Child::Link { .. } => None,
        })
    });
    dirs.collect()
}

fn way<'a>(above: &BTreeMap<DirId, (DirId, &'a [u8])>, dir: DirId) -> Way<'a> {
    let (mut way, mut at) = (Vec::new(), dir);
    while let Some((parent, name)) = above.get(&at) {
        way.push(*name);
        at = *parent;
    }
    (at, way)
}

/// The names on the way down, and what is there: directories, or files, which are seen by another name where there are
/// both.
type Paths = BTreeMap<Vec<Vec<u8>>, BTreeSet<Child>>;

fn paths(listing: &Listing) -> Paths {
    let (above, mut paths, mut beside) = (above(listing), Paths::new(), Paths::new());
    for ((parent, name), children) in listing {
        if let (DirId::ROOT, names) = way(&above, *parent) {
            let path = names.into_iter().rev().chain([&name[..]]).map(<[u8]>::to_vec);
            paths.entry(path.collect()).or_default().extend(children);
        }
    }
    for (path, children) in &mut paths {
        let links: BTreeSet<Child> =
            children.iter().filter(|child| matches!(child, Child::Link { .. })).copied().collect();
        if let Some(Child::Link { link, .. }) = links.first().filter(|_| links.len() < children.len()) {
            let (name, above) = path.split_last().unwrap();
            beside.insert([above, &[view::display_name(name, *link)]].concat(), links.clone());
            children.retain(|child| !links.contains(child));
        }
    }
    beside.extend(paths);
    beside
}

/// The same as the views say, a few names at a time.
fn listed(tables: &MapTables) -> Paths {
    let (mut paths, mut todo) = (Paths::new(), vec![(Vec::new(), DirId::ROOT)]);
    while let Some((above, dir)) = todo.pop() {
        let mut from = 0;
        loop {
            let some = view::list(tables, dir, from, 3).unwrap();
            let Some(last) = some.last() else { break };
            from = last.hash + 1;
            for listed in some {
                let path = [&above[..], std::slice::from_ref(&listed.name)].concat();
                let found = view::find(tables, dir, &listed.name).unwrap().unwrap();
                assert!(found.shown == listed.child && found.all.contains(&listed.child), "{path:?}");
                if let Child::Dir(dir) = listed.child {
                    todo.push((path.clone(), dir));
                }
                assert_eq!(paths.insert(path, found.all.into_iter().collect()), None, "listed twice");
            }
        }
    }
    paths
}

fn plain<V: std::fmt::Debug>(hlc: Hlc, value: &V) -> Value {
    Value::Plain(format!("{hlc} {value:?}"))
}
