//! What is over leaves nothing behind: staging files, space, memory, unlinked files; and a collection takes nothing that
//! is still wanted.

use std::sync::Arc;

use parking_lot::Mutex;
use phifs_core::disk::{CrashDisk, Disk, MemDisk};
use phifs_core::time::Timestamp;
use phifs_core::volume::local::LocalVolume;
use phifs_core::volume::{Handle, Ino, Invalidate, OpenHow, Path, RenameMode, SetAttr, SetTime, Volume, VolumeError};

use crate::harness::{CALLER, NODE, READ, TestEnv, WRITE, open, open_with, options, settle, staging_files};
use crate::kernel::KernelDisk;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn create(volume: &LocalVolume, name: &[u8]) -> (Ino, Handle) {
    let (attr, opened) = volume.create(&CALLER, Ino::ROOT, name, &NODE, &WRITE).unwrap();
    (attr.ino, opened.handle)
}

fn read(volume: &LocalVolume, ino: Ino) -> Vec<u8> {
    let opened = volume.open(&CALLER, ino, &READ).unwrap();
    let bytes = volume.read(ino, opened.handle, 0, 4 << 20).unwrap();
    volume.release(ino, opened.handle);
    bytes
}

fn rest(volume: &LocalVolume) {
    settle(volume);
    volume.tick().unwrap();
    settle(volume);
    volume.tick().unwrap();
}

/// Staging files besides those that are kept ready.
fn staging_in_use(disk: &dyn Disk, ready: usize) -> usize {
    staging_files(disk).saturating_sub(ready)
}

#[test]
fn closed_files_leave_neither_staging_files_nor_memory() {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
    let env = TestEnv::new(1);
    let volume = open(&disk, &env).unwrap();
    let mut inos = Vec::new();
    for number in 0..300u64 {
        let (ino, handle) = create(&volume, format!("file {number}").as_bytes());
        volume.write(&CALLER, ino, handle, 0, &noise(number, 5000), false).unwrap();
        volume.release(ino, handle);
        inos.push(ino);
    }
    rest(&volume);
    let ready = staging_files(&*disk);
    for (number, ino) in inos.iter().enumerate() {
        env.advance();
        match number % 3 {
            // A call on a closed file.
            0 => drop(
                volume
                    .setattr(&CALLER, *ino, &SetAttr { size_bytes: Some(number as u64), ..SetAttr::default() })
                    .unwrap(),
            ),
            // Opened for writing, and nothing written.
            1 => {
                let opened = volume.open(&CALLER, *ino, &OpenHow { passthrough: true, ..WRITE }).unwrap();
                volume.release(*ino, opened.handle);
            }
            _ => volume.unlink(Ino::ROOT, format!("file {number}").as_bytes()).unwrap(),
        }
    }
    for _ in 0..8 {
        rest(&volume);
    }
    let status = volume.status();
    assert_eq!((status.open_handles, status.dirty_files), (0, 0));
    assert!(staging_in_use(&*disk, ready.max(128)) == 0, "{} staging files", staging_files(&*disk));
    volume.shut_down().unwrap();
    assert_eq!(staging_files(&*disk), 0);
}

#[test]
fn inode_without_names_goes_when_its_last_reader_does() {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
    let volume = open(&disk, &TestEnv::new(1)).unwrap();
    for len in [100, 200_000] {
        let (ino, handle) = create(&volume, b"file");
        volume.write(&CALLER, ino, handle, 0, &noise(1, len), false).unwrap();
        volume.release(ino, handle);
        rest(&volume);
        let reader = volume.open(&CALLER, ino, &READ).unwrap();
        volume.unlink(Ino::ROOT, b"file").unwrap();
        rest(&volume);
        assert_eq!(volume.read(ino, reader.handle, 0, 10).unwrap().len(), 10);
        assert_eq!(volume.status().inodes, 2, "somebody reads it");
        volume.release(ino, reader.handle);
        rest(&volume);
        assert_eq!(volume.status().inodes, 1);
    }
}

