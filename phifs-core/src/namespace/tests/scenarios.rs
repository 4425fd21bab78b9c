//! Concurrent operations by name: what each pair comes to, in every order of delivery.

use super::super::derive::{self, Child};
use super::super::plan;
use super::super::row::{Closure, Evidence, Version};
use super::super::tables::{Rows, Table};
use super::{Replica, Sent};
use crate::content::Content;
use crate::id::{DirId, Dot, InodeId};
use crate::time::Timestamp;
use crate::volume::FileKind;

const ROOT: DirId = DirId::ROOT;

/// Two replicas that have seen the same.
fn pair(prepare: impl FnOnce(&mut Replica)) -> (Replica, Replica) {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    prepare(&mut a);
    b.join(&a);
    (a, b)
}

/// Each gets what the other did; both must come to the same.
fn meet(a: &mut Replica, from_a: &[Sent], b: &mut Replica, from_b: &[Sent]) {
    let mut joined = a.clone();
    joined.join(b);
    from_b.iter().for_each(|sent| a.receive(sent));
    from_a.iter().for_each(|sent| b.receive(sent));
    assert_eq!(a.tables, b.tables);
    assert_eq!(a.tables, joined.tables);
}

fn dir(replica: &Replica, parent: DirId, name: &str) -> DirId {
    match replica.look(parent, name) {
        Some(Child::Dir(dir)) => dir,
        other => panic!("{name} is {other:?}"),
    }
}

fn file(replica: &mut Replica, parent: DirId, name: &str) -> (Child, Sent) {
    let sent = replica.create(FileKind::File, parent, name);
    (replica.look(parent, name).unwrap(), sent)
}

fn write(replica: &mut Replica, inode: InodeId) -> Sent {
    let row = replica.tables.inode(inode).unwrap().unwrap();
    let version = Version {
        content: Content::Empty,
        mtime: Timestamp::default(),
        closure: Closure::Close,
        evidence: Evidence::default(),
        bases: row.versions.dots().collect(),
    };
    let effects = plan::publish(&replica.tables, inode, &row, (version, None), Timestamp::default()).unwrap();
    replica.act(effects)
}

fn link(replica: &mut Replica, inode: InodeId, name: &str) -> Sent {
    let effect = plan::link(replica.next_dot(), inode, FileKind::File, ROOT, name.as_bytes());
    replica.act(vec![effect])
}

fn links(replica: &Replica, inode: InodeId) -> usize {
    derive::links_of(&replica.tables, inode).unwrap().len()
}

#[test]
fn write_beats_unlink() {
    let (mut a, mut b) = pair(|a| drop(file(a, ROOT, "f")));
    let child = a.look(ROOT, "f").unwrap();
    let unlinked = a.unlink(child, ROOT);
    let written = write(&mut b, child.inode());
    meet(&mut a, &[unlinked], &mut b, &[written]);
    assert_eq!(a.look(ROOT, "f"), Some(child));
}

#[test]
fn write_does_not_take_back_a_rename() {
    let (mut a, mut b) = pair(|a| drop(file(a, ROOT, "f")));
    let child = a.look(ROOT, "f").unwrap();
    let renamed = a.rename(child, ROOT, "g", false);
    let written = [write(&mut b, child.inode()), write(&mut b, child.inode())];
    meet(&mut a, &[renamed], &mut b, &written);
    assert_eq!((a.look(ROOT, "f"), a.look(ROOT, "g")), (None, Some(child)));
}

#[test]
fn rename_beats_unlink() {
    let (mut a, mut b) = pair(|a| drop(file(a, ROOT, "f")));
    let child = a.look(ROOT, "f").unwrap();
    let renamed = a.rename(child, ROOT, "g", false);
    let unlinked = b.unlink(child, ROOT);
    meet(&mut a, &[renamed], &mut b, &[unlinked]);
    assert_eq!((a.look(ROOT, "f"), a.look(ROOT, "g")), (None, Some(child)));
}

