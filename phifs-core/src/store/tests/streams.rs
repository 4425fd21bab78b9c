//! Many glyphs that are read one after the other.

use super::*;

/// Some lie in one block, some in two, and there are several packs.
fn large_glyphs(numbers: std::ops::Range<u64>) -> Vec<(GlyphKind, Vec<u8>)> {
    numbers.map(|number| (GlyphKind::Data, noise(number, 30_000 + number as usize * 7919 % 200_000))).collect()
}

fn open_large(disk: &MemDisk) -> GlyphStore {
    let options = StoreOptions { data_pack_bytes_max: 3_500_000, ..StoreOptions::new(STORE_ID) };
    GlyphStore::open(Arc::new(disk.clone()), Arc::new(MemIndex::default()), &options, &|_| {}).unwrap().0
}

#[track_caller]
fn assert_gives(store: &GlyphStore, glyphs: &[(GlyphKind, Vec<u8>)]) {
    for (kind, bytes) in glyphs {
        let given = store.read_stored(*kind, &GlyphId::of(bytes)).unwrap();
        assert_eq!(given.plain().unwrap(), bytes);
    }
}

#[test]
fn what_is_streamed_is_what_is_there_while_more_is_written() {
    let disk = MemDisk::new();
    let store = open_large(&disk);
    let glyphs = large_glyphs(0..60);
    put_all(&store, &glyphs);
    store.sync().unwrap();
    assert!(pack_names(&disk).len() >= 2);
    let (one, other) = (store.stream(), store.stream());
    assert_gives(&store, &glyphs);
    assert!(store.is_streaming(), "blocks are kept");
    // The block at the end grows on.
    for round in 1..5 {
        let more = large_glyphs(round * 60..round * 60 + 5);
        put_all(&store, &more);
        assert_gives(&store, &more);
        store.sync().unwrap();
        assert_gives(&store, &more);
    }
    assert_gives(&store, &glyphs);
    drop((one, other));
    assert!(!store.is_streaming(), "they take no memory any more");
    assert_gives(&store, &glyphs);
}

#[test]
fn a_glyph_that_is_damaged_on_the_disk_is_not_streamed() {
    let disk = MemDisk::new();
    let glyphs = large_glyphs(0..10);
    let store = open_large(&disk);
    put_all(&store, &glyphs);
    store.sync().unwrap();
    for name in pack_names(&disk) {
        let mut bytes = disk.bytes_of(name).unwrap();
        bytes[200_001] ^= 1;
        disk.open(name).unwrap().write_at(&bytes, 0).unwrap();
    }
    let _stream = store.stream();
    let given = glyphs.iter().map(|(kind, bytes)| store.read_stored(*kind, &GlyphId::of(bytes)));
    let refused: Vec<StoreError> = given.filter_map(Result::err).collect();
    assert!(matches!(&refused[..], [StoreError::Corrupt { .. }]), "{refused:?}");
}
