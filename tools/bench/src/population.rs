//! Very many small files in a hundred directories.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;

const DIRECTORIES: usize = 100;
/// Enough to keep a daemon busy.
const THREADS: usize = 4;

pub struct Population {
    dir: PathBuf,
    pub count: usize,
}

impl Population {
    pub fn new(dir: &Path, count: usize) -> Population {
        Population { dir: dir.to_owned(), count }
    }

    pub fn path(&self, n: usize) -> PathBuf {
        // Directory after directory, as programs make files; what comes later is spread over all of them.
        let dir = if n < self.count { n * DIRECTORIES / self.count } else { n % DIRECTORIES };
        self.dir.join(format!("d{dir}/f{n}"))
    }

    /// The files of one of the directories.
    pub fn of_directory(&self, nth: usize) -> impl Iterator<Item = usize> {
        (nth * self.count).div_ceil(DIRECTORIES)..((nth + 1) * self.count).div_ceil(DIRECTORIES)
    }

    /// Makes these files, each of a length in the range and none like another.
    pub fn make(&self, which: Range<usize>, lengths: Range<usize>) -> Result<()> {
        for n in 0..DIRECTORIES {
            fs::create_dir(self.dir.join(format!("d{n}")))?;
        }
        let text: Vec<u8> = (0..lengths.end).map(|n| b'a' + (n * n % 23) as u8).collect();
        self.for_each("made", which, |n| {
            let mut bytes = text[..lengths.start + n * 7919 % lengths.len()].to_vec();
            bytes[..8].copy_from_slice(&(n as u64).to_le_bytes());
            File::create_new(self.path(n))?.write_all(&bytes)?;
            Ok(())
        })
    }

    pub fn read_all(&self) -> Result<()> {
        self.for_each("read", 0..self.count, |n| {
            File::open(self.path(n))?.read_to_end(&mut Vec::with_capacity(4096))?;
            Ok(())
        })
    }

    fn for_each(&self, done: &str, which: Range<usize>, work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
        let (next, count) = (AtomicUsize::new(which.start), which.len());
        let worker = || {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= which.end {
                    return Ok(());
                }
                work(n)?;
                let sofar = n - which.start + 1;
                if sofar.is_multiple_of(100_000) {
                    eprintln!("{sofar} of {count} files {done}");
                }
            }
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("a worker"))
        })
    }
}
