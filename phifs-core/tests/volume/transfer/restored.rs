//! Stores that go on from an old copy of themselves, while others have what they did since.

use phifs_core::volume::{Ino, Volume};

use super::groups::{introduce, members, push};
use super::peers::{check_same, key_of, tell};
use super::*;

/// What a store is like that was closed.
fn image_of(site: &Site) -> MemDisk {
    site.volume.shut_down().unwrap();
    site.disk.snapshot()
}

fn names_in(site: &Site) -> Vec<Vec<u8>> {
    let names = [&b"before"[..], b"since", b"after", b"of b"];
    let is_there = |name: &&[u8]| site.volume.lookup(&CALLER, Ino::ROOT, name).is_ok();
    names.into_iter().filter(is_there).map(<[u8]>::to_vec).collect()
}

#[test]
fn each_run_of_a_store_that_others_have_too_has_its_own_author() {
    let (a, _) = members();
    let author = a.volume.status().author;
    let image = image_of(&a);
    let (one, two) = (Site::started(&image, KEYS[0], 50), Site::started(&image, KEYS[0], 51));
    let authors = [&one, &two].map(|site| site.volume.status().author);
    assert!(authors[0] != author && authors[1] != author && authors[0] != authors[1]);
}

#[test]
fn a_restored_store_gets_back_what_it_did_since_and_loses_nothing_that_it_does_next() {
    for by_states in [false, true] {
        let (a, b) = members();
        a.write(Ino::ROOT, b"before", &noise(1, 50_000));
        let image = image_of(&a);
        let a = Site::started(&image, KEYS[0], 50);
        a.write(Ino::ROOT, b"since", &noise(2, 50_000));
        a.volume.unlink(Ino::ROOT, b"before").unwrap();
        push(&a, &b);
        b.write(Ino::ROOT, b"of b", &noise(3, 50_000));
        drop(a);

        let restored = Site::started(&image, KEYS[0], 51);
        restored.write(Ino::ROOT, b"after", &noise(4, 50_000));
        if by_states {
            tell(&b, &restored);
            tell(&restored, &b);
        } else {
            push(&b, &restored);
            push(&restored, &b);
        }
        check_same(&restored, &b);
        assert_eq!(names_in(&b), [&b"since"[..], b"after", b"of b"]);
    }
}

#[test]
fn a_copy_from_before_it_had_peers_hears_of_what_it_did_and_goes_on_as_another_author() {
    for by_states in [false, true] {
        let first = Site::new(0);
        first.fill();
        first.write(Ino::ROOT, b"before", b"1");
        first.snapshot("first");
        let stream = first.export("first", None);
        let image = image_of(&first);
        let sites = [Site::started(&image, KEYS[0], 50), Site::out_of(1, &stream), Site::started(&image, KEYS[0], 52)];
        introduce(&sites[..2]);
        let [a, b, copy] = sites;
        assert_eq!(a.volume.status().author, copy.volume.status().author, "this test needs two with one author");
        a.write(Ino::ROOT, b"since", &noise(2, 50_000));
        push(&a, &b);
        let pair = [copy, b];
        introduce(&pair);
        let [copy, b] = pair;
        if by_states {
            tell(&b, &copy);
        } else {
            push(&b, &copy);
        }
        assert_ne!(a.volume.status().author, copy.volume.status().author);
        copy.write(Ino::ROOT, b"after", &noise(3, 50_000));
        a.write(Ino::ROOT, b"of b", &noise(4, 50_000));
        push(&copy, &b);
        push(&a, &b);
        push(&b, &copy);
        check_same(&copy, &b);
        assert_eq!(names_in(&b), [&b"before"[..], b"since", b"after", b"of b"]);
    }
}

#[test]
fn the_word_of_a_member_that_comes_anew_counts_when_it_gives_it_again() {
    let (a, b) = members();
    a.volume.change_setting("fsync_degraded", Some("block 30ms")).unwrap();
    a.volume.change_setting("durability", Some("all")).unwrap();
    let ino = a.write(Ino::ROOT, b"file", &noise(1, 50_000));
    push(&a, &b);
    let vouch = || a.volume.take_receipt(key_of(&b), b.volume.receipt().unwrap().unwrap()).unwrap();
    vouch();
    a.volume.fsync(ino, None, false).unwrap();
    a.volume.forget_receipts(key_of(&b));
    assert!(a.volume.fsync(ino, None, false).is_err(), "it may be an old copy that does not have it");
    vouch();
    a.volume.fsync(ino, None, false).unwrap();
}
