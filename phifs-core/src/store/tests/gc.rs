//! Collections, alone and beside writers and readers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;

const BOTH: [GlyphKind; 2] = [GlyphKind::Data, GlyphKind::Node];

fn mark(store: &GlyphStore, kinds: &[GlyphKind], live: &[(GlyphKind, Vec<u8>)]) -> Mark {
    let mut mark = store.begin_mark(kinds);
    for (kind, bytes) in live {
        mark.keep(*kind, &GlyphId::of(bytes));
    }
    mark
}

fn filled(glyphs: &[(GlyphKind, Vec<u8>)]) -> (MemDisk, GlyphStore) {
    let disk = MemDisk::new();
    let store = open(&disk);
    put_all(&store, glyphs);
    store.sync().unwrap();
    store.flush_index();
    (disk, store)
}

#[track_caller]
fn assert_gone(store: &GlyphStore, glyphs: &[(GlyphKind, Vec<u8>)]) {
    for (kind, bytes) in glyphs {
        let id = GlyphId::of(bytes);
        assert!(matches!(store.read(*kind, &id), Err(StoreError::Missing(_))));
        assert!(!store.contains(*kind, &id).unwrap());
    }
}

#[test]
fn garbage_goes_and_what_is_live_stays() {
    let all = glyphs(80);
    let (live, dead): (Vec<_>, Vec<_>) = (0..).zip(all.clone()).partition(|(n, _)| n % 4 == 1);
    let strip = |list: Vec<(i32, (GlyphKind, Vec<u8>))>| list.into_iter().map(|(_, glyph)| glyph).collect::<Vec<_>>();
    let (live, dead) = (strip(live), strip(dead));
    let (disk, store) = filled(&all);
    let before = bytes_on(&disk);
    let report = store.sweep(mark(&store, &BOTH, &live), 0.9).unwrap();
    assert!(report.packs_rewritten > 3 && report.glyphs_copied > 10);
    assert!(bytes_on(&disk) < before / 2, "{} of {before} bytes are left", bytes_on(&disk));
    assert_holds(&store, &live);
    assert_gone(&store, &dead);
    assert!(!store.needs_index_rebuild());
    assert_holds(&open(&disk), &live);
    assert_gone(&open(&disk), &dead);
    // What was collected can come back.
    put_all(&store, &dead);
    assert_holds(&store, &dead);
}

/// Counts how often it was cleared, and lets something happen in the middle of one lookup.
#[derive(Default)]
struct WatchedIndex {
    inner: MemIndex,
    cleared: AtomicU64,
    interruption: parking_lot::Mutex<Option<Box<dyn FnOnce() + Send>>>,
    /// Whether the interrupted lookup finds nothing.
    forgetful: AtomicBool,
}

impl GlyphIndex for WatchedIndex {
    fn get(&self, id: &GlyphId) -> Result<Option<Location>, IndexError> {
        let interruption = self.interruption.lock().take();
        if let Some(interruption) = interruption {
            interruption();
            if self.forgetful.load(Ordering::Relaxed) {
                return Ok(None);
            }
        }
        self.inner.get(id)
    }

    fn apply(&self, changes: &[(GlyphId, Option<Location>)], position: Position) -> Result<(), IndexError> {
        self.inner.apply(changes, position)
    }

    fn position(&self) -> Result<Option<Position>, IndexError> {
        self.inner.position()
    }

    fn clear(&self) -> Result<(), IndexError> {
        self.cleared.fetch_add(1, Ordering::Relaxed);
        self.inner.clear()
    }
}

