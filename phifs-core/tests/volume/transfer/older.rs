//! A version whose glyphs nobody can give is not read as long as an older one is here.

use std::collections::BTreeSet;

use phifs_core::id::GlyphId;
use phifs_core::store::StoreError;
use phifs_core::volume::{OpenHow, SetAttr, VolumeError};

use super::elsewhere::{Other, apart, difference, glyphs_of, open_file, read_all, status};
use super::groups::push;
use super::peers::check_same;
use super::*;
use crate::harness::READ;

const TRUNCATE: OpenHow = OpenHow { truncate: true, ..WRITE };

fn size(site: &Site) -> u64 {
    site.volume.lookup(&CALLER, Ino::ROOT, b"file").unwrap().size_bytes
}

/// A machine has read the first version of a file and then heard of a second one, of which it can have nothing; what it
/// lacks.
fn behind(first: &[u8], second: &[u8]) -> (Site, Site, Arc<Other>) {
    let (a, b, other) = apart(|a| _ = a.write(Ino::ROOT, b"file", first));
    b.volume.set_peers(Some(other));
    assert!(read_all(&b, b"file").unwrap() == first);
    a.write(Ino::ROOT, b"file", second);
    push(&a, &b);
    b.volume.set_peers(None);
    let lacks = Other { glyphs: difference(&a, &b).into(), ..Other::default() };
    (a, b, Arc::new(lacks))
}

#[test]
fn version_that_cannot_be_had_is_not_read_while_an_older_one_is_here() {
    for (old, new) in [(30_000, 50_000), (5 << 20, 6 << 20)] {
        let (old, new) = (noise(7, old), noise(8, new));
        let (_a, b, other) = behind(&old, &new);
        assert_eq!(size(&b), new.len() as u64);
        let (ino, handle) = open_file(&b, b"file");
        assert_eq!(size(&b), old.len() as u64, "while it is open");
        assert!(b.volume.read(ino, handle, 0, 16_384).unwrap() == old[..16_384]);
        let told = status(&b, b"file");
        assert!(told.starts_with("older: version ") && told.ends_with("no other machine is connected"), "{told}");
        b.volume.set_peers(Some(other));
        assert!(read_all(&b, b"file").unwrap() == old, "it stays as long as somebody has it open");
        b.volume.release(ino, handle);
        assert_eq!(size(&b), new.len() as u64);
        assert!(status(&b, b"file").starts_with("unreadable: "), "nobody has tried again");
        assert!(read_all(&b, b"file").unwrap() == new);
        assert_eq!(status(&b, b"file"), "ok");
    }
}

#[test]
fn newest_of_the_older_versions_that_are_whole_is_read() {
    let (a, b, _) = behind(&noise(7, 30_000), &noise(8, 30_000));
    b.volume.set_peers(Some(Arc::new(Other { glyphs: difference(&a, &b).into(), ..Other::default() })));
    assert!(read_all(&b, b"file").unwrap() == noise(8, 30_000));
    for n in 9..12 {
        a.write(Ino::ROOT, b"file", &noise(n, 30_000));
    }
    push(&a, &b);
    b.volume.set_peers(Some(Arc::new(Other::default())));
    assert!(read_all(&b, b"file").unwrap() == noise(8, 30_000));
}

#[test]
fn version_whose_end_cannot_be_had_is_not_read() {
    let new = noise(7, 8 << 20);
    let (_a, b, other) = behind(&new[..1 << 20], &new);
    let (c, _d, _) = apart(|c| _ = c.write(Ino::ROOT, b"file", &new[..7 << 20]));
    let all_but_end: BTreeSet<GlyphId> = glyphs_of(&c);
    let mut part = other.glyphs.lock().unwrap().clone();
    let all = part.len();
    part.retain(|id, _| all_but_end.contains(id));
    assert!((all * 3 / 4..all).contains(&part.len()), "{} of {all}", part.len());
    b.volume.set_peers(Some(Arc::new(Other { glyphs: part.into(), ..Other::default() })));
    assert!(read_all(&b, b"file").unwrap() == new[..1 << 20]);
    b.volume.set_peers(Some(other));
    assert!(read_all(&b, b"file").unwrap() == new);
}