#[test]
fn the_later_of_two_renames_wins_and_leaves_one_name() {
    let (mut a, mut b) = pair(|a| drop(file(a, ROOT, "f")));
    let child = a.look(ROOT, "f").unwrap();
    let earlier = a.rename(child, ROOT, "g", false);
    let later = [file(&mut b, ROOT, "other").1, b.rename(child, ROOT, "h", false)];
    meet(&mut a, &[earlier], &mut b, &later);
    assert_eq!((a.look(ROOT, "g"), a.look(ROOT, "h")), (None, Some(child)));
    assert_eq!(links(&a, child.inode()), 1);
}

#[test]
fn new_name_survives_the_unlink_of_the_old_one() {
    let (mut a, mut b) = pair(|a| drop(file(a, ROOT, "f")));
    let child = a.look(ROOT, "f").unwrap();
    let linked = link(&mut a, child.inode(), "g");
    let unlinked = b.unlink(child, ROOT);
    meet(&mut a, &[linked], &mut b, &[unlinked]);
    assert_eq!(a.look(ROOT, "f"), None);
    assert_eq!(a.look(ROOT, "g").map(Child::inode), Some(child.inode()));
    assert_eq!(links(&a, child.inode()), 1);
    // All of it again in one hand: no name, then the first one's place once more.
    let unlinked = a.unlink(a.look(ROOT, "g").unwrap(), ROOT);
    assert_eq!(links(&a, child.inode()), 0);
    b.receive(&unlinked);
    link(&mut b, child.inode(), "h");
    assert_eq!(links(&b, child.inode()), 1);
}

#[test]
fn links_count_on_both_sides() {
    let (mut a, mut b) = pair(|a| drop(file(a, ROOT, "f")));
    let child = a.look(ROOT, "f").unwrap();
    let (from_a, from_b) = (link(&mut a, child.inode(), "g"), link(&mut b, child.inode(), "h"));
    meet(&mut a, &[from_a], &mut b, &[from_b]);
    assert_eq!(links(&a, child.inode()), 3);
}

#[test]
fn two_files_of_one_name_are_both_kept() {
    let (mut a, mut b) = pair(|_| {});
    let (from_a, from_b) = (file(&mut a, ROOT, "f").1, file(&mut b, ROOT, "f").1);
    meet(&mut a, &[from_a], &mut b, &[from_b]);
    let key = derive::child_key(ROOT, b"f");
    assert_eq!(a.tables.children(&key).unwrap().all().len(), 2);
    assert_eq!(a.tables.dir(ROOT).unwrap().unwrap().entries, 2);
}

#[test]
fn removed_directory_stays_for_what_somebody_put_into_it() {
    let (mut a, mut b) = pair(|a| {
        let (outer, _) = a.mkdir(ROOT, "outer");
        a.mkdir(outer, "inner");
    });
    let outer = dir(&a, ROOT, "outer");
    let inner = dir(&a, outer, "inner");
    let removed = [a.rmdir(inner), a.rmdir(outer)];
    assert_eq!(a.look(ROOT, "outer"), None);
    let (child, created) = file(&mut b, inner, "f");
    meet(&mut a, &removed, &mut b, &[created]);
    assert_eq!(dir(&a, outer, "inner"), inner);
    assert_eq!(dir(&a, ROOT, "outer"), outer);
    // Whoever works in there keeps it: a last unlink does not make the directory vanish under the next call.
    a.unlink(child, inner);
    assert_eq!(dir(&a, outer, "inner"), inner);
    a.rmdir(inner);
    a.rmdir(outer);
    assert_eq!(a.look(ROOT, "outer"), None);
    assert_eq!(a.tables.dir(ROOT).unwrap().unwrap().entries, 0);
}

#[test]
fn rename_of_a_directory_beats_its_removal() {
    let (mut a, mut b) = pair(|a| drop(a.mkdir(ROOT, "d")));
    let moved = dir(&a, ROOT, "d");
    let removed = a.rmdir(moved);
    let renamed = b.rename(Child::Dir(moved), ROOT, "e", false);
    meet(&mut a, &[removed], &mut b, &[renamed]);
    assert_eq!(dir(&a, ROOT, "e"), moved);
}

