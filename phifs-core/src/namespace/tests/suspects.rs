//! States that cannot have come about: each is refused for what is wrong with it.

use super::super::join::TheirRow;
use super::super::op::{InodeEffect, MoveId};
use super::super::position::Move;
use super::super::privilege::{CAPABILITY, Grant, stored_xattr};
use super::super::register::Entry;
use super::super::row::{Closure, Evidence, InodeRow, LinkRow, Version};
use super::super::suspect::{Suspect, check_joined, check_rows, check_same};
use super::super::tables::{RowsMut, TablesMut, content_key};
use super::*;
use crate::content::Content;

/// Two replicas that have seen the same: a directory with a file in it.
fn pair() -> (Replica, Replica, DirId, InodeId) {
    let (mut mine, mut theirs) = (Replica::new(1), Replica::new(2));
    let (dir, _) = theirs.mkdir(DirId::ROOT, "dir");
    let file = InodeId(theirs.create(FileKind::File, dir, "file").op.dot);
    mine.join(&theirs);
    (mine, theirs, dir, file)
}

/// Joins as a merge does, with all its checks.
pub fn judge(mine: &Replica, theirs: &Replica) -> Result<MapTables, Suspect> {
    let rows: Vec<TheirRow> = mine.tables.all_or_differing(&theirs.tables, false);
    check_rows(&mine.tables, &theirs.context, &rows)?;
    let mut joined = mine.clone();
    joined.join_rows(theirs, &rows);
    check_joined(&joined.tables, &rows)?;
    Ok(joined.tables)
}

fn edit_inode(replica: &mut Replica, id: InodeId, edit: impl FnOnce(&mut InodeRow)) {
    let mut row = replica.tables.inode(id).unwrap().unwrap();
    edit(&mut row);
    replica.tables.set_inode(id, &row);
}

#[test]
fn what_both_have_made_of_the_same_is_believed() {
    let (mut mine, mut theirs, dir, _) = pair();
    let (moved, _) = mine.mkdir(dir, "moved");
    theirs.join(&mine);
    theirs.rename(Child::Dir(moved), DirId::ROOT, "there", false);
    mine.rename(Child::Dir(moved), DirId::ROOT, "elsewhere", false);
    theirs.create(FileKind::Symlink, moved, "link");
    let joined = judge(&mine, &theirs).unwrap();
    mine.join(&theirs);
    assert_eq!(joined, mine.tables);
}

#[test]
fn rows_outside_of_their_context_are_refused() {
    let (mine, mut theirs, _, file) = pair();
    let unknown = Dot { author: AuthorId([2; 16]), n: 99 };
    edit_inode(&mut theirs, file, |row| {
        row.touched.insert(Entry { dot: unknown, hlc: Hlc(9), value: Timestamp::default() });
    });
    assert!(matches!(judge(&mine, &theirs), Err(Suspect::Uncovered(dot)) if dot == unknown));
}

/// Else it could make a program of whatever somebody writes next.
#[test]
fn nobody_gives_set_id_bits_or_capabilities_to_bytes_that_he_cannot_have_seen() {
    let future = Dot { author: AuthorId([1; 16]), n: 99 };
    let (mine, theirs, _, file) = pair();
    let mut row = theirs.tables.inode(file).unwrap().unwrap();
    row.versions.insert(Entry { dot: future, hlc: Hlc(9), value: version() });
    let mode = Mode { permissions: 0o4755, acl: Vec::new() };
    let mode = Some(Grant::new(mode, &row, theirs.next_dot()));
    let capability = stored_xattr(CAPABILITY, b"c".to_vec(), &row, theirs.next_dot());
    let xattr = Effect::Xattr { inode: file, name: CAPABILITY.to_vec(), value: Some(capability), drops: Vec::new() };
    let inode = Effect::Inode(InodeEffect { mode, ..InodeEffect::new(file) });
    for effect in [inode, xattr] {
        let (dot, hlc) = (theirs.next_dot(), Hlc(9));
        let op = Op { dot, hlc, time: Timestamp::default(), effects: vec![effect] };
        assert!(!op.names_only(|dot| theirs.context.contains(dot)));
        let mut forged = theirs.clone();
        apply(&mut forged.tables, &op).unwrap();
        forged.context.advance(dot);
        assert!(matches!(judge(&mine, &forged), Err(Suspect::Uncovered(dot)) if dot == future));
    }
}

