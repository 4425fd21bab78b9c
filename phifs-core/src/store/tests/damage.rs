//! Flipped bytes, cut files, and an index that lies.

use super::*;

/// A store of several packs of both kinds, the last ones not sealed.
fn victim() -> (MemDisk, Vec<(GlyphKind, Vec<u8>)>) {
    let disk = MemDisk::new();
    let store = open(&disk);
    let glyphs = glyphs(20);
    put_all(&store, &glyphs);
    store.sync().unwrap();
    (disk, glyphs)
}

/// Opens a damaged store, reads everything and heals it by putting everything again. Returns how many glyphs were lost.
fn survey_and_heal(disk: &MemDisk, glyphs: &[(GlyphKind, Vec<u8>)], what: &str) -> usize {
    let (store, _) = try_open(Arc::new(disk.clone()), Arc::new(MemIndex::default())).expect(what);
    let mut lost = 0;
    for (kind, bytes) in glyphs {
        match store.read(*kind, &GlyphId::of(bytes)) {
            Ok(read) => assert_eq!(read, bytes, "{what}: wrong bytes"),
            Err(StoreError::Missing(_) | StoreError::Corrupt { .. }) => lost += 1,
            Err(error) => panic!("{what}: {error}"),
        }
    }
    put_all(&store, glyphs);
    store.sync().expect(what);
    assert_holds(&store, glyphs);
    assert_holds(&open(disk), glyphs);
    lost
}

#[test]
fn a_flipped_byte_costs_one_glyph_at_most_and_never_gives_wrong_bytes() {
    let (disk, glyphs) = victim();
    let mut costly = 0;
    for name in pack_names(&disk) {
        for at in 0..disk.bytes_of(name).unwrap().len() as u64 {
            let damaged = disk.snapshot();
            damaged.flip(name, at, 1 << (at % 8)).unwrap();
            let lost = survey_and_heal(&damaged, &glyphs, &format!("{name:?} byte {at}"));
            assert!(lost <= 1, "{lost} glyphs lost by {name:?} byte {at}");
            costly += lost;
        }
    }
    assert!(costly > bytes_on(&disk) / 2, "most bytes matter");
}

#[test]
fn a_cut_pack_keeps_the_glyphs_before_the_cut() {
    let (disk, glyphs) = victim();
    for name in pack_names(&disk) {
        let len = disk.bytes_of(name).unwrap().len() as u64;
        for cut in (0..len).step_by(13) {
            let damaged = disk.snapshot();
            damaged.truncate(name, cut).unwrap();
            let lost = survey_and_heal(&damaged, &glyphs, &format!("{name:?} cut at {cut}"));
            assert!(lost < glyphs.len() / 2);
        }
    }
}

#[test]
fn damage_in_the_middle_of_an_unsealed_pack_is_reported_and_a_torn_tail_dropped() {
    let disk = MemDisk::new();
    let store = open(&disk);
    let glyphs: Vec<_> = (0..4).map(|number| (GlyphKind::Data, noise(number, 200))).collect();
    put_all(&store, &glyphs);
    store.sync().unwrap();
    let name = pack_names(&disk)[0];
    let record = (record::HEADER_BYTES + 200) as u64;
    let second = u64::from(pack::START) + record;

    let damaged = disk.snapshot();
    damaged.flip(name, second + 100, 1).unwrap();
    let (store, report) = try_open(Arc::new(damaged), Arc::new(MemIndex::default())).unwrap();
    let id = Some(GlyphId::of(&glyphs[1].1));
    let expected = Damage { pack: 1, offset_bytes: second as u32, len_bytes: record as u32, id };
    assert_eq!((report.damage, report.dropped_tails), (vec![expected], vec![]));
    assert_holds(&store, &glyphs[2..]);

    let headless = disk.snapshot();
    headless.flip(name, second + 20, 1).unwrap();
    let (store, report) = try_open(Arc::new(headless), Arc::new(MemIndex::default())).unwrap();
    assert_eq!((report.damage, report.dropped_tails), (vec![Damage { id: None, ..expected }], vec![]));
    assert_holds(&store, &[glyphs[0].clone(), glyphs[2].clone(), glyphs[3].clone()]);

    let torn = disk.snapshot();
    torn.flip(name, second + 2 * record + 100, 1).unwrap();
    let (store, report) = try_open(Arc::new(torn), Arc::new(MemIndex::default())).unwrap();
    assert_eq!(report.damage, []);
    assert_eq!(report.dropped_tails, [DroppedTail { pack: 1, len_bytes: record }]);
    assert_holds(&store, &glyphs[..3]);
}