#[test]
fn index_is_made_anew_after_most_of_its_entries_went() {
    let index = Arc::new(WatchedIndex::default());
    let (store, _) = try_open(Arc::new(MemDisk::new()), index.clone()).unwrap();
    let all: Vec<_> = (0..6000).map(|number| (GlyphKind::Data, noise(number, 8))).collect();
    put_all(&store, &all);
    store.sync().unwrap();
    store.flush_index();
    let cleared = index.cleared.load(Ordering::Relaxed);
    let live = &all[..5000];
    store.sweep(mark(&store, &BOTH, live), 0.9).unwrap();
    assert_eq!(index.cleared.load(Ordering::Relaxed), cleared, "most are still there");
    let live = &all[..500];
    store.sweep(mark(&store, &BOTH, live), 0.9).unwrap();
    assert_eq!(index.cleared.load(Ordering::Relaxed), cleared + 1);
    assert!(!store.needs_index_rebuild());
    assert_holds(&store, live);
    assert_gone(&store, &all[5000..]);
}

#[test]
fn kinds_are_collected_separately() {
    let all = glyphs(40);
    let (_, store) = filled(&all);
    store.sweep(mark(&store, &[GlyphKind::Data], &[]), 1.0).unwrap();
    let (nodes, data): (Vec<_>, Vec<_>) = all.into_iter().partition(|(kind, _)| *kind == GlyphKind::Node);
    assert_holds(&store, &nodes);
    assert_gone(&store, &data);
}

#[test]
fn a_good_pack_is_left_alone() {
    let all = glyphs(40);
    let (disk, store) = filled(&all);
    let before = pack_names(&disk);
    let report = store.sweep(mark(&store, &BOTH, &all[1..]), 0.5).unwrap();
    assert_eq!(report, SweepReport::default());
    assert_eq!(pack_names(&disk), before);
}

#[test]
fn what_is_put_or_found_after_the_mark_began_is_live() {
    let all = glyphs(40);
    let (disk, store) = filled(&all);
    let mark = mark(&store, &BOTH, &[]);
    put_all(&store, &all[10..20]);
    let fresh = [(GlyphKind::Data, b"fresh".to_vec())];
    put_all(&store, &fresh);
    store.sweep(mark, 1.0).unwrap();
    for store in [&store, &open(&disk)] {
        assert_holds(store, &all[10..20]);
        assert_holds(store, &fresh);
        assert_gone(store, &all[..10]);
    }
}

#[test]
fn a_hold_outlives_a_mark_that_began_after_the_put() {
    let all = glyphs(40);
    let (_, store) = filled(&all);
    let hold = store.hold();
    put_all(&store, &all[..5]);
    let mut mark = store.begin_mark(&BOTH);
    // The operation becomes reachable after the roots were read, so the walk does not see it.
    drop(hold);
    assert!(mark.keep(GlyphKind::Data, &GlyphId([1; 32])));
    assert!(!mark.keep(GlyphKind::Data, &GlyphId([1; 32])));
    store.sweep(mark, 1.0).unwrap();
    assert_holds(&store, &all[..5]);
    assert_gone(&store, &all[5..]);
    store.sweep(store.begin_mark(&BOTH), 1.0).unwrap();
    assert_gone(&store, &all);
}

#[test]
fn what_is_found_while_its_pack_is_being_rewritten_is_live() {
    let index = Arc::new(WatchedIndex::default());
    let (store, _) = try_open(Arc::new(MemDisk::new()), index.clone()).unwrap();
    let store = Arc::new(store);
    let glyphs: Vec<_> = (0..6).map(|number| (GlyphKind::Data, noise(number, 200))).collect();
    put_all(&store, &glyphs);
    store.sync().unwrap();
    store.flush_index();
    let mark = mark(&store, &BOTH, &glyphs[..1]);
    let (finder, late) = (store.clone(), glyphs[3].clone());
    // The sweep looks up the one live glyph to copy it; by then it has counted the pins once.
    *index.interruption.lock() = Some(Box::new(move || put_all(&finder, &[late])));
    let report = store.sweep(mark, 1.0).unwrap();
    assert_eq!((report.packs_rewritten, report.glyphs_copied), (1, 2));
    assert_holds(&store, &[glyphs[0].clone(), glyphs[3].clone()]);
    assert_gone(&store, &[glyphs[1].clone(), glyphs[2].clone()]);
}

