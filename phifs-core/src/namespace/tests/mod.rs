//! The tables in a plain map, and replicas made of them.

mod calls;
mod codec;
mod coherence;
mod crossed;
mod hostile;
mod laws;
mod model;
mod mutants;
mod pairs;
mod scenarios;
mod suspects;

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use super::apply::{GENESIS_DOT, genesis};
use super::derive::{self, Child};
use super::join::{Contexts, TheirRow, join};
use super::op::{Effect, Op};
use super::tables::{REPLICATED, Rows, Table, Tables, TablesMut};
use super::{apply, plan, view};
use crate::causal::VersionVector;
use crate::id::{AuthorId, DirId, Dot, InodeId};
use crate::store::StoreError;
use crate::time::{Hlc, Timestamp};
use crate::volume::FileKind;

use super::row::{Birth, Mode, Owner};
use model::Model;
use mutants::Fault;

type Cells = BTreeMap<(Table, Vec<u8>), Bytes>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct MapTables(Cells);

impl MapTables {
    fn replicated(&self) -> Cells {
        let rows = self.0.iter().filter(|((table, _), _)| REPLICATED.contains(table));
        rows.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// The rows that `other` has in the places where the two differ, or where any of them has one.
    fn all_or_differing(&self, other: &Self, all: bool) -> Vec<TheirRow> {
        let mut rows = self.replicated().into_keys().chain(other.replicated().into_keys()).collect::<Vec<_>>();
        rows.sort_unstable();
        rows.dedup();
        rows.retain(|key| all || self.0.get(key) != other.0.get(key));
        let theirs = |(table, key): (Table, Vec<u8>)| {
            let value = other.0.get(&(table, key.clone())).cloned();
            TheirRow { table, key: key.into(), value }
        };
        rows.into_iter().map(theirs).collect()
    }
}

impl Tables for MapTables {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0.get(&(table, key.to_vec())).cloned())
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &Bytes) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let from = (Bound::Included((table, from.to_vec())), Bound::Unbounded);
        for ((_, key), value) in self.0.range(from).take_while(|((at, _), _)| *at == table) {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl TablesMut for MapTables {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.0.insert((table, key.to_vec()), Bytes::copy_from_slice(value));
    }

    fn delete(&mut self, table: Table, key: &[u8]) {
        self.0.remove(&(table, key.to_vec()));
    }
}

/// A replica beside its model; they are compared after every change, as long as it is watched.
#[derive(Clone)]
struct Replica {
    author: AuthorId,
    tables: MapTables,
    context: VersionVector,
    hlc: Hlc,
    model: Model,
    watched: bool,
    fault: Fault,
    /// The operations in the order in which they came, which nothing may depend on.
    arrived: Vec<Dot>,
}

/// An operation and what its author had seen.
#[derive(Clone)]
struct Sent {
    op: Op,
    seen: VersionVector,
}

impl Replica {
    fn new(number: u8) -> Self {
        let mut tables = MapTables::default();
        genesis(&mut tables);
        let context = VersionVector::new().with(GENESIS_DOT.author, GENESIS_DOT.n);
        let model = Model::of(&tables);
        Self {
            author: AuthorId([number; 16]),
            tables,
            context,
            hlc: Hlc::default(),
            model,
            watched: true,
            fault: Fault::None,
            arrived: Vec::new(),
        }
    }

    fn next_dot(&self) -> Dot {
        Dot { author: self.author, n: self.context.get(self.author) + 1 }
    }

    fn time(&self) -> Timestamp {
        Timestamp::new(1, self.hlc.0 as u32 % 1_000_000_000)
    }

    fn act(&mut self, effects: Vec<Effect>) -> Sent {
        let (dot, time, seen) = (self.next_dot(), self.time(), self.context.clone());
        let op = Op { dot, hlc: self.hlc.tick(Timestamp::default()), time, effects };
        self.receive(&Sent { op: op.clone(), seen: seen.clone() });
        Sent { op, seen }
    }

    fn is_ready_for(&self, sent: &Sent) -> bool {
        self.context.covers(&sent.seen) && self.context.get(sent.op.dot.author) + 1 == sent.op.dot.n
    }

    fn receive(&mut self, sent: &Sent) {
        assert!(sent.op.names_only(|dot| sent.seen.contains(dot)));
        let bytes = sent.op.encode();
        let op = Op::decode(sent.op.dot, &bytes).unwrap();
        assert_eq!(op, sent.op);
        let places = self.fault.places(&self.tables);
        apply(&mut self.tables, &op).unwrap();
        self.fault.keep(&mut self.tables, &[places]);
        self.context.advance(op.dot);
        self.arrived.push(op.dot);
        self.hlc = self.hlc.max(op.hlc);
        if self.watched {
            self.model.apply(&op);
            self.check();
        }
    }