#[test]
fn times_of_a_removed_file_can_be_set_until_the_kernel_forgets_it() {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
    let volume = open(&disk, &TestEnv::new(1)).unwrap();
    let (ino, handle) = create(&volume, b"file");
    volume.release(ino, handle);
    rest(&volume);
    volume.unlink(Ino::ROOT, b"file").unwrap();
    let time = Timestamp::new(1_000_000, 7);
    let times = SetAttr { mtime: Some(SetTime::At(time)), ..SetAttr::default() };
    assert_eq!(volume.setattr(&CALLER, ino, &times).unwrap().mtime, time);
    assert_eq!(volume.getattr(ino, None).unwrap().mtime, time);
    volume.forget(ino);
    assert!(matches!(volume.setattr(&CALLER, ino, &times), Err(VolumeError::NotFound)));
}

/// Notes whose files it is told to let go of.
#[derive(Default)]
struct Holder(Mutex<Vec<Ino>>);

impl Invalidate for Holder {
    fn inode(&self, _: Ino, _: bool) {}

    fn entry(&self, _: Ino, _: &[u8]) {}

    fn file(&self, ino: Ino) {
        self.0.lock().push(ino);
    }
}

#[test]
fn whoever_holds_a_staging_file_is_told_when_it_is_given_up() {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
    let volume = open(&disk, &TestEnv::new(1)).unwrap();
    let holder = Arc::new(Holder::default());
    volume.set_invalidate(holder.clone());
    let (ino, handle) = create(&volume, b"file");
    volume.write(&CALLER, ino, handle, 0, &noise(1, 200_000), false).unwrap();
    volume.release(ino, handle);
    rest(&volume);
    assert_eq!(*holder.0.lock(), [], "nobody got its staging file");
    let opened = volume.open(&CALLER, ino, &OpenHow { passthrough: true, ..WRITE }).unwrap();
    assert!(matches!(opened.path, Path::Passthrough { .. }));
    rest(&volume);
    assert_eq!(*holder.0.lock(), [], "it is still open");
    volume.release(ino, opened.handle);
    rest(&volume);
    assert_eq!(*holder.0.lock(), [ino]);
}

#[test]
fn an_unlinked_file_has_attributes_until_the_kernel_forgets_it() {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
    let volume = open(&disk, &TestEnv::new(1)).unwrap();
    let (ino, handle) = create(&volume, b"file");
    volume.unlink(Ino::ROOT, b"file").unwrap();
    volume.write(&CALLER, ino, handle, 0, &noise(1, 5000), false).unwrap();
    volume.release(ino, handle);
    rest(&volume);
    // A descriptor of O_PATH is no open file, and may outlive all of them.
    let attr = volume.getattr(ino, None).unwrap();
    assert_eq!((attr.nlink, attr.size_bytes), (0, 5000));
    volume.forget(ino);
    assert!(matches!(volume.getattr(ino, None), Err(VolumeError::NotFound | VolumeError::Stale)));

    let (ino, handle) = create(&volume, b"file");
    volume.unlink(Ino::ROOT, b"file").unwrap();
    volume.release(ino, handle);
    volume.forget(ino);
    rest(&volume);
    assert!(matches!(volume.getattr(ino, None), Err(VolumeError::NotFound | VolumeError::Stale)), "never forgotten");
}

#[test]
fn the_kernel_hears_of_a_name_less_while_others_are_left() {
    #[derive(Default)]
    struct Heard(Mutex<Vec<Ino>>);
    impl Invalidate for Heard {
        fn file(&self, _: Ino) {}

        fn inode(&self, ino: Ino, _: bool) {
            self.0.lock().push(ino);
        }
        fn entry(&self, _: Ino, _: &[u8]) {}
    }
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
    let volume = open(&disk, &TestEnv::new(1)).unwrap();
    let heard = Arc::new(Heard::default());
    volume.set_invalidate(heard.clone());
    let [one, other] = [b"one", b"two"].map(|name| volume.make(&CALLER, Ino::ROOT, name, &NODE).unwrap().ino);
    volume.link(one, Ino::ROOT, b"second").unwrap();
    volume.link(one, Ino::ROOT, b"third").unwrap();
    assert_eq!(*heard.0.lock(), []);
    volume.unlink(Ino::ROOT, b"one").unwrap();
    assert_eq!(*heard.0.lock(), [one]);
    volume.rename(Ino::ROOT, b"two", Ino::ROOT, b"third", RenameMode::Replace).unwrap();
    assert_eq!(*heard.0.lock(), [one, one]);
    // Of a last name the kernel cannot think wrongly.
    volume.unlink(Ino::ROOT, b"second").unwrap();
    volume.unlink(Ino::ROOT, b"third").unwrap();
    assert_eq!(*heard.0.lock(), [one, one]);
    assert_eq!(volume.getattr(other, None).unwrap().nlink, 0);
}

