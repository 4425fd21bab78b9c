//! Random histories of several replicas: whatever the order of deliveries and joins, all come to the same tables.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::derive::{self, Child};
use super::super::join::TheirRow;
use super::super::op::{Effect, Field, InodeEffect, MoveId, Op};
use super::super::plan;
use super::super::privilege::{CAPABILITY, Grant};
use super::super::row::{Closure, Evidence, Mode, Owner, Version};
use super::super::tables::{Rows, Table, content_key, move_key, suffixed_key};
use super::super::union;
use super::super::view::{self, Found};
use super::calls::{is_inside, removed};
use super::mutants::{Fault, Seen};
use super::suspects::judge;
use super::{MapTables, Replica, Sent};
use crate::causal::VersionVector;
use crate::content::Content;
use crate::id::{AuthorId, DirId, Dot, GlyphId, InodeId};
use crate::time::Timestamp;
use crate::volume::FileKind;

/// What happens next, and small numbers to choose the things that it happens to.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    who: usize,
    pub what: What,
    first: usize,
    second: usize,
    name: usize,
}

#[derive(Clone, Copy, Debug)]
pub enum What {
    Mkdir,
    Create,
    Link,
    Unlink,
    Rmdir,
    Rename,
    MoveDir,
    Exchange,
    Write,
    SetAttributes,
    SetXattr,
    RemoveXattr,
    Purge,
    Fold,
    Deliver,
    Join,
}

/// Histories of everything, of directories alone, where cycles are not rare, and of few files that many change.
pub fn steps(max: usize) -> impl Strategy<Value = Vec<Step>> {
    let everything = prop_oneof![
        6 => Just(What::Mkdir),
        4 => Just(What::Create),
        2 => Just(What::Link),
        2 => Just(What::Unlink),
        4 => Just(What::Rmdir),
        3 => Just(What::Rename),
        6 => Just(What::MoveDir),
        2 => Just(What::Exchange),
        3 => Just(What::Write),
        2 => Just(What::SetAttributes),
        2 => Just(What::SetXattr),
        1 => Just(What::RemoveXattr),
        3 => Just(What::Purge),
        2 => Just(What::Fold),
        10 => Just(What::Deliver),
        4 => Just(What::Join),
    ];
    let directories = prop_oneof![
        3 => Just(What::Mkdir),
        1 => Just(What::Rmdir),
        12 => Just(What::MoveDir),
        2 => Just(What::Exchange),
        2 => Just(What::Fold),
        8 => Just(What::Deliver),
        1 => Just(What::Join),
    ];
    let files = prop_oneof![
        2 => Just(What::Create),
        1 => Just(What::Link),
        4 => Just(What::Rename),
        4 => Just(What::Write),
        4 => Just(What::Unlink),
        12 => Just(What::Deliver),
        3 => Just(What::Join),
    ];
    prop_oneof![history(everything, max), history(directories, max), history(files, max)]
}

fn history(what: impl Strategy<Value = What>, max: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = (0..4usize, what, 0..64usize, 0..64usize, 0..3usize);
    let step = step.prop_map(|(who, what, first, second, name)| Step { who, what, first, second, name });
    prop::collection::vec(step, 1..max)
}

pub struct World {
    pub replicas: Vec<Replica>,
    sent: Vec<Sent>,
    /// What was seen by context: equal contexts must have equal rows, and show the same.
    by_context: BTreeMap<Vec<u8>, Seen>,
    pub disagreements: usize,
    fault: Fault,
}

impl World {
    fn new(count: usize) -> Self {
        let replicas = (1..=count as u8).map(Replica::new).collect();
        Self { replicas, sent: Vec::new(), by_context: BTreeMap::new(), disagreements: 0, fault: Fault::None }
    }

    /// One in which all have a fault. Nobody but those who compare them watches over them.
    pub fn faulty(count: usize, fault: Fault) -> Self {
        let mut world = Self { fault, ..Self::new(count) };
        for replica in &mut world.replicas {
            (replica.fault, replica.watched) = (fault, false);
        }
        world
    }

