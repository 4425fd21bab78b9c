use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::causal::VersionVector;
use crate::disk::{Access, CrashDisk, FaultDisk, MemDisk};
use crate::identity::{Author, NodeKey};
use crate::time::Hlc;

const STORE: [u8; 16] = [5; 16];
/// A few groups each.
const SMALL: u64 = 1200;

/// A node that writes operations.
struct Scribe {
    key: NodeKey,
    builder: GroupBuilder,
    next: u64,
}

impl Scribe {
    fn new(node: u8) -> Self {
        let key = NodeKey::from_seed(&[node; 32]);
        let author = Author { node: key.public(), incarnation: 1 };
        Self { builder: GroupBuilder::new(author, Head::start(&author)), key, next: 1 }
    }

    fn id(&self) -> AuthorId {
        Author { node: self.key.public(), incarnation: 1 }.id()
    }

    /// The next group, of as many operations.
    fn group(&mut self, ops: u64) -> SealedGroup {
        self.group_saying(ops, b"operation")
    }

    fn group_saying(&mut self, ops: u64, word: &[u8]) -> SealedGroup {
        for _ in 0..ops {
            let op = [word, &self.next.to_le_bytes()].concat();
            self.builder.push(self.next, Hlc(self.next), &op);
            self.next += 1;
        }
        self.builder.seal(&self.key, VersionVector::new()).unwrap()
    }
}

/// Groups of two authors in turn.
fn some_groups(count: usize) -> Vec<SealedGroup> {
    let mut scribes = [Scribe::new(1), Scribe::new(2)];
    (0..count).map(|i| scribes[i % 2].group(1 + i as u64 % 3)).collect()
}

fn open(disk: &MemDisk) -> (Oplog, Report) {
    Oplog::open(Arc::new(disk.snapshot()), STORE, SMALL).unwrap()
}

/// A log of these groups on a disk, each of them synced.
fn written(groups: &[SealedGroup]) -> MemDisk {
    let disk = MemDisk::new();
    let (log, _) = Oplog::open(Arc::new(disk.clone()), STORE, SMALL).unwrap();
    for group in groups {
        log.append(group).unwrap();
        log.sync().unwrap();
    }
    disk
}

fn heads_of(groups: &[SealedGroup]) -> Heads {
    groups.iter().map(|group| (group.author_id(), group.head())).collect()
}

fn segments(disk: &MemDisk) -> Vec<FileName> {
    disk.list().unwrap()
}

fn len(disk: &MemDisk, name: FileName) -> u64 {
    disk.bytes_of(name).unwrap().len() as u64
}

/// Where the group is on the disk.
fn find(disk: &MemDisk, group: &SealedGroup) -> (FileName, u64) {
    let found = segments(disk).into_iter().find_map(|name| {
        let bytes = disk.bytes_of(name).unwrap();
        let at = bytes.windows(group.encoded().len()).position(|window| window == group.encoded())?;
        Some((name, at as u64))
    });
    found.expect("the group is in the log")
}

/// The groups of an author, with what is missing in between as ranges.
fn read_all(log: &Oplog, author: AuthorId, from: u64) -> (Vec<SealedGroup>, Vec<RangeInclusive<u64>>) {
    let (mut groups, mut missing) = (Vec::new(), Vec::new());
    for item in log.read(author, from) {
        match item {
            Ok(group) => groups.push(group),
            Err(OplogError::NotHeld { range, .. }) => missing.push(range),
            Err(error) => panic!("{error}"),
        }
    }
    (groups, missing)
}

/// Whatever happened to the disk: what the log gives out is what was put in, gaps are named, and it goes on working.
fn assert_honest(disk: &MemDisk, groups: &[SealedGroup]) -> (Report, Report) {
    let (log, report) = open(disk);
    let checked = log.check().unwrap();
    for (author, head) in log.heads() {
        let mut covered = Vec::new();
        for item in log.read(author, 1) {
            match item {
                Ok(group) => {
                    assert!(groups.contains(&group), "{group:?} was never written");
                    covered.extend(group.first()..=group.last());
                }
                Err(OplogError::NotHeld { range, .. }) => covered.extend(range),
                Err(error) => panic!("{error}"),
            }
        }
        assert!(covered.into_iter().eq(1..=head.n), "operations are given or named as missing, once and in order");
    }
    assert!(log.recent().flatten().all(|group| groups.contains(&group)));

    let mut newcomer = Scribe::new(99);
    let group = newcomer.group(1);
    assert_eq!(log.append(&group).unwrap(), Appended::Next);
    log.sync().unwrap();
    assert_eq!(read_all(&log, newcomer.id(), 1).0, [group]);
    (report, checked)
}

