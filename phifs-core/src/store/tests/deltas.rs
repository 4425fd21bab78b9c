//! Nodes that are told by others.

use super::*;
use crate::disk::{CrashDisk, PowerLoss};

/// So many versions of a long node, each of which differs from the one before in a few bytes.
fn versions(count: usize) -> Vec<Vec<u8>> {
    versions_of(noise(77, 9000), count)
}

fn versions_of(mut node: Vec<u8>, count: usize) -> Vec<Vec<u8>> {
    let next = |n: usize| {
        node[n * 37 % 900..][..20].copy_from_slice(&noise(n as u64, 20));
        node.clone()
    };
    (0..count).map(next).collect()
}

/// Stores each version after the one before.
fn put_versions(store: &GlyphStore, versions: &[Vec<u8>]) {
    store.write(GlyphKind::Node, &versions[0]).unwrap();
    for pair in versions.windows(2) {
        let base = GlyphId::of(&pair[0]);
        assert_eq!(store.write_node_after(&pair[1], &base, &pair[0]).unwrap(), GlyphId::of(&pair[1]));
    }
}

fn as_nodes(versions: &[Vec<u8>]) -> Vec<(GlyphKind, Vec<u8>)> {
    versions.iter().map(|version| (GlyphKind::Node, version.clone())).collect()
}

fn keep(store: &GlyphStore, live: &[Vec<u8>]) -> Mark {
    let mut mark = store.begin_mark(&[GlyphKind::Node]);
    for version in live {
        mark.keep(GlyphKind::Node, &GlyphId::of(version));
    }
    mark
}

fn base_of(store: &GlyphStore, version: &[u8]) -> Option<GlyphId> {
    let id = GlyphId::of(version);
    let (location, pack) = store.locate(GlyphKind::Node, &id).unwrap();
    store.base_of(&pack, location, &id).ok().unwrap()
}

#[test]
fn versions_of_a_node_take_the_room_of_what_changed() {
    // Short nodes hold rows that are looked at all the time, long ones the bytes of small files.
    for (len, deltas_max, per_version) in [(1000, 1, 700), (20_000, 64, 600)] {
        let disk = MemDisk::new();
        let options = StoreOptions::new(STORE_ID);
        let index = || Arc::new(MemIndex::default());
        let open = || GlyphStore::open(Arc::new(disk.clone()), index(), &options, &|_| {}).unwrap().0;
        let store = open();
        let versions = versions_of(noise(77, len), 140);
        put_versions(&store, &versions);
        assert_holds(&store, &as_nodes(&versions));
        store.sync().unwrap();
        assert!(bytes_on(&disk) < 140 * per_version, "{} bytes for 140 versions of {len}", bytes_on(&disk));
        assert_holds(&store, &as_nodes(&versions));
        assert_holds(&open(), &as_nodes(&versions));
        // Sometimes one stands for itself, so that no read takes too long.
        for (n, version) in versions.iter().enumerate() {
            assert_eq!(base_of(&store, version).is_none(), n % (deltas_max + 1) == 0, "version {n} of {len} bytes");
        }
    }
}

#[test]
fn node_that_is_nothing_like_the_other_stands_for_itself() {
    let store = open(&MemDisk::new());
    let (one, other) = (noise(1, 500), noise(2, 500));
    put_versions(&store, &[one.clone(), other.clone()]);
    assert_eq!(base_of(&store, &other), None);
    assert_holds(&store, &as_nodes(&[one, other]));
}

#[test]
fn node_whose_base_is_not_there_stands_for_itself() {
    let store = open(&MemDisk::new());
    let versions = versions(2);
    store.write_node_after(&versions[1], &GlyphId::of(&versions[0]), &versions[0]).unwrap();
    assert_holds(&store, &as_nodes(&versions[1..]));
}

#[test]
fn collection_writes_anew_what_was_told_by_garbage() {
    let disk = MemDisk::new();
    let store = open(&disk);
    let versions = versions(90);
    put_versions(&store, &versions);
    store.sync().unwrap();
    let live = [versions[22].clone(), versions[50].clone(), versions[51].clone()];
    store.sweep(keep(&store, &live), 1.0).unwrap();
    for store in [&store, &open(&disk)] {
        assert_holds(store, &as_nodes(&live));
        assert!(matches!(store.read(GlyphKind::Node, &GlyphId::of(&versions[21])), Err(StoreError::Missing(_))));
        assert_eq!(base_of(store, &live[1]), None);
        assert_eq!(base_of(store, &live[2]), Some(GlyphId::of(&live[1])), "its base is still there");
    }
    assert!(bytes_on(&disk) < 20_000, "{} bytes for two nodes and a difference", bytes_on(&disk));
}

