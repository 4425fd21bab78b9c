//! Streams that are damaged or forged in any way.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use phifs_core::disk::{Disk, MemDisk};
use phifs_core::id::GlyphId;
use phifs_core::identity::NodeKey;
use phifs_core::merkle::{self, NodeCache, Root, Shape};
use phifs_core::meta::{Frozen, TableId};
use phifs_core::snapshot::stream::{Frame, Header, Reader, StreamError, Writer};
use phifs_core::snapshot::{Record, SealedRecord, transfer};
use phifs_core::store::{GlyphKind, GlyphSink as _, GlyphStore, MemIndex, StoreOptions, StoredGlyph};
use phifs_core::time::Hlc;
use phifs_core::volume::local::{OpenError, SnapshotError, TransferError};
use proptest::prelude::*;

use super::golden::FULL;
use super::{KEYS, bootstrap, forge, open, ready, state_of};
use crate::harness::{TestEnv, read_tree};

#[test]
fn a_stream_with_any_damage_is_refused_and_nothing_changes() {
    let (_, new, full, increment) = ready();
    let before = state_of(&new.volume);
    let cuts = (0..increment.len()).step_by(997).chain(0..300).chain(increment.len() - 60..increment.len());
    for cut in cuts {
        let refused = new.import(&increment[..cut]).unwrap_err();
        assert!(matches!(refused, TransferError::Stream(_)), "cut to {cut} bytes: {refused}");
    }
    let flips = (0..increment.len()).step_by(1009).chain(0..800).chain(increment.len() - 60..increment.len());
    for at in flips {
        let mut damaged = increment.clone();
        damaged[at] ^= 1 << (at % 8);
        let refused = new.import(&damaged).unwrap_err();
        assert!(matches!(refused, TransferError::Stream(_)), "byte {at}: {refused}");
    }
    let mut longer = increment.clone();
    longer.push(0);
    assert!(matches!(new.import(&longer), Err(TransferError::Stream(StreamError::Damaged { .. }))));
    assert_eq!(state_of(&new.volume), before);

    // A new store takes none of it either, begins with a good one in spite of what came before, and not twice.
    let (disk, env) = (MemDisk::new(), TestEnv::new(7));
    for cut in (0..full.len()).step_by(50_021) {
        let refused = bootstrap(Arc::new(disk.clone()), &env, &KEYS[2], &full[..cut]).unwrap_err();
        assert!(matches!(refused, TransferError::Stream(_)), "cut to {cut} bytes: {refused}");
        if !disk.list().unwrap().is_empty() {
            let refused = open(Arc::new(disk.clone()), &env, &KEYS[2]).map(drop);
            assert!(matches!(refused, Err(OpenError::Unfinished)), "half a volume opened: {refused:?}");
        }
    }
    let done = bootstrap(Arc::new(disk.clone()), &env, &KEYS[2], &full).unwrap();
    assert!(done.received.new_glyphs < done.received.glyphs, "what had come by then is found");
    let refused = bootstrap(Arc::new(disk.clone()), &env, &KEYS[2], &full);
    assert!(matches!(refused, Err(TransferError::HasVolume)));
    let volume = open(Arc::new(disk), &env, &KEYS[2]).unwrap();
    assert_eq!(read_tree(&volume).unwrap(), read_tree(&new.volume).unwrap());
}

