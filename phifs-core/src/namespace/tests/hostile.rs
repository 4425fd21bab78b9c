//! Operations that are well formed and make no sense: an error or a harmless state, never a panic, an endless loop or
//! derived tables that do not follow.

use proptest::prelude::*;

use super::super::op::{Effect, Field, InodeEffect, LinkEffect, MoveId, Op, PlaceEffect};
use super::super::row::{Birth, Stamp};
use super::super::tables::{Rows, Table};
use super::Replica;
use crate::causal::VersionVector;
use crate::id::{AuthorId, DirId, Dot, InodeId, LinkId};
use crate::time::{Hlc, Timestamp};
use crate::volume::FileKind;

/// Anything that its author may name: dots of two authors that are known, or its own. `own` stands for the latter.
#[derive(Clone, Copy, Debug)]
struct Known {
    author: usize,
    back: u64,
}

fn known() -> impl Strategy<Value = Known> {
    (0..4usize, 0..6u64).prop_map(|(author, back)| Known { author, back })
}

#[derive(Clone, Debug)]
enum Wild {
    Inode { inode: Known, kind: Option<bool>, alive: bool, drops: Vec<(bool, Known)> },
    Link { link: Known, inode: Known, place: Option<(Option<u64>, Known, u8)>, drops: Vec<Known> },
    Move { dir: Known, parent: Known, name: u8, folds: Vec<usize> },
    Purge { inode: Known, dots: Vec<Known>, folds: Vec<usize> },
}

fn wild() -> impl Strategy<Value = Wild> {
    let many = || prop::collection::vec(known(), 0..4);
    let folds = || prop::collection::vec(0..9usize, 0..2);
    prop_oneof![
        1 => (known(), any::<Option<bool>>(), any::<bool>(), prop::collection::vec((any::<bool>(), known()), 0..3))
            .prop_map(|(inode, kind, alive, drops)| Wild::Inode { inode, kind, alive, drops }),
        1 => (known(), known(), prop::option::of((prop::option::of(0..40u64), known(), 0..2u8)), many())
            .prop_map(|(link, inode, place, drops)| Wild::Link { link, inode, place, drops }),
        3 => (known(), known(), 0..2u8, folds())
            .prop_map(|(dir, parent, name, folds)| Wild::Move { dir, parent, name, folds }),
        1 => (known(), many(), folds()).prop_map(|(inode, dots, folds)| Wild::Purge { inode, dots, folds }),
    ]
}

/// The clock of such an operation need not go forward either.
fn wild_op() -> impl Strategy<Value = (usize, u64, Vec<Wild>)> {
    (0..2usize, 0..40u64, prop::collection::vec(wild(), 1..4))
}

fn name(which: u8) -> Vec<u8> {
    vec![b'a' + which]
}

/// The operation as its author may send it: naming only what `context` has, and itself.
fn op(context: &VersionVector, moves: &[MoveId], (author, hlc, wild): (usize, u64, Vec<Wild>)) -> Op {
    let authors = [AuthorId([1; 16]), AuthorId([2; 16])];
    let own = Dot { author: authors[author], n: context.get(authors[author]) + 1 };
    let dot = |known: Known| match known.author {
        3 => own,
        2 => DirId::ROOT.0,
        at => match context.get(authors[at]) {
            0 => own,
            n => Dot { author: authors[at], n: n.saturating_sub(known.back).max(1) },
        },
    };
    let dots = |known: Vec<Known>| known.into_iter().map(dot).collect::<Vec<_>>();
    let ids = |which: Vec<usize>| which.into_iter().filter_map(|at| moves.get(at).copied()).collect::<Vec<_>>();
    let effects = wild.into_iter().filter_map(|wild| {
        Some(match wild {
            Wild::Inode { inode, kind, alive, drops } => Effect::Inode(InodeEffect {
                birth: kind.map(|is_dir| Birth {
                    kind: if is_dir { FileKind::Directory } else { FileKind::File },
                    rdev: 0,
                    time: Timestamp::default(),
                    target: Vec::new(),
                    exclusive: is_dir,
                }),
                alive,
                drops: drops
                    .into_iter()
                    .map(|(alive, known)| (if alive { Field::Alive } else { Field::Birth }, dot(known)))
                    .collect(),
                ..InodeEffect::new(InodeId(dot(inode)))
            }),
            Wild::Link { link, inode, place, drops } => Effect::Link(LinkEffect {
                link: LinkId(dot(link)),
                inode: InodeId(dot(inode)),
                kind: FileKind::File,
                place: place.map(|(since, parent, which)| PlaceEffect {
                    since: since.map(|hlc| Stamp { hlc: Hlc(hlc), author: own.author }),
                    parent: DirId(dot(parent)),
                    name: name(which),
                }),
                drops: dots(drops),
            }),
            Wild::Move { dir, parent, name: which, folds } => {
                let (dir, parent) = (DirId(dot(dir)), DirId(dot(parent)));
                // Refused when read, and refused by `names_only`.
                if dir == DirId::ROOT || parent.0 == own {
                    return None;
                }
                Effect::Move { dir, parent, name: name(which), folds: ids(folds) }
            }
            Wild::Purge { inode, dots: known, folds } => {
                Effect::Purge { inode: InodeId(dot(inode)), dots: dots(known), folds: ids(folds) }
            }
        })
    });
    Op { dot: own, hlc: Hlc(hlc), time: Timestamp::default(), effects: effects.collect() }
}

