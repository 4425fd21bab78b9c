//! Bytes that are written and not published yet: staged in memory or on the disk, synced whole or by what changed.

use std::sync::Arc;

use phifs_core::disk::{Access, CrashDisk, Disk, FaultDisk, MemDisk, PowerLoss};
use phifs_core::volume::local::{LocalVolume, OpenError, Options};
use phifs_core::volume::{Handle, Ino, OpenHow, Path, Result, SetAttr, Volume};

use crate::harness::{CALLER, MEMORY, NODE, READ, TestEnv, open, open_with, options, settle, staging_files};

/// What a database writes: a page.
const PAGE: usize = 4096;

pub fn how(passthrough: bool) -> OpenHow {
    OpenHow { read: true, write: true, passthrough, ..OpenHow::default() }
}

fn start(disk: &Arc<dyn Disk>, memory_bytes: u64) -> std::result::Result<(LocalVolume, Arc<TestEnv>), OpenError> {
    let env = TestEnv::new(1);
    let options = Options { memory_bytes, ..options() };
    Ok((open_with(disk, &env, options)?, env))
}

pub fn page(round: usize) -> Vec<u8> {
    (0..PAGE).map(|at| (at / 8 + round * 37) as u8 | 1).collect()
}

pub fn read(volume: &LocalVolume, name: &[u8]) -> Result<Vec<u8>> {
    let attr = volume.lookup(&CALLER, Ino::ROOT, name)?;
    let opened = volume.open(&CALLER, attr.ino, &READ)?;
    let bytes = volume.read(attr.ino, opened.handle, 0, attr.size_bytes as u32 + 1);
    volume.release(attr.ino, opened.handle);
    bytes
}

/// What a file holds, and what it held when it was synced last.
#[derive(Default)]
pub struct Promised {
    pub now: Vec<u8>,
    synced: Option<Vec<u8>>,
    /// All that it held since.
    since: Vec<Vec<u8>>,
}

impl Promised {
    pub fn changed(&mut self) {
        self.since.push(self.now.clone());
    }

    pub fn synced(&mut self) {
        self.synced = Some(self.now.clone());
        self.since.clear();
    }

    /// Each byte is the one that was synced, or one that came since. Only behind what was synced may one be missing.
    fn allows(&self, found: Option<&[u8]>) -> bool {
        let Some(found) = found else { return self.synced.is_none() };
        let held = || self.synced.iter().chain(&self.since);
        let synced_len = self.synced.as_ref().map_or(0, Vec::len);
        let is_held = |at: usize, byte: u8| held().any(|held| held.get(at) == Some(&byte));
        let shortest = if self.synced.is_some() { held().map(Vec::len).min() } else { Some(0) };
        shortest <= Some(found.len())
            && held().map(Vec::len).max() >= Some(found.len())
            && found.iter().enumerate().all(|(at, byte)| is_held(at, *byte) || *byte == 0 && at >= synced_len)
    }
}

struct Log<'a> {
    volume: &'a LocalVolume,
    ino: Ino,
    handle: Handle,
    promised: &'a mut Promised,
}

impl Log<'_> {
    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        let now = &mut self.promised.now;
        now.resize(now.len().max(offset + bytes.len()), 0);
        now[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.promised.changed();
        self.volume.write(&CALLER, self.ino, self.handle, offset as u64, bytes, false).map(drop)
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        self.promised.now.resize(len, 0);
        self.promised.changed();
        let change = SetAttr { size_bytes: Some(len as u64), ..SetAttr::default() };
        self.volume.setattr(&CALLER, self.ino, &change).map(drop)
    }

    fn sync(&mut self) -> Result<()> {
        self.volume.fsync(self.ino, Some(self.handle), true)?;
        self.promised.synced();
        Ok(())
    }
}

/// A log that grows, is written over from its start, cut, and grows again: over every limit there is.
fn keep_a_log(volume: &LocalVolume, env: &TestEnv, rounds: usize, promised: &mut Promised) -> Result<()> {
    let (attr, opened) = volume.create(&CALLER, Ino::ROOT, b"log", &NODE, &how(false))?;
    let (ino, handle) = (attr.ino, opened.handle);
    let mut log = Log { volume, ino, handle, promised };
    log.write(0, &[7; 100])?;
    log.sync()?;
    for round in 0..rounds {
        env.advance();
        let at = log.promised.now.len();
        // Now and then more at once than goes through the journal.
        let many = if round % 16 == 15 { 60 } else { 1 };
        log.write(at, &page(round).repeat(many))?;
        if round % 5 == 4 {
            log.write(round * PAGE / 3, &page(round + 1000)[..700])?;
        }
        if round % 3 != 2 {
            log.sync()?;
        }
        match round % 32 {
            11 | 21 => volume.tick()?,
            17 => volume.make_checkpoint(false)?,
            27 => log.truncate(at - at / 3)?,
            30 => log.truncate(0)?,
            _ => {}
        }
    }
    log.sync()?;
    volume.release(ino, handle);
    Ok(())
}

