//! Every call against every other, and three at once: all converge, nothing is lost, and nothing comes back.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::derive::Child;
use super::super::privilege::{CAPABILITY, SET_ID_BITS};
use super::super::tables::{Rows, Table};
use super::super::view;
use super::calls::Call::{self, *};
use super::pairs::{joined, meet, orders, tree};
use super::{MapTables, Replica, Sent};
use crate::id::{AuthorId, DirId, Dot, InodeId, LinkId};
use crate::time::Hlc;
use crate::volume::FileKind;

/// Calls of every kind on everything that is there. The texts are those of the one who writes.
const CALLS: &[Call] = &[
    Mkdir("/n"),
    Mkdir("/e/n"),
    Mkdir("/d/sub/n"),
    Create("/n"),
    Write("/n", "*"),
    Write("/e/n", "*"),
    Write("/t", "*"),
    Write("/g", "*"),
    Write("/d/f", "*"),
    Write("/d/sub/deep", "*"),
    Append("/t", "*"),
    Write("/set-id", "*"),
    WriteAsRoot("/set-id", "*"),
    WriteAsRoot("/t", "*"),
    Truncate("/t"),
    Symlink("t", "/n"),
    Fifo("/n"),
    Link("/t", "/n"),
    Link("/g", "/e/n"),
    Link("/d/f", "/d/sub/n"),
    Unlink("/t"),
    Unlink("/g"),
    Unlink("/h"),
    Unlink("/d/f"),
    Rmdir("/e"),
    RemoveTree("/d"),
    RemoveTree("/d/sub"),
    Rename("/t", "/n"),
    Rename("/k", "/n"),
    Rename("/k", "/t"),
    Rename("/t", "/e/n"),
    Rename("/g", "/t"),
    Rename("/d/f", "/d/sub/deep"),
    Rename("/d", "/n"),
    Rename("/e", "/n"),
    Rename("/d", "/e/n"),
    Rename("/e", "/d/sub/n"),
    Rename("/d/sub", "/e"),
    Rename("/d/sub", "/n"),
    Exchange("/t", "/k"),
    Exchange("/t", "/e"),
    Exchange("/d", "/e"),
    Exchange("/d/sub", "/e"),
    Exchange("/d/f", "/g"),
    Chmod("/t", 0o600),
    Chmod("/e", 0o700),
    Chmod("/t", 0o4755),
    Chmod("/set-id", 0o2711),
    Chown("/t", 7),
    Chown("/set-id", 7),
    SetTime("/t", 9),
    SetXattr("/t", "k", "v"),
    RemoveXattr("/k", "old"),
    SetCapability("/t", "c"),
];

/// The call with the text of one of those who make it.
fn by(call: Call, text: &'static str) -> Call {
    match call {
        Write(path, _) => Write(path, text),
        Append(path, _) => Append(path, text),
        WriteAsRoot(path, _) => WriteAsRoot(path, text),
        other => other,
    }
}

/// All that can be reached from the root.
#[derive(Debug, Default)]
struct Reached {
    links: BTreeSet<LinkId>,
    dirs: BTreeSet<DirId>,
    versions: BTreeSet<(InodeId, Dot)>,
}

fn reached(tables: &MapTables) -> Reached {
    let (mut reached, mut todo) = (Reached::default(), vec![DirId::ROOT]);
    while let Some(dir) = todo.pop() {
        for listed in view::list(tables, dir, 0, usize::MAX).unwrap() {
            for child in view::find(tables, dir, &listed.name).unwrap().unwrap().all {
                match child {
                    Child::Dir(dir) => drop(reached.dirs.insert(dir)),
                    Child::Link { link, inode, .. } => {
                        reached.links.insert(link);
                        let row = tables.inode(inode).unwrap().unwrap();
                        reached.versions.extend(row.versions.dots().map(|dot| (inode, dot)));
                    }
                }
            }
            if let Child::Dir(dir) = listed.child {
                todo.push(dir);
            }
        }
    }
    reached
}

/// What anybody made, moved or wrote is there, and so is what nobody removed; what was removed and not touched by
/// others is not.
fn check_nothing_lost(before: &Replica, sides: &[&Replica], end: &Replica) {
    let is_new = |dot: Dot| !before.context.contains(dot);
    let seen: Vec<Reached> = sides.iter().map(|side| reached(&side.tables)).collect();
    let there = reached(&end.tables);
    let was = reached(&before.tables);
    let mut touched: BTreeSet<LinkId> = BTreeSet::new();
    for (side, seen) in sides.iter().zip(&seen) {
        for link in &seen.links {
            let row = side.tables.link(*link).unwrap().unwrap();
            if row.places.dots().any(is_new) {
                touched.insert(*link);
            }
        }
        for dir in &seen.dirs {
            let row = side.tables.inode(dir.inode()).unwrap().unwrap();
            assert!(!row.alive.dots().any(is_new) || there.dirs.contains(dir), "{dir:?} is lost");
        }
        for version in seen.versions.iter().filter(|(_, dot)| is_new(*dot)) {
            assert!(there.versions.contains(version), "{version:?} is lost");
        }
    }
    for link in &touched {
        assert!(there.links.contains(link), "{link:?} is lost");
    }
    for link in &was.links {
        let kept = seen.iter().all(|seen| seen.links.contains(link));
        assert_eq!(there.links.contains(link), kept || touched.contains(link), "{link:?}");
    }
    for dir in was.dirs.iter().filter(|dir| seen.iter().all(|seen| seen.dirs.contains(dir))) {
        assert!(there.dirs.contains(dir), "{dir:?} is lost");
    }
}

