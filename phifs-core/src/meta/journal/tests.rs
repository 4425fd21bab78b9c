use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::format::{BATCH_HEADER, SECTOR};
use super::*;
use crate::disk::{Access, CrashDisk, FaultDisk, FileName, MemDisk, PowerLoss};

const STORE: StoreId = StoreId([5; 16]);
const SMALL: Geometry = Geometry { segment_bytes: 2048, segments_min: 2, segments_max: 16 };
/// What one batch of a small segment can carry.
const BODY: usize = 2048 - 2 * SECTOR - BATCH_HEADER;

type Records = Vec<(Lsn, u8, Vec<u8>)>;

fn open_with<D: Disk + Clone + 'static>(
    disk: &D,
    geometry: Geometry,
    after: Lsn,
    repair: Repair,
) -> Result<(Journal, Records), JournalError> {
    let mut replayed = Vec::new();
    let options = Options { store: STORE, after, geometry, repair };
    let journal = Journal::open(Arc::new(disk.clone()), options, Box::new(|| Ok(())), &mut |lsn, kind, payload| {
        replayed.push((lsn, kind, payload.to_vec()));
        Ok(())
    })?;
    Ok((journal, replayed))
}

fn open<D: Disk + Clone + 'static>(disk: &D) -> (Journal, Records) {
    open_with(disk, SMALL, Lsn(0), Repair::Refuse).unwrap()
}

fn payloads(records: &Records) -> Vec<&str> {
    records.iter().map(|(_, _, payload)| std::str::from_utf8(payload).unwrap()).collect()
}

fn put(journal: &Journal, payload: &str) -> Lsn {
    let lsn = journal.append(1, payload.as_bytes());
    journal.commit(lsn).unwrap();
    lsn
}

/// Finds a payload on the disk.
fn position_of(disk: &MemDisk, payload: &str) -> (FileName, u64) {
    let names = disk.list().unwrap();
    let found = names.into_iter().find_map(|name| {
        let bytes = disk.bytes_of(name).unwrap();
        bytes.windows(payload.len()).position(|window| window == payload.as_bytes()).map(|at| (name, at as u64))
    });
    found.unwrap_or_else(|| panic!("{payload} is not on the disk"))
}

fn damage(disk: &MemDisk, payload: &str) {
    let (name, at) = position_of(disk, payload);
    disk.flip(name, at, 1).unwrap();
}

#[test]
fn committed_records_are_replayed_in_order() {
    let disk = MemDisk::new();
    let (journal, replayed) = open(&disk);
    assert!(replayed.is_empty());
    let one = put(&journal, "one");
    journal.append(2, b"two");
    let three = journal.append(3, b"");
    journal.commit(three).unwrap();
    assert_eq!(journal.bytes_since(one), three.0 - one.0);
    assert_eq!((journal.appended(), journal.committed()), (three, three));

    let (journal, replayed) = open(&disk);
    let kinds = replayed.iter().map(|(_, kind, _)| *kind).collect::<Vec<_>>();
    assert_eq!((payloads(&replayed), kinds), (vec!["one", "two", ""], vec![1, 2, 3]));
    assert_eq!((replayed[0].0, replayed[2].0), (one, three));
    put(&journal, "four");
    let (_, replayed) = open_with(&disk, SMALL, one, Repair::Refuse).unwrap();
    assert_eq!(payloads(&replayed), ["two", "", "four"]);
}

#[test]
fn an_append_alone_does_no_io() {
    let disk = CrashDisk::healthy();
    let (journal, _) = open(&disk);
    disk.cut_power();
    let lsn = journal.append(1, b"in memory");
    assert!(journal.committed() < lsn);
}

