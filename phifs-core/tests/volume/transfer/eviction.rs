//! What only others are to hold is given up when there is too much of it, and never the last copy.

use std::collections::BTreeSet;

use phifs_core::causal::VersionVector;
use phifs_core::id::GlyphId;
use phifs_core::placement::Layout;
use phifs_core::store::GlyphKind;
use phifs_core::volume::local::{CollectReport, Confirmed};

use super::elsewhere::{Other, apart, difference, glyphs_of, layout_of, open_file, read_all};
use super::groups::{members, push};
use super::*;

fn limit(site: &Site, size: &str) {
    site.volume.change_setting("glyph_cache_size", Some(size)).unwrap();
}

/// Collects everything that can go, where all others hold all that they are said to.
fn evict(site: &Site) -> CollectReport {
    site.volume.collect_cached(&|_| Box::new(|_| true), 1.0, &|_| {}).unwrap()
}

/// Whether a file can be read without asking anybody.
fn is_here(site: &Site, other: &Other, name: &[u8]) -> bool {
    let before = other.asked.lock().unwrap().len();
    read_all(site, name).unwrap();
    other.asked.lock().unwrap().len() == before
}

#[test]
fn only_what_is_too_much_and_confirmed_by_others_is_given_up() {
    let (_a, b, other) = apart(|a| _ = a.write(Ino::ROOT, b"file", &noise(7, 300_000)));
    b.volume.set_peers(Some(other.clone()));
    read_all(&b, b"file").unwrap();
    assert_eq!(evict(&b).evicted_glyphs, 0, "nothing limits it");
    limit(&b, "0B");
    let unconfirmed = b.volume.collect_cached(&|_| Box::new(|_| false), 1.0, &|_| {}).unwrap();
    assert_eq!(unconfirmed.evicted_glyphs, 0);
    assert!(is_here(&b, &other, b"file"));
    b.volume.collect(1.0, &|_| {}).unwrap();
    assert!(is_here(&b, &other, b"file"), "an ordinary collection gives up nothing");
    let layout = b.volume.layout().map(|layout| Layout::clone(&layout));
    b.volume.set_layout(None).unwrap();
    assert_eq!(evict(&b).evicted_glyphs, 0, "without a layout all is to be here");
    b.volume.set_layout(layout).unwrap();

    let report = evict(&b);
    assert!(report.evicted_glyphs > 1 && report.evicted_bytes > 300_000, "{report:?}");
    assert!(report.sweep.bytes_removed - report.sweep.bytes_copied >= report.evicted_bytes);
    assert_eq!(b.volume.fsck(false, &|_| {}).unwrap().problems, [], "it is elsewhere by right");
    b.snapshot("s");
    b.verified("s");
    assert!(!is_here(&b, &other, b"file"));
    assert_eq!(read_all(&b, b"file").unwrap(), noise(7, 300_000));
}

#[test]
fn what_was_read_longest_ago_goes_first() {
    let names = [b"a", b"b", b"c"];
    let (_a, b, other) = apart(|a| {
        for (n, name) in names.iter().enumerate() {
            a.write(Ino::ROOT, *name, &noise(60 + n as u64, 40_000));
        }
    });
    b.volume.set_peers(Some(other.clone()));
    for name in names {
        read_all(&b, name).unwrap();
    }
    limit(&b, "100kB");
    evict(&b);
    read_all(&b, b"b").unwrap();
    limit(&b, "50kB");
    let report = evict(&b);
    // What there was before the layout goes, too.
    assert!(report.evicted_glyphs >= 1, "{report:?}");
    assert!(is_here(&b, &other, b"b"));
    assert!(!is_here(&b, &other, b"a") && !is_here(&b, &other, b"c"));
}

#[test]
fn what_is_open_or_pinned_stays() {
    let (a, b, mut other) = apart(|a| {
        let dir = a.mkdir(Ino::ROOT, b"pinned");
        let deep = a.mkdir(dir, b"deep");
        a.write(deep, b"file", &noise(70, 300_000));
        a.write(Ino::ROOT, b"open", &noise(71, 300_000));
        a.write(Ino::ROOT, b"gone", &noise(72, 300_000));
    });
    b.volume.set_peers(Some(other.clone()));
    limit(&b, "0B");
    assert!(b.volume.pin_path(b"/nowhere").is_err());
    b.volume.pin_path(b"/pinned/").unwrap();
    let here = b.volume.fetch_pinned(&|_| {}).unwrap();
    assert_eq!((here.files, here.bytes, here.incomplete), (1, 300_000, 0));
    read_all(&b, b"gone").unwrap();
    let (ino, handle) = open_file(&b, b"open");
    for at in (0..300_000).step_by(50_000) {
        b.volume.read(ino, handle, at, 50_000).unwrap();
    }
    evict(&b);
    assert!(is_here(&b, &other, b"open") && !is_here(&b, &other, b"gone"));
    b.volume.release(ino, handle);
    let pinned = |name: &[u8]| {
        let dir = b.volume.lookup(&CALLER, Ino::ROOT, name).unwrap().ino;
        let deep = b.volume.lookup(&CALLER, dir, b"deep").unwrap().ino;
        let file = b.volume.lookup(&CALLER, deep, b"file").unwrap().ino;
        let opened = b.volume.open(&CALLER, file, &crate::harness::READ).unwrap();
        let read = b.volume.read(file, opened.handle, 0, 300_000);
        b.volume.release(file, opened.handle);
        read
    };
    // It is told when that cannot be.
    other = Arc::new(Other::default());
    b.volume.set_peers(Some(other));
    assert!(pinned(b"pinned").unwrap() == noise(70, 300_000));
    a.write(Ino::ROOT, b"pinned too", &noise(73, 100_000));
    push(&a, &b);
    b.volume.pin_path(b"/pinned too").unwrap();
    assert_eq!(b.volume.fetch_pinned(&|_| {}).unwrap().incomplete, 1);
    assert_eq!(b.volume.pinned_paths().unwrap(), [&b"/pinned"[..], b"/pinned too"]);
    assert!(b.volume.unpin_path(b"/pinned").unwrap() && !b.volume.unpin_path(b"/pinned").unwrap());
    let b_again = b.crashed();
    assert_eq!(b_again.volume.pinned_paths().unwrap(), [&b"/pinned too"[..]]);
    evict(&b);
    assert!(pinned(b"pinned").is_err());
}

