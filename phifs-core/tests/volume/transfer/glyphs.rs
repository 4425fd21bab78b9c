//! Glyphs one by one: what an operation of another machine needs is told in rounds, and hostile bytes leave no trace.

use std::collections::BTreeSet;

use bytes::Bytes;
use phifs_core::id::GlyphId;
use phifs_core::namespace::op::Op;
use phifs_core::store::GlyphKind;

use super::*;

/// More than one page lists the glyphs of this many bytes.
const LONG: usize = 40 << 20;

/// What a machine has done, as others get it.
fn ops_of(site: &Site) -> Vec<Op> {
    let recent = site.volume.recent_ops(usize::MAX).unwrap().into_iter().rev();
    recent.map(|op| Op { dot: op.dot, hlc: op.hlc, time: op.time, effects: op.effects }).collect()
}

fn missing(site: &Site, ops: &[Op]) -> BTreeSet<GlyphId> {
    ops.iter().flat_map(|op| site.volume.missing_in(op).unwrap()).collect()
}

#[test]
fn operation_is_asked_about_until_all_that_it_needs_is_here() {
    let (a, b) = (Site::new(0), Site::new(1));
    a.fill();
    a.write(Ino::ROOT, b"very long", &noise(7, LONG));
    let ops = ops_of(&a);
    assert!(missing(&a, &ops).is_empty(), "its own");
    let _hold = b.volume.hold_glyphs();
    let (mut rounds, mut taken) = (0, 0);
    loop {
        let missing = missing(&b, &ops);
        if missing.is_empty() {
            break;
        }
        for id in missing {
            let sent = a.volume.glyph_to_send(GlyphKind::Data, &id).unwrap().expect("it is there");
            b.volume.take_glyph(id, &sent).unwrap();
            taken += 1;
        }
        rounds += 1;
    }
    assert!(rounds >= 3, "pages below a page, and data below that: {rounds}");
    assert!(taken > LONG / (256 << 10));
    // Nothing names them here yet, and they stay.
    b.volume.collect(1.0, &|_| {}).unwrap();
    assert!(missing(&b, &ops).is_empty());
}

#[test]
fn glyphs_that_nobody_holds_go_with_the_next_collection() {
    let (a, b) = (Site::new(0), Site::new(1));
    a.write(Ino::ROOT, b"single", &noise(1, 30_000));
    let ops = ops_of(&a);
    let hold = b.volume.hold_glyphs();
    for id in missing(&b, &ops) {
        b.volume.take_glyph(id, &a.volume.glyph_to_send(GlyphKind::Data, &id).unwrap().unwrap()).unwrap();
    }
    drop(hold);
    b.volume.collect(1.0, &|_| {}).unwrap();
    assert_eq!(missing(&b, &ops).len(), 1);
}

#[test]
fn glyph_that_is_garbage_here_outlives_a_collection_once_it_was_found() {
    let (a, b) = (Site::new(0), Site::new(1));
    for site in [&a, &b] {
        site.write(Ino::ROOT, b"single", &noise(1, 30_000));
    }
    b.volume.unlink(Ino::ROOT, b"single").unwrap();
    settle(&b.volume);
    let ops = ops_of(&a);
    let _hold = b.volume.hold_glyphs();
    assert!(missing(&b, &ops).is_empty());
    b.volume.collect(1.0, &|_| {}).unwrap();
    assert!(missing(&b, &ops).is_empty());
}

#[test]
fn wrong_bytes_of_a_glyph_are_refused_and_leave_nothing() {
    let (a, b) = (Site::new(0), Site::new(1));
    a.write(Ino::ROOT, b"single", &[b'a'; 30_000]);
    let id = *missing(&b, &ops_of(&a)).first().unwrap();
    let sent = a.volume.glyph_to_send(GlyphKind::Data, &id).unwrap().unwrap();
    let mut bad: Vec<Bytes> = (0..sent.len()).map(|len| sent.slice(..len)).collect();
    for (at, to) in [(0, 0), (0, 2), (0, 9), (1, 0), (1, 2), (1, 9), (2, 0xff), (5, 1), (5, 0xff), (12, 0x55)] {
        let mut bytes = sent.to_vec();
        bytes[at] = to;
        bad.push(bytes.into());
    }
    bad.push([&sent[..], b"x"].concat().into());
    for bytes in &bad {
        assert!(b.volume.take_glyph(id, bytes).is_err(), "{} bytes", bytes.len());
    }
    assert!(b.volume.take_glyph(GlyphId([1; 32]), &sent).is_err());
    assert_eq!(b.volume.glyph_to_send(GlyphKind::Data, &id).unwrap(), None);
    b.volume.take_glyph(id, &sent).unwrap();
    assert_eq!(b.volume.glyph_to_send(GlyphKind::Data, &id).unwrap(), Some(sent));
}
