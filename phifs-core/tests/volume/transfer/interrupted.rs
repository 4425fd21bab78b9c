//! What is broken off in the middle, by whatever, changes nothing, and is gone on with.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::sync::Arc;

use phifs_core::disk::{Access, CrashDisk, Disk, FaultDisk, MemDisk, PowerLoss};
use phifs_core::snapshot::stream::StreamError;
use phifs_core::volume::local::{ImportOptions, OpenError, OutFile, Sink, TransferError};
use phifs_core::volume::{Ino, Volume, VolumeError};

use super::{GO_ON, KEYS, Site, bootstrap, forge, noise, open, ready, state_of};
use crate::harness::{CALLER, TestEnv, WRITE, settle};

#[test]
fn an_import_that_was_broken_off_goes_on_where_it_was() {
    let (old, new, _, increment) = ready();
    let frames = {
        let mut frames = 0;
        forge(&increment, |_, glyphs| frames = glyphs.len() as u64);
        frames
    };
    for limit in [1, 20_000, 100_000, increment.len() as u64 - 100] {
        let (new, before) = (new.crashed(), state_of(&new.volume).0);
        let stop = |bytes: u64| if bytes > limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let broken_off = new.volume.import_snapshot(&increment[..], &ImportOptions::default(), &stop);
        assert!(matches!(broken_off, Err(TransferError::Stream(StreamError::BrokenOff))));
        assert_eq!(state_of(&new.volume).0, before);
        // Killed, then started again.
        let new = new.crashed();
        let imported = new.import(&increment).unwrap();
        assert_eq!(imported.received.glyphs, frames);
        assert_eq!(new.verified("second"), old.verified("second"));
        assert_eq!(new.verified("first"), old.verified("first"));
    }
}

#[test]
fn what_an_import_brings_and_an_export_reads_outlives_collections() {
    let (old, new, _, increment) = ready();
    let steps = Cell::new(0);
    // In the middle of an import, its base is forgotten and everything that nothing names is collected.
    let disturb = |_: u64| {
        steps.set(steps.get() + 1);
        if steps.get() == 5 {
            new.volume.delete_snapshots(&["first".into()]).unwrap();
        }
        new.volume.collect(1.0, &|_| {}).unwrap();
        ControlFlow::Continue(())
    };
    new.volume.import_snapshot(&increment[..], &ImportOptions::default(), &disturb).unwrap();
    assert_eq!(new.names(), ["second"]);
    new.volume.collect(1.0, &|_| {}).unwrap();
    assert_eq!(new.verified("second"), old.verified("second"));

    let wanted = old.export("second", Some("first"));
    let mut out = Vec::new();
    let disturb = |_: u64| {
        if old.names().len() == 2 {
            old.volume.delete_snapshots(&["first".into(), "second".into()]).unwrap();
            let deep = old.volume.lookup(&CALLER, Ino::ROOT, b"dir").unwrap().ino;
            old.write(deep, b"single", b"nothing of it is needed any more");
        }
        old.volume.collect(1.0, &|_| {}).unwrap();
        ControlFlow::Continue(())
    };
    old.volume.export_snapshot("second", Some("first"), Sink::Pipe(&mut out), &disturb).unwrap();
    assert!(out == wanted);
    assert!(old.names().is_empty());
}

/// A file on a disk that takes only so much.
struct Partial {
    file: Cursor<Vec<u8>>,
    len_max: u64,
}

impl Read for Partial {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read(buf)
    }
}

