//! Damaged stores: every flipped byte and every cut is an error, or makes no difference. Never a panic, never wrong
//! bytes.

use std::collections::BTreeSet;
use std::sync::Arc;

use phifs_core::disk::{Disk, FileName, MemDisk};
use phifs_core::meta::journal::JournalError;
use phifs_core::volume::local::{OpenError, Options};
use phifs_core::volume::{Ino, NewKind, NewNode, OpenHow, RenameMode, Volume, XattrMode};

use crate::harness::{CALLER, READ, TestEnv, open_with, options, read_tree, settle};
use crate::model::Tree;

struct Store {
    disk: MemDisk,
    /// Trees that somebody could see at some time, the last one last.
    trees: Vec<Tree>,
    contents: BTreeSet<Vec<u8>>,
}

fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

/// Files of every way to be stored: in the row, as one glyph, behind a hole, and as several glyphs that compress. Few
/// bytes on the disk, as each of them is flipped.
fn files() -> Vec<Vec<u8>> {
    let behind_a_hole = [vec![0; 40_000], noise(3, 3000)].concat();
    let several_glyphs = [noise(4, 2000), vec![b' '; 300_000], noise(5, 2000)].concat();
    vec![noise(0, 50), noise(1, 3000), noise(2, 6000), behind_a_hole, several_glyphs]
}

/// A small store, stopped cleanly or not.
fn build(clean: bool) -> Store {
    let disk = MemDisk::new();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let env = TestEnv::new(1);
    let volume = open_with(&shared, &env, options()).unwrap();
    let node = NewNode { kind: NewKind::File, permissions: 0o640, umask: 0 };
    let how = OpenHow { write: true, ..OpenHow::default() };
    let mut store = Store { disk: disk.clone(), trees: Vec::new(), contents: BTreeSet::from([Vec::new()]) };
    let directory = NewNode { kind: NewKind::Directory, ..node };
    store.trees.push(read_tree(&volume).unwrap().0);
    let dir = volume.make(&CALLER, Ino::ROOT, b"directory", &directory).unwrap().ino;
    store.trees.push(read_tree(&volume).unwrap().0);
    for (number, bytes) in files().into_iter().enumerate() {
        env.advance();
        let name = [b"file ", &[b'0' + number as u8][..]].concat();
        let (attr, opened) = volume.create(&CALLER, dir, &name, &node, &how).unwrap();
        let hole_bytes = bytes.iter().position(|byte| *byte != 0).expect("no file is all zeroes");
        volume.write(&CALLER, attr.ino, opened.handle, hole_bytes as u64, &bytes[hole_bytes..], false).unwrap();
        store.contents.insert(bytes);
        store.trees.push(read_tree(&volume).unwrap().0);
        volume.setxattr(&CALLER, attr.ino, b"user.number", &noise(9, 200), XattrMode::Set).unwrap();
        store.trees.push(read_tree(&volume).unwrap().0);
        volume.release(attr.ino, opened.handle);
        settle(&volume);
        if number == 2 {
            volume.tick().unwrap();
            volume.make_checkpoint(false).unwrap();
        }
    }
    for (from, to, name) in [(dir, Ino::ROOT, b"renamed"), (Ino::ROOT, dir, b"back he")] {
        let old: &[u8] = if from == dir { b"file 0" } else { b"renamed" };
        volume.rename(from, old, to, name, RenameMode::Replace).unwrap();
        store.trees.push(read_tree(&volume).unwrap().0);
        // A group of the journal each, so that damage to the first is told from a write that never finished.
        volume.fsync(Ino::ROOT, None, false).unwrap();
    }
    settle(&volume);
    volume.tick().unwrap();
    if clean {
        volume.shut_down().unwrap();
        store.trees.drain(..store.trees.len() - 1);
    }
    drop(volume);
    store.disk = disk.snapshot();
    store
}

impl Store {
    /// Opens a damaged copy and reads all of it. What can be read is right.
    fn read(&self, disk: MemDisk, repair: bool, what: &str) -> Result<(), OpenError> {
        let disk: Arc<dyn Disk> = Arc::new(disk);
        let volume = open_with(&disk, &TestEnv::new(2), Options { repair, ..options() })?;
        settle(&volume);
        if let Ok((tree, files)) = read_tree(&volume) {
            assert!(self.trees.contains(&tree), "{what}: the tree is wrong");
            for (path, bytes) in files {
                assert!(self.contents.contains(&bytes), "{what}: {:?} has wrong bytes", String::from_utf8_lossy(&path));
            }
        } else {
            // Each file by itself, as far as names can be read.
            self.read_files(&volume, what);
        }
        // Clear errors, or none.
        let _ = volume.fsck(false, &|_| {});
        let _ = volume.scrub(&|_| {});
        let _ = volume.recent_ops(1000);
        Ok(())
    }