    fn join(&mut self, other: &Self) {
        let places = [&self.tables, &other.tables].map(|tables| self.fault.places(tables));
        let before = self.watched.then(|| self.clone());
        self.join_rows(other, &self.tables.all_or_differing(&other.tables, false));
        if let Some(mut whole) = before {
            whole.join_rows(other, &whole.tables.all_or_differing(&other.tables, true));
            assert_eq!(self.tables, whole.tables, "a join of what differs is not one of everything");
            self.model.join(&self.context, &other.model, &other.context);
        }
        self.fault.keep(&mut self.tables, &places);
        let new = other.arrived.iter().filter(|dot| !self.context.contains(**dot)).copied();
        self.arrived.extend(new);
        self.context.join(&other.context);
        self.hlc = self.hlc.max(other.hlc);
        if self.watched {
            self.check();
        }
    }

    fn join_rows(&mut self, other: &Self, rows: &[TheirRow]) {
        let knows = |replica: &Self| {
            let (known, context) = (replica.fault.knows(&replica.tables), replica.context.clone());
            move |dot| known.as_ref().map_or_else(|| context.contains(dot), |known| known.contains(&dot))
        };
        let (mine, theirs) = (knows(self), knows(other));
        join(&mut self.tables, &Contexts { mine: &mine, theirs: &theirs }, rows).unwrap();
        if self.fault != Fault::None {
            derive::rebuild(&mut self.tables).unwrap();
        }
    }

    fn check(&self) {
        assert_eq!(self.model, Model::of(&self.tables), "the rows are not the model's");
        self.check_derived();
    }

    fn check_derived(&self) {
        let (kept, recomputed) = (derive::kept(&self.tables).unwrap(), derive::recompute(&self.tables).unwrap());
        assert_eq!(derive::differences(&kept, &recomputed), Vec::<String>::new());
        Model::of(&self.tables).check_derived(&self.tables);
    }

    /// Makes something new in a directory.
    fn create(&mut self, kind: FileKind, parent: DirId, name: &str) -> Sent {
        let birth = Birth { kind, rdev: 0, time: self.time(), target: Vec::new(), exclusive: false };
        let (mode, owner) = (Mode { permissions: 0o755, acl: Vec::new() }, Owner { uid: 1, gid: 1 });
        let mut effects = plan::create(self.next_dot(), birth, mode, owner, parent, name.as_bytes()).to_vec();
        effects.extend(self.touched(parent));
        self.act(effects)
    }

    fn mkdir(&mut self, parent: DirId, name: &str) -> (DirId, Sent) {
        let dir = DirId(self.next_dot());
        (dir, self.create(FileKind::Directory, parent, name))
    }

    fn rename(&mut self, what: Child, parent: DirId, name: &str, alone: bool) -> Sent {
        let effects = plan::place(&self.tables, what, parent, name.as_bytes(), &|moves| {
            Ok(if alone { moves.to_vec() } else { Vec::new() })
        })
        .unwrap();
        self.act(effects)
    }

    fn unlink(&mut self, child: Child, parent: DirId) -> Sent {
        let Child::Link { link, inode, kind } = child else { panic!("not a file") };
        let mut effects = vec![plan::unlink(&self.tables, link, inode, kind).unwrap()];
        effects.extend(self.touched(parent));
        self.act(effects)
    }

    fn rmdir(&mut self, dir: DirId) -> Sent {
        let row = self.tables.inode(dir.inode()).unwrap().unwrap();
        self.act(vec![plan::remove_dir(dir, &row)])
    }

    fn purge(&mut self, inode: InodeId) -> Sent {
        let row = self.tables.inode(inode).unwrap().unwrap();
        let effect = plan::purge(&self.tables, inode, &row).unwrap();
        self.act(vec![effect])
    }

    fn touched(&self, dir: DirId) -> Vec<Effect> {
        let row = self.tables.inode(dir.inode()).unwrap().unwrap_or_default();
        plan::touch_dir(&self.tables, dir, &row, self.time()).unwrap()
    }

    fn look(&self, parent: DirId, name: &str) -> Option<Child> {
        view::child(&self.tables, parent, name.as_bytes()).unwrap()
    }

    /// Every name below the root, with what is shown there.
    fn tree(&self) -> Vec<(DirId, Vec<u8>, Child)> {
        let mut found = Vec::new();
        let mut dirs = vec![DirId::ROOT];
        while let Some(dir) = dirs.pop() {
            for listed in view::list(&self.tables, dir, 0, usize::MAX).unwrap() {
                if let Child::Dir(dir) = listed.child {
                    dirs.push(dir);
                }
                found.push((dir, listed.name, listed.child));
            }
        }
        found
    }
}
