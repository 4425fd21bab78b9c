//! Tests of the store as a whole, over the disks of `disk`.

mod crash;
mod damage;
mod deltas;
mod gc;
mod limits;
mod streams;

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::disk::{Disk, FileName, MemDisk};

const STORE_ID: [u8; 16] = [7; 16];

/// Packs of a few KiB, so that small tests fill several.
fn small_packs() -> StoreOptions {
    StoreOptions { data_pack_bytes_max: 2048, node_pack_bytes_max: 2048, ..StoreOptions::new(STORE_ID) }
}

fn try_open(disk: Arc<dyn Disk>, index: Arc<dyn GlyphIndex>) -> Result<(GlyphStore, OpenReport), StoreError> {
    GlyphStore::open(disk, index, &small_packs(), &|_| {})
}

fn open(disk: &MemDisk) -> GlyphStore {
    try_open(Arc::new(disk.clone()), Arc::new(MemIndex::default())).unwrap().0
}

/// Bytes that do not compress, different for every number.
fn noise(number: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A glyph of each kind per number, some of them compressible.
fn glyphs(count: u64) -> Vec<(GlyphKind, Vec<u8>)> {
    let kind = |number| if number % 3 == 0 { GlyphKind::Node } else { GlyphKind::Data };
    let bytes = |number: u64| match number % 4 {
        0 => number.to_le_bytes().repeat(30 + number as usize),
        _ => noise(number, 40 + number as usize * 29 % 700),
    };
    (0..count).map(|number| (kind(number), bytes(number))).collect()
}

fn put_all(store: &GlyphStore, glyphs: &[(GlyphKind, Vec<u8>)]) {
    for (kind, bytes) in glyphs {
        assert_eq!(store.write(*kind, bytes).unwrap(), GlyphId::of(bytes));
    }
}

#[track_caller]
fn assert_holds(store: &GlyphStore, glyphs: &[(GlyphKind, Vec<u8>)]) {
    for (kind, bytes) in glyphs {
        let id = GlyphId::of(bytes);
        assert_eq!(store.read(*kind, &id).unwrap(), bytes, "{kind:?} {id}");
        assert!(store.contains(*kind, &id).unwrap());
    }
}

fn pack_names(disk: &MemDisk) -> Vec<FileName> {
    disk.list().unwrap()
}

fn bytes_on(disk: &MemDisk) -> usize {
    pack_names(disk).into_iter().map(|name| disk.bytes_of(name).unwrap().len()).sum()
}

#[test]
fn glyphs_are_read_before_and_after_sync_and_reopening() {
    let disk = MemDisk::new();
    let glyphs = glyphs(60);
    let store = open(&disk);
    put_all(&store, &glyphs);
    assert_holds(&store, &glyphs);
    assert_eq!(pack_names(&disk), [], "a handful of glyphs waits in memory for the sync");
    store.sync().unwrap();
    assert_holds(&store, &glyphs);
    store.flush_index();
    assert_eq!(store.usage().unindexed, 0);
    assert_holds(&store, &glyphs);
    assert!(pack_names(&disk).len() > 4, "several packs were filled");
    let usage = store.usage();
    drop(store);

    let store = open(&disk);
    assert_holds(&store, &glyphs);
    assert_eq!(Usage { unindexed: 0, ..store.usage() }, usage);
}

#[test]
fn a_glyph_is_stored_once() {
    let disk = MemDisk::new();
    let glyphs = glyphs(30);
    let store = open(&disk);
    put_all(&store, &glyphs);
    put_all(&store, &glyphs);
    store.sync().unwrap();
    store.flush_index();
    let before = bytes_on(&disk);
    put_all(&store, &glyphs);
    store.sync().unwrap();
    drop(store);
    let store = open(&disk);
    put_all(&store, &glyphs);
    store.sync().unwrap();
    assert_eq!(bytes_on(&disk), before);
}

#[test]
fn kinds_are_separate() {
    let store = open(&MemDisk::new());
    let id = store.write(GlyphKind::Data, b"bytes").unwrap();
    assert!(matches!(store.read(GlyphKind::Node, &id), Err(StoreError::Missing(_))));
    assert!(!store.contains(GlyphKind::Node, &id).unwrap());
}

#[test]
fn a_reopened_store_goes_on_in_the_same_pack() {
    let disk = MemDisk::new();
    for number in 0..5 {
        let store = open(&disk);
        put_all(&store, &[(GlyphKind::Data, noise(number, 50))]);
        store.sync().unwrap();
    }
    assert_eq!(pack_names(&disk).len(), 1);
}

#[test]
fn an_empty_glyph_and_the_longest_one_are_stored() {
    let disk = MemDisk::new();
    let store = open(&disk);
    let glyphs = [(GlyphKind::Data, vec![]), (GlyphKind::Data, noise(1, GLYPH_BYTES_MAX))];
    put_all(&store, &glyphs);
    assert!(store.write(GlyphKind::Data, &vec![0; GLYPH_BYTES_MAX + 1]).is_err());
    store.sync().unwrap();
    assert_holds(&open(&disk), &glyphs);
}

#[test]
fn a_small_store_is_small() {
    let disk = MemDisk::new();
    let (store, _) =
        GlyphStore::open(Arc::new(disk.clone()), Arc::new(MemIndex::default()), &StoreOptions::new(STORE_ID), &|_| {})
            .unwrap();
    put_all(&store, &glyphs(10));
    store.sync().unwrap();
    let space = disk.space().unwrap();
    assert!(space.total_bytes - space.free_bytes <= 2 << 20);
}

#[test]
fn readers_and_writers_work_at_the_same_time() {
    let disk = MemDisk::new();
    let store = open(&disk);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let store = &store;
            scope.spawn(move || {
                for round in 0..150 {
                    let bytes = noise(thread % 2 * 1000 + round, 300);
                    let id = store.write(GlyphKind::Data, &bytes).unwrap();
                    assert_eq!(store.read(GlyphKind::Data, &id).unwrap(), bytes);
                    if round % 10 == thread {
                        store.sync().unwrap();
                        store.flush_index();
                    }
                }
            });
        }
    });
    store.sync().unwrap();
    let all: Vec<_> = (0..2000).filter(|n| n % 1000 < 150).map(|n| (GlyphKind::Data, noise(n, 300))).collect();
    assert_holds(&store, &all);
    assert_holds(&open(&disk), &all);
}

