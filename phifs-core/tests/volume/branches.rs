//! Branches: lines of changes of their own over one store.

use std::sync::Arc;

use phifs_core::disk::{Disk, FileName, MemDisk};
use phifs_core::id::AuthorId;
use phifs_core::volume::local::{BranchError, LocalVolume};
use phifs_core::volume::{Ino, RenameMode, Volume};

use crate::harness::{CALLER, NODE, READ, TestEnv, WRITE, open, settle};

fn new_volume() -> (Arc<dyn Disk>, Arc<TestEnv>, LocalVolume) {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
    let env = TestEnv::new(1);
    let volume = open(&disk, &env).unwrap();
    (disk, env, volume)
}

/// Of any length; no two of them share a glyph.
fn bytes(seed: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

fn write(volume: &LocalVolume, name: &[u8], bytes: &[u8]) {
    let (attr, opened) = match volume.lookup(&CALLER, Ino::ROOT, name) {
        Ok(attr) => {
            let how = phifs_core::volume::OpenHow { truncate: true, ..WRITE };
            (attr.clone(), volume.open(&CALLER, attr.ino, &how).unwrap())
        }
        Err(_) => volume.create(&CALLER, Ino::ROOT, name, &NODE, &WRITE).unwrap(),
    };
    volume.write(&CALLER, attr.ino, opened.handle, 0, bytes, false).unwrap();
    volume.fsync(attr.ino, Some(opened.handle), false).unwrap();
    volume.release(attr.ino, opened.handle);
}

fn read(volume: &LocalVolume, name: &[u8]) -> Option<Vec<u8>> {
    let attr = volume.lookup(&CALLER, Ino::ROOT, name).ok()?;
    let opened = volume.open(&CALLER, attr.ino, &READ).unwrap();
    let bytes = volume.read(attr.ino, opened.handle, 0, 1 << 24).unwrap();
    volume.release(attr.ino, opened.handle);
    Some(bytes)
}

fn branch(volume: &LocalVolume, snapshot: &str, name: &str) -> Arc<LocalVolume> {
    volume.clone_snapshot(snapshot, name).unwrap();
    volume.open_branch(name, &|_| {}).unwrap()
}

#[test]
fn what_is_done_on_one_side_does_not_show_on_the_other() {
    let (_, _, volume) = new_volume();
    for seed in 0..4 {
        write(&volume, &[b'a' + seed], &bytes(seed, 100_000));
    }
    volume.create_snapshot("base", vec![], false).unwrap();
    let side = branch(&volume, "base", "side");
    write(&side, b"a", &bytes(10, 300_000));
    write(&volume, b"b", &bytes(11, 5000));
    volume.unlink(Ino::ROOT, b"c").unwrap();
    side.rename(Ino::ROOT, b"d", Ino::ROOT, b"e", RenameMode::Replace).unwrap();
    settle(&volume);
    settle(&side);
    assert_eq!(read(&volume, b"a"), Some(bytes(0, 100_000)));
    assert_eq!(read(&side, b"a"), Some(bytes(10, 300_000)));
    assert_eq!(read(&volume, b"b"), Some(bytes(11, 5000)));
    assert_eq!(read(&side, b"b"), Some(bytes(1, 100_000)));
    assert_eq!((read(&volume, b"c"), read(&side, b"c")), (None, Some(bytes(2, 100_000))));
    assert_eq!((read(&side, b"d"), read(&side, b"e")), (None, Some(bytes(3, 100_000))));
    assert_eq!((read(&volume, b"d"), read(&volume, b"e")), (Some(bytes(3, 100_000)), None));
}