#[test]
fn lookup_that_a_rebuild_of_the_index_overtakes_finds_its_glyph() {
    let index = Arc::new(WatchedIndex::default());
    let (store, _) = try_open(Arc::new(MemDisk::new()), index.clone()).unwrap();
    let store = Arc::new(store);
    let glyphs = [(GlyphKind::Data, noise(1, 200))];
    put_all(&store, &glyphs);
    store.sync().unwrap();
    store.flush_index();
    // The index answers after it was cleared, and the rebuild ends before the answer is looked at.
    let rebuilder = store.clone();
    *index.interruption.lock() = Some(Box::new(move || rebuilder.rebuild_index(&|_| {}).unwrap()));
    index.forgetful.store(true, Ordering::Relaxed);
    assert_holds(&store, &glyphs);
}

#[test]
fn a_damaged_live_glyph_keeps_its_pack_until_it_is_healed() {
    let all = glyphs(40);
    let (disk, store) = filled(&all);
    disk.flip(FileName::Pack(2), 64 + 70, 1).unwrap();
    let report = store.sweep(mark(&store, &BOTH, &all), 0.0).unwrap();
    assert_eq!(report, SweepReport::default(), "nothing to do");
    let live: Vec<_> = all.iter().step_by(2).cloned().chain([all[1].clone()]).collect();
    let report = store.sweep(mark(&store, &BOTH, &live), 1.0).unwrap();
    assert_eq!(report.damaged.len(), 1);
    assert!(pack_names(&disk).contains(&FileName::Pack(2)));
    put_all(&store, &live);
    let report = store.sweep(mark(&store, &BOTH, &live), 1.0).unwrap();
    assert_eq!(report.damaged, []);
    assert!(!pack_names(&disk).contains(&FileName::Pack(2)));
    assert_holds(&store, &live);
    assert_holds(&open(&disk), &live);
}

#[test]
fn a_glyph_that_was_healed_in_its_own_pack_survives_its_collection() {
    let disk = MemDisk::new();
    let glyphs: Vec<_> = (0..3).map(|number| (GlyphKind::Data, noise(number, 200))).collect();
    let store = open(&disk);
    put_all(&store, &glyphs);
    store.sync().unwrap();
    disk.flip(FileName::Pack(1), 64 + 100, 1).unwrap();
    assert!(store.read(glyphs[0].0, &GlyphId::of(&glyphs[0].1)).is_err());
    put_all(&store, &glyphs);
    store.sync().unwrap();
    store.flush_index();
    assert_eq!(pack_names(&disk), [FileName::Pack(1)]);
    let report = store.sweep(mark(&store, &BOTH, &glyphs[..2]), 1.0).unwrap();
    assert_eq!((report.packs_rewritten, report.damaged), (1, vec![]));
    assert_eq!(pack_names(&disk), [FileName::Pack(2)]);
    assert_holds(&store, &glyphs[..2]);
    assert_holds(&open(&disk), &glyphs[..2]);
}

#[test]
fn readers_and_writers_do_not_notice_a_collection() {
    let all = glyphs(60);
    let (disk, store) = filled(&all);
    let live: Vec<_> = all.iter().step_by(3).cloned().collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (store, live, done) = (&store, &live, &done);
            scope.spawn(move || {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    assert_holds(store, live);
                    if thread == 0 {
                        store.flush_index();
                    }
                }
            });
        }
        // Keeps finding glyphs that are garbage as far as the mark can tell, each time under a hold.
        let (store, all, done) = (&store, &all, &done);
        let finder = scope.spawn(move || {
            let mut round = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let _hold = store.hold();
                let some = &all[round % 50..round % 50 + 3];
                put_all(store, some);
                assert_holds(store, some);
                round += 1;
            }
        });
        for round in 0..60 {
            put_all(store, &[(GlyphKind::Data, noise(5000 + round, 500)), (GlyphKind::Node, noise(6000 + round, 500))]);
            store.sweep(mark(store, &BOTH, &live), 1.0).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        finder.join().unwrap();
    });
    assert_holds(&open(&disk), &live);
}
