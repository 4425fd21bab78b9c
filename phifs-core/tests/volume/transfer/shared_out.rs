//! What counts as held where not everybody holds everything.

use phifs_core::ssep::{Follower, Progress, Unbelievable};
use phifs_core::store::GlyphKind;
use phifs_core::volume::local::News;
use phifs_core::volume::{Ino, Volume, VolumeError};

use super::elsewhere::layout_of;
use super::groups::{introduce, members, push};
use super::peers::{check_same, key_of, tell};
use super::{Site, noise, pair};

/// Three members that have the same.
fn three() -> [Site; 3] {
    let (a, b, stream) = pair();
    let sites = [a, b, Site::out_of(2, &stream)];
    introduce(&sites);
    let [a, b, c] = &sites;
    for (from, to) in [(a, b), (b, a), (a, c), (c, a), (a, b), (c, b)] {
        push(from, to);
    }
    a.volume.change_setting("fsync_degraded", Some("block 30ms")).unwrap();
    sites
}

fn share_out(sites: &[Site; 3], copies: &str) {
    let layout = layout_of(&sites.each_ref().map(|site| (site, 1)));
    for site in sites {
        site.volume.change_setting("copies", Some(copies)).unwrap();
        site.volume.set_layout(Some(layout.clone())).unwrap();
        assert_eq!(site.volume.look_for_missing().unwrap(), []);
    }
}

fn vouch(from: &Site, to: &Site) {
    to.volume.take_receipt(key_of(from), from.volume.receipt().unwrap().unwrap()).unwrap();
}

#[test]
fn a_sync_counts_those_who_have_the_version_whoever_wrote_it() {
    let sites = three();
    let [a, b, c] = &sites;
    a.volume.change_setting("durability", Some("all")).unwrap();
    let ino = b.write(Ino::ROOT, b"of b", &noise(1, 100_000));
    push(b, a);
    vouch(b, a);
    vouch(c, a);
    let synced = a.volume.fsync(ino, None, false);
    assert!(matches!(synced, Err(VolumeError::NotEnoughCopies { have: 2, wanted: 3 })), "{synced:?}");
    push(b, c);
    vouch(c, a);
    a.volume.fsync(ino, None, false).unwrap();
}

#[test]
fn a_sync_counts_the_holders_of_each_part_of_a_long_file() {
    let sites = three();
    let [a, b, c] = &sites;
    share_out(&sites, "2");
    a.volume.change_setting("durability", Some("quorum")).unwrap();
    let ino = a.write(Ino::ROOT, b"long", &noise(1, 3_000_000));
    push(a, b);
    vouch(b, a);
    let synced = a.volume.fsync(ino, None, false);
    assert!(matches!(synced, Err(VolumeError::NotEnoughCopies { have: 1, wanted: 2 })), "{synced:?}");
    push(a, c);
    vouch(c, a);
    a.volume.fsync(ino, None, false).unwrap();
}

#[test]
fn a_word_given_by_another_placing_counts_for_nothing_and_is_given_anew() {
    let sites = three();
    let [a, b, _] = &sites;
    share_out(&sites, "2");
    vouch(b, a);
    let told = b.volume.receipt().unwrap();
    assert!(a.volume.held_by(key_of(b)).covers(&b.volume.context()));
    assert!(!b.volume.has_more_to_vouch_for(told.as_ref()));
    for site in [a, b] {
        site.volume.change_setting("copies", Some("3")).unwrap();
    }
    assert!(a.volume.held_by(key_of(b)).is_empty());
    assert!(b.volume.is_awaited() && b.volume.receipt().unwrap().is_none(), "there may be more to hold by now");
    assert_eq!(b.volume.look_for_missing().unwrap(), []);
    assert!(b.volume.has_more_to_vouch_for(told.as_ref()));
    vouch(b, a);
    // One that comes late takes nothing back.
    a.volume.take_receipt(key_of(b), told.unwrap()).unwrap();
    assert!(a.volume.held_by(key_of(b)).covers(&b.volume.context()));
}

/// What a follower does with what it is told while nobody gives it any bytes of files.
fn taken_in_without(from: &Site, to: &Site) -> Result<Progress, Unbelievable> {
    let News::Groups(groups) = from.volume.news(&to.volume.context(), &|_| true).unwrap() else {
        panic!("the log has everything")
    };
    let mut follower = Follower::new();
    follower.take(&to.volume, groups.iter().map(|group| group.encoded().clone()).collect())?;
    loop {
        let progress = follower.go_on(&to.volume)?;
        if progress.missing.is_empty() {
            return Ok(progress);
        }
        follower.do_without(progress.missing);
    }
}

#[test]
fn what_nobody_gives_is_awaited_if_its_author_has_said_to_hold_it() {
    let sites = three();
    let [a, b, c] = &sites;
    let ino = a.write(Ino::ROOT, b"file", &noise(1, 30_000));
    // Who knows nothing of that cannot tell whether the author still has it.
    assert_eq!(taken_in_without(a, b).unwrap(), Progress { lost: 1, ..Progress::default() });
    assert!(!b.volume.is_awaited());
    vouch(a, b);
    assert_eq!(taken_in_without(a, b).unwrap().applied, 2);
    assert!(b.volume.is_awaited() && b.volume.receipt().unwrap().is_none());
    assert_eq!(b.volume.fsck(false, &|_| {}).unwrap().problems, [], "it is not lost");
    b.volume.tick().unwrap();
    let b = b.crashed();
    assert!(b.volume.is_awaited(), "nor forgotten");
    push(a, c);
    for (id, _) in b.volume.look_for_missing().unwrap() {
        b.volume.take_glyph(id, &c.volume.glyph_to_send(GlyphKind::Data, &id).unwrap().unwrap()).unwrap();
    }
    assert_eq!(b.volume.look_for_missing().unwrap(), []);
    assert!(b.volume.receipt().unwrap().is_some());
    assert_eq!(b.volume.getattr(ino, None).unwrap().size_bytes, 30_000);
}

#[test]
fn states_say_what_groups_cannot_once_its_bytes_are_gone() {
    let (a, b) = members();
    a.write(Ino::ROOT, b"long", &noise(1, 3_000_000));
    a.volume.unlink(Ino::ROOT, b"long").unwrap();
    a.write(Ino::ROOT, b"short", b"is there");
    a.volume.collect(1.0, &|_| {}).unwrap();
    vouch(&a, &b);
    let lost = taken_in_without(&a, &b).unwrap().lost;
    assert!(lost > 0, "nobody has what lists the glyphs of the first");
    tell(&a, &b);
    check_same(&a, &b);
    a.write(Ino::ROOT, b"next", b"too");
    assert_eq!(taken_in_without(&a, &b).unwrap().lost, 0, "what follows goes as groups again");
    check_same(&a, &b);
}
