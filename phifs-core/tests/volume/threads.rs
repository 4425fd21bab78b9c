//! Many threads at once: no deadlock, no lost bytes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use phifs_core::disk::{Disk, MemDisk};
use phifs_core::volume::local::LocalVolume;
use phifs_core::volume::{Handle, Ino, OpenHow, Path, RenameMode, SetAttr, Volume, VolumeError, XattrMode};

use crate::harness::{CALLER, NODE, READ, TestEnv, errno, open};

const WORKERS: u64 = 4;
const TIME: Duration = Duration::from_millis(1500);
const PATIENCE: Duration = Duration::from_secs(120);

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Reads or writes as the kernel would: through the volume, or by itself where a file was handed to it.
fn transfer(volume: &LocalVolume, ino: Ino, handle: Handle, path: &Path, write: Option<&[u8]>) -> Vec<u8> {
    match (path, write) {
        (Path::Passthrough { file }, Some(bytes)) => {
            file.write_at(bytes, 0).unwrap();
            Vec::new()
        }
        (Path::Passthrough { file }, None) => {
            let mut buf = vec![0; 1 << 20];
            let got = file.read_at(&mut buf, 0).unwrap();
            buf.truncate(got);
            buf
        }
        (_, Some(bytes)) => {
            volume.write(&CALLER, ino, handle, 0, bytes, false).unwrap();
            Vec::new()
        }
        (_, None) => volume.read(ino, handle, 0, 1 << 20).unwrap(),
    }
}

/// One file that nobody else touches, whose bytes are looked at all the time, and names that everybody fights over.
fn work(volume: &LocalVolume, worker: u64, kernel: bool, ended: &AtomicBool) -> Vec<u8> {
    let mut random = Random(worker);
    let name = format!("own {worker}").into_bytes();
    let own = volume.make(&CALLER, Ino::ROOT, &name, &NODE).unwrap().ino;
    let mut bytes = Vec::new();
    let mut shared: Vec<(Ino, Handle)> = Vec::new();
    let allowed = |error: VolumeError| {
        let race = ["NotFound", "Exists", "NotEmpty", "IsDirectory", "NotDirectory", "Invalid", "Stale"];
        assert!(race.contains(&errno(&error)), "{error}");
    };
    while !ended.load(Ordering::Relaxed) {
        let shared_name = [b'a' + random.below(4) as u8];
        let how = OpenHow { read: true, write: true, passthrough: kernel, ..OpenHow::default() };
        match random.below(12) {
            0..4 => {
                let truncate = random.below(3) == 0;
                if truncate {
                    bytes.clear();
                }
                // Meanwhile the publisher is done with what was closed before, and drops what it needs no more.
                let opened = volume.open(&CALLER, own, &OpenHow { truncate, ..how }).unwrap();
                assert!(transfer(volume, own, opened.handle, &opened.path, None) == bytes, "own bytes are lost");
                if random.below(2) == 0 {
                    let len = [10, 5000, 50_000, 200_000][random.below(4) as usize];
                    let fill = random.below(255) as u8;
                    volume.setattr(&CALLER, own, &SetAttr { size_bytes: Some(0), ..SetAttr::default() }).unwrap();
                    bytes = vec![fill; len];
                    transfer(volume, own, opened.handle, &opened.path, Some(&bytes));
                }
                if random.below(4) == 0 {
                    volume.fsync(own, Some(opened.handle), false).unwrap();
                }
                volume.release(own, opened.handle);
                assert_eq!(volume.getattr(own, None).unwrap().size_bytes, bytes.len() as u64);
            }
            4 | 5 => match volume.create(&CALLER, Ino::ROOT, &shared_name, &NODE, &how) {
                Ok((attr, opened)) => {
                    transfer(volume, attr.ino, opened.handle, &opened.path, Some(&[7; 3000]));
                    shared.push((attr.ino, opened.handle));
                }
                Err(error) => allowed(error),
            },
            6 => match volume
                .lookup(&CALLER, Ino::ROOT, &shared_name)
                .and_then(|attr| volume.open(&CALLER, attr.ino, &how).map(|opened| (attr.ino, opened)))
            {
                Ok((ino, opened)) => {
                    transfer(volume, ino, opened.handle, &opened.path, Some(&[8; 6000]));
                    shared.push((ino, opened.handle));
                }
                Err(error) => allowed(error),
            },
            7 => volume.unlink(Ino::ROOT, &shared_name).unwrap_or_else(allowed),
            8 => {
                let to = [b'a' + random.below(4) as u8];
                let mode = [RenameMode::Replace, RenameMode::Exchange][random.below(2) as usize];
                volume.rename(Ino::ROOT, &shared_name, Ino::ROOT, &to, mode).unwrap_or_else(allowed);
            }
            9 => {
                let found = volume.lookup(&CALLER, Ino::ROOT, &shared_name);
                let set =
                    found.and_then(|attr| volume.setxattr(&CALLER, attr.ino, b"user.x", &[1; 300], XattrMode::Set));
                set.unwrap_or_else(allowed);
            }
            10 => volume.readdir(Ino::ROOT, 0, &mut |_| true).unwrap_or_else(allowed),
            _ => {
                if !shared.is_empty() {
                    let (ino, handle) = shared.swap_remove(random.below(shared.len() as u64) as usize);
                    volume.release(ino, handle);
                }
            }
        }
    }
    for (ino, handle) in shared {
        volume.release(ino, handle);
    }
    bytes
}