#[test]
fn records_of_many_segments_come_back_whole() {
    let disk = MemDisk::new();
    let (journal, _) = open_with(&disk, Geometry::default(), Lsn(0), Repair::Refuse).unwrap();
    let large = (0..RECORD_BYTES_MAX).map(|i| (i / 7) as u8).collect::<Vec<_>>();
    put(&journal, "before");
    let lsn = journal.append(9, &large);
    put(&journal, "behind");
    assert!(journal.committed() > lsn);
    let (_, replayed) = open_with(&disk, Geometry::default(), Lsn(0), Repair::Refuse).unwrap();
    assert_eq!(replayed.len(), 3);
    assert!(replayed[1] == (lsn, 9, large));
}

#[test]
fn all_who_wait_share_one_sync() {
    let disk = MemDisk::new();
    let (journal, _) = open_with(&disk, Geometry::default(), Lsn(0), Repair::Refuse).unwrap();
    let (threads, rounds) = (8, 100);
    let together = std::sync::Barrier::new(threads);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (journal, together) = (&journal, &together);
            scope.spawn(move || {
                for round in 0..rounds {
                    let lsn = journal.append(1, format!("{thread}.{round}").as_bytes());
                    together.wait();
                    journal.commit(lsn).unwrap();
                    assert!(journal.committed() >= lsn);
                    together.wait();
                }
            });
        }
    });
    let stats = journal.stats();
    assert_eq!((stats.groups, stats.syncs), (rounds, rounds));
    let (_, replayed) = open_with(&disk, Geometry::default(), Lsn(0), Repair::Refuse).unwrap();
    assert_eq!(replayed.len(), threads * rounds as usize);
}

fn open_with_barrier(disk: &MemDisk, barrier: Barrier) -> Journal {
    let options = Options { store: STORE, after: Lsn(0), geometry: SMALL, repair: Repair::Refuse };
    Journal::open(Arc::new(disk.clone()), options, barrier, &mut |_, _, _| Ok(())).unwrap()
}

#[test]
fn the_barrier_runs_before_the_write() {
    let disk = MemDisk::new();
    open(&disk);
    let calls = Arc::new(AtomicU64::new(0));
    let (seen, called) = (disk.clone(), calls.clone());
    let empty = [0, 1].map(|n| disk.bytes_of(FileName::Journal(n)).unwrap());
    let journal = open_with_barrier(
        &disk,
        Box::new(move || {
            called.fetch_add(1, SeqCst);
            assert!([0, 1].map(|n| seen.bytes_of(FileName::Journal(n)).unwrap()) == empty);
            Ok(())
        }),
    );
    put(&journal, "refers to glyphs");
    assert_eq!(calls.load(SeqCst), 1);
}

#[test]
fn without_the_barrier_nothing_is_written() {
    let disk = MemDisk::new();
    let answers = Mutex::new(vec![Err(StoreError::ReadOnly), Err(StoreError::Full)]);
    let journal = open_with_barrier(&disk, Box::new(move || answers.lock().pop().unwrap()));
    let lsn = journal.append(1, b"refers to glyphs");
    assert!(matches!(journal.commit(lsn), Err(JournalError::Full)), "a full disk can be cured");
    assert!(matches!(journal.commit(lsn), Err(JournalError::Barrier(_))));
    assert!(matches!(journal.commit(lsn), Err(JournalError::ReadOnly)), "a failed sync of packs cannot");
    assert_eq!(journal.committed(), Lsn(0));
    assert!(open(&disk).1.is_empty());
}

#[test]
fn a_failed_sync_is_never_forgotten() {
    let disk = FaultDisk::new(Arc::new(MemDisk::new()));
    let (journal, _) = open(&disk);
    let safe = put(&journal, "safe");
    disk.fail_once(Access::Sync, 0, FaultDisk::EIO);
    let lost = journal.append(1, b"lost");
    assert!(matches!(journal.commit(lost), Err(JournalError::Disk { .. })));
    assert!(matches!(journal.commit(lost), Err(JournalError::ReadOnly)));
    let more = journal.append(1, b"more");
    assert!(matches!(journal.commit(more), Err(JournalError::ReadOnly)));
    assert_eq!(journal.committed(), safe);
    journal.commit(safe).unwrap();
}