fn version() -> Version {
    let evidence = Evidence::default();
    let (content, mtime, closure) = (Content::Empty, Timestamp::default(), Closure::Close);
    Version { content, mtime, closure, evidence, bases: Vec::new() }
}

#[test]
fn one_operation_does_not_say_two_things() {
    let (mine, mut theirs, _, file) = pair();
    edit_inode(&mut theirs, file, |row| {
        let mut entry = row.owner.latest().unwrap().clone();
        row.owner.remove(entry.dot);
        entry.value.uid = 0;
        row.owner.insert(entry);
    });
    assert!(matches!(judge(&mine, &theirs), Err(Suspect::TwoOperations(dot)) if dot == file.0));

    let (mut mine, mut theirs, _, file) = pair();
    let key = content_key(file, file.0);
    mine.tables.put(Table::Contents, &key, b"mine");
    theirs.tables.put(Table::Contents, &key, b"theirs");
    assert!(matches!(judge(&mine, &theirs), Err(Suspect::TwoOperations(dot)) if dot == file.0));
}

#[test]
fn the_same_operations_come_to_the_same_state() {
    let (mine, mut theirs, _, file) = pair();
    edit_inode(&mut theirs, file, |row| row.touched = Default::default());
    let rows = mine.tables.all_or_differing(&theirs.tables, false);
    assert!(matches!(check_same(&mine.tables, &rows), Err(Suspect::OtherState)));
    check_same(&mine.tables, &mine.tables.all_or_differing(&mine.tables, true)).unwrap();
}

#[test]
fn names_lead_to_something_and_are_somewhere() {
    let (mine, mut theirs, _, file) = pair();
    let new = InodeId(theirs.create(FileKind::File, DirId::ROOT, "new").op.dot);
    theirs.tables.delete(Table::Inodes, &new.0.to_bytes());
    assert!(matches!(judge(&mine, &theirs), Err(Suspect::NoInode { inode, .. }) if inode == new.0));

    let (mine, mut theirs, _, _) = pair();
    let new = theirs.create(FileKind::File, DirId::ROOT, "new").op.dot;
    let key = new.to_bytes();
    let mut link = LinkRow::decode(new, &theirs.tables.get(Table::Links, &key).unwrap().unwrap()).unwrap();
    let mut entry = link.places.latest().unwrap().clone();
    link.places.remove(entry.dot);
    // A file is no directory.
    entry.value.parent = DirId(file.0);
    link.places.insert(entry);
    theirs.tables.put(Table::Links, &key, &link.encode(new));
    assert!(matches!(judge(&mine, &theirs), Err(Suspect::NoDirectory { dir, .. }) if dir == file.0));
}

#[test]
fn directories_that_move_are_there_and_so_is_where_they_go() {
    let put = |replica: &mut Replica, dir: DirId, parent: DirId| {
        let id = MoveId { hlc: Hlc(99), dot: replica.next_dot() };
        replica.context.advance(id.dot);
        let new = Move { id, dir, parent, name: b"x".to_vec() };
        replica.tables.put(Table::Moves, &new.key(), &new.encode());
    };
    let (mine, mut theirs, dir, file) = pair();
    put(&mut theirs, DirId(file.0), dir);
    assert!(matches!(judge(&mine, &theirs), Err(Suspect::MovesNothing(dot)) if dot == file.0));
    let (mine, mut theirs, dir, file) = pair();
    put(&mut theirs, dir, DirId(file.0));
    assert!(matches!(judge(&mine, &theirs), Err(Suspect::NoDirectory { dir, .. }) if dir == file.0));
}

#[test]
fn rows_that_do_not_decode_are_refused() {
    for table in REPLICATED {
        let (mine, mut theirs, _, file) = pair();
        for (key, _) in theirs.tables.with_prefix(table, &[]).unwrap() {
            theirs.tables.put(table, &key, b"\xff");
        }
        theirs.tables.put(Table::Xattrs, &file.0.to_bytes(), b"\xff");
        theirs.tables.put(Table::Contents, &file.0.to_bytes(), b"\xff");
        let refused = judge(&mine, &theirs);
        assert!(matches!(refused, Err(Suspect::Store(StoreError::Malformed { .. }))), "{table}: {refused:?}");
    }
}
