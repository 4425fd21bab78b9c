//! A disk that fails: errors are clear, nothing that was acknowledged is lost, and where the trouble passes work goes
//! on.

use std::collections::BTreeMap;
use std::sync::Arc;

use phifs_core::disk::{Access, CrashDisk, Disk, FaultDisk, MemDisk};
use phifs_core::volume::local::LocalVolume;
use phifs_core::volume::{Handle, Ino, NewKind, NewNode, RenameMode, Result, SetAttr, Volume, VolumeError};

use crate::harness::{CALLER, NODE, READ, TestEnv, WRITE, errno, open, open_with, options, settle};

/// Published in the journal, as one glyph, and in several; synced through the journal or in place.
const LENGTHS: [usize; 4] = [100, 20_000, 60_000, 150_000];

fn bytes_of(file: usize, round: usize) -> Vec<u8> {
    let len = LENGTHS[(file + round) % LENGTHS.len()];
    (0..len).map(|at| (at / 7 + file * 31 + round * 101) as u8 | 1).collect()
}

fn create(volume: &LocalVolume, name: &[u8]) -> Result<(Ino, Handle)> {
    let (attr, opened) = volume.create(&CALLER, Ino::ROOT, name, &NODE, &WRITE)?;
    Ok((attr.ino, opened.handle))
}

fn read(volume: &LocalVolume, name: &[u8]) -> Result<Vec<u8>> {
    let attr = volume.lookup(&CALLER, Ino::ROOT, name)?;
    let opened = volume.open(&CALLER, attr.ino, &READ)?;
    let bytes = volume.read(attr.ino, opened.handle, 0, attr.size_bytes as u32);
    volume.release(attr.ino, opened.handle);
    bytes
}

fn write_new(volume: &LocalVolume, name: &[u8], bytes: &[u8]) -> Result<()> {
    let (ino, handle) = create(volume, name)?;
    let written = volume.write(&CALLER, ino, handle, 0, bytes, false).and_then(|_| volume.fsync(ino, None, false));
    let flushed = volume.flush(ino, handle);
    volume.release(ino, handle);
    written.and(flushed)
}

/// Says what a failing disk can make of a call, and nothing else.
fn assert_clear(error: &VolumeError) {
    assert!(
        matches!(
            error,
            VolumeError::Disk { .. }
                | VolumeError::Store(_)
                | VolumeError::NoSpace(_)
                | VolumeError::ReadOnly
                | VolumeError::LostWrite
                | VolumeError::NotFound
                // What an earlier failure left behind.
                | VolumeError::Exists
        ),
        "a failing disk is no reason for {}: {error}",
        errno(error)
    );
}

/// What each name must hold: what was there at the last successful sync, or came since. `None`: it need not be there.
type Promised = BTreeMap<Vec<u8>, Vec<Option<Vec<u8>>>>;

/// Writes, syncs, renames and tidies, whatever fails meanwhile.
fn work(volume: &LocalVolume, promised: &mut Promised) {
    for round in 0..4 {
        for file in 0..3 {
            let name = format!("file {file}").into_bytes();
            let temporary = b"temporary".as_slice();
            let bytes = bytes_of(file, round);
            let written = write_new(volume, temporary, &bytes);
            if let Err(error) = &written {
                assert_clear(error);
                match volume.unlink(Ino::ROOT, temporary) {
                    Ok(()) => {}
                    Err(error) => assert_clear(&error),
                }
                continue;
            }
            // From now on either the old or the new content may be what a crash leaves.
            let held = promised.entry(name.clone()).or_insert_with(|| vec![None]);
            held.push(Some(bytes));
            match volume.rename(Ino::ROOT, temporary, Ino::ROOT, &name, RenameMode::Replace) {
                Ok(()) => {}
                Err(error) => {
                    assert_clear(&error);
                    continue;
                }
            }
            match volume.fsync(Ino::ROOT, None, false) {
                // Which covers the other names as well, also where a rename failed and what is there is the old file.
                Ok(()) => {
                    for (name, held) in promised.iter_mut() {
                        match read(volume, name) {
                            Ok(bytes) => held.retain(|held| held.as_ref() == Some(&bytes)),
                            Err(VolumeError::NotFound) => held.retain(Option::is_none),
                            Err(error) => assert_clear(&error),
                        }
                        assert!(!held.is_empty(), "{:?} holds something else", String::from_utf8_lossy(name));
                    }
                }
                Err(error) => assert_clear(&error),
            }
        }
        settle(volume);
        for upkeep in [volume.tick(), volume.make_checkpoint(false), volume.collect(0.9, &|_| {}).map(drop)] {
            if let Err(error) = upkeep {
                assert_clear(&error);
            }
        }
    }
}