#[test]
fn records_that_a_killed_process_left_in_the_page_cache_are_durable_once_replayed() {
    let medium = CrashDisk::healthy();
    let disk = FaultDisk::new(Arc::new(medium.clone()));
    let (journal, _) = open(&disk);
    disk.fail_once(Access::Sync, 0, FaultDisk::EIO);
    let lsn = journal.append(1, b"written, not synced");
    assert!(journal.commit(lsn).is_err());
    assert!(open(&medium.after_power_loss(0)).1.is_empty());
    let (journal, replayed) = open(&medium);
    assert_eq!((payloads(&replayed), journal.committed()), (vec!["written, not synced"], lsn));
    assert_eq!(open(&medium.after_power_loss(0)).1, replayed);
}

#[test]
fn a_panicking_barrier_wakes_the_others_with_an_error() {
    let journal = open_with_barrier(&MemDisk::new(), Box::new(|| panic!("expected by this test")));
    let lsn = journal.append(1, b"x");
    std::thread::scope(|scope| {
        assert!(scope.spawn(|| journal.commit(lsn)).join().is_err());
    });
    assert!(matches!(journal.commit(lsn), Err(JournalError::ReadOnly)));
}

#[test]
fn a_full_disk_refuses_commits_until_there_is_room() {
    let pages = |count: u64| count * 4096;
    let disk = MemDisk::with_capacity(pages(14));
    let other = disk.create(FileName::Pack(0)).unwrap();
    other.allocate(0, pages(12), false).unwrap();
    let (journal, _) = open(&disk);
    let mut acknowledged = Vec::new();
    let refused = loop {
        let lsn = journal.append(1, format!("record {:400}", acknowledged.len()).as_bytes());
        match journal.commit(lsn) {
            Ok(()) => acknowledged.push(lsn),
            Err(JournalError::Full) => break lsn,
            Err(other) => panic!("{other}"),
        }
    };
    assert!(matches!(journal.prepare(), Err(JournalError::Full)));
    assert!(matches!(journal.commit(refused), Err(JournalError::Full)), "it stays pending");
    assert_eq!(disk.list().unwrap().len(), 3, "no half-made segment is left");
    let (_, replayed) = open(&disk.snapshot());
    assert_eq!(replayed.iter().map(|(lsn, ..)| *lsn).collect::<Vec<_>>(), acknowledged);

    // A checkpoint that contains the record makes it durable, and room for more.
    journal.recycle(refused).unwrap();
    journal.commit(refused).unwrap();
    let behind = put(&journal, "behind the checkpoint");
    let (_, replayed) = open_with(&disk.snapshot(), SMALL, refused, Repair::Refuse).unwrap();
    assert_eq!(replayed, [(behind, 1, b"behind the checkpoint".to_vec())]);

    let large = journal.append(1, &[0; 5 * BODY]);
    assert!(matches!(journal.commit(large), Err(JournalError::Full)));
    disk.remove(FileName::Pack(0)).unwrap();
    drop(other);
    journal.commit(large).unwrap();
}

#[test]
fn a_group_beyond_the_limit_is_refused_before_anything_is_made_for_it() {
    let disk = MemDisk::new();
    let (journal, _) = open(&disk);
    let lsn = journal.append(1, &[0; 17 * BODY]);
    assert!(matches!(journal.commit(lsn), Err(JournalError::Full)));
    assert_eq!(journal.stats().segments, 2);
}

#[test]
fn a_failed_write_on_the_way_to_a_new_segment_is_not_a_full_disk() {
    let disk = FaultDisk::new(Arc::new(MemDisk::new()));
    let (journal, _) = open(&disk);
    disk.make_read_only();
    let lsn = journal.append(1, &[0; 9 * BODY]);
    assert!(matches!(journal.commit(lsn), Err(JournalError::Disk { .. })));
    disk.heal();
    assert!(matches!(journal.commit(lsn), Err(JournalError::ReadOnly)));
}