#[test]
fn a_tail_that_was_durable_is_reported_as_damage() {
    let disk = MemDisk::new();
    let index = Arc::new(MemIndex::default());
    let (store, _) = try_open(Arc::new(disk.clone()), index.clone()).unwrap();
    put_all(&store, &[(GlyphKind::Data, noise(1, 200)), (GlyphKind::Data, noise(2, 200))]);
    store.sync().unwrap();
    store.flush_index();
    drop(store);
    let len = disk.bytes_of(FileName::Pack(1)).unwrap().len() as u64;
    disk.flip(FileName::Pack(1), len - 1, 1).unwrap();
    let (store, report) = try_open(Arc::new(disk.clone()), index).unwrap();
    assert_eq!((report.damage.len(), report.dropped_tails.len()), (1, 0));
    assert!(report.index_rebuilt);
    assert_holds(&store, &[(GlyphKind::Data, noise(1, 200))]);
}

#[test]
fn a_glyph_that_an_open_pack_has_lost_is_stored_again_although_the_index_knew_it() {
    let disk = MemDisk::new();
    let index = Arc::new(MemIndex::default());
    let glyphs: Vec<_> = (0..4).map(|number| (GlyphKind::Data, noise(number, 200))).collect();
    let (store, _) = try_open(Arc::new(disk.clone()), index.clone()).unwrap();
    put_all(&store, &glyphs);
    store.sync().unwrap();
    store.flush_index();
    drop(store);
    let second = u64::from(pack::START) + (record::HEADER_BYTES + 200) as u64;
    disk.flip(FileName::Pack(1), second + 100, 1).unwrap();
    // In the second run the pack is sealed, and its list does not tell of the damage any more.
    for _ in 0..2 {
        let (store, report) = try_open(Arc::new(disk.clone()), index.clone()).unwrap();
        assert!(!report.index_rebuilt);
        assert!(!store.contains(GlyphKind::Data, &GlyphId::of(&glyphs[1].1)).unwrap());
        assert!(!store.needs_index_rebuild());
    }
    let (store, _) = try_open(Arc::new(disk.clone()), index.clone()).unwrap();
    put_all(&store, &glyphs);
    store.sync().unwrap();
    assert_holds(&store, &glyphs);
    store.flush_index();
    assert_holds(&try_open(Arc::new(disk.clone()), index).unwrap().0, &glyphs);
}

#[test]
fn scrub_finds_every_damaged_record_and_a_put_heals_it() {
    let (disk, glyphs) = victim();
    let store = open(&disk);
    let whole = store.scrub(ScrubCursor::default(), u64::MAX).unwrap();
    assert!(whole.finished && whole.damage.is_empty());
    assert_eq!(whole.glyphs, 20);

    disk.flip(FileName::Pack(1), 200, 4).unwrap();
    let (mut cursor, mut steps, mut found) = (ScrubCursor::default(), 0, Vec::new());
    loop {
        let progress = store.scrub(cursor, 1000).unwrap();
        found.extend(progress.damage);
        cursor = progress.cursor;
        steps += 1;
        if progress.finished {
            break;
        }
    }
    assert!(steps > 5);
    assert_eq!(found.len(), 1);
    assert_eq!(store.usage().quarantined, 1);
    let id = found[0].id.unwrap();
    let (kind, bytes) = glyphs.iter().find(|(_, bytes)| GlyphId::of(bytes) == id).unwrap();
    assert!(matches!(store.read(*kind, &id), Err(StoreError::Corrupt { .. })));
    assert!(!store.contains(*kind, &id).unwrap());
    put_all(&store, &[(*kind, bytes.clone())]);
    assert_eq!(store.usage().quarantined, 0);
    store.sync().unwrap();
    assert_holds(&store, &glyphs);
    assert_holds(&open(&disk), &glyphs);
}