/// Holds what a crash left of the file `log` against what was promised, twice.
pub fn check(disk: Arc<dyn Disk>, promised: &Promised, what: &str) {
    for _ in 0..2 {
        let volume = open(&disk, &TestEnv::new(2)).unwrap_or_else(|error| panic!("{what}: {error}"));
        let found = read(&volume, b"log").ok();
        assert!(
            promised.allows(found.as_deref()),
            "{what}: {:?} bytes are not what was synced ({:?}) or came since",
            found.map(|found| found.len()),
            promised.synced.as_ref().map(Vec::len)
        );
        // Published, it is the same.
        settle(&volume);
        assert!(promised.allows(read(&volume, b"log").ok().as_deref()), "{what}: published");
        assert!(volume.fsck(false, &|_| ()).unwrap().problems.is_empty(), "{what}");
    }
}

fn is_long() -> bool {
    std::env::var_os("PHIFS_LONG").is_some()
}

#[test]
fn what_was_synced_survives_power_loss_in_the_middle_of_any_change() {
    for memory_bytes in MEMORY {
        let rounds = if memory_bytes == MEMORY[0] { 100 } else { 60 };
        let play = |disk: &CrashDisk| {
            let mut promised = Promised::default();
            let shared: Arc<dyn Disk> = Arc::new(disk.clone());
            if let Ok((volume, env)) = start(&shared, memory_bytes) {
                let kept = keep_a_log(&volume, &env, rounds, &mut promised);
                assert!(kept.is_ok() || disk.is_dead(), "{kept:?}");
            }
            promised
        };
        let probe = CrashDisk::healthy();
        play(&probe);
        for point in (0..probe.ops()).step_by(if is_long() { 1 } else { 7 }) {
            let disk = CrashDisk::over(&MemDisk::new(), PowerLoss::AtOp(point));
            let promised = play(&disk);
            for seed in 0..3 {
                let what = format!("{memory_bytes} bytes of memory, change {point}, seed {seed}");
                check(Arc::new(disk.after_power_loss(seed)), &promised, &what);
            }
        }
    }
}

#[test]
fn what_was_synced_survives_a_disk_that_fails_or_is_full_at_any_time() {
    for (access, errno) in
        [(Access::Write, FaultDisk::ENOSPC), (Access::Write, FaultDisk::EIO), (Access::Sync, FaultDisk::EIO)]
    {
        for memory_bytes in MEMORY {
            let play = |disk: &FaultDisk| {
                let mut promised = Promised::default();
                let shared: Arc<dyn Disk> = Arc::new(disk.clone());
                if let Ok((volume, env)) = start(&shared, memory_bytes) {
                    // Whatever fails ends it.
                    let _ = keep_a_log(&volume, &env, 60, &mut promised);
                }
                promised
            };
            let probe = FaultDisk::new(Arc::new(MemDisk::new()));
            play(&probe);
            let calls = probe.calls(access);
            for call in (0..calls).step_by(if is_long() { 1 } else { (calls / 25 + 1) as usize }) {
                let disk = CrashDisk::healthy();
                let faulty = FaultDisk::new(Arc::new(disk.clone()));
                faulty.fail_from(access, call, errno);
                let promised = play(&faulty);
                for seed in [0, 2] {
                    let what = format!("{memory_bytes} bytes of memory, {access:?} {call} fails with {errno}");
                    check(Arc::new(disk.after_power_loss(seed)), &promised, &what);
                }
            }
        }
    }
}

#[test]
fn a_small_file_needs_no_file_of_the_host() {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
    let volume = open(&disk, &TestEnv::new(1)).unwrap();
    for passthrough in [false, true] {
        let name = [b'a' + u8::from(passthrough)];
        let (attr, opened) = volume.create(&CALLER, Ino::ROOT, &name, &NODE, &how(passthrough)).unwrap();
        assert!(matches!(opened.path, Path::Cached { keep_cache: true }));
        volume.write(&CALLER, attr.ino, opened.handle, 0, &page(1), false).unwrap();
        volume.fsync(attr.ino, Some(opened.handle), false).unwrap();
        volume.release(attr.ino, opened.handle);
        volume.tick().unwrap();
        assert_eq!(staging_files(&*disk), 0);
        assert_eq!(read(&volume, &name).unwrap(), page(1));
    }
}

