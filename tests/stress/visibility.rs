//! What one handle writes, by `write` or through a mapping, every other handle sees at once.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use phifs_tests::{Place, both_modes, long};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A shared mapping of whole words, which other processes and handles change behind the compiler's back.
struct Mapping {
    words: *mut AtomicU64,
    count: usize,
}

// SAFETY: the words are atomics, and the mapping lives as long as the value.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &File) -> Mapping {
        let bytes = file.metadata().unwrap().len() as usize;
        // SAFETY: a new mapping at an address that the kernel chooses; it ends with the value.
        let start =
            unsafe { mmap(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, 0) };
        Mapping { words: start.expect("a mapping").cast(), count: bytes / 8 }
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped for as long as `self` lives, aligned to a page, and no file is cut while it is mapped.
        unsafe { std::slice::from_raw_parts(self.words, self.count) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference into it any more.
        unsafe { munmap(self.words.cast(), self.count * 8) }.expect("the end of a mapping");
    }
}

const WORDS: u64 = 32 * 1024;

fn word_at(file: &File, at: u64) -> u64 {
    let mut word = [0; 8];
    file.read_exact_at(&mut word, at * 8).unwrap();
    u64::from_le_bytes(word)
}

/// A file of many words, all zero, of which no plain copy need be left in the store.
fn old_file(place: &mut Place) -> std::path::PathBuf {
    let path = place.dir().join("old");
    fs::write(&path, vec![0; WORDS as usize * 8]).unwrap();
    place.restart();
    path
}

fn open(path: &Path, write: bool) -> File {
    File::options().read(true).write(write).open(path).unwrap()
}

/// One thread makes word after word and says how far it is; others look through handles of their own. A reader that
/// sees less than what was said before it looked has read old bytes.
fn watch(path: &Path, readers: &[File], mut write: impl FnMut(u64, u64) + Send) {
    let said = AtomicU64::new(0);
    let rounds = if long() { 400_000 } else { 30_000 };
    std::thread::scope(|scope| {
        for (number, reader) in readers.iter().enumerate() {
            let said = &said;
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(number as u64);
                loop {
                    let round = said.load(Ordering::SeqCst);
                    if round > 0 {
                        // Round n writes n into word n modulo their number: a recent one, or any.
                        let back = if rng.bool() { 0 } else { rng.u64(..round.min(WORDS)) };
                        let (wanted, found) = (round - back, word_at(reader, (round - back) % WORDS));
                        assert!(found >= wanted, "reader {number}: round {wanted} was written, {found} is read");
                        assert!(found % WORDS == wanted % WORDS, "reader {number}: {found} belongs elsewhere");
                    }
                    if round == rounds {
                        break;
                    }
                }
            });
        }
        for round in 1..=rounds {
            write(round % WORDS, round);
            said.store(round, Ordering::SeqCst);
        }
    });
    // And somebody who comes afterwards.
    let bytes = fs::read(path).unwrap();
    for round in (1..=rounds).rev().take(WORDS as usize) {
        let at = (round % WORDS) as usize * 8;
        assert_eq!(u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()), round);
    }
}

both_modes!(writes_are_seen_by_readers_that_came_before_and_after, |place| {
    let path = old_file(place);
    let before = open(&path, false);
    let writer = open(&path, true);
    let readers = [before, open(&path, false), open(&path, true)];
    watch(&path, &readers, |at, word| writer.write_all_at(&word.to_le_bytes(), at * 8).unwrap());
    place.assert_healthy();
});

both_modes!(mapped_writes_are_seen_by_readers_that_came_before_and_after, |place| {
    let path = old_file(place);
    let before = open(&path, false);
    let mapping = Mapping::new(&open(&path, true));
    let readers = [before, open(&path, false), open(&path, true)];
    // The descriptor of the mapping is closed by now; the mapping alone keeps the file.
    watch(&path, &readers, |at, word| mapping.words()[at as usize].store(word.to_le(), Ordering::SeqCst));
    drop(mapping);
    drop(readers);
    let bytes = fs::read(&path).unwrap();
    place.restart();
    assert!(fs::read(&path).unwrap() == bytes, "what was written through a mapping is lost by a restart");
    place.assert_healthy();
});