fn check(volume: &LocalVolume, promised: &Promised, what: &str) {
    for (name, held) in promised {
        let found = match read(volume, name) {
            Ok(bytes) => Some(bytes),
            Err(VolumeError::NotFound) => None,
            Err(error) => panic!("{what}: {:?}: {error}", String::from_utf8_lossy(name)),
        };
        assert!(held.contains(&found), "{what}: {:?} lost", String::from_utf8_lossy(name));
    }
    let report = volume.fsck(false, &|_| {}).unwrap();
    assert!(report.problems.is_empty(), "{what}: {:?}", report.problems);
}

fn fail_everywhere(access: Access, errno: i32, once: bool) {
    let start = |faulty: &FaultDisk| -> std::result::Result<LocalVolume, _> {
        let disk: Arc<dyn Disk> = Arc::new(faulty.clone());
        open(&disk, &TestEnv::new(1))
    };
    let probe = FaultDisk::new(Arc::new(CrashDisk::healthy()));
    work(&start(&probe).unwrap(), &mut Promised::new());
    let calls = probe.calls(access);
    let step = if std::env::var_os("PHIFS_LONG").is_some() { 1 } else { calls / 40 + 1 };
    for call in (0..calls).step_by(step as usize) {
        let what = format!("{access:?} {call} of {calls} fails with {errno}, once: {once}");
        let disk = CrashDisk::healthy();
        let faulty = FaultDisk::new(Arc::new(disk.clone()));
        let plan = if once { FaultDisk::fail_once } else { FaultDisk::fail_from };
        plan(&faulty, access, call, errno);
        let mut promised = Promised::new();
        if let Ok(volume) = start(&faulty) {
            work(&volume, &mut promised);
            faulty.heal();
            // What the tables say is right, even if nothing more is accepted.
            check(&volume, &promised, &what);
        }
        faulty.heal();
        for seed in [0, 2] {
            let disk: Arc<dyn Disk> = Arc::new(disk.after_power_loss(seed));
            let volume = open(&disk, &TestEnv::new(2)).unwrap_or_else(|error| panic!("{what}: {error}"));
            check(&volume, &promised, &what);
            write_new(&volume, b"after", b"life goes on").unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    }
}

#[test]
fn a_read_that_fails_loses_nothing() {
    fail_everywhere(Access::Read, FaultDisk::EIO, true);
}

#[test]
fn a_write_that_fails_loses_nothing_acknowledged() {
    fail_everywhere(Access::Write, FaultDisk::EIO, true);
    fail_everywhere(Access::Write, FaultDisk::ENOSPC, true);
}

#[test]
fn a_sync_that_fails_loses_nothing_acknowledged() {
    fail_everywhere(Access::Sync, FaultDisk::EIO, true);
}

#[test]
fn a_disk_that_stops_taking_changes_loses_nothing_acknowledged() {
    fail_everywhere(Access::Write, FaultDisk::ENOSPC, false);
    fail_everywhere(Access::Write, FaultDisk::EROFS, false);
    fail_everywhere(Access::Sync, FaultDisk::EIO, false);
}

fn healthy() -> (FaultDisk, LocalVolume) {
    let faulty = FaultDisk::new(Arc::new(MemDisk::new()));
    let disk: Arc<dyn Disk> = Arc::new(faulty.clone());
    let volume = open(&disk, &TestEnv::new(1)).unwrap();
    (faulty, volume)
}

#[test]
fn a_failed_sync_is_reported_until_the_file_is_rewritten() {
    let (disk, volume) = healthy();
    let (ino, handle) = create(&volume, b"large").unwrap();
    volume.write(&CALLER, ino, handle, 0, &[1; 400_000], false).unwrap();
    disk.fail_once(Access::Sync, 0, FaultDisk::EIO);
    assert!(volume.fsync(ino, None, false).is_err());
    for _ in 0..2 {
        assert!(matches!(volume.fsync(ino, None, false), Err(VolumeError::LostWrite)));
        assert!(matches!(volume.flush(ino, handle), Err(VolumeError::LostWrite)));
    }
    // The others are not concerned, and upkeep goes on.
    volume.tick().unwrap();
    write_new(&volume, b"other", &[2; 100_000]).unwrap();
    volume.setattr(&CALLER, ino, &SetAttr { size_bytes: Some(0), ..SetAttr::default() }).unwrap();
    volume.write(&CALLER, ino, handle, 0, &[3; 100_000], false).unwrap();
    volume.fsync(ino, None, false).unwrap();
    volume.flush(ino, handle).unwrap();
}

#[test]
fn a_failed_sync_of_the_journal_makes_the_volume_read_only() {
    let (disk, volume) = healthy();
    write_new(&volume, b"before", b"bytes").unwrap();
    settle(&volume);
    volume.tick().unwrap();
    let (ino, handle) = create(&volume, b"small").unwrap();
    disk.fail_once(Access::Sync, 0, FaultDisk::EIO);
    assert!(volume.fsync(ino, None, false).is_err());
    assert!(volume.status().read_only);
    assert!(matches!(volume.fsync(ino, None, false), Err(VolumeError::ReadOnly)));
    assert!(matches!(create(&volume, b"new"), Err(VolumeError::ReadOnly)));
    assert!(matches!(volume.unlink(Ino::ROOT, b"before"), Err(VolumeError::ReadOnly)));
    assert_eq!(read(&volume, b"before").unwrap(), b"bytes");
    volume.release(ino, handle);
}

#[test]
fn on_a_full_disk_files_can_be_removed_and_then_there_is_room_again() {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::with_capacity(48 << 20));
    let volume = open_with(
        &disk,
        &TestEnv::new(1),
        phifs_core::volume::local::Options { reserve_bytes: Some(8 << 20), ..options() },
    )
    .unwrap();
    let mut written = Vec::new();
    let full = loop {
        let name = format!("file {}", written.len()).into_bytes();
        // Nothing of it can be compressed or shared.
        let mut bytes = vec![0; 1 << 20];
        blake3::Hasher::new().update(&name).finalize_xof().fill(&mut bytes);
        let outcome = write_new(&volume, &name, &bytes);
        settle(&volume);
        let ticked = volume.tick();
        match outcome.and(ticked) {
            Ok(()) => written.push((name, bytes)),
            Err(error) => break error,
        }
        assert!(written.len() < 100, "the disk never gets full");
    };
    assert!(matches!(full, VolumeError::NoSpace(_) | VolumeError::Store(_)), "{full}");
    assert!(written.len() > 5);
    for (name, bytes) in &written {
        assert!(read(&volume, name).unwrap() == *bytes);
    }
    // Metadata still works: there is a reserve for it.
    volume.make(&CALLER, Ino::ROOT, b"directory", &NewNode { kind: NewKind::Directory, ..NODE }).unwrap();
    volume.setattr(&CALLER, Ino::ROOT, &SetAttr { permissions: Some(0o777), ..SetAttr::default() }).unwrap();
    volume.rename(Ino::ROOT, &written[0].0, Ino::ROOT, b"renamed", RenameMode::Replace).unwrap();
    written[0].0 = b"renamed".to_vec();
    let last = format!("file {}", written.len()).into_bytes();
    match volume.unlink(Ino::ROOT, &last) {
        Ok(()) | Err(VolumeError::NotFound) => {}
        Err(error) => panic!("{error}"),
    }
    for (name, _) in written.drain(2..) {
        volume.unlink(Ino::ROOT, &name).unwrap();
    }
    volume.fsync(Ino::ROOT, None, false).unwrap();
    settle(&volume);
    volume.tick().unwrap();
    volume.collect(0.9, &|_| {}).unwrap();
    volume.tick().unwrap();
    assert!(!volume.status().read_only);
    write_new(&volume, b"new", &[5; 1 << 20]).unwrap();
    for (name, bytes) in &written {
        assert!(read(&volume, name).unwrap() == *bytes);
    }
    settle(&volume);
    volume.shut_down().unwrap();
}

