//! What the kernel syncs by itself in a file that was handed to it, as msync(2) makes it: nobody tells the volume, and
//! after a crash it is there all the same.

use std::sync::Arc;

use phifs_core::disk::{Access, CrashDisk, Disk, FaultDisk, File, MemDisk, PowerLoss};
use phifs_core::volume::local::{LocalVolume, Options};
use phifs_core::volume::{Handle, Ino, OpenHow, Path, Result, SetAttr, Volume, VolumeError};

use crate::harness::{CALLER, NODE, TestEnv, open, open_with, options, settle, staging_files};
use crate::kernel::KernelDisk;
use crate::staging::{Promised, check, how, page, read};

/// Long enough to be handed to the kernel.
const LONG: usize = 300_000;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A published and closed file.
fn put(volume: &LocalVolume, name: &[u8], bytes: &[u8]) -> Result<Ino> {
    let (attr, opened) = volume.create(&CALLER, Ino::ROOT, name, &NODE, &how(false))?;
    volume.write(&CALLER, attr.ino, opened.handle, 0, bytes, false)?;
    volume.fsync(attr.ino, Some(opened.handle), false)?;
    volume.release(attr.ino, opened.handle);
    settle(volume);
    volume.tick()?;
    Ok(attr.ino)
}

fn open_in_kernel(volume: &LocalVolume, ino: Ino) -> Result<(Handle, Arc<dyn File>)> {
    let opened = volume.open(&CALLER, ino, &how(true))?;
    match opened.path {
        Path::Passthrough { file } => Ok((opened.handle, file)),
        Path::Cached { .. } | Path::Direct => panic!("a long file is handed to the kernel"),
    }
}

/// A file that changes hands: the kernel stores to it and syncs, the daemon cuts it, publishes and drops it, another
/// program writes to it through the daemon.
fn pass_around(disk: &KernelDisk, volume: &LocalVolume, env: &TestEnv, promised: &mut Promised) -> Result<()> {
    let later = || {
        // As long as it takes until an open file is published.
        for _ in 0..5 {
            env.advance();
        }
        volume.tick()
    };
    let store = |file: &dyn File, promised: &mut Promised, at: usize, round: usize| {
        let io = |source| VolumeError::Disk { doing: "storing as the kernel", source };
        let bytes = page(round);
        promised.now[at..at + bytes.len()].copy_from_slice(&bytes);
        promised.changed();
        file.write_at(&bytes, at as u64).map_err(io)?;
        file.sync().map_err(io)?;
        promised.synced();
        Ok::<_, VolumeError>(())
    };
    promised.now = noise(1, LONG);
    promised.changed();
    let ino = put(volume, b"log", &promised.now)?;
    promised.synced();
    for round in [1, 2] {
        let (handle, file) = open_in_kernel(volume, ino)?;
        store(&*file, promised, 100_000, 10 * round)?;
        // From here on the kernel can be seen at it.
        disk.set_written(true);
        later()?;
        store(&*file, promised, 150_000, 10 * round + 1)?;
        later()?;
        promised.now.truncate(LONG - 10_000 * round);
        promised.changed();
        let size_bytes = Some(promised.now.len() as u64);
        volume.setattr(&CALLER, ino, &SetAttr { size_bytes, ..SetAttr::default() })?;
        volume.tick()?;
        store(&*file, promised, 200_000, 10 * round + 2)?;
        volume.make_checkpoint(false)?;
        let reader = volume.open(&CALLER, ino, &OpenHow { write: false, ..how(true) })?.handle;
        volume.release(ino, handle);
        volume.tick()?;
        let (handle, file) = open_in_kernel(volume, ino)?;
        store(&*file, promised, 250_000, 10 * round + 3)?;
        volume.release(ino, reader);
        volume.release(ino, handle);
        disk.set_written(false);
        settle(volume);
        volume.tick()?;

        // Opened and closed without a change, then changed by somebody whom the kernel does not serve.
        let (handle, _) = open_in_kernel(volume, ino)?;
        volume.release(ino, handle);
        settle(volume);
        let handle = volume.open(&CALLER, ino, &how(false))?.handle;
        let bytes = page(10 * round + 4);
        promised.now[..bytes.len()].copy_from_slice(&bytes);
        promised.changed();
        volume.write(&CALLER, ino, handle, 0, &bytes, false)?;
        volume.fsync(ino, Some(handle), false)?;
        promised.synced();
        volume.release(ino, handle);
        settle(volume);
        later()?;
    }
    Ok(())
}