    pub fn step(&mut self, step: Step) {
        let who = step.who % self.replicas.len();
        match step.what {
            What::Deliver => {
                let replica = &mut self.replicas[who];
                let ready: Vec<&Sent> = self.sent.iter().filter(|sent| replica.is_ready_for(sent)).collect();
                if !ready.is_empty() {
                    replica.receive(ready[step.first % ready.len()]);
                }
            }
            What::Join => {
                let other = self.replicas[step.first % self.replicas.len()].clone();
                if self.fault == Fault::None {
                    judge(&self.replicas[who], &other).expect("an honest state is refused");
                }
                self.replicas[who].join(&other);
            }
            _ => {
                // Forgetting and folding need that everybody has learnt everything.
                if matches!(step.what, What::Purge | What::Fold) && step.second.is_multiple_of(2) {
                    let all = self.by_delivery(|_| 0);
                    self.replicas.iter_mut().for_each(|replica| replica.join(&all));
                }
                let settled = self.replicas.iter().all(|replica| replica.context == self.replicas[0].context);
                let effects = effects(&self.replicas[who], step, settled);
                if !effects.is_empty() {
                    self.sent.push(self.replicas[who].act(effects));
                }
            }
        }
        self.note(who);
    }

    pub fn note(&mut self, who: usize) {
        let replica = self.replicas[who].clone();
        self.note_replica(&replica);
        assert!(!replica.watched || self.disagreements == 0, "equal contexts with different rows");
    }

    pub fn note_replica(&mut self, replica: &Replica) {
        let mut context = Vec::new();
        replica.context.encode(&mut context);
        let seen = replica.seen();
        let known = self.by_context.entry(context).or_insert_with(|| seen.clone());
        self.disagreements += usize::from(*known != seen);
    }

    /// A new replica gets all operations, each time one of those that are ready.
    pub fn by_delivery(&self, mut choose: impl FnMut(usize) -> usize) -> Replica {
        let watched = self.replicas.iter().all(|replica| replica.watched);
        let mut replica = Replica { fault: self.fault, watched, ..Replica::new(99) };
        loop {
            let ready: Vec<&Sent> = self.sent.iter().filter(|sent| replica.is_ready_for(sent)).collect();
            if ready.is_empty() {
                return replica;
            }
            replica.receive(ready[choose(ready.len())]);
        }
    }
}

/// The rows that an operation may change, of those that are somewhere in the tables.
fn touched_by(op: &Op, tables: &[&MapTables]) -> BTreeSet<(Table, Vec<u8>)> {
    let mut keys = BTreeSet::new();
    let contents = |id: InodeId, dots: &[Dot]| -> Vec<_> {
        dots.iter().map(|dot| (Table::Contents, content_key(id, *dot))).collect()
    };
    let moves =
        |dir: DirId, ids: &[MoveId]| -> Vec<_> { ids.iter().map(|id| (Table::Moves, move_key(*id, dir))).collect() };
    for effect in &op.effects {
        match effect {
            Effect::Inode(effect) => {
                let drops: Vec<Dot> = effect.drops.iter().map(|(_, dot)| *dot).chain([op.dot]).collect();
                keys.insert((Table::Inodes, effect.inode.0.to_bytes().to_vec()));
                keys.extend(contents(effect.inode, &drops));
            }
            Effect::Link(effect) => drop(keys.insert((Table::Links, effect.link.0.to_bytes().to_vec()))),
            Effect::Move { dir, folds, .. } => {
                keys.extend(moves(*dir, &[MoveId { hlc: op.hlc, dot: op.dot }]));
                keys.extend(moves(*dir, folds));
            }
            Effect::Xattr { inode, name, .. } => drop(keys.insert((Table::Xattrs, suffixed_key(inode.0, name)))),
            Effect::Purge { inode, dots, folds } => {
                keys.insert((Table::Inodes, inode.0.to_bytes().to_vec()));
                keys.extend(contents(*inode, dots));
                keys.extend(moves(DirId(inode.0), folds));
                for tables in tables {
                    let names = tables.with_prefix(Table::Xattrs, &inode.0.to_bytes()).unwrap();
                    keys.extend(names.iter().map(|(name, _)| (Table::Xattrs, suffixed_key(inode.0, name))));
                }
            }
        }
    }
    keys
}