#[test]
fn prepare_keeps_growth_out_of_commits() {
    let disk = MemDisk::new();
    let (journal, _) = open(&disk);
    for round in 0..12 {
        journal.prepare().unwrap();
        let segments = disk.list().unwrap().len();
        put(&journal, &format!("{round:0len$}", len = BODY / 2));
        assert_eq!(disk.list().unwrap().len(), segments);
    }
    assert_eq!(journal.stats().segments, 16, "2, 4, 8, 16");
    journal.prepare().unwrap();
    assert_eq!(journal.stats().segments, 16, "some are free");
}

#[test]
fn an_idle_journal_gives_its_segments_back() {
    let disk = MemDisk::new();
    let (journal, _) = open(&disk);
    let lsn = journal.append(1, &[0; 9 * BODY]);
    journal.commit(lsn).unwrap();
    assert!(journal.stats().segments >= 10);
    journal.recycle(lsn).unwrap();
    assert!(journal.stats().segments >= 10, "the next burst may be as large");
    journal.recycle(lsn).unwrap();
    assert_eq!(journal.stats().segments, 2);
    assert_eq!(disk.list().unwrap().len(), 2);
    let behind = put(&journal, "behind");
    let (_, replayed) = open_with(&disk, SMALL, lsn, Repair::Refuse).unwrap();
    assert_eq!(replayed, [(behind, 1, b"behind".to_vec())]);
}

#[test]
fn lost_durable_records_are_damage_and_repair_drops_what_follows() {
    let disk = MemDisk::new();
    let (journal, _) = open(&disk);
    let intact = ["one", "two", "three", "four", "five"].map(|payload| put(&journal, payload))[1];
    damage(&disk, "three");
    match open_with(&disk, SMALL, Lsn(0), Repair::Refuse) {
        Err(JournalError::DamagedMiddle { intact: found, durable }) => {
            assert!(found == intact && durable > intact);
        }
        other => panic!("{:?}", other.map(|(_, replayed)| replayed)),
    }
    let (journal, replayed) = open_with(&disk, SMALL, Lsn(0), Repair::DropAfterDamage).unwrap();
    assert_eq!(payloads(&replayed), ["one", "two"]);
    let (_, replayed) = open(&disk.snapshot());
    assert_eq!(payloads(&replayed), ["one", "two"], "the repair itself is durable");
    put(&journal, "THREE");
    let (_, replayed) = open(&disk);
    assert_eq!(payloads(&replayed), ["one", "two", "THREE"], "nothing of the dropped part comes back");
}

#[test]
fn a_missing_segment_is_damage() {
    let disk = MemDisk::new();
    let (journal, _) = open(&disk);
    let ends = [0, 1, 2, 3].map(|n| put(&journal, &format!("{n:0len$}", len = BODY - 5)));
    disk.remove(position_of(&disk, &format!("{:0len$}", 1, len = BODY - 5)).0).unwrap();
    let refused = open_with(&disk, SMALL, Lsn(0), Repair::Refuse).map(|_| ());
    assert!(matches!(refused, Err(JournalError::DamagedMiddle { intact, .. }) if intact == ends[0]), "{refused:?}");
    let (_, replayed) = open_with(&disk, SMALL, ends[1], Repair::Refuse).unwrap();
    assert_eq!(replayed.len(), 2, "a checkpoint behind the damage needs nothing of it");
    for name in disk.list().unwrap() {
        disk.remove(name).unwrap();
    }
    let refused = open_with(&disk, SMALL, ends[1], Repair::Refuse).map(|_| ());
    assert!(matches!(refused, Err(JournalError::Gone { .. })), "{refused:?}");
}

