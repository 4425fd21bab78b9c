//! Long files, whose glyphs are fetched before the version is told that they are of.

use std::time::Duration;

use phifs_core::id::GlyphId;
use phifs_core::ssep::{Answer, Follower, Next, Progress, Teller, note_of};
use phifs_core::store::GlyphKind;
use phifs_core::volume::Ino;

use super::groups::members;
use super::peers::check_same;
use super::{Site, noise};

/// What the teller has to say, until it has nothing more.
fn told(teller: &mut Teller, from: &Site) -> Vec<Answer> {
    let next = || match teller.next(&from.volume, Duration::ZERO).unwrap() {
        Next::Say(answer) => Some(Answer::decode(&answer.encode().into()).unwrap()),
        Next::Wait(_) => None,
    };
    std::iter::from_fn(next).collect()
}

fn fetch(from: &Site, to: &Site, ids: &[GlyphId]) {
    for id in ids {
        to.volume.take_glyph(*id, &from.volume.glyph_to_send(GlyphKind::Data, id).unwrap().unwrap()).unwrap();
    }
}

#[test]
fn glyphs_of_a_long_file_are_told_before_it_and_kept_until_it_has_come() {
    let (a, b) = members();
    a.volume.count_follower(1);
    let mut teller = Teller::new(&note_of(&b.volume).unwrap());
    told(&mut teller, &a);
    a.write(Ino::ROOT, b"short", &noise(40, 3 << 20));
    a.write(Ino::ROOT, b"long", &noise(41, 30 << 20));
    let (mut follower, mut fetched, mut needed) = (Follower::new(), 0, 0);
    for answer in told(&mut teller, &a) {
        match answer {
            Answer::Coming(lot) => {
                let missing = follower.expect(&b.volume, lot);
                fetched += missing.len();
                fetch(&a, &b, &missing);
                // Nothing names them yet.
                b.volume.collect(1.0, &|_| {}).unwrap();
            }
            Answer::Groups(groups) => {
                follower.take(&b.volume, groups).unwrap();
                loop {
                    let Progress { missing, .. } = follower.go_on(&b.volume).unwrap();
                    if missing.is_empty() {
                        break;
                    }
                    needed += missing.len();
                    fetch(&a, &b, &missing);
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(fetched >= 256, "{fetched} glyphs of the long file came before it");
    // The short one, and the end of the long one.
    assert!(needed < 200 && needed > 40, "{needed} glyphs came with the versions");
    check_same(&a, &b);
    b.volume.collect(1.0, &|_| {}).unwrap();
    check_same(&a, &b);
}

#[test]
fn who_comes_late_hears_only_of_what_is_still_to_come() {
    let (a, b) = members();
    a.volume.count_follower(1);
    a.write(Ino::ROOT, b"long", &noise(42, 20 << 20));
    let mut late = Teller::new(&note_of(&b.volume).unwrap());
    assert!(!told(&mut late, &a).iter().any(|answer| matches!(answer, Answer::Coming(_))));
}

#[test]
fn nobody_is_told_where_nobody_listens() {
    let (a, _) = members();
    a.write(Ino::ROOT, b"long", &noise(43, 20 << 20));
    assert_eq!(a.volume.lots_so_far(), 0);
}