#[test]
fn a_newer_format_and_a_foreign_pack_are_refused() {
    let (disk, _) = victim();
    let file = disk.open(FileName::Pack(1)).unwrap();
    let mut header = pack::encode_header(&STORE_ID, 1, GlyphKind::Data);
    header[8] = 9;
    let crc = crc32c::crc32c(&header[..60]);
    header[60..].copy_from_slice(&crc.to_le_bytes());
    file.write_at(&header, 0).unwrap();
    let refusal = |disk: &MemDisk| match try_open(Arc::new(disk.clone()), Arc::new(MemIndex::default())) {
        Ok(_) => panic!("opened"),
        Err(error) => error.to_string(),
    };
    assert!(refusal(&disk).contains("format version 9; this program knows versions up to 1"));
    file.write_at(&pack::encode_header(&[8; 16], 1, GlyphKind::Data), 0).unwrap();
    assert!(refusal(&disk).contains("another store"));
}

/// An index that answers as it is told.
#[derive(Default)]
struct BadIndex {
    inner: MemIndex,
    lies: parking_lot::Mutex<Option<Location>>,
    broken: std::sync::atomic::AtomicBool,
}

impl BadIndex {
    fn check(&self) -> Result<(), IndexError> {
        match self.broken.load(std::sync::atomic::Ordering::Relaxed) {
            true => Err(IndexError("broken".into())),
            false => Ok(()),
        }
    }
}

impl GlyphIndex for BadIndex {
    fn get(&self, id: &GlyphId) -> Result<Option<Location>, IndexError> {
        self.check()?;
        let lie = *self.lies.lock();
        Ok(self.inner.get(id)?.map(|truth| lie.unwrap_or(truth)))
    }

    fn apply(&self, changes: &[(GlyphId, Option<Location>)], position: Position) -> Result<(), IndexError> {
        self.check()?;
        self.inner.apply(changes, position)
    }

    fn position(&self) -> Result<Option<Position>, IndexError> {
        self.check()?;
        self.inner.position()
    }

    fn clear(&self) -> Result<(), IndexError> {
        self.check()?;
        *self.lies.lock() = None;
        self.inner.clear()
    }
}

#[test]
fn a_lying_index_is_noticed_worked_around_and_rebuilt() {
    let (disk, glyphs) = victim();
    let liar = Arc::new(BadIndex::default());
    let (store, _) = try_open(Arc::new(disk), liar.clone()).unwrap();
    let elsewhere = liar.inner.get(&GlyphId::of(&glyphs[1].1)).unwrap();
    for lie in [elsewhere, Some(Location { pack: 1, offset_bytes: 1 << 30, stored_bytes: u32::MAX })] {
        *liar.lies.lock() = lie;
        assert_holds(&store, &glyphs);
        assert!(store.needs_index_rebuild());
        assert!(matches!(store.read(GlyphKind::Data, &GlyphId([0; 32])), Err(StoreError::Missing(_))));
        store.rebuild_index(&|_| {}).unwrap();
        assert!(!store.needs_index_rebuild());
        assert_holds(&store, &glyphs);
        assert!(!store.needs_index_rebuild());
    }
}

