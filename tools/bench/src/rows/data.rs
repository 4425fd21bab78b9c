//! Rows about the bytes of files.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Result;

use super::Bench;

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;
const LARGE_MIB: usize = 1024;
const HALF_MIB: usize = 512;
pub const JOBS: usize = 8;
const SYNCED_EACH: usize = 400;

/// Bytes that neither compress nor repeat, made faster than a disk takes them.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Made while writing, at several GB/s: nothing of a file this size has to lie in memory.
pub fn write_incompressible(path: &Path, bytes: usize, seed: u64) -> Result<()> {
    let mut file = File::create(path)?;
    for at in 0..bytes / MIB {
        file.write_all(&noise(seed + at as u64, MIB))?;
    }
    file.sync_all()?;
    Ok(())
}

pub fn write_sequentially(dir: &Path, bench: &Bench) -> Result<()> {
    write_incompressible(&dir.join("large"), bench.scale.bytes(LARGE_MIB), 0)
}

pub fn one_large(dir: &Path, bench: &Bench) -> Result<()> {
    write_incompressible(&dir.join("large"), bench.scale.bytes(LARGE_MIB), 0)
}

pub fn one_large_warm(dir: &Path, bench: &Bench) -> Result<()> {
    one_large(dir, bench)?;
    read_sequentially(dir, bench)
}

pub fn read_sequentially(dir: &Path, _: &Bench) -> Result<()> {
    let mut file = File::open(dir.join("large"))?;
    let mut buffer = vec![0; MIB];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

pub fn half_large(dir: &Path, bench: &Bench) -> Result<()> {
    write_incompressible(&dir.join("large"), bench.scale.bytes(HALF_MIB), 0)
}

pub fn half_large_warm(dir: &Path, bench: &Bench) -> Result<()> {
    half_large(dir, bench)?;
    read_sequentially(dir, bench)
}

fn random_reads(file: &File, seed: u64, reads: usize) -> Result<()> {
    let pages = file.metadata()?.len() / PAGE as u64;
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut page = [0; PAGE];
    for _ in 0..reads {
        file.read_exact_at(&mut page, rng.u64(..pages) * PAGE as u64)?;
    }
    Ok(())
}

pub fn read_randomly(dir: &Path, bench: &Bench) -> Result<()> {
    random_reads(&File::open(dir.join("large"))?, 1, bench.scale.count(400_000))
}

pub fn read_randomly_by_four(dir: &Path, bench: &Bench) -> Result<()> {
    std::thread::scope(|scope| {
        let jobs: Vec<_> = (0..4)
            .map(|job| {
                scope.spawn(move || random_reads(&File::open(dir.join("large"))?, job, bench.scale.count(8_000)))
            })
            .collect();
        jobs.into_iter().try_for_each(|job| job.join().expect("a reader"))
    })
}

pub fn write_randomly(dir: &Path, bench: &Bench) -> Result<()> {
    let file = File::options().write(true).open(dir.join("large"))?;
    let pages = file.metadata()?.len() / PAGE as u64;
    let mut rng = fastrand::Rng::with_seed(5);
    let page = noise(6, PAGE);
    for _ in 0..bench.scale.count(40_000) {
        file.write_all_at(&page, rng.u64(..pages) * PAGE as u64)?;
    }
    file.sync_all()?;
    Ok(())
}

pub fn appends(bench: &Bench) -> usize {
    bench.scale.count(2_000)
}

pub fn append_and_sync(dir: &Path, bench: &Bench) -> Result<()> {
    let mut file = File::options().append(true).create_new(true).open(dir.join("log"))?;
    let record = noise(7, PAGE);
    for _ in 0..appends(bench) {
        file.write_all(&record)?;
        file.sync_data()?;
    }
    Ok(())
}

pub fn synced_files(bench: &Bench) -> usize {
    JOBS * bench.scale.count(SYNCED_EACH)
}

pub fn create_and_sync_by_eight(dir: &Path, bench: &Bench) -> Result<()> {
    let record = noise(8, PAGE);
    std::thread::scope(|scope| {
        let create = |job: usize| {
            let record = &record;
            move || -> Result<()> {
                for n in 0..bench.scale.count(SYNCED_EACH) {
                    let mut file = File::create_new(dir.join(format!("{job}-{n}")))?;
                    file.write_all(record)?;
                    file.sync_all()?;
                }
                Ok(())
            }
        };
        let jobs: Vec<_> = (0..JOBS).map(|job| scope.spawn(create(job))).collect();
        jobs.into_iter().try_for_each(|job| job.join().expect("a writer"))
    })
}