/// What makes a program run with the rights of others holds if, and only if, who granted it had seen all there is. What
/// he had seen is taken from the operations here, not from what he wrote down.
fn check_privileges(before: &Replica, sent: &[Sent], end: &Replica) {
    for (key, _) in end.tables.with_prefix(Table::Inodes, &[]).unwrap() {
        let id = InodeId(Dot::from_bytes(key[..].first_chunk().unwrap()));
        let row = end.tables.inode(id).unwrap().unwrap();
        let saw_all = |grant: Dot| {
            let sent = sent.iter().find(|sent| sent.op.dot == grant);
            let saw = |dot: Dot| dot == grant || sent.map_or(&before.context, |sent| &sent.seen).contains(dot);
            row.versions.dots().chain(row.owner.dots()).all(saw)
        };
        if let ([grant], false) = (row.mode.entries(), row.kind() == FileKind::Directory) {
            let granted = grant.value.mode.permissions & if saw_all(grant.dot) { SET_ID_BITS } else { 0 };
            let shown = view::stat(&end.tables, id, &row).unwrap().mode.permissions & SET_ID_BITS;
            assert_eq!(shown, granted, "{id:?}");
        }
        if let Some(grant) = end.tables.xattr(id, CAPABILITY).unwrap().latest() {
            let shown = view::xattr(&end.tables, id, CAPABILITY).unwrap();
            assert_eq!(shown.is_some(), saw_all(grant.dot), "{id:?}");
        }
    }
}

#[test]
fn every_pair_of_calls_converges_and_loses_nothing() {
    let tree = Replica { watched: false, ..tree() };
    for (at, first) in CALLS.iter().enumerate() {
        for second in &CALLS[at..] {
            for order in orders().take(2) {
                let [mut a, mut b, c] = order.replicas(&tree);
                let (from_a, from_b) = (a.calls(&[by(*first, "A")]), b.calls(&[by(*second, "B")]));
                let end = meet(&a, &from_a, &b, &from_b, &c);
                end.check_derived();
                check_nothing_lost(&tree, &[&a, &b], &end);
                check_privileges(&tree, &[from_a, from_b].concat(), &end);
            }
        }
    }
}

fn config() -> ProptestConfig {
    let cases = if std::env::var_os("PHIFS_LONG").is_some() { 50_000 } else { 256 };
    ProptestConfig { cases, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    /// Each of three makes one or two calls, and two of them may have heard of each other in between.
    #[test]
    fn three_at_once_converge_and_lose_nothing(
        calls in prop::array::uniform3((0..CALLS.len(), prop::option::of(0..CALLS.len()))),
        ahead in prop::array::uniform3(0..3u64),
        heard in prop::option::of((0..3usize, 0..3usize)),
        deliveries in prop::collection::vec(0..6usize, 16),
    ) {
        let tree = Replica { watched: false, ..tree() };
        let mut sides: Vec<Replica> = (0..3).map(|n| Replica {
            author: AuthorId([n as u8 + 1; 16]),
            hlc: Hlc(tree.hlc.0 + 100 * ahead[n]),
            ..tree.clone()
        }).collect();
        let mut sent: Vec<Sent> = Vec::new();
        for (side, (first, _)) in sides.iter_mut().zip(&calls) {
            sent.extend(side.call(by(CALLS[*first], ["A", "B", "C"][usize::from(side.author.0[0]) - 1])).unwrap());
        }
        if let Some((into, from)) = heard {
            let from = sides[from].clone();
            sides[into].join(&from);
        }
        for (side, (_, second)) in sides.iter_mut().zip(&calls) {
            // What is there now may not allow the second.
            let text = ["a", "b", "c"][usize::from(side.author.0[0]) - 1];
            sent.extend(second.and_then(|second| side.call(by(CALLS[second], text)).ok()).unwrap_or_default());
        }
        let [a, b, c] = &sides[..] else { unreachable!() };
        let end = joined(a, &[b, c]);
        end.check_derived();
        check_privileges(&tree, &sent, &end);
        for others in [[b, c], [c, b]] {
            let mut first = others[0].clone();
            first.join(others[1]);
            prop_assert_eq!(&joined(&first, &[a]).tables, &end.tables);
            prop_assert_eq!(&joined(&tree, &[others[0], a, others[1]]).tables, &end.tables);
            prop_assert_eq!(&joined(&joined(a, &[others[0]]), &[&joined(others[1], &[a])]).tables, &end.tables);
        }
        let mut delivered = tree.clone();
        let mut numbers = deliveries.iter().cycle();
        loop {
            let ready: Vec<&Sent> = sent.iter().filter(|sent| delivered.is_ready_for(sent)).collect();
            if ready.is_empty() {
                break;
            }
            delivered.receive(ready[numbers.next().unwrap() % ready.len()]);
        }
        prop_assert_eq!(&delivered.context, &end.context);
        prop_assert_eq!(&delivered.tables, &end.tables);
        // Whoever heard of others may have replaced what they did.
        if heard.is_none() {
            check_nothing_lost(&tree, &[a, b, c], &end);
        }
    }
}