#[test]
fn of_moves_that_would_close_a_cycle_the_later_is_skipped() {
    let (mut a, mut b) = pair(|a| {
        a.mkdir(ROOT, "x");
        a.mkdir(ROOT, "y");
        a.mkdir(ROOT, "z");
    });
    let [x, y, z] = ["x", "y", "z"].map(|name| dir(&a, ROOT, name));
    let from_a = [a.rename(Child::Dir(x), y, "x", false), a.rename(Child::Dir(y), z, "y", false)];
    let from_b = [b.rename(Child::Dir(z), x, "z", false)];
    meet(&mut a, &from_a, &mut b, &from_b);
    assert_eq!(a.tables.with_prefix(Table::Skipped, &[]).unwrap().len(), 1);
    // x under y is the first and z under x the second, by clock and author; y under z would close the circle.
    assert_eq!((dir(&a, y, "x"), dir(&a, x, "z"), dir(&a, ROOT, "y")), (x, z, y));
    // The skipped move is made after all when what it collided with is superseded in the order before it.
    a.rename(Child::Dir(z), ROOT, "z", false);
    assert_eq!(dir(&a, ROOT, "y"), y);
}

#[test]
fn a_late_early_move_repositions_several_directories_at_once() {
    let (mut a, mut b) = pair(|a| {
        a.mkdir(ROOT, "x");
        a.mkdir(ROOT, "y");
    });
    let [x, y] = ["x", "y"].map(|name| dir(&a, ROOT, name));
    // One early move here against several later ones there, one of which it makes impossible.
    let early = a.rename(Child::Dir(x), y, "x", false);
    let mut late = vec![b.mkdir(ROOT, "w").1, b.rename(Child::Dir(y), x, "y", false)];
    late.push(b.rename(Child::Dir(y), x, "again", false));
    late.push(file(&mut b, y, "f").1);
    meet(&mut a, &[early], &mut b, &late);
    assert_eq!((dir(&b, ROOT, "y"), dir(&b, y, "x")), (y, x));
    assert_eq!(b.look(x, "y"), None);
}

#[test]
fn a_file_put_into_a_directory_follows_it() {
    let (mut a, mut b) = pair(|a| {
        a.mkdir(ROOT, "d");
        a.mkdir(ROOT, "e");
    });
    let (d, e) = (dir(&a, ROOT, "d"), dir(&a, ROOT, "e"));
    let renamed = a.rename(Child::Dir(d), e, "d", false);
    let (child, created) = file(&mut b, d, "f");
    meet(&mut a, &[renamed], &mut b, &[created]);
    assert_eq!(dir(&a, e, "d"), d);
    assert_eq!(a.look(d, "f"), Some(child));
}

#[test]
fn forgetting_a_directory_leaves_nothing_of_it() {
    let mut a = Replica::new(1);
    let empty = a.tables.clone();
    let (d, _) = a.mkdir(ROOT, "d");
    a.rename(Child::Dir(d), ROOT, "e", true);
    let effect = plan::set_xattr(&a.tables, a.next_dot(), d.inode(), b"user.x", Some(vec![1])).unwrap();
    a.act(vec![effect]);
    a.rmdir(d);
    a.purge(d.inode());
    let left: Vec<_> = a.tables.0.keys().filter(|key| !empty.0.contains_key(*key)).collect();
    assert_eq!(left, Vec::<&(Table, Vec<u8>)>::new());
}

#[test]
fn alone_a_directory_has_one_move_however_often_it_is_renamed() {
    let mut a = Replica::new(1);
    let (d, _) = a.mkdir(ROOT, "d");
    for name in ["e", "f", "g"] {
        a.rename(Child::Dir(d), ROOT, name, true);
    }
    assert_eq!(a.tables.with_prefix(Table::Moves, &[]).unwrap().len(), 1);
    assert_eq!(dir(&a, ROOT, "g"), d);
}