#[test]
fn nothing_is_asked_for_at_an_open_where_nothing_older_is_here() {
    let (a, b, other) = apart(|a| _ = a.write(Ino::ROOT, b"file", &noise(7, 30_000)));
    a.write(Ino::ROOT, b"file", &noise(8, 30_000));
    push(&a, &b);
    b.volume.set_peers(Some(other.clone()));
    let (ino, handle) = open_file(&b, b"file");
    assert_eq!(other.asked.lock().unwrap().len(), 0);
    assert!(matches!(b.volume.read(ino, handle, 0, 100), Err(VolumeError::Store(StoreError::Missing(_)))));
    b.volume.release(ino, handle);
    assert!(status(&b, b"file").starts_with("unreadable: "));
}

#[test]
fn older_version_is_read_only_by_those_who_may_read_the_file_now() {
    let (a, b, _) = behind(&noise(7, 30_000), &noise(8, 30_000));
    let ino = a.volume.lookup(&CALLER, Ino::ROOT, b"file").unwrap().ino;
    a.env.advance();
    a.volume.setattr(&CALLER, ino, &SetAttr { permissions: Some(0o644), ..SetAttr::default() }).unwrap();
    push(&a, &b);
    assert!(read_all(&b, b"file").is_err());
}

#[test]
fn writers_begin_with_what_is_shown_or_with_nothing() {
    let (a, b, _) = behind(&noise(7, 30_000), &noise(8, 50_000));
    let (ino, handle) = open_file(&b, b"file");
    let refused = b.volume.open(&CALLER, ino, &WRITE).map(|opened| opened.handle);
    assert!(matches!(refused, Err(VolumeError::Store(StoreError::Missing(_)))), "{refused:?}");
    let cut = SetAttr { size_bytes: Some(10), ..SetAttr::default() };
    assert!(b.volume.setattr(&CALLER, ino, &cut).is_err());
    assert_eq!(size(&b), 30_000, "nothing has changed");

    let writer = b.volume.open(&CALLER, ino, &TRUNCATE).unwrap().handle;
    b.volume.write(&CALLER, ino, writer, 0, &noise(9, 20_000), false).unwrap();
    assert!(b.volume.read(ino, handle, 0, 65_536).unwrap() == noise(9, 20_000), "as on any filesystem");
    assert_eq!(status(&b, b"file").split(':').next(), Some("unreadable"), "of what is shown to others");
    b.volume.release(ino, writer);
    b.volume.release(ino, handle);
    settle(&b.volume);
    push(&b, &a);
    check_same(&a, &b);
    assert!(read_all(&a, b"file").unwrap() == noise(9, 20_000));
    assert_eq!(a.volume.conflicts(b"").unwrap().len(), 0, "it replaces what was shown");

    // Without a reader of an older version a writer needs none of the bytes.
    a.write(Ino::ROOT, b"file", &noise(10, 50_000));
    push(&a, &b);
    b.write(Ino::ROOT, b"file", b"begin");
}

#[test]
fn content_that_is_here_is_looked_through_once_until_glyphs_are_removed() {
    let (a, b, other) = behind(&noise(7, 30_000), &noise(8, 30_000));
    let may_wait = |site: &Site| {
        let ino = site.volume.lookup(&CALLER, Ino::ROOT, b"file").unwrap().ino;
        site.volume.open_may_wait(ino, &READ)
    };
    assert!(may_wait(&a), "nobody has looked whether all is here that the layout places here");
    assert_eq!(a.volume.look_for_missing().unwrap(), []);
    assert!(!may_wait(&a), "it holds everything");
    b.volume.set_peers(Some(other));
    assert!(may_wait(&b));
    for _ in 0..2 {
        assert!(read_all(&b, b"file").unwrap() == noise(8, 30_000));
    }
    assert!(!may_wait(&b));
    b.volume.collect(1.0, &|_| {}).unwrap();
    assert!(may_wait(&b));
}