#[test]
fn frames_that_are_moved_left_out_or_added_are_refused() {
    let (_, new, full, increment) = ready();
    assert_eq!(forge(&increment, |_, _| {}), increment, "this test writes streams as exports do");
    let before = state_of(&new.volume);
    let refused = |forged: &[u8]| {
        let error = new.import(forged).unwrap_err();
        assert!(matches!(error, TransferError::Stream(StreamError::Damaged { .. })), "{error}");
    };
    let mut others = Vec::new();
    forge(&full, |_, glyphs| others.clone_from(glyphs));
    let count = {
        let mut count = 0;
        forge(&increment, |_, glyphs| count = glyphs.len());
        count
    };
    assert!(count > 12, "{count}");
    for at in 0..count - 1 {
        // Bytes that are not those of the name that they carry.
        refused(&forge(&increment, |_, glyphs| {
            let (glyph, other) = (&glyphs[at], &glyphs[at + 1]);
            let bytes = other.bytes().clone();
            glyphs[at] = StoredGlyph::new(other.tags(), glyph.id(), other.plain_bytes(), bytes).unwrap();
        }));
        refused(&forge(&increment, |_, glyphs| {
            let glyph = &glyphs[at];
            let mut bytes = glyph.bytes().to_vec();
            *bytes.last_mut().unwrap() ^= 1;
            glyphs[at] = StoredGlyph::new(glyph.tags(), glyph.id(), glyph.plain_bytes(), bytes.into()).unwrap();
        }));
        refused(&forge(&increment, |_, glyphs| glyphs.swap(at, at + 1)));
        refused(&forge(&increment, |_, glyphs| drop(glyphs.remove(at))));
        refused(&forge(&increment, |_, glyphs| glyphs.insert(at, others[at % others.len()].clone())));
    }
    refused(&forge(&increment, |_, glyphs| drop(glyphs.pop())));
    refused(&forge(&increment, |_, glyphs| glyphs.push(others[0].clone())));
    assert_eq!(state_of(&new.volume), before);
}

#[test]
fn records_that_claim_too_much_or_too_little_are_refused() {
    let (_, new, _, increment) = ready();
    let before = state_of(&new.volume);
    let resign = |who: usize, change: &dyn Fn(&mut Record)| {
        forge(&increment, |header, _| {
            let mut record = header.sealed.record.clone();
            let key = NodeKey::from_seed(&KEYS[who]);
            record.author.node = key.public();
            change(&mut record);
            header.sealed = SealedRecord::seal(record, &key);
        })
    };
    // Somebody whom nobody knows.
    assert!(matches!(new.import(&resign(2, &|_| ())), Err(TransferError::UnknownSigner(_))));
    // Somebody who is known, and takes another volume for this one.
    assert!(matches!(new.import(&resign(0, &|record| record.volume = [1; 16])), Err(TransferError::OtherVolume(_))));
    // Operations that its context does not have.
    let older = resign(0, &|record| {
        record.parents.clear();
        let author = record.authors[0].id();
        record.context = record.context.clone().with(author, record.context.get(author) - 1);
    });
    let refused = new.import(&older).unwrap_err();
    assert!(refused.to_string().contains("unknown operations"), "{refused}");
    // It says that it came after one that knows more.
    let forgetful = resign(0, &|record| {
        let author = record.authors[0].id();
        record.context = record.context.clone().with(author, 3);
    });
    assert!(matches!(new.import(&forgetful), Err(TransferError::BadParent(_))));
    // Roots of something else.
    let inodes = TableId(1);
    let wrong = resign(0, &|record| {
        let root = record.roots.get(inodes);
        record.roots.set(inodes, Root { rows: root.rows + 1, ..root });
    });
    assert!(matches!(new.import(&wrong), Err(TransferError::Stream(_))));
    assert_eq!(state_of(&new.volume), before);

    let misnamed = resign(0, &|record| record.label = "a/b".into());
    let misnamed = forge(&misnamed, |header, _| header.base = None);
    let refused = bootstrap(Arc::new(MemDisk::new()), &TestEnv::new(6), &KEYS[1], &misnamed);
    assert!(matches!(refused, Err(TransferError::Snapshot(SnapshotError::BadName(..)))));
    let far = resign(0, &|record| record.theta.hlc = Hlc(u64::MAX));
    let far = forge(&far, |header, _| header.base = None);
    let refused = bootstrap(Arc::new(MemDisk::new()), &TestEnv::new(6), &KEYS[1], &far);
    assert!(matches!(refused, Err(TransferError::ClockAhead(_))));
}