    fn read_files(&self, volume: &phifs_core::volume::local::LocalVolume, what: &str) {
        let mut found = Vec::new();
        let mut dirs = vec![Ino::ROOT];
        if let Ok(attr) = volume.lookup(&CALLER, Ino::ROOT, b"directory") {
            dirs.push(attr.ino);
        }
        for dir in dirs {
            let _ = volume.readdir(dir, 2, &mut |entry| {
                found.push(entry.attr);
                true
            });
        }
        for attr in found {
            let Ok(opened) = volume.open(&CALLER, attr.ino, &READ) else {
                continue;
            };
            if let Ok(bytes) = volume.read(attr.ino, opened.handle, 0, 1 << 20) {
                assert!(self.contents.contains(&bytes), "{what}: inode {} has wrong bytes", attr.ino.0);
            }
            volume.release(attr.ino, opened.handle);
        }
    }
}

/// Where to damage a file: everywhere there is something, and here and there where there is nothing; in a short run a
/// sample of both.
fn places(bytes: &[u8]) -> Vec<u64> {
    let is_long = std::env::var_os("PHIFS_LONG").is_some();
    let (dense, sparse) = if is_long { (1, 509) } else { (197, 200_003) };
    let mut full = 0u64;
    (0..bytes.len())
        .filter(|at| {
            let is_full = bytes[*at] != 0;
            full += u64::from(is_full);
            is_full && full.is_multiple_of(dense) || at.is_multiple_of(sparse)
        })
        .map(|at| at as u64)
        .collect()
}

fn flip_all(store: &Store) {
    for name in store.disk.list().unwrap() {
        for place in places(&store.disk.bytes_of(name).unwrap()) {
            let disk = store.disk.snapshot();
            disk.flip(name, place, 1 << (place % 8)).unwrap();
            let what = format!("{name:?} flipped at {place}");
            // Not opening is a clear answer, too; `repair` may then not give wrong bytes either.
            if store.read(disk, false, &what).is_err() {
                let disk = store.disk.snapshot();
                disk.flip(name, place, 1 << (place % 8)).unwrap();
                let _ = store.read(disk, true, &what);
            }
        }
    }
}

fn cut_all(store: &Store) {
    for name in store.disk.list().unwrap() {
        let len = store.disk.bytes_of(name).unwrap().len() as u64;
        let steps = if std::env::var_os("PHIFS_LONG").is_some() { 400 } else { 20 };
        for step in 0..steps {
            let disk = store.disk.snapshot();
            disk.truncate(name, len * step / steps).unwrap();
            let what = format!("{name:?} cut to {}", len * step / steps);
            if store.read(disk, false, &what).is_err() {
                let disk = store.disk.snapshot();
                disk.truncate(name, len * step / steps).unwrap();
                let _ = store.read(disk, true, &what);
            }
        }
        let disk = store.disk.snapshot();
        disk.remove(name).unwrap();
        let _ = store.read(disk, false, &format!("{name:?} removed"));
    }
}

#[test]
fn a_flipped_byte_of_a_closed_store_never_gives_wrong_bytes() {
    flip_all(&build(true));
}

#[test]
fn a_flipped_byte_of_an_open_store_never_gives_wrong_bytes() {
    flip_all(&build(false));
}

#[test]
fn a_file_cut_short_never_gives_wrong_bytes() {
    cut_all(&build(true));
    cut_all(&build(false));
}

#[test]
fn damage_in_the_middle_of_the_journal_is_refused_and_can_be_repaired() {
    let store = build(false);
    let journals = || store.disk.list().unwrap().into_iter().filter(|name| matches!(name, FileName::Journal(_)));
    let full = |name| store.disk.bytes_of(name).unwrap().iter().rposition(|byte| *byte != 0).unwrap_or(0) as u64;
    let places = journals().flat_map(|name| (0..full(name)).step_by(211).map(move |place| (name, place)));
    let flipped = |(name, place)| {
        let disk = store.disk.snapshot();
        disk.flip(name, place, 1).unwrap();
        disk
    };
    let refused = places.into_iter().find(|place| match store.read(flipped(*place), false, "damaged") {
        Err(OpenError::Journal(JournalError::DamagedMiddle { .. })) => true,
        Ok(()) | Err(_) => false,
    });
    let disk = flipped(refused.expect("damage is told from a torn end"));
    let repaired: Arc<dyn Disk> = Arc::new(disk.clone());
    let volume = open_with(&repaired, &TestEnv::new(2), Options { repair: true, ..options() }).unwrap();
    assert!(volume.fsck(false, &|_| {}).unwrap().problems.is_empty());
    settle(&volume);
    volume.shut_down().unwrap();
    store.read(disk, false, "repaired").unwrap();
}