#[test]
fn what_the_kernel_syncs_by_itself_survives_power_loss_in_the_middle_of_any_later_change() {
    // A copy of the closed file is kept or not.
    for staging_cache_bytes in [0, 1 << 30] {
        let play = |crash: &CrashDisk| {
            let mut promised = Promised::default();
            let kernel = KernelDisk::over(Arc::new(crash.clone()));
            let disk: Arc<dyn Disk> = Arc::new(kernel.clone());
            let env = TestEnv::new(1);
            if let Ok(volume) = open_with(&disk, &env, Options { staging_cache_bytes, ..options() }) {
                let passed = pass_around(&kernel, &volume, &env, &mut promised);
                assert!(passed.is_ok() || crash.is_dead(), "{passed:?}");
            }
            promised
        };
        let probe = CrashDisk::healthy();
        play(&probe);
        for point in 0..probe.ops() {
            let crash = CrashDisk::over(&MemDisk::new(), PowerLoss::AtOp(point));
            let promised = play(&crash);
            for seed in 0..3 {
                let what = format!("cache of {staging_cache_bytes} bytes, change {point}, seed {seed}");
                check(Arc::new(crash.after_power_loss(seed)), &promised, &what);
            }
        }
    }
}

#[test]
fn a_file_that_was_only_opened_is_after_a_crash_as_it_was() {
    let crash = CrashDisk::healthy();
    let disk: Arc<dyn Disk> = Arc::new(crash.clone());
    let env = TestEnv::new(1);
    let volume = open(&disk, &env).unwrap();
    let ino = put(&volume, b"log", &noise(1, 2_000_000)).unwrap();
    // What was published piece by piece may be cut otherwise than in one go.
    let handle = volume.open(&CALLER, ino, &how(false)).unwrap().handle;
    volume.write(&CALLER, ino, handle, 700_000, &noise(2, 5000), false).unwrap();
    volume.release(ino, handle);
    settle(&volume);
    volume.collect(0.9, &|_| {}).unwrap();
    let before = volume.getattr(ino, None).unwrap();
    let versions = volume.status().operations;
    env.advance();
    let (handle, _) = open_in_kernel(&volume, ino).unwrap();
    for seed in 0..6 {
        if seed == 3 {
            volume.release(ino, handle);
            settle(&volume);
            volume.tick().unwrap();
        }
        let disk: Arc<dyn Disk> = Arc::new(crash.after_power_loss(seed));
        let env = TestEnv::new(2);
        env.advance();
        let volume = open(&disk, &env).unwrap();
        assert_eq!(volume.opening().recovered_files, u64::from(seed < 3), "once closed, it is the published one again");
        let seen = || {
            let attr = volume.getattr(ino, None).unwrap();
            (attr.size_bytes, attr.mtime, attr.ctime)
        };
        let wanted = (before.size_bytes, before.mtime, before.ctime);
        assert_eq!(seen(), wanted);
        settle(&volume);
        assert_eq!((seen(), volume.status().operations), (wanted, versions), "published anew");
    }
}

#[test]
fn only_an_open_that_can_make_a_mapping_to_store_to_waits_for_the_disk() {
    let crash = CrashDisk::healthy();
    let disk: Arc<dyn Disk> = Arc::new(crash.clone());
    let volume = open_with(&disk, &TestEnv::new(1), Options { memory_bytes: 0, ..options() }).unwrap();
    let ino = put(&volume, b"long", &noise(1, LONG)).unwrap();
    let short = put(&volume, b"short", &noise(1, 60_000)).unwrap();
    let start = crash.syncs();
    for how in [OpenHow { read: false, ..how(true) }, OpenHow { write: false, ..how(true) }] {
        let opened = volume.open(&CALLER, ino, &how).unwrap();
        assert!(matches!(opened.path, Path::Passthrough { .. }));
    }
    volume.open(&CALLER, short, &how(true)).unwrap();
    let (attr, opened) = volume.create(&CALLER, Ino::ROOT, b"new", &NODE, &how(true)).unwrap();
    volume.write(&CALLER, attr.ino, opened.handle, 0, &noise(2, LONG), false).unwrap();
    volume.release(attr.ino, opened.handle);
    assert!(matches!(volume.open(&CALLER, attr.ino, &how(true)).unwrap().path, Path::Cached { .. }), "not synced yet");
    assert_eq!(crash.syncs(), start);
    open_in_kernel(&volume, ino).unwrap();
    let first = crash.syncs() - start;
    assert!((1..=3).contains(&first), "{first} syncs");
    for _ in 0..3 {
        open_in_kernel(&volume, ino).unwrap();
    }
    assert_eq!(crash.syncs() - start, first, "once is enough");
}

