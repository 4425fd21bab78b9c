//! Power loss at every sync and at every change.

use super::*;
use crate::disk::{CrashDisk, PowerLoss};

const SEEDS: u64 = 8;

/// Puts and syncs until the power goes; returns what was acknowledged by a sync.
fn put_until_power_loss(disk: &CrashDisk, index: Arc<dyn GlyphIndex>) -> Vec<(GlyphKind, Vec<u8>)> {
    let Ok((store, _)) = try_open(Arc::new(disk.clone()), index) else { return Vec::new() };
    let mut acknowledged = Vec::new();
    for batch in glyphs(60).chunks(12) {
        for (kind, bytes) in batch {
            if store.write(*kind, bytes).is_err() {
                return acknowledged;
            }
        }
        if store.sync().is_err() {
            assert!(matches!(store.sync(), Err(StoreError::ReadOnly)));
            return acknowledged;
        }
        store.flush_index();
        acknowledged.extend_from_slice(batch);
    }
    acknowledged
}

fn check_every_outcome(
    disk: &CrashDisk,
    index: &dyn Fn() -> Arc<dyn GlyphIndex>,
    acknowledged: &[(GlyphKind, Vec<u8>)],
) {
    for seed in 0..SEEDS {
        let survived = disk.after_power_loss(seed);
        let (store, _) = try_open(Arc::new(survived.clone()), index()).unwrap();
        assert_holds(&store, acknowledged);
        // The store must be as good as a new one: everything can be put again, and is there after another start.
        put_all(&store, &glyphs(60));
        store.sync().unwrap();
        assert_holds(&open(&survived), &glyphs(60));
    }
}

#[test]
fn acknowledged_glyphs_survive_power_loss_at_any_sync() {
    let probe = CrashDisk::healthy();
    assert_eq!(put_until_power_loss(&probe, Arc::new(MemIndex::default())).len(), 60);
    assert!(probe.syncs() > 15);
    for fatal_sync in 0..probe.syncs() {
        let disk = CrashDisk::dies_at_sync(fatal_sync);
        // The index has its own durability: it may know all that was flushed, or nothing.
        let index: Arc<dyn GlyphIndex> = Arc::new(MemIndex::default());
        let acknowledged = put_until_power_loss(&disk, index.clone());
        check_every_outcome(&disk, &|| Arc::new(MemIndex::default()), &acknowledged);
        let survived = disk.after_power_loss(fatal_sync);
        assert_holds(&try_open(Arc::new(survived), index).unwrap().0, &acknowledged);
    }
}

#[test]
fn acknowledged_glyphs_survive_power_loss_at_any_change() {
    let probe = CrashDisk::healthy();
    put_until_power_loss(&probe, Arc::new(MemIndex::default()));
    for fatal_op in 0..probe.ops() {
        let disk = CrashDisk::dies_at_op(fatal_op);
        let acknowledged = put_until_power_loss(&disk, Arc::new(MemIndex::default()));
        check_every_outcome(&disk, &|| Arc::new(MemIndex::default()), &acknowledged);
    }
}

#[test]
fn power_loss_while_opening_after_power_loss_loses_nothing() {
    let first = CrashDisk::dies_at_op(40);
    let acknowledged = put_until_power_loss(&first, Arc::new(MemIndex::default()));
    assert!(!acknowledged.is_empty());
    for seed in 0..SEEDS {
        let survived = first.after_power_loss(seed);
        for fatal_op in 0.. {
            let disk = CrashDisk::over(&survived, PowerLoss::AtOp(fatal_op));
            let opened = try_open(Arc::new(disk.clone()), Arc::new(MemIndex::default()));
            check_every_outcome(&disk, &|| Arc::new(MemIndex::default()), &acknowledged);
            if opened.is_ok() && !disk.is_dead() {
                break;
            }
        }
    }
}

#[test]
fn glyphs_of_a_killed_process_are_durable_once_they_were_found_again() {
    let disk = CrashDisk::healthy();
    let (store, _) = try_open(Arc::new(disk.clone()), Arc::new(MemIndex::default())).unwrap();
    // Enough for blocks to be written without a sync.
    let large = [(GlyphKind::Data, noise(1, 3 << 20)), (GlyphKind::Node, noise(2, 3 << 20))];
    put_all(&store, &large);
    drop(store);
    let (store, _) = try_open(Arc::new(disk.clone()), Arc::new(MemIndex::default())).unwrap();
    assert_holds(&store, &large);
    put_all(&store, &large);
    store.sync().unwrap();
    assert_holds(&open(&disk.after_power_loss(0)), &large);
}

/// Collects every second glyph until the power goes.
fn collect_until_power_loss(disk: &CrashDisk, index: Arc<dyn GlyphIndex>, live: &[(GlyphKind, Vec<u8>)]) {
    let Ok((store, _)) = try_open(Arc::new(disk.clone()), index) else { return };
    let mut mark = store.begin_mark(&[GlyphKind::Data, GlyphKind::Node]);
    for (kind, bytes) in live {
        mark.keep(*kind, &GlyphId::of(bytes));
    }
    if store.sweep(mark, 0.9).is_ok() {
        let _ = store.sync();
    }
}

#[test]
fn live_glyphs_survive_power_loss_at_any_change_of_a_collection() {
    let before = MemDisk::new();
    let index: Arc<dyn GlyphIndex> = Arc::new(MemIndex::default());
    let (store, _) = try_open(Arc::new(before.clone()), index).unwrap();
    put_all(&store, &glyphs(60));
    store.sync().unwrap();
    let live: Vec<_> = glyphs(60).into_iter().step_by(2).collect();
    let probe = CrashDisk::over(&before, PowerLoss::Never);
    collect_until_power_loss(&probe, Arc::new(MemIndex::default()), &live);
    assert!(bytes_on(&probe.after_power_loss(1)) < bytes_on(&before));
    for fatal_op in 0..probe.ops() {
        let disk = CrashDisk::over(&before, PowerLoss::AtOp(fatal_op));
        let index: Arc<dyn GlyphIndex> = Arc::new(MemIndex::default());
        collect_until_power_loss(&disk, index.clone(), &live);
        check_every_outcome(&disk, &|| Arc::new(MemIndex::default()), &live);
        let survived = disk.after_power_loss(fatal_op);
        assert_holds(&try_open(Arc::new(survived), index).unwrap().0, &live);
    }
}