#[test]
fn a_reordered_unsynced_group_is_a_torn_tail() {
    let disk = MemDisk::new();
    let (journal, _) = open(&disk);
    put(&journal, "durable");
    // One group in three segments, whose first part does not reach the disk while the rest does.
    let lsn = journal.append(1, format!("lost{:01$}", 7, 2 * BODY).as_bytes());
    journal.append(1, b"on disk, but behind a hole");
    journal.commit(lsn).unwrap();
    damage(&disk, "lost");
    position_of(&disk, "on disk, but behind a hole");
    let (journal, replayed) = open(&disk);
    assert_eq!(payloads(&replayed), ["durable"]);

    // The same length again, so that the stale rest would fit on exactly.
    put(&journal, &format!("next{:01$}", 8, BODY - SECTOR - 9));
    let (_, replayed) = open(&disk);
    assert_eq!(replayed.len(), 2);
    assert!(replayed[1].2.starts_with(b"next"));
}

#[test]
fn a_stale_tail_never_continues_new_records() {
    let disk = MemDisk::new();
    let (journal, _) = open(&disk);
    let room = BODY - SECTOR;
    put(&journal, "a");
    // Two batches: the first fills the segment behind "a", the second is exactly one record.
    journal.append(1, &[b'x'].repeat(room - 5));
    let both = journal.append(1, b"stale");
    journal.commit(both).unwrap();
    let (name, at) = position_of(&disk, &"x".repeat(99));
    disk.flip(name, at, 1).unwrap();

    // With more segments there is a free one that is not the stale batch's.
    let more = Geometry { segments_min: 4, ..SMALL };
    let (journal, replayed) = open_with(&disk, more, Lsn(0), Repair::Refuse).unwrap();
    assert_eq!(payloads(&replayed), ["a"]);
    put(&journal, &"y".repeat(room - 5));
    position_of(&disk, "stale");
    let (journal, replayed) = open(&disk);
    assert_eq!(replayed.len(), 2, "the stale record would be the third");
    put(&journal, "third");
    let (_, replayed) = open(&disk);
    assert_eq!(payloads(&replayed)[2..], ["third"]);
}

#[test]
fn a_segment_of_another_store_or_a_failing_replay_stops_the_start() {
    let disk = MemDisk::new();
    put(&open(&disk).0, "x");
    let options = |store| Options { store, after: Lsn(0), geometry: SMALL, repair: Repair::Refuse };
    let open = |store, replay: &mut Replay<'_>| {
        Journal::open(Arc::new(disk.clone()), options(store), Box::new(|| Ok(())), replay).map(|_| ())
    };
    assert!(matches!(open(StoreId([6; 16]), &mut |_, _, _| Ok(())), Err(JournalError::ForeignStore { .. })));
    assert!(matches!(open(STORE, &mut |_, _, _| Err("no".into())), Err(JournalError::Replay { .. })));
}