fn held(site: &Site, ids: &BTreeSet<GlyphId>) -> BTreeSet<GlyphId> {
    ids.iter().filter(|id| site.volume.glyph_to_send(GlyphKind::Data, id).unwrap().is_some()).copied().collect()
}

#[test]
fn machines_that_share_out_one_copy_never_lose_it() {
    let (a, b) = members();
    let layout = layout_of(&[(&a, 1), (&b, 1)]);
    for site in [&a, &b] {
        site.volume.set_layout(Some(layout.clone())).unwrap();
        site.volume.change_setting("copies", Some("1")).unwrap();
        limit(site, "0B");
    }
    // Snapshots have these, and nobody else vouches for what those have.
    let old = glyphs_of(&a);
    a.write(Ino::ROOT, b"of a", &noise(80, 3_000_000));
    b.write(Ino::ROOT, b"of b", &noise(81, 3_000_000));
    push(&a, &b);
    push(&b, &a);
    let ids = &glyphs_of(&a) - &old;
    for (site, other) in [(&a, &b), (&b, &a)] {
        let holds = held(other, &ids);
        let confirmed = move |_: &VersionVector| -> Confirmed {
            let holds = holds.clone();
            Box::new(move |id| holds.contains(id))
        };
        let report = site.volume.collect_cached(&confirmed, 1.0, &|_| {}).unwrap();
        assert!(report.evicted_glyphs > 5, "{report:?}");
        assert_eq!(site.volume.missing().unwrap(), []);
        site.verified("first");
    }
    let (of_a, of_b) = (held(&a, &ids), held(&b, &ids));
    assert_eq!(&of_a | &of_b, ids);
    let both: Vec<_> = of_a.intersection(&of_b).collect();
    assert!(both.len() < 10, "pages, and what nobody else has: {}", both.len());
    for (site, other) in [(&a, &b), (&b, &a)] {
        let glyphs = difference(other, site);
        site.volume.set_peers(Some(Arc::new(Other { glyphs: glyphs.into(), ..Other::default() })));
        assert!(read_all(site, b"of a").unwrap() == noise(80, 3_000_000));
        assert!(read_all(site, b"of b").unwrap() == noise(81, 3_000_000));
        assert_eq!(site.volume.fsck(false, &|_| {}).unwrap().problems, []);
    }
}

#[test]
fn what_has_still_to_come_after_a_change_of_the_layout_is_not_lost() {
    let (a, b, other) = apart(|a| _ = a.write(Ino::ROOT, b"file", &noise(7, 300_000)));
    let problems = || {
        let scrubbed = b.volume.scrub(&|_| {}).unwrap().problems.len();
        b.volume.fsck(false, &|_| {}).unwrap().problems.len() + scrubbed
    };
    assert_eq!((b.volume.look_for_missing().unwrap(), problems()), (vec![], 0));
    b.volume.set_layout(Some(layout_of(&[(&a, 1), (&b, 1)]))).unwrap();
    let missing = b.volume.look_for_missing().unwrap();
    assert!(missing.len() > 1 && b.volume.is_awaited());
    assert_eq!(missing.iter().map(|(_, bytes)| bytes).sum::<u64>(), 300_000, "{missing:?}");
    assert_eq!(problems(), 0);
    assert!(b.crashed().volume.is_awaited());
    for (id, _) in missing {
        b.volume.take_glyph(id, &other.glyphs.lock().unwrap()[&id]).unwrap();
    }
    assert!(b.volume.is_awaited(), "nobody has looked");
    assert_eq!((b.volume.look_for_missing().unwrap(), problems()), (vec![], 0));
    assert!(!b.volume.is_awaited());
    b.volume.tick().unwrap();
    assert!(!b.crashed().volume.is_awaited());
}
