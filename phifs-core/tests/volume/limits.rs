//! How much of one thing there may be.

use phifs_core::store::StoreError;
use phifs_core::volume::local::{LocalVolume, MergeOptions, Side};
use phifs_core::volume::{Ino, RenameMode, Volume, VolumeError};

use crate::harness::CALLER;
use crate::merging::{mkdir, new_volume, reopen, write, write_in};

#[test]
fn a_file_with_too_many_names_gets_no_further_one() {
    let (disk, env, volume) = new_volume();
    write(&volume, b"file", b"x");
    let file = volume.lookup(&CALLER, Ino::ROOT, b"file").unwrap().ino;
    for n in 1..2500 {
        volume.link(file, Ino::ROOT, format!("link {n}").as_bytes()).unwrap();
    }
    let refused = volume.link(file, Ino::ROOT, b"one too many");
    assert!(matches!(refused, Err(VolumeError::TooManyLinks)), "{refused:?}");
    volume.unlink(Ino::ROOT, b"link 7").unwrap();
    assert_eq!(volume.link(file, Ino::ROOT, b"again").unwrap().nlink, 2500);
    write(&volume, b"synced", b"x");
    drop(volume);
    assert_eq!(reopen(&disk, &env).lookup(&CALLER, Ino::ROOT, b"again").unwrap().nlink, 2500);
}

/// Renames a directory in the root from `0` to `1` and so on, and each time or only the first is seen by a snapshot. Says
/// how often it went, and why it did not go on.
fn rename_on(volume: &LocalVolume, times: usize, each_is_seen: bool) -> (usize, Option<VolumeError>) {
    for n in 0..times {
        let (from, to) = (format!("{n}"), format!("{}", n + 1));
        let renamed = volume.rename(Ino::ROOT, from.as_bytes(), Ino::ROOT, to.as_bytes(), RenameMode::Replace);
        if let Err(error) = renamed {
            return (n, Some(error));
        }
        if n > 0 && !each_is_seen {
            continue;
        }
        volume.create_snapshot(&format!("after {n}"), Vec::new(), false).unwrap();
        // The latest knows all of them.
        if let Some(before) = n.checked_sub(1) {
            volume.delete_snapshots(&[format!("after {before}")]).unwrap();
        }
    }
    (times, None)
}

/// More often than its row has room for all that: see the test below.
const MORE_THAN_A_ROW_HOLDS: usize = 4000;

#[test]
fn a_directory_may_be_moved_however_often_snapshots_saw_it_elsewhere() {
    for each_is_seen in [false, true] {
        let (disk, env, volume) = new_volume();
        let dir = mkdir(&volume, Ino::ROOT, b"0");
        write_in(&volume, dir, b"inside", b"x");
        let (times, error) = rename_on(&volume, MORE_THAN_A_ROW_HOLDS, each_is_seen);
        assert!(error.is_none(), "after {times}: {error:?}");
        write(&volume, b"synced", b"x");
        drop(volume);
        let volume = reopen(&disk, &env);
        let moved = volume.lookup(&CALLER, Ino::ROOT, format!("{MORE_THAN_A_ROW_HOLDS}").as_bytes()).unwrap();
        assert!(moved.ino == dir && volume.lookup(&CALLER, dir, b"inside").is_ok());
    }
}

#[test]
fn a_row_that_would_become_too_large_is_an_error_and_nothing_happens() {
    let (disk, env, volume) = new_volume();
    // A move that is skipped, as two directories were moved into each other, keeps all moves before.
    let dirs = [b"0", b"a", b"b"].map(|name| mkdir(&volume, Ino::ROOT, name));
    volume.create_snapshot("base", Vec::new(), false).unwrap();
    volume.clone_snapshot("base", "other").unwrap();
    let other = volume.open_branch("other", &|_| {}).unwrap();
    volume.rename(Ino::ROOT, b"a", dirs[2], b"a", RenameMode::Replace).unwrap();
    let b = other.lookup(&CALLER, Ino::ROOT, b"b").unwrap().ino;
    let a = other.lookup(&CALLER, Ino::ROOT, b"a").unwrap().ino;
    assert_ne!(a, b);
    other.rename(Ino::ROOT, b"b", a, b"b", RenameMode::Replace).unwrap();
    drop(other);
    volume.merge(&Side::Branch("other".into()), &Side::Live, &MergeOptions::default()).unwrap();
    let (times, error) = rename_on(&volume, MORE_THAN_A_ROW_HOLDS, true);
    assert!(matches!(error, Some(VolumeError::Store(StoreError::RowTooLarge { .. }))), "{error:?}");
    assert!(times > 2000);
    let name = format!("{times}").into_bytes();
    assert_eq!(volume.lookup(&CALLER, Ino::ROOT, &name).unwrap().ino, dirs[0]);
    write(&volume, b"goes on", b"x");
    drop(volume);
    assert_eq!(reopen(&disk, &env).lookup(&CALLER, Ino::ROOT, &name).unwrap().ino, dirs[0]);
}
