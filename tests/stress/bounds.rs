//! What the daemon needs stays bounded, whatever its users do and for how long.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use phifs_tests::{DataMode, Node, Place, both_modes, is_root, long, on_ext4, pattern, skip, wait_until};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const MIB: u64 = 1 << 20;
/// What an allocator keeps here and there.
const SLACK_BYTES: u64 = 24 * MIB;
/// Files that are kept ready, and those of the index.
const SLACK_DESCRIPTORS: usize = 200;

fn node(place: &Place) -> Option<&Node> {
    match place {
        Place::Phifs(node) => Some(node),
        Place::Ext4(_) => None,
    }
}

/// Opens and closes in turn: for reading, for writing, new ones, and some that are removed.
fn open_and_close(place: &Place, cycles: u64) {
    let mut rng = fastrand::Rng::with_seed(cycles);
    for _ in 0..cycles {
        let name = rng.u8(..100);
        let path = place.dir().join(format!("f{name}"));
        match rng.u8(..8) {
            0 => {
                let _ = fs::remove_file(&path);
            }
            1..=3 => {
                let file = File::options().create(true).append(true).open(&path).unwrap();
                (&file).write_all(b"a line\n").unwrap();
            }
            _ => drop(File::open(&path)),
        }
    }
}

both_modes!(opening_and_closing_leaves_nothing_behind, |place| {
    let Some(daemon) = node(place) else { skip!("about the daemon of phifs") };
    let cycles = if long() { 100_000 } else { 12_000 };
    open_and_close(place, cycles / 4);
    let before = (daemon.resident_bytes(), daemon.open_descriptors());
    open_and_close(place, cycles);
    let settled = wait_until(Duration::from_secs(30), || daemon.open_descriptors() <= before.1 + SLACK_DESCRIPTORS);
    assert!(settled, "{} descriptors are open, {} were", daemon.open_descriptors(), before.1);
    let after = daemon.resident_bytes();
    assert!(after < before.0 + SLACK_BYTES, "memory grew from {} to {after} in {cycles} cycles", before.0);
    place.assert_healthy();
});

both_modes!(ten_thousand_files_are_open_at_once, |place| {
    const FILES: usize = 10_000;
    // The limit is that of the process, which may run the tests of both modes.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(daemon) = node(place) else { skip!("about the daemon of phifs") };
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    if limit.maximum.is_some_and(|most| most < FILES as u64 + 1000) {
        skip!("the limit of open files is {:?}", limit.maximum);
    }
    let before = (daemon.resident_bytes(), daemon.open_descriptors());
    let path = |number: usize| place.dir().join(format!("{}/{number}", number % 100));
    (0..100).for_each(|number| fs::create_dir(place.dir().join(number.to_string())).unwrap());
    let files: Vec<File> = (0..FILES)
        .map(|number| {
            let file = File::options().read(true).write(true).create_new(true).open(path(number)).unwrap();
            file.write_all_at(&pattern::content(1, number as u64, 100), 0).unwrap();
            file
        })
        .collect();
    let grown = daemon.resident_bytes().saturating_sub(before.0);
    assert!(grown < 400 * MIB, "{FILES} open files take {grown} bytes of memory");
    // A name that is gone, and one that came, are the same open file.
    for (number, file) in files.iter().enumerate() {
        if number % 10 == 0 {
            fs::remove_file(path(number)).unwrap();
        }
        file.write_all_at(b"more", 100).unwrap();
        let mut bytes = vec![0; 104];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == [&pattern::content(1, number as u64, 100)[..], b"more"].concat(), "file {number}");
    }
    drop(files);
    let settled = wait_until(Duration::from_secs(60), || daemon.open_descriptors() <= before.1 + SLACK_DESCRIPTORS);
    assert!(settled, "{} descriptors are open, {} were", daemon.open_descriptors(), before.1);
    place.restart();
    for number in (0..FILES).filter(|number| number % 10 != 0).step_by(97) {
        assert_eq!(fs::read(place.dir().join(format!("{}/{number}", number % 100))).unwrap().len(), 104);
    }
    place.assert_healthy();
});

/// Everyday work on a set of files that does not grow.
fn work(dir: &std::path::Path, seed: u64, over: &AtomicBool) {
    let mut rng = fastrand::Rng::with_seed(seed);
    fs::create_dir(dir).unwrap();
    let mut version = 0;
    while !over.load(Ordering::Relaxed) {
        version += 1;
        let path = dir.join(rng.u8(..50).to_string());
        match rng.u8(..10) {
            0..=3 => {
                let len = pattern::length(seed, version, 400_000);
                let mut file = File::create(&path).unwrap();
                file.write_all(&pattern::content(seed, version, len)).unwrap();
                if rng.u8(..4) == 0 {
                    file.sync_all().unwrap();
                }
            }
            4..=6 => {
                let _ = fs::read(&path);
            }
            7 => {
                let _ = fs::remove_file(&path);
            }
            8 => {
                let _ = fs::rename(&path, dir.join(rng.u8(..50).to_string()));
            }
            _ => fs::read_dir(dir).unwrap().for_each(|entry| drop(entry.unwrap().metadata())),
        }
    }
}

fn soak(mode: DataMode) {
    if on_ext4() || !is_root() {
        skip!("about the daemon of phifs, as root");
    }
    let mut node = Node::up(mode);
    let duration = Duration::from_secs(if long() { 120 } else { 12 });
    let (over, mut samples) = (AtomicBool::new(false), Vec::new());
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (dir, over) = (node.dir().join(seed.to_string()), &over);
            scope.spawn(move || work(&dir, seed, over));
        }
        let start = Instant::now();
        while start.elapsed() < duration {
            std::thread::sleep(duration / 60);
            samples.push(node.resident_bytes());
        }
        over.store(true, Ordering::Relaxed);
    });
    // The caches fill in the first third. Later the most that is in use is always the same.
    let most = |samples: &[u64]| samples.iter().copied().max().expect("samples");
    let (middle, last) = (most(&samples[20..40]), most(&samples[40..]));
    eprintln!("memory: {} MiB at first, {} later, {} at last", samples[0] / MIB, middle / MIB, last / MIB);
    assert!(last < middle + middle / 8 + SLACK_BYTES, "memory grows: {samples:?}");
    assert!(node.alive());
    node.assert_no_panic();
    node.down();
    node.phifs(["fsck"]).expect_success();
}

#[test]
fn a_soak_leaves_memory_flat_in_passthrough() {
    soak(DataMode::Passthrough);
}

#[test]
fn a_soak_leaves_memory_flat_in_writeback() {
    soak(DataMode::Writeback);
}