impl Write for Partial {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let room = self.len_max.saturating_sub(self.file.position()) as usize;
        if room == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write(&buf[..buf.len().min(room)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Partial {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl OutFile for Partial {
    fn set_len(&mut self, len_bytes: u64) -> io::Result<()> {
        self.file.get_mut().resize(len_bytes as usize, 0);
        Ok(())
    }
}

#[test]
fn an_export_that_was_interrupted_goes_on_from_what_is_good_of_it() {
    let site = Site::new(0);
    site.fill();
    // More than two checks apart.
    let big = site.write(Ino::ROOT, b"big", &noise(4, 6 << 20));
    let opened = site.volume.open(&CALLER, big, &WRITE).unwrap();
    for at in 1..4 {
        site.volume.write(&CALLER, big, opened.handle, at * (6 << 20), &noise(4 + at, 6 << 20), false).unwrap();
    }
    site.volume.release(big, opened.handle);
    settle(&site.volume);
    site.snapshot("first");
    site.write(Ino::ROOT, b"inline", b"changed");
    site.snapshot("second");
    let whole = site.export("first", None);
    let len = whole.len() as u64;
    let mut kept = BTreeSet::new();
    for len_max in [0, 10, 100_000, 8 << 20, 9 << 20, 20 << 20, len - 1, len] {
        let mut file = Partial { file: Cursor::default(), len_max };
        let first = site.volume.export_snapshot("first", None, Sink::File(&mut file), &GO_ON);
        assert_eq!(first.is_ok(), len_max == len);
        file.len_max = u64::MAX;
        file.rewind().unwrap();
        let second = site.volume.export_snapshot("first", None, Sink::File(&mut file), &GO_ON).unwrap();
        assert!(*file.file.get_ref() == whole, "gone on after {len_max} bytes");
        assert!(second.resumed_bytes <= len_max && second.bytes == len, "{second:?}");
        kept.insert(second.resumed_bytes);
    }
    assert!(kept.len() >= 4, "nothing was gone on with: {kept:?}");
    // Damage costs what comes after it; an export of something else, all of it.
    for (at, least) in [(300, 0), (9 << 20, 8 << 20), (len - 5, 16 << 20)] {
        let mut file = Partial { file: Cursor::new(whole.clone()), len_max: u64::MAX };
        file.file.get_mut()[at as usize] ^= 4;
        let again = site.volume.export_snapshot("first", None, Sink::File(&mut file), &GO_ON).unwrap();
        assert!(*file.file.get_ref() == whole && (least..=at).contains(&again.resumed_bytes), "{again:?}");
    }
    let mut file = Partial { file: Cursor::new(whole), len_max: u64::MAX };
    let other = site.volume.export_snapshot("second", None, Sink::File(&mut file), &GO_ON).unwrap();
    assert_eq!(other.resumed_bytes, 0);
    assert!(*file.file.get_ref() == site.export("second", None));
}

#[test]
fn a_full_disk_in_the_middle_is_told_and_leaves_the_volume_as_it_was() {
    let (old, new, full, increment) = ready();
    let base = new.disk.snapshot();
    let mut failures = 0;
    for skip in 0.. {
        let disk = FaultDisk::new(Arc::new(base.snapshot()));
        let env = TestEnv::new(50);
        let volume = open(Arc::new(disk.clone()), &env, &KEYS[1]).unwrap();
        disk.fail_from(Access::Write, skip, FaultDisk::ENOSPC);
        let imported = volume.import_snapshot(&increment[..], &ImportOptions::default(), &GO_ON);
        disk.heal();
        if imported.is_ok() {
            break;
        }
        failures += 1;
        drop(volume);
        let volume = open(Arc::new(disk.clone()), &env, &KEYS[1]).unwrap();
        assert_eq!(volume.snapshots().unwrap().len(), 1, "write {skip}: {:?}", imported.err());
        volume.import_snapshot(&increment[..], &ImportOptions::default(), &GO_ON).unwrap();
        let found = volume.verify_snapshot("second", &|_| {}).unwrap();
        assert_eq!(found.tree_root, Some(old.verified("second")));
    }
    assert!(failures >= 2, "{failures}");

    for skip in 0.. {
        let disk = FaultDisk::new(Arc::new(MemDisk::new()));
        let env = TestEnv::new(50);
        disk.fail_from(Access::Write, skip, FaultDisk::ENOSPC);
        let made = bootstrap(Arc::new(disk.clone()), &env, &KEYS[1], &full);
        disk.heal();
        if made.is_ok() {
            break;
        }
        match bootstrap(Arc::new(disk.clone()), &env, &KEYS[1], &full) {
            // Only the second copy of the superblock was missing.
            Ok(_) | Err(TransferError::HasVolume) => {}
            Err(error) => panic!("write {skip}: {error}"),
        }
        let volume = open(Arc::new(disk.clone()), &env, &KEYS[1]).unwrap();
        assert_eq!(volume.tree_root().unwrap(), old.verified("first"), "write {skip}");
    }
}

#[test]
fn power_loss_at_any_change_of_an_import_leaves_all_of_it_or_nothing() {
    let (old, new, _, increment) = ready();
    let base = new.disk.snapshot();
    let import_until = |power_loss| {
        let disk = CrashDisk::over(&base, power_loss);
        let volume = open(Arc::new(disk.clone()), &TestEnv::new(60), &KEYS[1]);
        let imported = volume.and_then(|volume| {
            let imported = volume.import_snapshot(&increment[..], &ImportOptions::default(), &GO_ON);
            imported.map_err(|error| OpenError::Volume(VolumeError::Internal(error.to_string())))
        });
        (disk, imported.is_ok())
    };
    let (healthy, _) = import_until(PowerLoss::Never);
    let wanted = old.verified("second");
    for op in 0..healthy.ops() {
        let (disk, was_acknowledged) = import_until(PowerLoss::AtOp(op));
        for seed in [0, 1, op + 2] {
            let image: Arc<dyn Disk> = Arc::new(disk.after_power_loss(seed));
            let volume = open(image, &TestEnv::new(61), &KEYS[1]).unwrap();
            let names = state_of(&volume).0;
            assert!(names.len() == 2 || !was_acknowledged && names.len() == 1, "change {op}, seed {seed}: {names:?}");
            volume.import_snapshot(&increment[..], &ImportOptions::default(), &GO_ON).unwrap();
            let found = volume.verify_snapshot("second", &|_| {}).unwrap();
            assert_eq!(found.tree_root, Some(wanted), "change {op}, seed {seed}: {:?}", found.report.problems);
        }
    }
}

#[test]
fn power_loss_at_any_change_of_a_beginning_leaves_a_store_that_can_be_gone_on_with() {
    let (old, _, full, _) = ready();
    let wanted = old.verified("first");
    let begin_until = |power_loss| {
        let disk = CrashDisk::over(&MemDisk::new(), power_loss);
        let made = bootstrap(Arc::new(disk.clone()), &TestEnv::new(70), &KEYS[1], &full);
        (disk, made.is_ok())
    };
    let (healthy, _) = begin_until(PowerLoss::Never);
    for op in 0..healthy.ops() {
        let (disk, was_acknowledged) = begin_until(PowerLoss::AtOp(op));
        for seed in [0, 1, op + 2] {
            let image: Arc<dyn Disk> = Arc::new(disk.after_power_loss(seed));
            let env = TestEnv::new(71);
            match bootstrap(image.clone(), &env, &KEYS[1], &full) {
                Ok(_) => assert!(!was_acknowledged),
                // All of it was on the disk.
                Err(TransferError::HasVolume) => {}
                Err(error) => panic!("change {op}, seed {seed}: {error}"),
            }
            let volume = open(image, &env, &KEYS[1]).unwrap();
            assert_eq!(volume.tree_root().unwrap(), wanted, "change {op}, seed {seed}");
            assert_eq!(state_of(&volume).0, ["first"]);
        }
    }
}