/// Not meant to happen, as nobody forgets what somebody may still work with; but no order may lose the file.
#[test]
fn file_put_into_a_directory_forgotten_too_early_is_kept_nowhere() {
    let (mut a, mut b) = pair(|a| drop(a.mkdir(ROOT, "d")));
    let d = dir(&a, ROOT, "d");
    let gone = [a.rmdir(d), a.purge(d.inode())];
    let (child, created) = file(&mut b, d, "f");
    meet(&mut a, &gone, &mut b, &[created]);
    assert_eq!(a.look(d, "f"), Some(child));
    assert_eq!(a.look(ROOT, "d"), None);
    let row = a.tables.dir(d).unwrap().unwrap();
    assert_eq!((row.is_placed(), row.entries), (false, 1));
}

#[test]
fn too_eager_folding_leaves_a_directory_nowhere_and_no_cycle() {
    let (mut a, mut b) = pair(|a| {
        a.mkdir(ROOT, "x");
        a.mkdir(ROOT, "y");
    });
    let [x, y] = ["x", "y"].map(|name| dir(&a, ROOT, name));
    // As if alone: the creation of x is dropped while somebody moves y into x at the same time.
    let from_b = b.rename(Child::Dir(y), x, "y", false);
    let from_a = [a.mkdir(ROOT, "later").1, a.rename(Child::Dir(x), y, "x", true)];
    meet(&mut a, &from_a, &mut b, &[from_b]);
    assert!(!a.tables.dir(x).unwrap().unwrap().is_placed());
    assert!(!derive::is_inside(&a.tables, x, y).unwrap() && derive::is_inside(&a.tables, y, x).unwrap());
    // It comes back with the next move.
    a.rename(Child::Dir(x), ROOT, "x", false);
    assert_eq!(dir(&a, x, "y"), y);
}

#[test]
fn a_skipped_move_is_made_when_what_was_in_its_way_is_folded() {
    let (mut a, mut b) = pair(|a| {
        a.mkdir(ROOT, "f");
        a.mkdir(ROOT, "d");
    });
    let [f, d] = ["f", "d"].map(|name| dir(&a, ROOT, name));
    let from_a = a.rename(Child::Dir(d), f, "d", false);
    let from_b = [b.mkdir(ROOT, "later").1, b.rename(Child::Dir(f), d, "f", false)];
    meet(&mut a, &[from_a], &mut b, &from_b);
    assert_eq!((dir(&a, ROOT, "f"), dir(&a, f, "d")), (f, d));
    let folding = a.rename(Child::Dir(d), ROOT, "d", true);
    meet(&mut a, &[folding], &mut b, &[]);
    assert_eq!((dir(&a, ROOT, "d"), dir(&a, d, "f")), (d, f));
    assert!(a.tables.with_prefix(Table::Skipped, &[]).unwrap().is_empty());
}

#[test]
fn exchange_is_one_operation() {
    let (mut a, mut b) = pair(|a| {
        let (x, _) = a.mkdir(ROOT, "x");
        a.mkdir(x, "inner");
        file(a, ROOT, "f");
    });
    let x = dir(&a, ROOT, "x");
    let inner = dir(&a, x, "inner");
    let f = a.look(ROOT, "f").unwrap();
    let effects = [(Child::Dir(inner), ROOT, "f"), (f, x, "inner")].map(|(what, parent, name)| {
        plan::place(&a.tables, what, parent, name.as_bytes(), &|_| Ok(Vec::new())).unwrap()
    });
    let exchanged = a.act(effects.concat());
    let written = write(&mut b, f.inode());
    meet(&mut a, &[exchanged], &mut b, &[written]);
    assert_eq!((dir(&a, ROOT, "f"), a.look(x, "inner")), (inner, Some(f)));
}

#[test]
fn only_what_was_seen_may_be_named() {
    let mut a = Replica::new(1);
    let (child, _) = file(&mut a, ROOT, "f");
    let sent = a.unlink(child, ROOT);
    assert!(sent.op.names_only(|dot| sent.seen.contains(dot)));
    assert!(!sent.op.names_only(|dot| dot != child.inode().0 && sent.seen.contains(dot)));
    // Nor may an author name an operation of its own that is still to come.
    let early = super::Op { dot: Dot { n: 0, ..child.inode().0 }, ..sent.op };
    assert!(!early.names_only(|_| true));
}