#[test]
fn reopened_log_has_everything() {
    let groups = some_groups(20);
    let disk = written(&groups);
    assert!(segments(&disk).len() > 3);
    let (log, report) = open(&disk);
    assert_eq!(report, Report::default());
    assert_eq!(log.check().unwrap(), Report::default());
    assert_eq!(log.heads(), heads_of(&groups));
    for author in log.heads().into_keys() {
        let expected: Vec<_> = groups.iter().filter(|group| group.author_id() == author).cloned().collect();
        assert_eq!(read_all(&log, author, 1), (expected.clone(), vec![]));
        // Operation 5 is inside a group.
        let from_five: Vec<_> = expected.into_iter().filter(|group| group.last() >= 5).collect();
        assert_eq!(read_all(&log, author, 5), (from_five, vec![]));
    }
    let newest: Vec<_> = log.recent().map(Result::unwrap).collect();
    assert!(newest.iter().eq(groups.iter().rev()));
}

#[test]
fn nothing_is_read_past_the_head_or_of_strangers() {
    let groups = some_groups(2);
    let (log, _) = open(&written(&groups));
    assert_eq!(read_all(&log, groups[0].author_id(), groups[0].last() + 1), (vec![], vec![]));
    assert_eq!(read_all(&log, Scribe::new(77).id(), 1), (vec![], vec![]));
}

#[test]
fn empty_log_takes_no_space() {
    let disk = MemDisk::new();
    let (log, report) = Oplog::open(Arc::new(disk.clone()), STORE, SMALL).unwrap();
    assert_eq!((log.size_bytes(), report, segments(&disk)), (0, Report::default(), vec![]));
    log.sync().unwrap();
}

/// Appends all groups, syncing after some and trimming once; returns what was promised to survive.
fn append_until_power_loss(disk: &CrashDisk, groups: &[SealedGroup]) -> Heads {
    let mut promised = Heads::new();
    let mut work = || -> Result<()> {
        let (log, _) = Oplog::open(Arc::new(disk.clone()), STORE, SMALL)?;
        for (i, group) in groups.iter().enumerate() {
            log.append(group)?;
            if i % 3 == 1 {
                log.sync()?;
                promised = log.heads();
            }
            if i == 12 {
                log.trim(SMALL)?;
            }
        }
        Ok(())
    };
    let _ = work();
    promised
}

#[test]
fn synced_groups_survive_power_loss_at_any_moment() {
    let groups = some_groups(16);
    let probe = CrashDisk::healthy();
    append_until_power_loss(&probe, &groups);
    assert!(probe.ops() > 30);
    for fatal_op in 0..probe.ops() {
        let disk = CrashDisk::dies_at_op(fatal_op);
        let promised = append_until_power_loss(&disk, &groups);
        for seed in 0..8 {
            let at = format!("operation {fatal_op} of the disk, seed {seed}");
            let survived = disk.after_power_loss(seed);
            let (log, report) = Oplog::open(Arc::new(survived.clone()), STORE, SMALL).unwrap();
            assert!(report.is_intact(), "{at}: a crash is no damage: {report:?}");
            let heads = log.heads();
            for (author, head) in &promised {
                assert!(heads.get(author).is_some_and(|found| found.n >= head.n), "{at}: {author} was forgotten");
            }
            // The caller goes on from the heads, with operations that it has elsewhere.
            for group in &groups {
                if heads.get(&group.author_id()).is_none_or(|head| head.n < group.last()) {
                    assert_eq!(log.append(group).unwrap(), Appended::Next, "{at}");
                }
            }
            log.sync().unwrap();
            assert_eq!(log.heads(), heads_of(&groups), "{at}");
            assert_eq!(log.check().unwrap(), Report::default(), "{at}");
            assert_eq!(assert_honest(&survived, &groups), Default::default(), "{at}");
        }
    }
}

