//! What a damaged pack takes with it is told by path and by range, and no more than that is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use phifs_core::disk::{Disk, FileName, MemDisk};
use phifs_core::volume::local::{LocalVolume, Problem};
use phifs_core::volume::{FileKind, Ino, NewKind, NewNode, OpenHow, Result, Volume, VolumeError, XattrMode};

use crate::harness::{CALLER, READ, TestEnv, open, settle};

const BLOCK: usize = 4096;

type Files = BTreeMap<Vec<u8>, Vec<u8>>;

/// Enough files that each table has several leaves, with contents of every way to be stored.
fn build() -> (MemDisk, Files) {
    let disk = MemDisk::new();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let volume = open(&shared, &TestEnv::new(1)).unwrap();
    let file = NewNode { kind: NewKind::File, permissions: 0o640, umask: 0 };
    let how = OpenHow { write: true, ..OpenHow::default() };
    let mut files = Files::new();
    for d in 0..12 {
        let dir_name = format!("dir-{d}");
        let dir = NewNode { kind: NewKind::Directory, permissions: 0o755, umask: 0 };
        let dir = volume.make(&CALLER, Ino::ROOT, dir_name.as_bytes(), &dir).unwrap().ino;
        for f in 0..15 {
            let len = [50, 3000, 20_000][f % 3] + if d == 3 && f == 5 { 600_000 } else { 0 };
            let mut bytes = vec![0; len];
            blake3::Hasher::new().update(&[d, f as u8]).finalize_xof().fill(&mut bytes);
            let name = format!("file-{f}");
            let (attr, opened) = volume.create(&CALLER, dir, name.as_bytes(), &file, &how).unwrap();
            volume.write(&CALLER, attr.ino, opened.handle, 0, &bytes, false).unwrap();
            volume.release(attr.ino, opened.handle);
            volume.setxattr(&CALLER, attr.ino, b"user.x", &bytes[..40], XattrMode::Set).unwrap();
            if f == 7 {
                volume.link(attr.ino, dir, b"second name").unwrap();
                files.insert(format!("/{dir_name}/second name").into_bytes(), bytes.clone());
            }
            files.insert(format!("/{dir_name}/{name}").into_bytes(), bytes);
        }
    }
    settle(&volume);
    volume.shut_down().unwrap();
    (disk.snapshot(), files)
}

/// Reads one file by its path, a block at a time; for each block whether it could be read. Wrong bytes are a failure.
fn read_blocks(volume: &LocalVolume, path: &[u8], wanted: &[u8]) -> Result<Vec<bool>> {
    let mut ino = Ino::ROOT;
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        let attr = volume.lookup(&CALLER, ino, name)?;
        assert!(attr.kind == FileKind::Directory || attr.size_bytes == wanted.len() as u64);
        ino = attr.ino;
    }
    assert_eq!(volume.getxattr(ino, b"user.x")?, wanted[..40]);
    let opened = volume.open(&CALLER, ino, &READ)?;
    let block = |(n, wanted): (usize, &[u8])| match volume.read(ino, opened.handle, (n * BLOCK) as u64, BLOCK as u32) {
        Ok(bytes) => {
            assert_eq!(bytes, wanted);
            true
        }
        Err(VolumeError::Store(_)) => false,
        Err(error) => panic!("{error}"),
    };
    let blocks = wanted.chunks(BLOCK).enumerate().map(block).collect();
    volume.release(ino, opened.handle);
    Ok(blocks)
}

/// For each file that is not whole which blocks can be read, if any at all.
fn not_whole(volume: &LocalVolume, files: &Files) -> BTreeMap<Vec<u8>, Option<Vec<bool>>> {
    let read = files.iter().map(|(path, bytes)| (path.clone(), read_blocks(volume, path, bytes).ok()));
    read.filter(|(_, blocks)| blocks.as_ref().is_none_or(|blocks| blocks.contains(&false))).collect()
}