#[test]
fn one_bad_byte_anywhere_is_noticed_or_harmless() {
    let disk = MemDisk::new();
    let (journal, _) = open(&disk);
    let all = (0..12).map(|n| format!("{n:0len$}", len = 100 + n * 40)).collect::<Vec<_>>();
    all.iter().for_each(|payload| _ = put(&journal, payload));
    for name in disk.list().unwrap() {
        for at in (0..disk.bytes_of(name).unwrap().len() as u64).step_by(13) {
            disk.flip(name, at, 0x20).unwrap();
            match open_with(&disk.snapshot(), SMALL, Lsn(0), Repair::Refuse) {
                Ok((_, replayed)) => {
                    assert!(replayed.len() >= all.len() - 1, "{name:?} byte {at}");
                    assert_eq!(payloads(&replayed), all[..replayed.len()]);
                }
                Err(JournalError::DamagedMiddle { .. } | JournalError::Malformed(_)) => {}
                Err(other) => panic!("{other}"),
            }
            disk.flip(name, at, 0x20).unwrap();
        }
    }
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// What the journal owes: every record appended, how far it was acknowledged, and the last checkpoint.
struct Model {
    geometry: Geometry,
    records: BTreeMap<Lsn, (u8, Vec<u8>)>,
    acknowledged: Lsn,
    checkpoint: Lsn,
}

impl Model {
    fn new(segments_max: u32) -> Self {
        let geometry = Geometry { segments_max, ..SMALL };
        Self { geometry, records: BTreeMap::new(), acknowledged: Lsn(0), checkpoint: Lsn(0) }
    }

    /// Opens the journal and checks what it replays.
    fn open<D: Disk + Clone + 'static>(&mut self, disk: &D) -> Result<Journal, JournalError> {
        let (journal, replayed) = open_with(disk, self.geometry, self.checkpoint, Repair::Refuse)?;
        let expected = self.records.iter().filter(|(lsn, _)| **lsn > self.checkpoint);
        for ((lsn, (kind, payload)), found) in expected.zip(&replayed) {
            assert_eq!((lsn, kind, payload), (&found.0, &found.1, &found.2));
        }
        let end = replayed.last().map_or(self.checkpoint, |(lsn, ..)| *lsn);
        assert!(end >= self.acknowledged, "acknowledged up to {}, found up to {end}", self.acknowledged);
        assert_eq!((journal.appended(), journal.committed()), (end, end));
        self.records.retain(|lsn, _| *lsn <= end && *lsn > self.checkpoint);
        assert_eq!(self.records.len(), replayed.len(), "no garbage");
        self.acknowledged = end;
        Ok(journal)
    }

    /// Uses the journal at random until it fails, or `steps` times.
    fn run(&mut self, journal: &Journal, random: &mut u64, steps: u32) -> Result<(), JournalError> {
        for _ in 0..steps {
            match splitmix(random) % 16 {
                0..8 => {
                    let len = if splitmix(random).is_multiple_of(8) {
                        splitmix(random) % 6000
                    } else {
                        splitmix(random) % 200
                    };
                    let payload = (0..len).map(|_| splitmix(random) as u8).collect::<Vec<_>>();
                    let kind = splitmix(random) as u8;
                    self.records.insert(journal.append(kind, &payload), (kind, payload));
                }
                8..13 => match journal.commit(journal.appended()) {
                    Ok(()) => self.acknowledged = journal.committed(),
                    Err(JournalError::Full) => self.take_checkpoint(journal, journal.appended())?,
                    Err(other) => return Err(other),
                },
                13 => self.take_checkpoint(journal, self.acknowledged)?,
                14 => self.take_checkpoint(journal, journal.appended())?,
                _ => match journal.prepare() {
                    Ok(()) | Err(JournalError::Full) => {}
                    Err(other) => return Err(other),
                },
            }
        }
        Ok(())
    }

    /// The checkpoint is durable elsewhere before the journal hears of it.
    fn take_checkpoint(&mut self, journal: &Journal, upto: Lsn) -> Result<(), JournalError> {
        self.checkpoint = self.checkpoint.max(upto);
        self.acknowledged = self.acknowledged.max(upto);
        journal.recycle(self.checkpoint)
    }
}

#[test]
fn acknowledged_records_survive_power_loss_at_any_operation() {
    let probe = CrashDisk::healthy();
    let script = |disk: &CrashDisk, model: &mut Model| -> Result<(), JournalError> {
        // The same steps each time, so that every operation of theirs is the fatal one once.
        let journal = model.open(disk)?;
        model.run(&journal, &mut 42, 120)
    };
    script(&probe, &mut Model::new(16)).unwrap();
    for fatal_op in 0..probe.ops() {
        for seed in 0..3 {
            let disk = CrashDisk::dies_at_op(fatal_op);
            let mut model = Model::new(16);
            assert!(script(&disk, &mut model).is_err());
            let disk = CrashDisk::over(&disk.after_power_loss(seed), PowerLoss::Never);
            let journal = model.open(&disk).unwrap();
            model.run(&journal, &mut (seed + 1), 20).unwrap();
            model.open(&disk.after_power_loss(seed)).unwrap();
        }
    }
}

