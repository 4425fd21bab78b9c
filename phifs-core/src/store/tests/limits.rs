//! Full disks, failing disks and read-only disks.

use super::*;
use crate::disk::{Access, FaultDisk};

fn faulty() -> (FaultDisk, MemDisk, GlyphStore) {
    let mem = MemDisk::new();
    let disk = FaultDisk::new(Arc::new(mem.clone()));
    let (store, _) = try_open(Arc::new(disk.clone()), Arc::new(MemIndex::default())).unwrap();
    (disk, mem, store)
}

#[test]
fn a_full_disk_loses_nothing_and_does_not_poison() {
    let probe = {
        let (disk, _, store) = faulty();
        put_all(&store, &glyphs(60));
        store.sync().unwrap();
        disk.calls(Access::Write)
    };
    for first in 0..probe {
        let (disk, mem, store) = faulty();
        disk.fail_from(Access::Write, first, FaultDisk::ENOSPC);
        put_all(&store, &glyphs(60));
        // An allocation that fails is no failure yet, so the disk may just be full enough.
        match store.sync() {
            Err(StoreError::Full) => {}
            other => panic!("{other:?} with the disk full from write {first}"),
        }
        assert_holds(&store, &glyphs(60));
        disk.heal();
        store.sync().unwrap();
        assert_holds(&store, &glyphs(60));
        assert_holds(&open(&mem), &glyphs(60));
    }
}

#[test]
fn a_writer_on_a_full_disk_is_refused_before_memory_fills() {
    let (disk, _, store) = faulty();
    disk.fail_from(Access::Write, 0, FaultDisk::ENOSPC);
    let accepted = (0..100).take_while(|number| store.write(GlyphKind::Data, &noise(*number, 1 << 20)).is_ok()).count();
    assert!((1..20).contains(&accepted), "{accepted} MiB were accepted");
    assert!(matches!(store.write(GlyphKind::Data, &noise(500, 1 << 20)), Err(StoreError::Full)));
    disk.heal();
    store.write(GlyphKind::Data, &noise(500, 1 << 20)).unwrap();
    store.sync().unwrap();
}

#[test]
fn a_collection_frees_a_disk_without_any_room() {
    let disk = MemDisk::with_capacity(64 << 10);
    let options = StoreOptions { reserve_bytes: Some(0), ..small_packs() };
    let (store, _) =
        GlyphStore::open(Arc::new(disk.clone()), Arc::new(MemIndex::default()), &options, &|_| {}).unwrap();
    for number in 0.. {
        let written = store.write(GlyphKind::Data, &noise(number, 1000));
        if written.and_then(|_| store.sync_kind(GlyphKind::Data)).is_err() {
            break;
        }
    }
    let stuck = [(GlyphKind::Data, noise(1 << 40, 3000))];
    disk.create(FileName::Staging(1)).unwrap().allocate(0, disk.space().unwrap().free_bytes, true).unwrap();
    let mark = store.begin_mark(&[GlyphKind::Data]);
    put_all(&store, &stuck);
    assert!(matches!(store.sync(), Err(StoreError::Full)));
    let report = store.sweep(mark, 0.0).unwrap();
    assert!(report.packs_removed > 5);
    store.sync().unwrap();
    assert_holds(&store, &stuck);
}

#[test]
fn a_sync_without_news_does_not_touch_the_disk() {
    let (disk, _, store) = faulty();
    put_all(&store, &glyphs(5));
    store.sync().unwrap();
    let before = disk.calls(Access::Sync);
    put_all(&store, &glyphs(5));
    store.sync().unwrap();
    assert_eq!(disk.calls(Access::Sync), before);
}

#[test]
fn data_leaves_the_reserve_to_nodes_and_collections() {
    let disk = MemDisk::with_capacity(4 << 20);
    let options = StoreOptions { reserve_bytes: Some(2 << 20), ..StoreOptions::new(STORE_ID) };
    let (store, _) = GlyphStore::open(Arc::new(disk), Arc::new(MemIndex::default()), &options, &|_| {}).unwrap();
    let mut kept = Vec::new();
    let refusal = (0..).find_map(|number| {
        let bytes = noise(number, 100_000);
        let refused = store.write(GlyphKind::Data, &bytes).err();
        store.sync().unwrap();
        kept.push((GlyphKind::Data, bytes));
        refused
    });
    assert!(matches!(refusal, Some(StoreError::Full)));
    kept.pop();
    assert_holds(&store, &kept);
    put_all(&store, &kept[..1]);
    put_all(&store, &[(GlyphKind::Node, noise(1, 100_000))]);
    let mut mark = store.begin_mark(&[GlyphKind::Data]);
    mark.keep(GlyphKind::Data, &GlyphId::of(&kept[3].1));
    store.sweep(mark, 0.5).unwrap();
    assert_holds(&store, &kept[3..4]);
    store.write(GlyphKind::Data, &noise(77, 100_000)).unwrap();
}

#[test]
fn a_failed_write_or_sync_makes_the_store_read_only() {
    for access in [Access::Write, Access::Sync] {
        let calls = {
            let (disk, _, store) = faulty();
            put_all(&store, &glyphs(20));
            store.sync().unwrap();
            disk.calls(access)
        };
        let mut latched = 0;
        for skip in 0..calls {
            let (disk, mem, store) = faulty();
            put_all(&store, &glyphs(20));
            disk.fail_once(access, skip, FaultDisk::EIO);
            match store.sync() {
                // Allocations may fail.
                Ok(()) => assert!(access == Access::Write && store.is_writable()),
                Err(StoreError::Disk { .. }) => {
                    latched += 1;
                    assert!(!store.is_writable());
                    assert!(matches!(store.sync(), Err(StoreError::ReadOnly)));
                    assert!(matches!(store.write(GlyphKind::Data, b"new"), Err(StoreError::ReadOnly)));
                    assert!(matches!(store.sweep(store.begin_mark(&[]), 1.0), Err(StoreError::ReadOnly)));
                    assert_holds(&store, &glyphs(20));
                }
                Err(other) => panic!("{other}"),
            }
            drop(store);
            put_all(&open(&mem), &glyphs(20));
        }
        assert!(latched > 3);
    }
}

#[test]
fn a_read_error_is_not_taken_for_damage() {
    let (disk, _, store) = faulty();
    let glyphs = glyphs(20);
    put_all(&store, &glyphs);
    store.sync().unwrap();
    disk.fail_from(Access::Read, 0, FaultDisk::EIO);
    for (kind, bytes) in &glyphs {
        assert!(matches!(store.read(*kind, &GlyphId::of(bytes)), Err(StoreError::Disk { .. })));
    }
    // A put cannot tell whether the glyph is there, so it stores it again.
    put_all(&store, &glyphs);
    assert_holds(&store, &glyphs);
    disk.heal();
    assert_holds(&store, &glyphs);
    assert_eq!(store.usage().quarantined, 0);
    assert!(!store.needs_index_rebuild());
}

#[test]
fn a_read_only_disk_can_be_opened_and_read() {
    let (disk, mem, store) = faulty();
    put_all(&store, &glyphs(20));
    store.sync().unwrap();
    drop(store);
    mem.flip(FileName::Pack(1), 3, 1).unwrap();
    disk.make_read_only();
    let (store, _) = try_open(Arc::new(disk.clone()), Arc::new(MemIndex::default())).unwrap();
    assert_holds(&store, &glyphs(20));
    put_all(&store, &[(GlyphKind::Data, b"new".to_vec())]);
    assert!(matches!(store.sync(), Err(StoreError::Disk { .. })));
    assert_holds(&store, &glyphs(20));
}