/// Whatever it is, it is refused or taken; if taken, the volume can be used. Says which.
fn survives(stream: &[u8]) -> bool {
    let (disk, env) = (MemDisk::new(), TestEnv::new(80));
    if bootstrap(Arc::new(disk.clone()), &env, &KEYS[1], stream).is_err() {
        return false;
    }
    let volume = open(Arc::new(disk), &env, &KEYS[1]).unwrap();
    // Bytes of files that are not there are no reason to panic.
    let _ = read_tree(&volume);
    let _ = volume.tree_root();
    let _ = volume.verify_snapshot("first", &|_| {});
    let _ = volume.fsck(false, &|_| {});
    let _ = volume.collect(1.0, &|_| {});
    true
}

#[derive(Clone, Debug)]
enum Damage {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index, u16),
    Repeat(prop::sample::Index, u16),
    Insert(prop::sample::Index, Vec<u8>),
}

fn any_damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        4 => (at(), 1..=255u8).prop_map(|(at, mask)| Damage::Flip(at, mask)),
        1 => (at(), 1..500u16).prop_map(|(at, len)| Damage::Cut(at, len)),
        1 => (at(), 1..500u16).prop_map(|(at, len)| Damage::Repeat(at, len)),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..50)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
    ]
}

fn damage(bytes: &mut Vec<u8>, damage: &Damage) {
    if bytes.is_empty() {
        return;
    }
    let range = |at: &prop::sample::Index, len: u16| {
        let at = at.index(bytes.len());
        at..(at + usize::from(len)).min(bytes.len())
    };
    match damage {
        Damage::Flip(at, mask) => {
            let at = at.index(bytes.len());
            bytes[at] ^= mask;
        }
        Damage::Cut(at, len) => drop(bytes.drain(range(at, *len))),
        Damage::Repeat(at, len) => {
            let range = range(at, *len);
            let (end, again) = (range.end, bytes[range].to_vec());
            bytes.splice(end..end, again);
        }
        Damage::Insert(at, new) => {
            let at = at.index(bytes.len());
            bytes.splice(at..at, new.iter().copied());
        }
    }
}

fn record_of(stream: &[u8]) -> Record {
    Reader::open(stream).unwrap().0.sealed.record
}

/// An export, signed as it must be, of a snapshot with some rows made into something else.
fn with_rows(table: u8, which: prop::sample::Index, value_not_key: bool, how: &Damage) -> Option<Vec<u8>> {
    let disk = MemDisk::new();
    let record = record_of(FULL);
    let store = {
        let mut reader = Reader::open(FULL).unwrap().1;
        let (store, _) =
            GlyphStore::open(Arc::new(disk), Arc::new(MemIndex::default()), &StoreOptions::new([1; 16]), &|_| {})
                .unwrap();
        let store = Arc::new(store);
        let after = Frozen::new(Arc::new(NodeCache::new(store.clone(), 1 << 20)), record.roots.clone());
        transfer::import(&store, &record, None, &after, &mut reader, &mut |_| Ok(())).unwrap();
        store
    };
    let nodes = Arc::new(NodeCache::new(store.clone(), 1 << 20));
    let root = record.roots.get(TableId(table));
    let rows: Vec<(Bytes, Bytes)> = merkle::scan(&*nodes, &root, &[]).map(|row| row.unwrap()).collect();
    if rows.is_empty() {
        return None;
    }
    let (key, value) = rows[which.index(rows.len())].clone();
    let mut changed = if value_not_key { value.to_vec() } else { key.to_vec() };
    damage(&mut changed, how);
    changed.truncate(600);
    let (new_key, new_value) = if value_not_key { (key.clone(), changed.into()) } else { (changed.into(), value) };
    let batch = [(key, None), (new_key, Some(new_value))];
    let batch: BTreeMap<Bytes, Option<Bytes>> = batch.into_iter().collect();
    let leaf_bytes = if table == 5 { 32768 } else { 4096 };
    let shape = Shape { leaf_bytes, inner_bytes: 4096 };
    let mut sink = |node: &[u8], _: Option<&merkle::Replaced>| store.write(GlyphKind::Node, node);
    let root = merkle::apply(&*nodes, &mut sink, shape, &root, batch).ok()?;
    let mut record = record;
    record.roots.set(TableId(table), root);
    let after = Frozen::new(nodes, record.roots.clone());
    let sealed = SealedRecord::seal(record, &NodeKey::from_seed(&KEYS[0]));
    let mut writer = Writer::begin(Vec::new(), &Header { sealed, base: None }).unwrap();
    let read = &|kind, id: &GlyphId| store.read_stored(kind, id);
    transfer::export((&store, read), None, &after, None, &mut writer, &mut |_| Ok(())).ok()?;
    Some(writer.finish().unwrap())
}