#[test]
fn many_generations_of_crashes_and_recycling_lose_nothing() {
    for seed in 0..200 {
        let mut random = seed;
        let mut files = MemDisk::new();
        // With few segments the journal is often full when the power goes.
        let mut model = Model::new(if seed % 2 == 0 { 16 } else { 3 });
        for _ in 0..25 {
            let disk = CrashDisk::over(&files, PowerLoss::AtOp(splitmix(&mut random) % 80));
            match model.open(&disk) {
                Ok(journal) => _ = model.run(&journal, &mut random, 60),
                Err(error) => assert!(disk.is_dead(), "seed {seed}: {error}"),
            }
            // Seed 1 keeps everything, as when only the process died.
            files =
                disk.after_power_loss(if splitmix(&mut random).is_multiple_of(4) { 1 } else { splitmix(&mut random) });
        }
        model.open(&files).unwrap();
    }
}

#[test]
fn a_checkpoint_beyond_a_dropped_tail_does_not_revive_it() {
    let disk = MemDisk::new();
    // As many segments as are used, so that none is given back.
    let four = Geometry { segments_min: 4, ..SMALL };
    let (journal, _) = open_with(&disk, four, Lsn(0), Repair::Refuse).unwrap();
    put(&journal, "a");
    journal.append(1, format!("lost{:01$}", 7, BODY).as_bytes());
    let both = journal.append(1, &[0xff; BODY]);
    journal.commit(both).unwrap();
    damage(&disk, "lost");

    let (journal, replayed) = open_with(&disk, four, Lsn(0), Repair::Refuse).unwrap();
    assert_eq!(payloads(&replayed), ["a"]);
    let checkpoint = journal.append(1, &[1; BODY + BODY / 2]);
    assert!(checkpoint < both);
    journal.recycle(checkpoint).unwrap();
    let (_, replayed) = open_with(&disk, SMALL, checkpoint, Repair::Refuse).unwrap();
    assert!(replayed.is_empty());
}

#[test]
fn a_full_journal_with_a_torn_tail_can_be_opened() {
    let three = Geometry { segments_min: 3, segments_max: 3, ..SMALL };
    let disk = MemDisk::new();
    let (journal, _) = open_with(&disk, three, Lsn(0), Repair::Refuse).unwrap();
    // Two batches in each segment, all before the checkpoint.
    (0..6).for_each(|n| _ = put(&journal, &n.to_string()));
    let checkpoint = journal.committed();
    journal.recycle(checkpoint).unwrap();

    // The first batch of this group fills a segment, the second one is lost and leaves an old batch behind it.
    put(&journal, &format!("{:0len$}tail one", 0, len = BODY));
    damage(&disk, "tail one");
    let (journal, replayed) = open_with(&disk, three, checkpoint, Repair::Refuse).unwrap();
    assert!(replayed.is_empty());

    // Now the first one is lost, with the old batches still there, while the second one is on disk.
    journal.recycle(checkpoint).unwrap();
    let before = disk.snapshot();
    put(&journal, &format!("lost{:0len$}tail two", 0, len = BODY));
    let (lost, _) = position_of(&disk, "lost");
    disk.open(lost).unwrap().write_at(&before.bytes_of(lost).unwrap(), 0).unwrap();
    position_of(&disk, "tail two");
    let (_, replayed) = open_with(&disk, three, checkpoint, Repair::Refuse).unwrap();
    assert!(replayed.is_empty());
}

#[test]
fn commits_of_many_threads_are_durable_when_they_return() {
    let disk = CrashDisk::healthy();
    let (journal, _) = open_with(&disk, Geometry { segments_max: 512, ..SMALL }, Lsn(0), Repair::Refuse).unwrap();
    let threads = 4;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (journal, disk) = (&journal, &disk);
            scope.spawn(move || {
                for round in 0..50 {
                    let lsn = journal.append(thread, &[round]);
                    journal.commit(lsn).unwrap();
                    if round % 10 == thread {
                        let (_, replayed) = open(&disk.after_power_loss(u64::from(round)));
                        assert!(replayed.contains(&(lsn, thread, vec![round])), "{thread}.{round}");
                    }
                }
            });
        }
    });
    assert_eq!(open(&disk).1.len(), 50 * usize::from(threads));
}