#[test]
fn the_pack_format_has_not_changed() {
    let disk = MemDisk::new();
    let store = open(&disk);
    put_all(
        &store,
        &[(GlyphKind::Data, noise(1, 900)), (GlyphKind::Data, noise(2, 901)), (GlyphKind::Data, noise(3, 900))],
    );
    store.sync().unwrap();
    // A sealed pack and one that is not. A change here needs a new format version and a way to read the old one.
    let digests = [1, 2].map(|pack| GlyphId::of(&disk.bytes_of(FileName::Pack(pack)).unwrap()).to_string());
    assert_eq!(
        digests,
        [
            "afa4ca4507f54d4a949dc29b4ea5de3c9b78e7965416a9a0d1e026b7c482f2f3",
            "51253eab7a9c6e26853c5f14da49479f042ad357678adc6f84225b5da085750d"
        ]
    );
}

#[derive(Clone, Debug)]
enum Step {
    Put(GlyphKind, u64),
    Sync,
    FlushIndex,
    Reopen { with_index: bool },
    Collect { keep: u64, ratio: f64 },
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![Just(GlyphKind::Data), Just(GlyphKind::Node)];
    prop_oneof![
        12 => (kind, 0..40u64).prop_map(|(kind, number)| Step::Put(kind, number)),
        2 => Just(Step::Sync),
        1 => Just(Step::FlushIndex),
        1 => any::<bool>().prop_map(|with_index| Step::Reopen { with_index }),
        1 => (1..5u64, 0.0..=1.0).prop_map(|(keep, ratio)| Step::Collect { keep, ratio }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn behaves_as_a_map(steps in prop::collection::vec(step(), 1..120)) {
        let disk = MemDisk::new();
        let mut index: Arc<dyn GlyphIndex> = Arc::new(MemIndex::default());
        let mut store = try_open(Arc::new(disk.clone()), index.clone()).unwrap().0;
        let mut live = std::collections::BTreeSet::new();
        let bytes = |number: u64| noise(number, 20 + number as usize * 37);
        for step in steps {
            match step {
                Step::Put(kind, number) => {
                    store.write(kind, &bytes(number)).unwrap();
                    live.insert((kind == GlyphKind::Node, number));
                }
                Step::Sync => store.sync().unwrap(),
                Step::FlushIndex => store.flush_index(),
                Step::Reopen { with_index } => {
                    store.sync().unwrap();
                    if !with_index {
                        index = Arc::new(MemIndex::default());
                    }
                    drop(store);
                    let opened = try_open(Arc::new(disk.clone()), index.clone()).unwrap();
                    prop_assert_eq!((&opened.1.damage[..], &opened.1.dropped_tails[..]), (&[][..], &[][..]));
                    store = opened.0;
                }
                Step::Collect { keep, ratio } => {
                    live.retain(|(_, number)| number % 5 < keep);
                    let mut mark = store.begin_mark(&[GlyphKind::Data, GlyphKind::Node]);
                    for (is_node, number) in &live {
                        let kind = if *is_node { GlyphKind::Node } else { GlyphKind::Data };
                        mark.keep(kind, &GlyphId::of(&bytes(*number)));
                    }
                    store.sweep(mark, ratio).unwrap();
                }
            }
            prop_assert!(!store.needs_index_rebuild());
            for (is_node, number) in &live {
                let kind = if *is_node { GlyphKind::Node } else { GlyphKind::Data };
                let bytes = bytes(*number);
                prop_assert_eq!(&store.read(kind, &GlyphId::of(&bytes)).unwrap(), &bytes);
            }
        }
    }
}