#[test]
fn bytes_that_nobody_synced_are_durable_after_a_tick() {
    for memory_bytes in MEMORY {
        for len in [100, 10 * PAGE, 60 * PAGE, 100 * PAGE] {
            for open in [false, true] {
                let disk = CrashDisk::healthy();
                let shared: Arc<dyn Disk> = Arc::new(disk.clone());
                let (volume, _) = start(&shared, memory_bytes).unwrap();
                let (attr, opened) = volume.create(&CALLER, Ino::ROOT, b"file", &NODE, &how(false)).unwrap();
                let bytes = page(3).repeat(len.div_ceil(PAGE))[..len].to_vec();
                volume.write(&CALLER, attr.ino, opened.handle, 0, &bytes, false).unwrap();
                if !open {
                    volume.release(attr.ino, opened.handle);
                }
                volume.tick().unwrap();
                for seed in 0..3 {
                    let disk: Arc<dyn Disk> = Arc::new(disk.after_power_loss(seed));
                    let (volume, _) = start(&disk, memory_bytes).unwrap();
                    assert!(read(&volume, b"file").unwrap() == bytes, "{len} bytes, open: {open}, {memory_bytes}");
                }
            }
        }
    }
}

#[test]
fn an_append_that_is_synced_costs_one_sync_of_the_disk() {
    let disk = CrashDisk::healthy();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let volume = open(&shared, &TestEnv::new(1)).unwrap();
    let (attr, opened) = volume.create(&CALLER, Ino::ROOT, b"log", &NODE, &how(true)).unwrap();
    let before = disk.syncs();
    for round in 0..500 {
        volume.write(&CALLER, attr.ino, opened.handle, (round * PAGE) as u64, &page(round), false).unwrap();
        volume.fsync(attr.ino, Some(opened.handle), true).unwrap();
    }
    // And a few for staging files and for segments of the journal.
    let syncs = disk.syncs() - before;
    assert!((500..520).contains(&syncs), "{syncs} syncs");
}

#[test]
fn what_is_written_through_the_cache_stays_right_there_and_what_the_kernel_writes_by_itself_does_not() {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
    let volume = open(&disk, &TestEnv::new(1)).unwrap();
    let keeps = |ino: Ino, how: OpenHow| {
        let opened = volume.open(&CALLER, ino, &how).unwrap();
        volume.release(ino, opened.handle);
        match opened.path {
            Path::Cached { keep_cache } => Some(keep_cache),
            Path::Passthrough { .. } | Path::Direct => None,
        }
    };
    let (attr, opened) = volume.create(&CALLER, Ino::ROOT, b"file", &NODE, &how(true)).unwrap();
    volume.write(&CALLER, attr.ino, opened.handle, 0, &page(1).repeat(50), false).unwrap();
    assert_eq!(keeps(attr.ino, READ), Some(true));
    volume.release(attr.ino, opened.handle);
    settle(&volume);
    assert_eq!(keeps(attr.ino, READ), Some(true), "published");
    let opened = volume.open(&CALLER, attr.ino, &how(true)).unwrap();
    let Path::Passthrough { file } = &opened.path else { panic!("a long file is handed to the kernel") };
    file.write_at(&page(2), 0).unwrap();
    volume.release(attr.ino, opened.handle);
    settle(&volume);
    assert_eq!(keeps(attr.ino, READ), Some(false));
    assert_eq!(keeps(attr.ino, READ), Some(true));
}

#[test]
fn a_file_that_was_written_at_very_many_places_can_be_synced() {
    let disk = CrashDisk::healthy();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    // No copy of the closed file is kept.
    let volume = open_with(&shared, &TestEnv::new(1), Options { staging_cache_bytes: 0, ..options() }).unwrap();
    let mut bytes = page(1).repeat(4096);
    let (attr, opened) = volume.create(&CALLER, Ino::ROOT, b"file", &NODE, &how(false)).unwrap();
    volume.write(&CALLER, attr.ino, opened.handle, 0, &bytes, false).unwrap();
    volume.release(attr.ino, opened.handle);
    settle(&volume);
    let handle = volume.open(&CALLER, attr.ino, &how(false)).unwrap().handle;
    for round in 0..2 {
        for at in (round..bytes.len()).step_by(1000) {
            bytes[at] = 0xee;
            volume.write(&CALLER, attr.ino, handle, at as u64, &[0xee], false).unwrap();
        }
        volume.fsync(attr.ino, Some(handle), false).unwrap();
    }
    let disk: Arc<dyn Disk> = Arc::new(disk.after_power_loss(0));
    assert!(read(&open(&disk, &TestEnv::new(2)).unwrap(), b"file").unwrap() == bytes);
}