#[test]
fn a_put_does_not_believe_a_lying_index() {
    let disk = MemDisk::new();
    let index = Arc::new(MemIndex::default());
    let (store, _) = try_open(Arc::new(disk.clone()), index.clone()).unwrap();
    let bytes = noise(1, 100);
    let lie = Location { pack: 1, offset_bytes: 64, stored_bytes: 100 };
    put_all(&store, &[(GlyphKind::Data, noise(2, 100))]);
    store.sync().unwrap();
    store.flush_index();
    let position = index.position().unwrap().unwrap();
    index.apply(&[(GlyphId::of(&bytes), Some(lie))], position).unwrap();
    put_all(&store, &[(GlyphKind::Data, bytes.clone())]);
    store.sync().unwrap();
    assert_holds(&open(&disk), &[(GlyphKind::Data, bytes)]);
}

#[test]
fn a_failing_index_costs_speed_and_nothing_else() {
    let (disk, glyphs) = victim();
    let broken = Arc::new(BadIndex::default());
    broken.broken.store(true, std::sync::atomic::Ordering::Relaxed);
    let (store, _) = try_open(Arc::new(disk.clone()), broken.clone()).unwrap();
    assert!(store.needs_index_rebuild());
    assert_holds(&store, &glyphs);
    let before = bytes_on(&disk);
    put_all(&store, &glyphs);
    store.sync().unwrap();
    assert_eq!(bytes_on(&disk), before, "nothing is stored twice");
    let fresh = [(GlyphKind::Data, noise(999, 100))];
    put_all(&store, &fresh);
    store.sync().unwrap();
    store.flush_index();
    assert_holds(&store, &fresh);
    broken.broken.store(false, std::sync::atomic::Ordering::Relaxed);
    store.rebuild_index(&|_| {}).unwrap();
    assert!(!store.needs_index_rebuild());
    store.flush_index();
    assert_eq!(store.usage().unindexed, 0);
    assert_holds(&store, &glyphs);
    assert_holds(&store, &fresh);
}

#[test]
fn what_is_stored_can_be_read_while_the_index_is_rebuilt() {
    let (disk, glyphs) = victim();
    let store = open(&disk);
    store.rebuild_index(&|_| assert_holds(&store, &glyphs)).unwrap();
    assert!(!store.needs_index_rebuild());
    assert_holds(&store, &glyphs);
}

#[test]
fn an_index_that_lost_its_latest_batches_is_caught_up() {
    let disk = MemDisk::new();
    let old = Arc::new(MemIndex::default());
    let (store, _) = try_open(Arc::new(disk.clone()), old.clone()).unwrap();
    let glyphs = glyphs(60);
    put_all(&store, &glyphs[..20]);
    store.sync().unwrap();
    store.flush_index();
    drop(store);
    let (store, _) = try_open(Arc::new(disk.clone()), Arc::new(MemIndex::default())).unwrap();
    put_all(&store, &glyphs);
    store.sync().unwrap();
    drop(store);
    let (store, report) = try_open(Arc::new(disk), old).unwrap();
    assert!(!report.index_rebuilt);
    assert_eq!(store.usage().unindexed, 0);
    assert_holds(&store, &glyphs);
}

#[test]
fn an_index_of_another_store_is_rebuilt() {
    let (disk, glyphs) = victim();
    let index = Arc::new(MemIndex::default());
    let foreign = Position { store_id: [9; 16], pack: 1, offset: 64 };
    index.apply(&[], foreign).unwrap();
    let (store, report) = try_open(Arc::new(disk.clone()), index.clone()).unwrap();
    assert!(report.index_rebuilt);
    assert_holds(&store, &glyphs);
    drop(store);
    // One that knows more of a pack than the pack holds is not of this disk either.
    let ahead = Position { offset: 1 << 20, ..index.position().unwrap().unwrap() };
    index.apply(&[], ahead).unwrap();
    assert!(try_open(Arc::new(disk), index).unwrap().1.index_rebuilt);
}