#[test]
fn a_publication_that_was_under_way_leaves_the_promise_of_an_open_in_force() {
    let crash = CrashDisk::healthy();
    let kernel = KernelDisk::over(Arc::new(crash.clone()));
    let disk: Arc<dyn Disk> = Arc::new(kernel.clone());
    let volume = Arc::new(open(&disk, &TestEnv::new(1)).unwrap());
    let mut wanted = noise(1, LONG);
    let ino = put(&volume, b"log", &wanted).unwrap();
    let (handle, file) = open_in_kernel(&volume, ino).unwrap();
    file.write_at(&page(1), 0).unwrap();
    wanted[..page(1).len()].copy_from_slice(&page(1));
    volume.release(ino, handle);
    let (opener, late) = (volume.clone(), Arc::new(parking_lot::Mutex::new(None)));
    let opened = late.clone();
    kernel.after_next_read(move || *opened.lock() = Some(open_in_kernel(&opener, ino).unwrap()));
    settle(&volume);
    volume.fsync(Ino::ROOT, None, false).unwrap();
    let (_, file) = late.lock().take().expect("opened while it was published");
    file.write_at(&page(2), 100_000).unwrap();
    file.sync().unwrap();
    wanted[100_000..100_000 + page(2).len()].copy_from_slice(&page(2));
    for seed in 0..3 {
        let disk: Arc<dyn Disk> = Arc::new(crash.after_power_loss(seed));
        assert!(read(&open(&disk, &TestEnv::new(2)).unwrap(), b"log").unwrap() == wanted);
    }
}

#[test]
fn what_the_kernel_writes_while_a_file_is_synced_to_be_published_is_durable_after_a_tick() {
    let crash = CrashDisk::healthy();
    let kernel = KernelDisk::over(Arc::new(crash.clone()));
    let disk: Arc<dyn Disk> = Arc::new(kernel.clone());
    let env = TestEnv::new(1);
    let volume = open(&disk, &env).unwrap();
    let mut wanted = noise(1, LONG);
    let ino = put(&volume, b"log", &wanted).unwrap();
    let (_, file) = open_in_kernel(&volume, ino).unwrap();
    kernel.set_written(true);
    for (round, at) in [(1, 0), (2, 100_000)] {
        wanted[at..at + page(round).len()].copy_from_slice(&page(round));
    }
    file.write_at(&page(1), 0).unwrap();
    let late = file.clone();
    kernel.after_next_sync(move || late.write_at(&page(2), 100_000).unwrap());
    volume.fsync(Ino::ROOT, None, false).unwrap();
    for _ in 0..2 {
        (0..100).for_each(|_| _ = env.advance());
        volume.tick().unwrap();
    }
    for seed in 0..3 {
        let disk: Arc<dyn Disk> = Arc::new(crash.after_power_loss(seed));
        assert!(read(&open(&disk, &TestEnv::new(2)).unwrap(), b"log").unwrap() == wanted);
    }
}

#[test]
fn a_file_that_is_still_mapped_keeps_its_staging_file_when_space_is_short() {
    let kernel = KernelDisk::over(Arc::new(MemDisk::new()));
    let disk: Arc<dyn Disk> = Arc::new(kernel.clone());
    let volume = open_with(&disk, &TestEnv::new(1), Options { staging_cache_bytes: 3 << 20, ..options() }).unwrap();
    let mut wanted = noise(1, 2 << 20);
    let ino = put(&volume, b"log", &wanted).unwrap();
    let (handle, file) = open_in_kernel(&volume, ino).unwrap();
    kernel.set_written(true);
    volume.release(ino, handle);
    // Takes the place of the first in the cache.
    put(&volume, b"other", &noise(2, 2 << 20)).unwrap();
    volume.tick().unwrap();
    file.write_at(&page(1), 0).unwrap();
    wanted[..page(1).len()].copy_from_slice(&page(1));
    kernel.set_written(false);
    volume.tick().unwrap();
    settle(&volume);
    assert!(read(&volume, b"log").unwrap() == wanted);
}

#[test]
fn a_copy_that_could_not_be_synced_is_not_trusted() {
    let faulty = FaultDisk::new(Arc::new(MemDisk::new()));
    let disk: Arc<dyn Disk> = Arc::new(faulty.clone());
    let volume = open(&disk, &TestEnv::new(1)).unwrap();
    let ino = put(&volume, b"log", &noise(1, 2 << 20)).unwrap();
    faulty.fail_once(Access::Sync, 0, FaultDisk::EIO);
    let failed = volume.open(&CALLER, ino, &how(true)).map(drop);
    assert!(matches!(failed, Err(VolumeError::Disk { .. })), "{failed:?}");
    settle(&volume);
    volume.tick().unwrap();
    assert!(read(&volume, b"log").unwrap() == noise(1, 2 << 20));
    let (handle, _) = open_in_kernel(&volume, ino).unwrap();
    volume.fsync(ino, Some(handle), false).unwrap();
    volume.release(ino, handle);
    volume.shut_down().unwrap();
    assert_eq!(staging_files(&*disk), 0);
}