#[test]
fn a_checkpoint_after_a_failed_one_loses_neither_tables_nor_operations() {
    let mut failures = 0;
    for access in [Access::Write, Access::Sync] {
        for call in 0..30 {
            let memory = MemDisk::new();
            let faulty = FaultDisk::new(Arc::new(memory.clone()));
            let disk: Arc<dyn Disk> = Arc::new(faulty.clone());
            let volume = open(&disk, &TestEnv::new(1)).unwrap();
            for file in 0..3 {
                write_new(&volume, format!("file {file}").as_bytes(), &bytes_of(file, 0)).unwrap();
            }
            settle(&volume);
            faulty.fail_once(access, call, FaultDisk::EIO);
            failures += u32::from(volume.make_checkpoint(false).is_err());
            faulty.heal();
            let again = volume.make_checkpoint(false);
            if again.is_ok() {
                let change = SetAttr { permissions: Some(0o700), ..SetAttr::default() };
                volume.setattr(&CALLER, Ino::ROOT, &change).unwrap();
                let ops = volume.recent_ops(1000).unwrap();
                let numbers: Vec<u64> = ops.iter().map(|op| op.dot.n).collect();
                // All but the making of the root, which has an author of its own.
                let all: Vec<u64> = (1..volume.status().operations).rev().collect();
                assert_eq!(numbers, all, "{access:?} {call}: the log has a gap");
            }
            if let Err(error) = volume.collect(0.9, &|_| {}) {
                assert_clear(&error);
            }
            drop(volume);
            let volume = open(&(Arc::new(memory) as Arc<dyn Disk>), &TestEnv::new(2)).unwrap();
            for file in 0..3 {
                let bytes = read(&volume, format!("file {file}").as_bytes()).unwrap();
                assert!(bytes == bytes_of(file, 0), "{access:?} {call}");
            }
            assert!(volume.fsck(false, &|_| {}).unwrap().problems.is_empty());
        }
    }
    assert!(failures > 4, "the disk failed in the middle of {failures} checkpoints");
}