/// What the step means to this replica; nothing if it is impossible. `settled` if everybody has seen the same.
fn effects(replica: &Replica, step: Step, settled: bool) -> Vec<Effect> {
    let tables = &replica.tables;
    let tree = replica.tree();
    let pick = |number: usize, wanted: &dyn Fn(&Child) -> bool| {
        let entries: Vec<_> = tree.iter().filter(|(_, _, child)| wanted(child)).collect();
        (!entries.is_empty()).then(|| entries[number % entries.len()].clone())
    };
    let dirs: Vec<DirId> = std::iter::once(DirId::ROOT)
        .chain(tree.iter().filter_map(|(_, _, child)| match child {
            Child::Dir(dir) => Some(*dir),
            Child::Link { .. } => None,
        }))
        .collect();
    let dir = dirs[step.second % dirs.len()];
    let name = [&b"a"[..], b"b", b"c"][step.name];
    let target = view::find(tables, dir, name).unwrap();
    let row = |inode: InodeId| tables.inode(inode).unwrap().unwrap_or_default();
    let dot = replica.next_dot();
    let time = Timestamp::new(i64::from(step.first as u32), 5);
    let is_file = |child: &Child| matches!(child, Child::Link { .. });
    let is_dir = |child: &Child| matches!(child, Child::Dir(_));
    let mut effects = Vec::new();
    match step.what {
        What::Mkdir | What::Create if target.is_none() => {
            let kind = match (step.what, step.first % 3) {
                (What::Mkdir, _) => FileKind::Directory,
                (_, 0) => FileKind::Symlink,
                _ => FileKind::File,
            };
            let birth = super::Birth { kind, rdev: 0, time, target: name.to_vec(), exclusive: false };
            let (mode, owner) = (Mode { permissions: 0o644, acl: Vec::new() }, Owner { uid: 1, gid: 1 });
            effects.extend(plan::create(dot, birth, mode, owner, dir, name));
            effects.extend(replica.touched(dir));
        }
        What::Link if target.is_none() => {
            let Some((_, _, child)) = pick(step.first, &is_file) else { return effects };
            effects.push(plan::link(dot, child.inode(), child.kind(), dir, name));
            effects.push(plan::touch(child.inode(), &row(child.inode()), time));
            effects.extend(replica.touched(dir));
        }
        What::Unlink => {
            let Some((parent, name, _)) = pick(step.first, &is_file) else { return effects };
            effects.extend(removed(replica, &view::find(tables, parent, &name).unwrap().unwrap().all));
            effects.extend(replica.touched(parent));
        }
        What::Rmdir => {
            let empty = |child: &Child| match child {
                Child::Dir(dir) => view::list(tables, *dir, 0, 1).unwrap().is_empty(),
                Child::Link { .. } => false,
            };
            let Some((parent, name, _)) = pick(step.first, &empty) else { return effects };
            effects.extend(removed(replica, &view::find(tables, parent, &name).unwrap().unwrap().all));
            effects.extend(replica.touched(parent));
        }
        What::Rename | What::MoveDir | What::Fold => {
            let wanted: &dyn Fn(&Child) -> bool = if matches!(step.what, What::Rename) { &is_file } else { &is_dir };
            let Some((from, old_name, child)) = pick(step.first, wanted) else { return effects };
            let source = view::find(tables, from, &old_name).unwrap().unwrap();
            match (child, &target) {
                _ if is_inside(tables, &source, dir) => return effects,
                (_, None) => {}
                (_, Some(target)) if target.shown.inode() == child.inode() => return effects,
                (Child::Dir(_), Some(Found { shown: Child::Dir(over), .. }))
                    if !view::list(tables, *over, 0, 1).unwrap().is_empty() =>
                {
                    return effects;
                }
                (_, Some(target)) if is_dir(&child) == is_dir(&target.shown) => {
                    effects.extend(removed(replica, &target.all));
                }
                _ => return effects,
            }
            let mut placed = Vec::new();
            for what in &source.all {
                placed.extend(plan::place(tables, *what, dir, name, &|_| Ok(Vec::new())).unwrap());
            }
            // What lies before the last move that everybody has seen, while no move is skipped.
            if let (What::Fold, true, Effect::Move { dir, folds, .. }) = (step.what, settled, &mut placed[0])
                && tables.with_prefix(Table::Skipped, &[]).unwrap().is_empty()
            {
                *folds = tables.dir(*dir).unwrap().unwrap().moves;
                folds.pop();
            }
            effects.extend(placed);
            effects.push(plan::touch(child.inode(), &row(child.inode()), time));
            effects.extend(replica.touched(from));
            effects.extend(replica.touched(dir));
        }
        What::Exchange => {
            let (Some(a), Some(b)) = (pick(step.first, &|_| true), pick(step.second, &|_| true)) else {
                return effects;
            };
            let found = |place: &(DirId, Vec<u8>, Child)| view::find(tables, place.0, &place.1).unwrap().unwrap();
            let (first, second) = (found(&a), found(&b));
            if a.2 == b.2 || is_inside(tables, &first, b.0) || is_inside(tables, &second, a.0) {
                return effects;
            }
            let mut moves = Vec::new();
            moves.extend(first.all.iter().map(|what| (*what, b.0, b.1.clone())));
            moves.extend(second.all.iter().map(|what| (*what, a.0, a.1.clone())));
            moves.sort_unstable_by_key(|(what, ..)| *what);
            moves.dedup_by_key(|(what, ..)| *what);
            for (what, dir, name) in moves {
                effects.extend(plan::place(tables, what, dir, &name, &|_| Ok(Vec::new())).unwrap());
            }
        }
        What::Write => {
            let Some((_, _, child)) = pick(step.first, &is_file) else { return effects };
            let row = row(child.inode());
            let bytes = vec![step.name as u8; 3];
            let content = Content::Inline { len_bytes: 3, hash: GlyphId::of(&bytes) };
            let bases = row.versions.dots().collect();
            let version =
                Version { content, mtime: time, closure: Closure::Close, evidence: Evidence::default(), bases };
            effects = plan::publish(tables, child.inode(), &row, (version, Some(bytes)), time).unwrap();
            if step.second.is_multiple_of(2) {
                effects.extend(plan::keep_set_id(dot, child.inode(), &row));
            }
        }
        What::SetAttributes => {
            let Some((_, _, child)) = pick(step.first, &|_| true) else { return effects };
            let row = row(child.inode());
            let mut effect = InodeEffect { touched: Some(time), ..InodeEffect::new(child.inode()) };
            effect.drops = plan::drops(Field::Touched, &row.touched).collect();
            match step.name {
                0 => {
                    // With and without set-id bits.
                    let permissions = step.second as u16 | (step.first as u16 & 6) << 9;
                    effect.mode = Some(Grant::new(Mode { permissions, acl: vec![1] }, &row, dot));
                    effect.drops.extend(plan::drops(Field::Mode, &row.mode));
                }
                1 => {
                    effect.owner = Some(Owner { uid: step.second as u32, gid: 7 });
                    effect.drops.extend(plan::drops(Field::Owner, &row.owner));
                }
                _ => {
                    effect.mtime = Some(time);
                    effect.drops.extend(plan::drops(Field::Mtime, &row.mtime));
                }
            }
            effects.push(Effect::Inode(effect));
        }
        What::SetXattr | What::RemoveXattr => {
            let Some((_, _, child)) = pick(step.first, &|_| true) else { return effects };
            let value = matches!(step.what, What::SetXattr).then(|| vec![step.second as u8]);
            let name = if step.second.is_multiple_of(3) { CAPABILITY } else { name };
            effects.push(plan::set_xattr(tables, dot, child.inode(), name, value).unwrap());
        }
        What::Purge if settled => {
            let rows = tables.with_prefix(Table::Inodes, &[]).unwrap();
            let gone: Vec<InodeId> = rows
                .iter()
                .map(|(key, _)| InodeId(Dot::from_bytes(key[..].first_chunk().unwrap())))
                .filter(|id| match row(*id).kind() {
                    FileKind::Directory => !tables.dir(DirId(id.0)).unwrap().is_some_and(|row| row.shown),
                    _ => derive::links_of(tables, *id).unwrap().is_empty(),
                })
                .collect();
            if !gone.is_empty() && tables.with_prefix(Table::Skipped, &[]).unwrap().is_empty() {
                let inode = gone[step.first % gone.len()];
                effects.push(plan::purge(tables, inode, &row(inode)).unwrap());
            }
        }
        _ => {}
    }
    effects
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, max_shrink_iters: 4000, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(192))]

    #[test]
    fn every_order_of_deliveries_and_joins_comes_to_the_same_tables(
        count in 2..5usize,
        steps in steps(90),
        orders in prop::collection::vec(0..1000usize, 8),
    ) {
        let mut world = World::new(count);
        steps.into_iter().for_each(|step| world.step(step));
        let mut numbers = orders.iter().copied().cycle();
        let delivered = world.by_delivery(|ready| numbers.next().unwrap() % ready);
        let in_author_order = world.by_delivery(|_| 0);
        prop_assert_eq!(&delivered.tables, &in_author_order.tables);
        let mut joined = Replica::new(99);
        world.replicas.iter().for_each(|replica| joined.join(replica));
        prop_assert_eq!(&joined.context, &delivered.context);
        prop_assert_eq!(&joined.tables, &delivered.tables);
        let mut backwards = world.replicas.pop().unwrap();
        world.replicas.iter().rev().for_each(|replica| backwards.join(replica));
        prop_assert_eq!(&backwards.tables, &delivered.tables);
    }

    #[test]
    fn join_is_commutative_associative_and_idempotent(steps in steps(60)) {
        let mut world = World::new(3);
        steps.into_iter().for_each(|step| world.step(step));
        let joined = |a: &Replica, b: &Replica| { let mut a = a.clone(); a.join(b); a };
        let [a, b, c] = &world.replicas[..] else { unreachable!() };
        prop_assert_eq!(joined(a, b).tables, joined(b, a).tables);
        prop_assert_eq!(joined(&joined(a, b), c).tables, joined(a, &joined(b, c)).tables);
        prop_assert_eq!(&joined(a, a).tables, &a.tables);
        let once = joined(a, b);
        prop_assert_eq!(&joined(&once, b).tables, &once.tables);
    }
}