#[test]
fn cached_staging_files_are_given_back_when_there_are_too_many() {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
    let small = phifs_core::volume::local::Options { staging_cache_bytes: 5 << 20, ..options() };
    let volume = open_with(&disk, &TestEnv::new(1), small).unwrap();
    for number in 0..8u64 {
        let (ino, handle) = create(&volume, format!("file {number}").as_bytes());
        volume.write(&CALLER, ino, handle, 0, &noise(number, 2 << 20), false).unwrap();
        volume.release(ino, handle);
        rest(&volume);
        assert!(volume.status().dirty_files <= 2, "more is cached than allowed");
    }
    let status = volume.status();
    assert_eq!((status.dirty_files, status.unpublished_files), (2, 0), "what is cached is published");
    for number in 0..8u64 {
        let attr = volume.lookup(&CALLER, Ino::ROOT, format!("file {number}").as_bytes()).unwrap();
        assert!(read(&volume, attr.ino) == noise(number, 2 << 20));
    }
    volume.shut_down().unwrap();
    assert_eq!(staging_files(&*disk), 0);
}

#[test]
fn a_file_unlinked_while_open_lives_as_long_as_its_handle() {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
    let volume = open(&disk, &TestEnv::new(1)).unwrap();
    let (ino, handle) = create(&volume, b"file");
    volume.write(&CALLER, ino, handle, 0, b"before", false).unwrap();
    volume.unlink(Ino::ROOT, b"file").unwrap();
    rest(&volume);
    volume.collect(0.9, &|_| {}).unwrap();
    volume.write(&CALLER, ino, handle, 6, b" and after", false).unwrap();
    assert_eq!(volume.status().unpublished_files, 1);
    assert_eq!(volume.read(ino, handle, 0, 100).unwrap(), b"before and after");
    assert_eq!(volume.getattr(ino, None).unwrap().nlink, 0);
    volume.release(ino, handle);
    rest(&volume);
    assert!(matches!(volume.open(&CALLER, ino, &READ), Err(VolumeError::NotFound)));
    assert_eq!(volume.status().dirty_files, 0);
}

#[test]
fn a_crash_ends_files_that_were_unlinked_while_open() {
    let disk = CrashDisk::healthy();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let volume = open(&shared, &TestEnv::new(1)).unwrap();
    let (ino, handle) = create(&volume, b"file");
    volume.write(&CALLER, ino, handle, 0, &noise(1, 100_000), false).unwrap();
    volume.fsync(ino, Some(handle), false).unwrap();
    volume.unlink(Ino::ROOT, b"file").unwrap();
    volume.fsync(Ino::ROOT, None, false).unwrap();
    for seed in 0..4 {
        let disk: Arc<dyn Disk> = Arc::new(disk.after_power_loss(seed));
        let volume = open(&disk, &TestEnv::new(2)).unwrap();
        rest(&volume);
        assert!(matches!(volume.getattr(ino, None), Err(VolumeError::NotFound)));
        assert_eq!(volume.status().dirty_files, 0);
        volume.shut_down().unwrap();
        assert_eq!(staging_files(&*disk), 0);
    }
}

#[test]
fn what_was_deleted_gives_its_space_back_and_open_files_keep_theirs() {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
    let volume = open(&disk, &TestEnv::new(1)).unwrap();
    let used = || volume.status().data_stored_bytes;
    let mut files = Vec::new();
    for number in 0..10u64 {
        let (ino, handle) = create(&volume, format!("file {number}").as_bytes());
        volume.write(&CALLER, ino, handle, 0, &noise(number, 1 << 20), false).unwrap();
        volume.release(ino, handle);
        rest(&volume);
        files.push(ino);
    }
    let full = used();
    // One is being read and one being changed when they lose their names.
    let reader = volume.open(&CALLER, files[0], &READ).unwrap().handle;
    let writer = volume.open(&CALLER, files[1], &WRITE).unwrap().handle;
    volume.write(&CALLER, files[1], writer, 500_000, b"changed", false).unwrap();
    for number in 0..9u64 {
        volume.unlink(Ino::ROOT, format!("file {number}").as_bytes()).unwrap();
    }
    rest(&volume);
    volume.collect(0.9, &|_| {}).unwrap();
    assert!(used() < full / 2, "{} of {full} bytes are left", used());
    assert!(volume.read(files[0], reader, 0, 2 << 20).unwrap() == noise(0, 1 << 20));
    let mut changed = noise(1, 1 << 20);
    changed[500_000..500_007].copy_from_slice(b"changed");
    assert!(volume.read(files[1], writer, 0, 2 << 20).unwrap() == changed);
    volume.release(files[0], reader);
    volume.release(files[1], writer);
    rest(&volume);
    volume.collect(0.9, &|_| {}).unwrap();
    assert!(used() < full / 5, "{} of {full} bytes are left", used());
    assert!(read(&volume, files[9]) == noise(9, 1 << 20));
    volume.shut_down().unwrap();
    drop(volume);
    let volume = open(&disk, &TestEnv::new(2)).unwrap();
    assert!(read(&volume, files[9]) == noise(9, 1 << 20));
    assert!(volume.fsck(false, &|_| {}).unwrap().problems.is_empty());
}