#[test]
fn unsynced_groups_behind_a_lost_one_are_dropped_without_alarm() {
    let mut scribe = Scribe::new(1);
    let groups: Vec<_> = (0..3).map(|_| scribe.group(1)).collect();
    let disk = MemDisk::new();
    let (log, _) = Oplog::open(Arc::new(disk.clone()), STORE, SMALL).unwrap();
    log.append(&groups[0]).unwrap();
    log.sync().unwrap();
    log.append(&groups[1]).unwrap();
    log.append(&groups[2]).unwrap();
    let (name, at) = find(&disk, &groups[1]);
    disk.flip(name, at, 1).unwrap();
    let (log, report) = Oplog::open(Arc::new(disk.clone()), STORE, SMALL).unwrap();
    assert!(report.is_intact() && report.torn_bytes > 0, "{report:?}");
    assert_eq!(log.heads(), heads_of(&groups[..1]));
    // The next group is as long as the lost one, and what was dropped must not come back behind it.
    log.append(&groups[1]).unwrap();
    assert_eq!(open(&disk).0.heads(), heads_of(&groups[..2]));
}

#[test]
fn what_a_killed_process_left_is_durable_before_it_is_built_upon() {
    let groups = some_groups(2);
    let disk = CrashDisk::healthy();
    let reopen = || Oplog::open(Arc::new(disk.clone()), STORE, SMALL).unwrap().0;
    reopen().append(&groups[0]).unwrap();
    let log = reopen();
    log.append(&groups[1]).unwrap();
    for seed in 0..8 {
        let (survivor, report) = open(&disk.after_power_loss(seed));
        assert!(report.is_intact(), "seed {seed}: {report:?}");
        assert_eq!(survivor.head(groups[0].author_id()), Some(groups[0].head()), "seed {seed}");
    }
}

#[test]
fn damage_in_the_middle_is_reported_with_what_it_took() {
    let groups = some_groups(8);
    let disk = written(&groups);
    let hit = &groups[2];
    let (name, at) = find(&disk, hit);
    assert_eq!((name, segments(&disk).len()), (FileName::Oplog(0), 2), "the damage is in a segment that is finished");
    disk.flip(name, at + 60, 4).unwrap();
    let lost = (hit.author_id(), hit.first()..=hit.last());

    let (log, _) = open(&disk);
    let report = log.check().unwrap();
    assert_eq!((report.damage.len(), &report.lost), (1, &vec![lost.clone()]));
    assert_eq!(log.heads(), heads_of(&groups));
    assert_eq!(read_all(&log, lost.0, 1).1, [lost.1]);
    let damaged = log.recent().filter(|item| matches!(item, Err(OplogError::Damaged(_)))).count();
    assert_eq!(damaged, 1);
}

#[test]
fn damage_in_the_last_segment_shows_at_once_and_nothing_is_added_to_it() {
    let groups = some_groups(4);
    let disk = written(&groups[..3]);
    let (name, at) = find(&disk, &groups[0]);
    assert_eq!(segments(&disk), [name]);
    disk.flip(name, at, 1).unwrap();
    let before = disk.bytes_of(name).unwrap();

    let (log, report) = Oplog::open(Arc::new(disk.clone()), STORE, SMALL).unwrap();
    assert_eq!(report.lost, [(groups[0].author_id(), 1..=groups[0].last())]);
    assert_eq!(report.damage.len(), 1);
    assert_eq!(log.append(&groups[3]).unwrap(), Appended::Next);
    assert_eq!(disk.bytes_of(name).unwrap(), before);
    assert_eq!(find(&disk, &groups[3]).0, FileName::Oplog(1));
}

#[test]
fn missing_segment_is_reported_with_what_it_took() {
    let groups = some_groups(20);
    let disk = written(&groups);
    let gone: Vec<_> = groups.iter().filter(|group| find(&disk, group).0 == FileName::Oplog(1)).cloned().collect();
    disk.remove(FileName::Oplog(1)).unwrap();
    let (log, report) = open(&disk);
    assert_eq!(report.damage, [Damage { segment: 1, offset_bytes: 0, len_bytes: 0 }]);
    let mut lost = BTreeMap::<AuthorId, Vec<u64>>::new();
    for group in &gone {
        lost.entry(group.author_id()).or_default().extend(group.first()..=group.last());
    }
    assert!(report.lost.iter().map(|(author, range)| (*author, range.clone().collect())).eq(lost));
    assert_eq!(log.check().unwrap(), report);
    assert_eq!(log.heads(), heads_of(&groups));
}