proptest! {
    #![proptest_config(config(96))]

    /// All rows, those that differ, and those that the other side's news touched.
    #[test]
    fn whatever_rows_are_joined_the_result_is_the_same(steps in steps(60)) {
        let mut world = World::new(3);
        steps.into_iter().for_each(|step| world.step(step));
        for (a, b) in [(0, 1), (1, 2), (2, 0)] {
            let (a, b) = (&world.replicas[a], &world.replicas[b]);
            let news = world.sent.iter().map(|sent| &sent.op);
            let news = news.filter(|op| b.context.contains(op.dot) && !a.context.contains(op.dot));
            let delta: BTreeSet<_> = news.flat_map(|op| touched_by(op, &[&a.tables, &b.tables])).collect();
            let all = a.tables.all_or_differing(&b.tables, true);
            let differing = a.tables.all_or_differing(&b.tables, false);
            let backwards: Vec<TheirRow> = differing.iter().rev().cloned().collect();
            let of_b = |(table, key): (Table, Vec<u8>)| {
                let value = b.tables.0.get(&(table, key.clone())).cloned();
                TheirRow { table, key: key.into(), value }
            };
            let delta: Vec<TheirRow> = delta.into_iter().map(of_b).collect();
            let joined = |rows: &[TheirRow]| { let mut a = a.clone(); a.join_rows(b, rows); a.tables };
            let tables = joined(&differing);
            prop_assert_eq!(&joined(&all), &tables);
            prop_assert_eq!(&joined(&backwards), &tables);
            prop_assert_eq!(&joined(&delta), &tables);
        }
    }
}