#[test]
fn what_tells_a_node_that_is_put_or_found_while_marking_is_live() {
    let disk = MemDisk::new();
    let store = open(&disk);
    let versions = versions(30);
    put_versions(&store, &versions[..20]);
    store.sync().unwrap();
    let mark = keep(&store, &[]);
    store.write(GlyphKind::Node, &versions[5]).unwrap();
    store.write_node_after(&versions[20], &GlyphId::of(&versions[19]), &versions[19]).unwrap();
    store.sweep(mark, 1.0).unwrap();
    store.sync().unwrap();
    for store in [&store, &open(&disk)] {
        assert_holds(store, &as_nodes(&[versions[5].clone(), versions[20].clone()]));
    }
}

#[test]
fn damage_costs_those_that_it_tells_and_all_heal_when_they_are_stored_again() {
    let disk = MemDisk::new();
    let store = open(&disk);
    let versions = versions(12);
    put_versions(&store, &versions);
    store.sync().unwrap();
    drop(store);
    let mut lost_in_all = 0;
    for name in pack_names(&disk) {
        for at in (0..disk.bytes_of(name).unwrap().len() as u64).step_by(17) {
            let damaged = disk.snapshot();
            damaged.flip(name, at, 1).unwrap();
            let store = open(&damaged);
            for version in &versions {
                match store.read(GlyphKind::Node, &GlyphId::of(version)) {
                    Ok(read) => assert_eq!(read, version, "{name:?} byte {at}"),
                    Err(StoreError::Missing(_) | StoreError::Corrupt { .. }) => lost_in_all += 1,
                    Err(error) => panic!("{name:?} byte {at}: {error}"),
                }
            }
            put_versions(&store, &versions);
            store.sync().unwrap();
            assert_holds(&store, &as_nodes(&versions));
            assert_holds(&open(&damaged), &as_nodes(&versions));
        }
    }
    assert!(lost_in_all > 100);
}

#[test]
fn nodes_that_claim_to_tell_each_other_are_damaged() {
    let store = open(&MemDisk::new());
    let versions = versions(2);
    let ids = [0, 1].map(|n| GlyphId::of(&versions[n]));
    for (n, other) in [(0, 1), (1, 0)] {
        let record = record::encode_after(
            ids[n],
            &versions[n],
            &record::Base { id: &ids[other], plain: &versions[other], deltas: 0 },
        );
        store.nodes.append(&store.shared, &record, room::Purpose::Upkeep, None).unwrap();
    }
    for id in &ids {
        assert!(matches!(store.read(GlyphKind::Node, id), Err(StoreError::Corrupt { .. })));
    }
    put_versions(&store, &versions);
    assert_holds(&store, &as_nodes(&versions));
}

#[test]
fn delta_is_not_carried_to_another_store() {
    let store = open(&MemDisk::new());
    let versions = versions(3);
    put_versions(&store, &versions);
    let other = open(&MemDisk::new());
    let glyph = store.read_stored(GlyphKind::Node, &GlyphId::of(&versions[2])).unwrap();
    assert!(other.write_stored(&glyph).unwrap());
    assert_holds(&other, &as_nodes(&versions[2..]));
    let told = StoredGlyph::new((GlyphKind::Node.tag(), record::Codec::Delta.tag()), glyph.id(), 10, vec![0; 9].into());
    assert!(told.is_err());
}

#[test]
fn live_nodes_survive_power_loss_at_any_change_of_a_collection_that_takes_their_bases() {
    let before = MemDisk::new();
    let store = open(&before);
    let versions = versions(40);
    put_versions(&store, &versions);
    store.sync().unwrap();
    drop(store);
    let live: Vec<_> = versions.iter().step_by(6).cloned().collect();
    let collect = |disk: &CrashDisk| {
        let Ok((store, _)) = try_open(Arc::new(disk.clone()), Arc::new(MemIndex::default())) else { return };
        let _ = store.sweep(keep(&store, &live), 0.9);
    };
    let probe = CrashDisk::over(&before, PowerLoss::Never);
    collect(&probe);
    for fatal_op in 0..=probe.ops() {
        let disk = CrashDisk::over(&before, PowerLoss::AtOp(fatal_op));
        collect(&disk);
        for seed in 0..8 {
            let survived = disk.after_power_loss(seed);
            let store = open(&survived);
            assert_holds(&store, &as_nodes(&live));
            put_versions(&store, &versions);
            store.sync().unwrap();
            assert_holds(&open(&survived), &as_nodes(&versions));
        }
    }
}
