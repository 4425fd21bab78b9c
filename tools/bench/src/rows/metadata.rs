//! Rows about names and attributes: many small files in a hundred directories.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::Bench;

const DIRECTORIES: usize = 100;
const FILES: usize = 10_000;

pub fn count(bench: &Bench) -> usize {
    bench.scale.count(FILES)
}

fn path(dir: &Path, n: usize) -> PathBuf {
    dir.join(format!("d{}/f{n}", n % DIRECTORIES))
}

pub fn directories(dir: &Path, _: &Bench) -> Result<()> {
    for n in 0..DIRECTORIES {
        fs::create_dir(dir.join(format!("d{n}")))?;
    }
    Ok(())
}

pub fn create(dir: &Path, bench: &Bench) -> Result<()> {
    let bytes = [b'x'; 4096];
    for n in 0..count(bench) {
        // Each a little different, as files are: equal ones would be stored once.
        let mut file = File::create_new(path(dir, n))?;
        let mut bytes = bytes;
        bytes[..8].copy_from_slice(&(n as u64).to_le_bytes());
        file.write_all(&bytes[..1024 + n * 7919 % 3072])?;
    }
    Ok(())
}

pub fn files(dir: &Path, bench: &Bench) -> Result<()> {
    directories(dir, bench)?;
    create(dir, bench)
}

pub fn files_warm(dir: &Path, bench: &Bench) -> Result<()> {
    files(dir, bench)?;
    list(dir, bench)
}

pub fn stat(dir: &Path, bench: &Bench) -> Result<()> {
    for n in 0..count(bench) {
        fs::symlink_metadata(path(dir, n))?;
    }
    Ok(())
}

/// What `ls -lR` asks for: the names of each directory and the attributes of each name.
pub fn list(dir: &Path, _: &Bench) -> Result<()> {
    let mut bytes = 0;
    for directory in fs::read_dir(dir)? {
        for entry in fs::read_dir(directory?.path())? {
            bytes += entry?.metadata()?.size();
        }
    }
    std::hint::black_box(bytes);
    Ok(())
}

pub fn rename(dir: &Path, bench: &Bench) -> Result<()> {
    for n in 0..count(bench) {
        let to = dir.join(format!("d{}/renamed{n}", (n + 1) % DIRECTORIES));
        fs::rename(path(dir, n), to)?;
    }
    Ok(())
}

pub fn unlink(dir: &Path, bench: &Bench) -> Result<()> {
    for n in 0..count(bench) {
        fs::remove_file(path(dir, n))?;
    }
    Ok(())
}