/// The property tests are worth little if their histories never get anywhere.
#[test]
fn histories_meet_conflicts_cycles_revivals_and_purges() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let [mut cycles, mut conflicts, mut revived, mut purges, mut folds, mut hard_links, mut united, mut deep] = [0; 8];
    for _ in 0..150 {
        let mut world = World::new(3);
        steps(90).new_tree(&mut runner).unwrap().current().into_iter().for_each(|step| world.step(step));
        let end = world.by_delivery(|_| 0);
        cycles += end.tables.with_prefix(Table::Skipped, &[]).unwrap().len();
        let unions = end.tables.with_prefix(Table::Unions, &[]).unwrap();
        united += unions.len();
        deep += unions
            .iter()
            .filter(|(key, _)| {
                let row = end.tables.dir(DirId(derive::dot_of(key).unwrap())).unwrap().unwrap();
                union::members(&end.tables, row.parent).unwrap().len() > 1
            })
            .count();
        hard_links += end.tables.with_prefix(Table::LinksOf, &[]).unwrap().len();
        let names = end.tables.with_prefix(Table::Children, &[]).unwrap();
        conflicts += names.iter().filter(|(_, row)| derive::Children::decode(row).unwrap().all().len() > 1).count();
        revived += end
            .tree()
            .iter()
            .filter(|(_, _, child)| match child {
                Child::Dir(dir) => end.tables.inode(dir.inode()).unwrap().is_some_and(|row| row.alive.is_empty()),
                Child::Link { .. } => false,
            })
            .count();
        let effects = world.sent.iter().flat_map(|sent| &sent.op.effects);
        purges += effects.clone().filter(|effect| matches!(effect, Effect::Purge { .. })).count();
        folds += effects.filter(|effect| matches!(effect, Effect::Move { folds, .. } if !folds.is_empty())).count();
    }
    let seen = [cycles, conflicts, revived, purges, folds, hard_links, united, deep];
    assert!(seen.iter().all(|count| *count > 2), "{seen:?}");
}

#[test]
fn context_tells_what_was_applied_already() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    let (_, sent) = a.mkdir(DirId::ROOT, "x");
    b.receive(&sent);
    assert!(!b.is_ready_for(&sent) && b.context.contains(sent.op.dot));
    let unknown = VersionVector::new().with(AuthorId([9; 16]), 1);
    assert!(!b.is_ready_for(&Sent { seen: unknown, ..sent }));
}