#[test]
fn no_flipped_bit_goes_unnoticed_or_gets_out() {
    let groups = some_groups(6);
    let disk = written(&groups);
    let names = segments(&disk);
    let (last_name, last_at) = find(&disk, &groups[5]);
    for &name in &names {
        for at in 0..len(&disk, name) {
            let damaged = disk.snapshot();
            damaged.flip(name, at, 1 << (at % 8)).unwrap();
            let refused = Oplog::open(Arc::new(damaged.snapshot()), STORE, SMALL).is_err();
            assert!(!refused, "{name:?} byte {at}: damage keeps no log from opening");
            let (report, checked) = assert_honest(&damaged, &groups);
            // The last group's record looks unfinished, as nothing behind it proves that it was durable.
            let at_the_end = name == last_name && at + 21 >= last_at;
            assert_eq!(report.torn_bytes > 0, at_the_end, "{name:?} byte {at}: {report:?}");
            assert_eq!(report.is_intact() && checked.is_intact(), at_the_end, "{name:?} byte {at}: {checked:?}");
        }
    }
}

#[test]
fn no_truncation_goes_unnoticed_or_gets_out() {
    let groups = some_groups(6);
    let disk = written(&groups);
    let names = segments(&disk);
    for &name in &names {
        for len_bytes in 0..len(&disk, name) {
            let damaged = disk.snapshot();
            damaged.truncate(name, len_bytes).unwrap();
            let (report, checked) = assert_honest(&damaged, &groups);
            if name != *names.last().unwrap() {
                assert!(!(report.is_intact() && checked.is_intact()), "{name:?} cut at {len_bytes}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn heavy_damage_is_survived(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1u8..), 1..20),
        removed in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let groups = some_groups(12);
        let disk = written(&groups);
        let names = segments(&disk);
        for (name, at, mask) in flips {
            let name = names[name.index(names.len())];
            disk.flip(name, at.index(len(&disk, name) as usize) as u64, mask).unwrap();
        }
        if let Some(removed) = removed {
            disk.remove(names[removed.index(names.len())]).unwrap();
        }
        assert_honest(&disk, &groups);
    }
}

#[test]
fn record_inside_an_operation_is_not_taken_for_one() {
    let mut scribe = Scribe::new(1);
    let inner = written(&[scribe.group(1)]);
    let copy = inner.bytes_of(FileName::Oplog(0)).unwrap();
    let mut author = Scribe::new(2);
    let groups = [author.group_saying(1, &copy), author.group(1)];
    let disk = written(&groups);
    let (name, at) = find(&disk, &groups[0]);
    disk.flip(name, at, 1).unwrap();
    let (log, report) = open(&disk);
    assert_eq!(report.lost, [(author.id(), 1..=1)]);
    assert!(!log.heads().contains_key(&scribe.id()));
}

#[test]
fn forged_group_in_the_log_is_damage_and_never_gets_out() {
    let mut scribe = Scribe::new(1);
    let groups = [scribe.group(1), scribe.group(1), scribe.group(1)];
    let disk = written(&groups);
    let (name, at) = find(&disk, &groups[1]);
    let mut forged = groups[1].encoded().to_vec();
    *forged.last_mut().unwrap() ^= 1;
    let record = Place { store: STORE, number: 0 }.group(at - 21, at - 21, &forged, false);
    disk.open(name).unwrap().write_at(&record, at - 21).unwrap();
    let (log, _) = open(&disk);
    assert_eq!(read_all(&log, scribe.id(), 1), (vec![groups[0].clone(), groups[2].clone()], vec![2..=2]));
    assert_eq!(log.recent().filter(Result::is_err).count(), 1);
    let report = log.check().unwrap();
    assert_eq!((report.damage.len(), report.lost), (1, vec![(scribe.id(), 2..=2)]));
}

#[test]
fn trimming_keeps_heads_and_says_what_is_gone() {
    let mut scribe = Scribe::new(1);
    let early = scribe.group(2);
    let groups = [vec![early.clone()], (0..20).map(|_| scribe.group(1)).collect()].concat();
    let mut quiet = Scribe::new(2);
    let quiet_group = quiet.group(3);
    let disk = written(&[vec![quiet_group.clone()], groups.clone()].concat());

    let (log, _) = Oplog::open(Arc::new(disk.clone()), STORE, SMALL).unwrap();
    let size_before = log.size_bytes();
    let mut reader = log.read(scribe.id(), 1);
    assert_eq!(reader.next().unwrap().unwrap(), early);
    let freed = log.trim(2 * SMALL).unwrap();
    assert_eq!(log.size_bytes(), size_before - freed);
    assert!(freed > 0 && log.size_bytes() <= 2 * SMALL);
    assert_eq!(reader.map(Result::unwrap).last().as_ref(), groups.last(), "a reader is not disturbed");

    for log in [log, open(&disk).0] {
        assert_eq!(log.head(quiet.id()), Some(quiet_group.head()), "the head of an author without groups in the log");
        assert_eq!(log.head(scribe.id()), Some(groups.last().unwrap().head()));
        assert_eq!(read_all(&log, quiet.id(), 1), (vec![], vec![1..=3]));
        let (held, missing) = read_all(&log, scribe.id(), 1);
        assert_eq!(missing, [1..=held[0].first() - 1]);
        assert_eq!(log.check().unwrap(), Report::default());
        assert_eq!(log.append(&quiet.group(1)).unwrap(), Appended::Next);
        quiet = Scribe::new(2);
        quiet.group(3);
    }
}

#[test]
fn segment_in_use_is_never_trimmed() {
    let groups = some_groups(3);
    let (log, _) = open(&written(&groups));
    assert_eq!(log.trim(0).unwrap(), 0);
    assert_eq!(log.recent().count(), 3);
}

#[test]
fn group_larger_than_a_segment_is_kept() {
    let mut scribe = Scribe::new(1);
    let groups = [scribe.group(1), scribe.group_saying(1, &[7; 5 * SMALL as usize]), scribe.group(1)];
    let disk = written(&groups);
    assert_eq!(read_all(&open(&disk).0, scribe.id(), 1), (groups.to_vec(), vec![]));
    assert_eq!(segments(&disk).len(), 3);
}

#[test]
fn operations_sealed_again_in_other_groups_are_the_same_history() {
    let (mut before, mut after) = (Scribe::new(1), Scribe::new(1));
    let (log, _) = open(&written(&[before.group(2), before.group(3)]));
    assert_eq!(log.append(&after.group(1)).unwrap(), Appended::Known);
    assert_eq!(log.append(&after.group(4)).unwrap(), Appended::Known);
    let mut overlapping = Scribe::new(1);
    overlapping.group(3);
    let group = overlapping.group(4);
    assert_eq!(log.append(&group).unwrap(), Appended::Next, "three to seven, where five is known");
    assert_eq!(log.head(before.id()), Some(group.head()));
    assert_eq!(read_all(&log, before.id(), 1).1, []);
    assert_eq!(log.check().unwrap(), Report::default());
}

#[test]
fn known_groups_are_not_written_again() {
    let groups = some_groups(4);
    let (log, _) = open(&written(&groups));
    let size = log.size_bytes();
    for group in &groups {
        assert_eq!(log.append(group).unwrap(), Appended::Known);
    }
    assert_eq!(log.size_bytes(), size);
}

#[test]
fn second_history_is_refused_with_proof() {
    let story = || {
        let mut scribe = Scribe::new(1);
        (scribe.group(2), scribe)
    };
    let (common, mut ours) = story();
    let (_, mut theirs) = story();
    let our_groups = [common, ours.group(1), ours.group(2)];
    let their_groups = [theirs.group_saying(1, b"else"), theirs.group(1), theirs.group(3)];
    let (log, _) = open(&written(&our_groups));
    let size = log.size_bytes();
    // Within the known history, up to its end or before it, and continuing from a past that never was.
    for (theirs, fork) in their_groups.iter().zip([3, 4, 5]) {
        match log.append(theirs) {
            Err(OplogError::Forked { n, logged: Some(logged), .. }) => {
                assert_eq!(n, fork);
                assert!(our_groups.contains(&logged));
                let proof =
                    (SealedGroup::decode(logged.encoded().clone()), SealedGroup::decode(theirs.encoded().clone()));
                assert_eq!(proof.0.unwrap().contradicts(&proof.1.unwrap()), Some(fork));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(log.size_bytes(), size);
    assert_eq!(log.head(ours.id()), Some(our_groups[2].head()));
}

#[test]
fn gap_left_by_a_state_diff_is_marked_and_is_no_damage() {
    let mut scribe = Scribe::new(1);
    let first = scribe.group(2);
    scribe.group(5);
    let third = scribe.group(1);
    let disk = written(std::slice::from_ref(&first));
    let (log, _) = Oplog::open(Arc::new(disk.clone()), STORE, SMALL).unwrap();
    assert_eq!(log.append(&third).unwrap(), Appended::AfterGap(3..=7));
    log.sync().unwrap();
    for (log, report) in [(log, Report::default()), open(&disk)] {
        assert_eq!(report, Report::default());
        assert_eq!(log.check().unwrap(), Report::default());
        assert_eq!(read_all(&log, scribe.id(), 1), (vec![first.clone(), third.clone()], vec![3..=7]));
    }
}

#[test]
fn other_stores_and_newer_logs_are_refused() {
    let disk = written(&some_groups(2));
    let other = Oplog::open(Arc::new(disk.clone()), [6; 16], SMALL).err();
    assert!(matches!(other, Some(OplogError::OtherStore { segment: 0 })), "{other:?}");

    let mut header = disk.bytes_of(FileName::Oplog(0)).unwrap()[..36].to_vec();
    header[8] = 2;
    let crc = crc32c::crc32c(&header[..32]);
    header[32..].copy_from_slice(&crc.to_le_bytes());
    disk.open(FileName::Oplog(0)).unwrap().write_at(&header, 0).unwrap();
    let newer = Oplog::open(Arc::new(disk), STORE, SMALL).err().unwrap();
    assert_eq!(
        newer.to_string(),
        "segment 0 of the operation log: a segment of the operation log is written in format version 2; \
         this program knows versions up to 1"
    );
}

#[test]
fn failed_write_leaves_the_log_as_it_was() {
    let groups = some_groups(12);
    let writes = {
        let disk = FaultDisk::new(Arc::new(MemDisk::new()));
        let (log, _) = Oplog::open(Arc::new(disk.clone()), STORE, SMALL).unwrap();
        groups.iter().for_each(|group| assert_eq!(log.append(group).unwrap(), Appended::Next));
        disk.calls(Access::Write)
    };
    for failing in 0..writes {
        let files = MemDisk::new();
        let disk = FaultDisk::new(Arc::new(files.clone()));
        let (log, _) = Oplog::open(Arc::new(disk.clone()), STORE, SMALL).unwrap();
        disk.fail_once(Access::Write, failing, FaultDisk::ENOSPC);
        for group in &groups {
            let before = log.heads();
            if let Err(error) = log.append(group) {
                let full =
                    matches!(&error, OplogError::Disk { source, .. } if source.kind() == io::ErrorKind::StorageFull);
                assert!(full, "{error}");
                assert_eq!(log.heads(), before);
                assert_eq!(log.append(group).unwrap(), Appended::Next, "once there is space again");
            }
        }
        log.sync().unwrap();
        let (log, report) = open(&files);
        assert_eq!(
            (log.heads(), report, log.check().unwrap()),
            (heads_of(&groups), Report::default(), Report::default())
        );
    }
}

#[test]
fn failed_sync_ends_all_writing() {
    let groups = some_groups(2);
    let disk = FaultDisk::new(Arc::new(MemDisk::new()));
    let (log, _) = Oplog::open(Arc::new(disk.clone()), STORE, SMALL).unwrap();
    log.append(&groups[0]).unwrap();
    disk.fail_once(Access::Sync, 0, FaultDisk::EIO);
    assert!(matches!(log.sync(), Err(OplogError::Disk { .. })));
    assert!(matches!(log.sync(), Err(OplogError::ReadOnly)));
    assert!(matches!(log.append(&groups[1]), Err(OplogError::ReadOnly)));
    assert_eq!(log.recent().count(), 1, "reading goes on");
}