fn check(damaged: &MemDisk, files: &Files, what: &str) -> (bool, bool, bool) {
    let disk: Arc<dyn Disk> = Arc::new(damaged.snapshot());
    // A clear refusal is fine.
    let Ok(volume) = open(&disk, &TestEnv::new(2)) else { return Default::default() };
    let broken = not_whole(&volume, files);
    let report = volume.fsck(false, &|_| {}).unwrap();
    let mut told = BTreeSet::new();
    let (mut bytes, mut rows, mut derived) = (false, false, false);
    for problem in &report.problems {
        match problem {
            Problem::Bytes(lost) => {
                bytes = true;
                told.insert(lost.path.clone());
                let Some(Some(blocks)) = broken.get(&lost.path) else { continue };
                for (n, good) in blocks.iter().enumerate() {
                    let at = (n * BLOCK) as u64;
                    let end = lost.len_bytes.min(at + BLOCK as u64);
                    let is_told = lost.lost.iter().any(|lost| lost.start < end && at < lost.end);
                    assert_eq!(*good, !is_told, "{what}: block {n} of {lost:?}");
                }
            }
            Problem::Rows(lost) => {
                rows = true;
                told.extend(lost.paths.iter().cloned());
                assert!(!lost.is_partial, "{what}: one flipped byte damages one node");
            }
            Problem::Derived { repaired, .. } => {
                derived = true;
                assert!(!repaired);
            }
            Problem::Oplog { .. } => {}
            Problem::Index => panic!("{what}: nothing is wrong with the index"),
            Problem::Branch { .. } => panic!("{what}: there are no branches"),
        }
    }
    for path in broken.keys() {
        let dir = path[..path.iter().rposition(|byte| *byte == b'/').unwrap()].to_vec();
        let is_told = derived || told.contains(path) || told.contains(&dir);
        // Of two names of one file one is enough.
        let is_twin = path.ends_with(b"second name") && told.contains(&[&dir, &b"/file-7"[..]].concat())
            || path.ends_with(b"file-7") && told.contains(&[&dir, &b"/second name"[..]].concat());
        assert!(is_told || is_twin, "{what}: {} is broken and {report:?}", path.escape_ascii());
    }
    if derived && !rows && !bytes {
        assert!(
            volume
                .fsck(true, &|_| {})
                .unwrap()
                .problems
                .iter()
                .any(|p| matches!(p, Problem::Derived { repaired: true, .. }))
        );
        assert_eq!(not_whole(&volume, files), BTreeMap::new(), "{what}: after the repair");
        assert_eq!(volume.fsck(false, &|_| {}).unwrap().problems, [], "{what}: after the repair");
        settle(&volume);
        volume.shut_down().unwrap();
        let again = open(&disk, &TestEnv::new(3)).unwrap();
        assert_eq!(not_whole(&again, files), BTreeMap::new(), "{what}: after the repair and a restart");
    }
    (bytes, rows, derived)
}

#[test]
fn what_damage_takes_is_told_by_path_and_range_and_what_follows_from_the_rest_is_mended() {
    let (disk, files) = build();
    let step = if std::env::var_os("PHIFS_LONG").is_some() { 97 } else { 12_007 };
    let mut seen = [0; 3];
    for name in disk.list().unwrap().into_iter().filter(|name| matches!(name, FileName::Pack(_))) {
        let stored = disk.bytes_of(name).unwrap();
        let end = stored.iter().rposition(|byte| *byte != 0).unwrap();
        // Data packs are the longer ones.
        let step = if end < 400_000 { step / 8 } else { step };
        for place in (0..end).step_by(step) {
            let damaged = disk.snapshot();
            damaged.flip(name, place as u64, 4).unwrap();
            let (bytes, rows, derived) = check(&damaged, &files, &format!("{name:?} flipped at {place}"));
            for (count, is) in seen.iter_mut().zip([bytes, rows, derived]) {
                *count += u32::from(is);
            }
        }
    }
    assert!(seen.iter().all(|count| *count > 1), "bytes, rows and derived rows were lost in so many runs: {seen:?}");
}

#[test]
fn the_number_of_inodes_is_the_one_of_now() {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
    let volume = open(&disk, &TestEnv::new(1)).unwrap();
    let count = |volume: &LocalVolume| {
        let statfs = volume.statfs().unwrap();
        assert_eq!(statfs.inodes - statfs.inodes_free, volume.status().inodes);
        volume.status().inodes
    };
    assert_eq!(count(&volume), 1);
    let file = NewNode { kind: NewKind::File, permissions: 0o640, umask: 0 };
    for name in [b"a", b"b", b"c"] {
        volume.make(&CALLER, Ino::ROOT, name, &file).unwrap();
    }
    let ino = volume.lookup(&CALLER, Ino::ROOT, b"a").unwrap().ino;
    volume.link(ino, Ino::ROOT, b"d").unwrap();
    assert_eq!(count(&volume), 4);
    volume.make_checkpoint(false).unwrap();
    volume.unlink(Ino::ROOT, b"b").unwrap();
    volume.unlink(Ino::ROOT, b"a").unwrap();
    settle(&volume);
    assert_eq!(count(&volume), 3);
    drop(volume);
    assert_eq!(count(&open(&disk, &TestEnv::new(2)).unwrap()), 4, "what no sync was asked for is gone");
}
