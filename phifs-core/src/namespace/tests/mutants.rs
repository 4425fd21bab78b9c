//! Replicas that are wrong on purpose: each in one of the ways in which such systems usually are. The checks that hold
//! the right ones together must notice, or they are worth nothing.

use std::collections::{BTreeMap, BTreeSet};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use super::super::coherence::{self, Preference};
use super::super::derive;
use super::super::op::MoveId;
use super::super::position::Move;
use super::super::register::{Entry, Register};
use super::super::row::{InodeRow, LinkRow, Place};
use super::super::tables::{RowsMut, Table, TablesMut};
use super::laws::{Step, What, World, steps};
use super::{Cells, MapTables, Replica};
use crate::id::{AuthorId, Dot, InodeId, LinkId};
use crate::time::Hlc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// A join takes what one side does not have for something that it has not heard of.
    NoContext,
    /// The place of a link is one register beside its dots: the latest that it ever was at, seen or dropped.
    UndottedPlace,
    /// Moves of directories are made in the order in which they come.
    MovesAsTheyCome,
    /// What was restored from a copy goes on under the same name.
    AuthorAgain,
    /// Of concurrent versions the one is shown that was here first.
    ScoreAsHeard,
}

/// What a replica says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    rows: Cells,
    names: Cells,
    shown: BTreeMap<InodeId, Dot>,
}

impl Replica {
    pub fn seen(&self) -> Seen {
        let mut tables = self.tables.clone();
        let heard = |dot: Dot| self.arrived.iter().position(|arrived| *arrived == dot).unwrap_or(usize::MAX);
        if self.fault == Fault::MovesAsTheyCome {
            let moves: Vec<_> = tables.0.iter().filter(|((table, _), _)| *table == Table::Moves).collect();
            let moves: Vec<Move> = moves.iter().map(|((_, key), value)| Move::decode(key, value).unwrap()).collect();
            for moved in moves {
                tables.delete(Table::Moves, &moved.key());
                let id = MoveId { hlc: Hlc(heard(moved.id.dot) as u64), ..moved.id };
                let moved = Move { id, ..moved };
                tables.put(Table::Moves, &moved.key(), &moved.encode());
            }
            derive::rebuild(&mut tables).unwrap();
        }
        let of = |wanted| {
            let cells = tables.0.iter().filter(move |((table, _), _)| *table == wanted);
            cells.map(|(key, value)| (key.clone(), value.clone())).collect::<Cells>()
        };
        let mut shown = BTreeMap::new();
        for ((_, key), value) in of(Table::Inodes) {
            let id = derive::dot_of(&key).unwrap();
            let row = InodeRow::decode(id, &value).unwrap();
            let best = match self.fault {
                Fault::ScoreAsHeard => row.versions.dots().min_by_key(|dot| heard(*dot)),
                _ => coherence::best(&row, Preference::default()).map(|best| best.dot),
            };
            shown.extend(best.map(|best| (InodeId(id), best)));
        }
        Seen { rows: self.tables.replicated(), names: of(Table::Children), shown }
    }
}

impl Fault {
    /// The dots that a side takes for known, beside those that it has rows of.
    pub fn knows(self, tables: &MapTables) -> Option<BTreeSet<Dot>> {
        let made = |((table, key), _): (&(Table, Vec<u8>), _)| {
            let is_made = matches!(table, Table::Inodes | Table::Links);
            is_made.then(|| derive::dot_of(key).unwrap())
        };
        (self == Self::NoContext).then(|| tables.0.iter().filter_map(made).collect())
    }

    /// The registers of the places of links.
    pub fn places(self, tables: &MapTables) -> BTreeMap<LinkId, Place> {
        if self != Self::UndottedPlace {
            return BTreeMap::new();
        }
        let links = links(tables);
        links.into_iter().filter_map(|(link, row)| Some((link, row.place()?.clone()))).collect()
    }

    /// Puts every link where its register says.
    pub fn keep(self, tables: &mut MapTables, places: &[BTreeMap<LinkId, Place>]) {
        if self != Self::UndottedPlace {
            return;
        }
        for (link, row) in links(tables) {
            let known = places.iter().filter_map(|places| places.get(&link)).chain(row.place());
            let Some(latest) = known.max_by_key(|place| place.since).cloned() else { continue };
            let mut places = Register::default();
            for entry in row.places.entries() {
                places.insert(Entry { value: latest.clone(), ..entry.clone() });
            }
            tables.set_link(link, &LinkRow { places });
        }
        derive::rebuild(tables).unwrap();
    }
}

fn links(tables: &MapTables) -> Vec<(LinkId, LinkRow)> {
    let rows = tables.0.iter().filter(|((table, _), _)| *table == Table::Links);
    let decoded = rows.map(|((_, key), value)| {
        let id = derive::dot_of(key).unwrap();
        (LinkId(id), LinkRow::decode(id, value).unwrap())
    });
    decoded.collect()
}

/// A history in which the first replica is restored from a copy in between. Says whether anybody notices.
fn is_noticed(fault: Fault, steps: &[Step]) -> bool {
    let mut world = World::faulty(3, fault);
    let third = steps.len() / 3;
    let mut copy = None;
    for (at, step) in steps.iter().enumerate() {
        if at == third {
            copy = Some(world.replicas[0].clone());
        }
        if at == 2 * third
            && let Some(copy) = copy.take()
        {
            let author = if fault == Fault::AuthorAgain { copy.author } else { AuthorId([50; 16]) };
            world.replicas[0] = Replica { author, ..copy };
        }
        // What needs that all have seen all is not what this is about.
        if !matches!(step.what, What::Purge | What::Fold) {
            world.step(*step);
        }
    }
    for _ in 0..2 {
        for (into, from) in [(0, 1), (1, 2), (2, 0), (0, 2), (1, 0), (2, 1)] {
            let from = world.replicas[from].clone();
            world.replicas[into].join(&from);
            world.note(into);
        }
    }
    for delivered in [world.by_delivery(|_| 0), world.by_delivery(|ready| ready - 1)] {
        world.note_replica(&delivered);
    }
    world.disagreements > 0
}

#[test]
fn every_mutant_dies() {
    const HISTORIES: usize = 180;
    let mut runner = TestRunner::deterministic();
    let histories: Vec<Vec<Step>> =
        (0..HISTORIES).map(|_| steps(90).new_tree(&mut runner).unwrap().current()).collect();
    let noticed = |fault| histories.iter().filter(|history| is_noticed(fault, history)).count();
    assert_eq!(noticed(Fault::None), 0);
    let mutants =
        [Fault::NoContext, Fault::UndottedPlace, Fault::MovesAsTheyCome, Fault::AuthorAgain, Fault::ScoreAsHeard];
    let killed = mutants.map(|fault| (fault, noticed(fault)));
    println!("noticed in how many of {HISTORIES} histories: {killed:?}");
    assert!(killed.iter().all(|(_, histories)| *histories >= 3), "{killed:?}");
}
