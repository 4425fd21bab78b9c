//! Two machines that tell each other what they have.

use phifs_core::identity::NodeKey;
use phifs_core::volume::local::{MergeError, PeerError, TransferError};
use phifs_core::volume::{Ino, RenameMode, Volume};

use super::{GO_ON, Site, noise, pair};
use crate::harness::read_tree;

fn key_of(site: &Site) -> phifs_core::identity::NodePublicKey {
    NodeKey::from_seed(&site.key).public()
}

/// What one machine sends another one, and how many operations the other one learns by it.
fn try_tell(from: &Site, to: &Site) -> Result<(usize, u64), PeerError> {
    let head = from.volume.head()?;
    let known = to.volume.learned_from(&key_of(from));
    let mut stream = Vec::new();
    from.volume.give(&key_of(to), &head, &known, &mut stream, &GO_ON)?;
    let merged = to.volume.learn(&key_of(from), &stream[..], &GO_ON)?;
    from.volume.was_given(&key_of(to), &head)?;
    Ok((stream.len(), merged.operations))
}

fn tell(from: &Site, to: &Site) -> (usize, u64) {
    try_tell(from, to).unwrap()
}

fn check_same(a: &Site, b: &Site) {
    assert_eq!(a.volume.context(), b.volume.context());
    assert_eq!(a.volume.tree_root().unwrap(), b.volume.tree_root().unwrap());
    let seen = [a, b].map(|site| read_tree(&site.volume).unwrap());
    assert!(seen[0] == seen[1]);
    for site in [a, b] {
        assert_eq!(site.volume.fsck(false, &|_| {}).unwrap().problems, []);
    }
}

#[test]
fn machines_that_told_each_other_all_are_the_same_and_go_on_by_differences() {
    let (a, b, _) = pair();
    a.write(Ino::ROOT, b"of a", &noise(31, 300_000));
    b.write(Ino::ROOT, b"of b", b"b");
    b.volume.rename(Ino::ROOT, b"dir", Ino::ROOT, b"renamed", RenameMode::Replace).unwrap();
    let (first, _) = tell(&a, &b);
    tell(&b, &a);
    check_same(&a, &b);
    assert_eq!(tell(&a, &b).1, 0, "it has heard all of it");
    a.write(Ino::ROOT, b"small", b"1");
    let (second, operations) = tell(&a, &b);
    assert!(second < 20_000 && first > 300_000 && operations > 0, "{first}, then {second} bytes");
    check_same(&a, &b);
    // They go on where they were after a restart and a collection.
    let (a, b) = (a.crashed(), b.crashed());
    a.volume.collect(1.0, &|_| {}).unwrap();
    b.volume.collect(1.0, &|_| {}).unwrap();
    b.write(Ino::ROOT, b"after", b"2");
    let (third, _) = tell(&b, &a);
    assert!(third < 100_000, "{third} bytes");
    tell(&a, &b);
    check_same(&a, &b);
}

#[test]
fn both_sides_of_a_cut_are_kept_when_it_heals() {
    let (a, b, _) = pair();
    a.write(Ino::ROOT, b"inline", b"here");
    b.write(Ino::ROOT, b"inline", b"there");
    tell(&a, &b);
    tell(&b, &a);
    check_same(&a, &b);
    for site in [&a, &b] {
        assert_eq!(site.volume.conflicts(b"/").unwrap().len(), 1);
    }
    a.write(Ino::ROOT, b"inline", b"decided");
    tell(&a, &b);
    check_same(&a, &b);
    assert!(b.volume.conflicts(b"/").unwrap().is_empty());
}

#[test]
fn a_head_of_somebody_else_or_a_damaged_one_changes_nothing() {
    let (a, b, _) = pair();
    a.write(Ino::ROOT, b"of a", &noise(31, 50_000));
    let before = (b.volume.context(), b.volume.tree_root().unwrap());
    let head = a.volume.head().unwrap();
    let mut stream = Vec::new();
    a.volume.give(&key_of(&b), &head, &[], &mut stream, &GO_ON).unwrap();
    let refused = b.volume.learn(&key_of(&b), &stream[..], &GO_ON);
    assert!(matches!(refused, Err(PeerError::OtherSigner)));
    for at in (0..stream.len()).step_by(997) {
        let mut damaged = stream.clone();
        damaged[at] ^= 4;
        assert!(b.volume.learn(&key_of(&a), &damaged[..], &GO_ON).is_err(), "byte {at}");
    }
    assert!(b.volume.learn(&key_of(&a), &stream[..stream.len() - 1], &GO_ON).is_err());
    let stranger = Site::new(2);
    stranger.write(Ino::ROOT, b"x", b"x");
    let refused = try_tell(&stranger, &b);
    assert!(matches!(refused, Err(PeerError::Merge(MergeError::OtherVolume(_)))));
    assert_eq!((b.volume.context(), b.volume.tree_root().unwrap()), before);
    // What builds on a head that is not known any more is refused as well, and told in full the next time.
    b.volume.learn(&key_of(&a), &stream[..], &GO_ON).unwrap();
    a.volume.was_given(&key_of(&b), &head).unwrap();
    a.write(Ino::ROOT, b"more", b"1");
    let next = a.volume.head().unwrap();
    let mut increment = Vec::new();
    a.volume.give(&key_of(&b), &next, &[head.id()], &mut increment, &GO_ON).unwrap();
    let (_, c, _) = pair();
    assert!(matches!(
        c.volume.learn(&key_of(&a), &increment[..], &GO_ON),
        Err(PeerError::Transfer(TransferError::MissingBase(_)) | PeerError::Merge(MergeError::OtherVolume(_)))
    ));
}