fn moves(replica: &Replica) -> Vec<MoveId> {
    let rows = replica.tables.with_prefix(Table::Moves, &[]).unwrap();
    let rows = rows.iter().map(|(key, value)| super::super::position::Move::decode(key, value).unwrap());
    rows.map(|row| row.id).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, max_shrink_iters: 6000, ..ProptestConfig::default() })]

    /// Two authors who do anything whatever, now and then seeing each other's doings.
    #[test]
    fn senseless_operations_come_to_the_same_everywhere(
        steps in prop::collection::vec((wild_op(), any::<bool>()), 1..24),
        orders in prop::collection::vec(0..1000usize, 5),
    ) {
        let mut authors = [Replica::new(1), Replica::new(2)];
        let mut all = Vec::new();
        for ((author, hlc, wild), meets) in steps {
            if meets {
                let other = authors[1 - author].clone();
                authors[author].join(&other);
            }
            let replica = &mut authors[author];
            let op = op(&replica.context, &moves(replica), (author, hlc, wild));
            let sent = super::Sent { op, seen: replica.context.clone() };
            replica.receive(&sent);
            all.push(sent);
        }
        let [mut a, b] = authors;
        a.join(&b);
        let mut numbers = orders.into_iter().cycle();
        let mut delivered = Replica::new(9);
        loop {
            let ready: Vec<&super::Sent> = all.iter().filter(|sent| delivered.is_ready_for(sent)).collect();
            if ready.is_empty() {
                break;
            }
            delivered.receive(ready[numbers.next().unwrap() % ready.len()]);
        }
        prop_assert_eq!(&delivered.context, &a.context);
        prop_assert_eq!(&delivered.tables, &a.tables);
    }
}

#[test]
fn a_move_of_a_forgotten_directory_takes_its_place_in_the_order() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    let (outer, _) = a.mkdir(DirId::ROOT, "outer");
    let (inner, _) = a.mkdir(outer, "inner");
    b.join(&a);
    // Into its own child, which is possible only by lying.
    let moved = Effect::Move { dir: outer, parent: inner, name: name(0), folds: Vec::new() };
    let lie = b.act(vec![moved]);
    a.mkdir(DirId::ROOT, "later");
    let kept = a.rename(super::Child::Dir(inner), DirId::ROOT, "inner", false);
    a.rmdir(outer);
    a.purge(outer.inode());
    assert!(kept.op.hlc > lie.op.hlc && a.tables.dir(outer).unwrap().is_none());
    a.receive(&lie);
    assert!(!a.tables.dir(outer).unwrap().unwrap().is_placed());
    b.join(&a);
    assert_eq!(a.tables, b.tables);
}

/// The way up from a deep directory is walked, not recursed.
#[test]
fn a_hundred_thousand_nested_directories_are_shown_at_once() {
    use super::super::apply;

    let depth = 100_000;
    let mut tables = Replica::new(1).tables;
    let dot = |n| Dot { author: AuthorId([1; 16]), n };
    let mut act = |n, effect| {
        apply(&mut tables, &Op { dot: dot(n), hlc: Hlc(n), time: Timestamp::default(), effects: vec![effect] })
            .unwrap();
    };
    // From the deepest up, so that making them is not what takes the time.
    for n in 1..=depth {
        let parent = if n == depth { DirId::ROOT } else { DirId(dot(n + 1)) };
        act(n, Effect::Move { dir: DirId(dot(n)), parent, name: name(0), folds: Vec::new() });
    }
    let (link, inode) = (LinkId(dot(depth + 1)), InodeId(dot(depth + 1)));
    let place = Some(PlaceEffect { since: None, parent: DirId(dot(1)), name: name(1) });
    act(depth + 1, Effect::Link(LinkEffect { link, inode, kind: FileKind::File, place, drops: Vec::new() }));
    assert_eq!(tables.with_prefix(Table::Children, &[]).unwrap().len() as u64, depth + 1);
}