#[test]
fn a_clean_stop_keeps_what_was_written_to_files_that_are_still_open() {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
    let volume = open(&disk, &TestEnv::new(1)).unwrap();
    let (ino, handle) = create(&volume, b"file");
    volume.write(&CALLER, ino, handle, 0, &noise(1, 100_000), false).unwrap();
    rest(&volume);
    volume.write(&CALLER, ino, handle, 50_000, b"late", false).unwrap();
    volume.shut_down().unwrap();
    drop(volume);
    let volume = open(&disk, &TestEnv::new(2)).unwrap();
    let mut wanted = noise(1, 100_000);
    wanted[50_000..50_004].copy_from_slice(b"late");
    assert!(read(&volume, ino) == wanted);
}

#[test]
fn a_time_that_was_set_and_synced_survives_power_loss() {
    for len in [100, 100_000] {
        let disk = CrashDisk::healthy();
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let volume = open(&shared, &TestEnv::new(1)).unwrap();
        let (ino, handle) = create(&volume, b"file");
        volume.write(&CALLER, ino, handle, 0, &noise(1, len), false).unwrap();
        volume.fsync(ino, Some(handle), false).unwrap();
        let time = Timestamp::new(-5, 7);
        volume.setattr(&CALLER, ino, &SetAttr { mtime: Some(SetTime::At(time)), ..SetAttr::default() }).unwrap();
        volume.fsync(ino, Some(handle), false).unwrap();
        let disk: Arc<dyn Disk> = Arc::new(disk.after_power_loss(0));
        let volume = open(&disk, &TestEnv::new(2)).unwrap();
        assert_eq!(volume.getattr(ino, None).unwrap().mtime, time, "{len} bytes");
        rest(&volume);
        assert_eq!(volume.getattr(ino, None).unwrap().mtime, time, "{len} bytes, published");
        assert!(read(&volume, ino) == noise(1, len));
    }
}

#[test]
fn what_is_written_during_an_fsync_does_not_hide_what_was_there() {
    let crash = CrashDisk::healthy();
    let kernel = KernelDisk::over(Arc::new(crash.clone()));
    let disk: Arc<dyn Disk> = Arc::new(kernel.clone());
    let volume = Arc::new(open(&disk, &TestEnv::new(1)).unwrap());
    let (ino, handle) = create(&volume, b"file");
    volume.write(&CALLER, ino, handle, 0, &noise(1, 200_000), false).unwrap();
    volume.release(ino, handle);
    rest(&volume);
    let handle = volume.open(&CALLER, ino, &WRITE).unwrap().handle;
    volume.write(&CALLER, ino, handle, 0, &noise(2, 10_000), false).unwrap();
    let late = volume.clone();
    kernel.after_next_sync(move || {
        late.write(&CALLER, ino, handle, 100_000, &noise(3, 10_000), false).unwrap();
    });
    volume.fsync(ino, Some(handle), false).unwrap();
    // The late write is not on the disk, so the old bytes must show in its place.
    let disk: Arc<dyn Disk> = Arc::new(crash.after_power_loss(0));
    let volume = open(&disk, &TestEnv::new(2)).unwrap();
    let mut wanted = noise(1, 200_000);
    wanted[..10_000].copy_from_slice(&noise(2, 10_000));
    assert!(read(&volume, ino) == wanted);
}