both_modes!(writes_are_seen_through_mappings, |place| {
    let path = place.dir().join("new");
    let writer = File::create_new(&path).unwrap();
    writer.set_len(WORDS * 8).unwrap();
    let (mapping, other) = (Mapping::new(&open(&path, true)), open(&path, true));
    for round in 1..if long() { 300_000 } else { 30_000 } {
        let at = round * 7919 % WORDS;
        let file = if round % 2 == 0 { &writer } else { &other };
        file.write_all_at(&round.to_le_bytes(), at * 8).unwrap();
        assert_eq!(u64::from_le(mapping.words()[at as usize].load(Ordering::SeqCst)), round);
    }
    place.assert_healthy();
});

both_modes!(a_growing_file_has_its_new_length_on_all_handles_at_once, |place| {
    let path = place.dir().join("log");
    fs::write(&path, b"0123456789abcdef").unwrap();
    place.restart();
    let reader = open(&path, false);
    let writers = [(); 2].map(|()| File::options().append(true).open(&path).unwrap());
    let mut len = 16;
    let mut rng = fastrand::Rng::with_seed(7);
    for round in 0..if long() { 50_000 } else { 3000 } {
        if round % 500 == 499 {
            len = rng.u64(..len);
            writers[0].set_len(len).unwrap();
        }
        let record = vec![round as u8; rng.usize(1..300)];
        std::io::Write::write_all(&mut &writers[round % 2], &record).unwrap();
        len += record.len() as u64;
        let seen = [reader.metadata(), writers[1].metadata(), fs::metadata(&path)].map(|meta| meta.unwrap().size());
        assert_eq!(seen, [len; 3], "after round {round}");
        let mut last = vec![0; record.len()];
        reader.read_exact_at(&mut last, len - record.len() as u64).unwrap();
        assert_eq!(last, record);
        assert_eq!(reader.read_at(&mut [0], len).unwrap(), 0, "bytes behind the end");
    }
    place.assert_healthy();
});

fn is_listed(dir: &Path, name: &str) -> bool {
    fs::read_dir(dir).unwrap().any(|entry| entry.unwrap().file_name() == name)
}

both_modes!(listings_show_every_change_that_came_before, |place| {
    let dir = place.dir().to_path_buf();
    let rounds = if long() { 40_000 } else { 2000 };
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let dir = &dir;
            scope.spawn(move || {
                let name = format!("name-{thread}");
                for round in 0..rounds {
                    fs::create_dir(dir.join(&name)).unwrap();
                    assert!(is_listed(dir, &name), "round {round}: {name} was made and is not listed");
                    fs::remove_dir(dir.join(&name)).unwrap();
                    assert!(!is_listed(dir, &name), "round {round}: {name} was removed and is listed");
                }
            });
        }
    });
    place.assert_healthy();
});

// What the kernel hands over of files that are gone already must not be refused: this sync, and the one that phifs makes
// by itself before it renames an open file, would fail with it.
both_modes!(syncs_of_the_mount_succeed_while_files_come_and_go, |place| {
    let dir = place.dir().to_path_buf();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3)
            .map(|thread| {
                let dir = &dir;
                scope.spawn(move || {
                    let path = dir.join(format!("{thread}"));
                    for round in 0..if long() { 20_000 } else { 1500 } {
                        let mut file = File::create(&path).unwrap();
                        file.write_all(&[1; 5000]).unwrap();
                        if round % 3 == 0 {
                            drop(file);
                            fs::remove_file(&path).unwrap();
                        } else {
                            fs::remove_file(&path).unwrap();
                            drop(file);
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let root = File::open(&dir).unwrap();
            while !done.load(Ordering::Relaxed) {
                rustix::fs::syncfs(&root).expect("a sync of everything");
            }
        });
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|worker| worker.unwrap());
    });
    place.assert_healthy();
});