#[test]
fn frames_that_claim_much_cost_what_has_come() {
    let header = Reader::open(FULL).unwrap().0.encode();
    let huge = |codec: u8, plain: u32, stored: u32| {
        let mut bytes = header.clone();
        bytes.extend([1, codec]);
        bytes.extend(plain.to_le_bytes());
        bytes.extend(stored.to_le_bytes());
        bytes.extend([0; 50]);
        let mut reader = Reader::open(&bytes[..]).unwrap().1;
        reader.next().unwrap_err()
    };
    assert!(matches!(huge(0, u32::MAX, u32::MAX), StreamError::Damaged { .. }));
    assert!(matches!(huge(0, 100, 101), StreamError::Damaged { .. }));
    assert!(matches!(huge(0, 16 << 20, 16 << 20), StreamError::Truncated(_)));
    let mut long_header = header.clone();
    long_header[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(Reader::open(&long_header[..]), Err(StreamError::Damaged { .. })));
    let mut newer = header.clone();
    newer[8] = 2;
    assert!(matches!(Reader::open(&newer[..]), Err(StreamError::Newer(_))));
    for foreign in [&b""[..], b"PHIFS-S8", b"#!/bin/sh\necho this is no export at all\n"] {
        assert!(matches!(Reader::open(foreign), Err(StreamError::Foreign)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_refused_without_a_panic(bytes: Vec<u8>, behind_a_header: bool) {
        let mut stream = if behind_a_header { Reader::open(FULL).unwrap().0.encode() } else { Vec::new() };
        stream.extend(bytes);
        prop_assert!(!survives(&stream));
    }

    #[test]
    fn a_good_stream_with_any_damage_is_refused_without_a_panic(how in prop::collection::vec(any_damage(), 1..4)) {
        let mut stream = FULL.to_vec();
        how.iter().for_each(|how| damage(&mut stream, how));
        prop_assert!(stream == FULL || !survives(&stream));
    }

    #[test]
    fn a_record_with_any_damage_that_its_author_signed_does_no_harm(how in prop::collection::vec(any_damage(), 1..3)) {
        let mut bytes = record_of(FULL).encode();
        how.iter().for_each(|how| damage(&mut bytes, how));
        if let Ok(record) = Record::decode(&bytes) {
            prop_assert_eq!(record.encode(), bytes, "one record has one form");
            let key = NodeKey::from_seed(&KEYS[0]);
            if record.author.node == key.public() {
                let sealed = SealedRecord::seal(record, &key);
                survives(&forge(FULL, |header, _| header.sealed = sealed));
            }
        }
    }

    #[test]
    fn a_node_with_any_damage_is_refused_without_a_panic(which: prop::sample::Index, how in any_damage()) {
        let mut reader = Reader::open(FULL).unwrap().1;
        let mut nodes = Vec::new();
        while let Ok(Frame::Glyph(glyph)) = reader.next() {
            nodes.extend(glyph.plain().filter(|_| glyph.kind() == GlyphKind::Node));
        }
        let mut node = nodes[which.index(nodes.len())].to_vec();
        damage(&mut node, &how);
        // Most are refused; the others are nodes of some map.
        if let Ok(node) = merkle::Node::decode(&GlyphId::of(&node), node.into()) {
            prop_assert!(node.level() > 0 || node.rows().count() > 0);
        }
    }

    #[test]
    fn rows_with_any_damage_that_their_author_signed_do_no_harm(
        table in prop::sample::select(&[1u8, 2, 3, 4, 5, 32, 33, 34][..]),
        which: prop::sample::Index,
        value_not_key: bool,
        how in any_damage(),
    ) {
        if let Some(stream) = with_rows(table, which, value_not_key, &how) {
            survives(&stream);
        }
    }
}