/// Panics if `run` takes so long that it must be stuck.
fn watched<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = mpsc::channel();
    let thread = thread::spawn(move || done.send(run()));
    match result.recv_timeout(PATIENCE) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("stuck: a deadlock"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(_) => unreachable!("it sent no result and did not panic"),
        },
    }
}

fn hammer(kernel: bool) {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
    let env = TestEnv::new(1);
    let volume = open(&disk, &env).unwrap();
    let ended = AtomicBool::new(false);
    let contents: Vec<Vec<u8>> = thread::scope(|scope| {
        let (volume, ended, env) = (&volume, &ended, &env);
        let workers: Vec<_> =
            (0..WORKERS).map(|worker| scope.spawn(move || work(volume, worker, kernel, ended))).collect();
        for _ in 0..2 {
            scope.spawn(|| volume.run_publisher());
        }
        let repeat = |pause: u64, upkeep: fn(&LocalVolume)| {
            scope.spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    env.advance();
                    upkeep(volume);
                    thread::sleep(Duration::from_millis(pause));
                }
            });
        };
        repeat(1, |volume| volume.tick().unwrap());
        repeat(7, |volume| volume.make_checkpoint(false).unwrap());
        repeat(30, |volume| drop(volume.collect(0.9, &|_| {}).unwrap()));
        repeat(3, |volume| drop(volume.status()));
        let start = Instant::now();
        while start.elapsed() < TIME && !workers.iter().any(|worker| worker.is_finished()) {
            thread::sleep(Duration::from_millis(20));
        }
        ended.store(true, Ordering::Relaxed);
        let contents = workers.into_iter().map(|worker| worker.join()).collect::<Vec<_>>();
        volume.stop_publishers();
        contents.into_iter().map(|bytes| bytes.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let check = |volume: &LocalVolume| {
        for (worker, bytes) in contents.iter().enumerate() {
            let own = volume.lookup(&CALLER, Ino::ROOT, format!("own {worker}").as_bytes()).unwrap();
            let opened = volume.open(&CALLER, own.ino, &READ).unwrap();
            let read = volume.read(own.ino, opened.handle, 0, 1 << 20).unwrap();
            volume.release(own.ino, opened.handle);
            assert!(read == *bytes);
        }
        assert!(volume.fsck(false, &|_| {}).unwrap().problems.is_empty());
    };
    crate::harness::settle(&volume);
    volume.tick().unwrap();
    crate::harness::settle(&volume);
    let status = volume.status();
    assert_eq!((status.open_handles, status.dirty_files), (0, 0), "nothing is kept of files that are closed");
    check(&volume);
    crate::harness::settle(&volume);
    volume.shut_down().unwrap();
    drop(volume);
    let volume = open(&disk, &env).unwrap();
    check(&volume);
}

#[test]
fn threads_writing_through_the_volume_neither_block_nor_lose() {
    watched(|| hammer(false));
}

#[test]
fn threads_beside_a_writing_kernel_neither_block_nor_lose() {
    watched(|| hammer(true));
}

#[test]
fn files_can_be_emptied_while_a_publisher_lets_go_of_them() {
    watched(|| {
        let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
        let volume = open(&disk, &TestEnv::new(1)).unwrap();
        thread::scope(|scope| {
            let volume = &volume;
            for _ in 0..3 {
                scope.spawn(|| volume.run_publisher());
            }
            let ino = volume.make(&CALLER, Ino::ROOT, b"file", &NODE).unwrap().ino;
            let emptiers = [0; 1].map(|_| {
                scope.spawn(move || {
                    for round in 0..60_000u64 {
                        let how = OpenHow { write: true, truncate: true, ..OpenHow::default() };
                        let opened = volume.open(&CALLER, ino, &how).unwrap();
                        volume.write(&CALLER, ino, opened.handle, 0, &round.to_le_bytes(), false).unwrap();
                        volume.release(ino, opened.handle);
                    }
                })
            });
            let ended = emptiers.map(|emptier| emptier.join());
            volume.stop_publishers();
            ended.into_iter().for_each(|ended| ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        });
    });
}
