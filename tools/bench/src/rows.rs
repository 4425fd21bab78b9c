//! The workloads. Each is a preparation that is not timed and a run that is.

mod data;
mod metadata;
mod real;

use std::path::Path;

use anyhow::Result;

/// Multiplies sizes and counts, so that a quick look takes a minute.
#[derive(Clone, Copy)]
pub struct Scale(pub f64);

impl Scale {
    pub fn count(self, full: usize) -> usize {
        ((full as f64 * self.0) as usize).max(1)
    }

    /// A size in bytes, in whole mebibytes.
    pub fn bytes(self, full_mib: usize) -> usize {
        self.count(full_mib) << 20
    }
}

/// What a preparation hands to its run: something outside both directories, say an archive, and goes with it.
pub type Prepared = Option<Outside>;

/// A directory on the machine's own disk, removed on drop.
pub struct Outside(std::path::PathBuf);

impl Outside {
    fn new() -> Result<Outside> {
        let dir = std::env::temp_dir().join(format!("phifs-bench-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir)?;
        Ok(Outside(dir))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub struct Row {
    pub name: &'static str,
    pub what: &'static str,
    /// Whether the caches are dropped between preparation and run.
    pub cold: bool,
    pub prepare: fn(&Path, Scale) -> Result<Prepared>,
    pub run: fn(&Path, Scale, Prepared) -> Result<()>,
}

fn nothing(_: &Path, _: Scale) -> Result<Prepared> {
    Ok(None)
}

const fn warm(
    name: &'static str,
    what: &'static str,
    prepare: fn(&Path, Scale) -> Result<Prepared>,
    run: fn(&Path, Scale, Prepared) -> Result<()>,
) -> Row {
    Row { name, what, cold: false, prepare, run }
}

const fn cold(
    name: &'static str,
    what: &'static str,
    prepare: fn(&Path, Scale) -> Result<Prepared>,
    run: fn(&Path, Scale, Prepared) -> Result<()>,
) -> Row {
    Row { name, what, cold: true, prepare, run }
}

pub const ROWS: &[Row] = &[
    warm("seq-write", "1 GiB incompressible in 1 MiB writes, fsync", nothing, data::write_sequentially),
    cold("seq-read-cold", "sequential read of 1 GiB, caches dropped", data::one_large, data::read_sequentially),
    warm("seq-read-warm", "sequential read of 1 GiB, warm", data::one_large_warm, data::read_sequentially),
    warm("random-read-warm", "random 4 KiB reads of 512 MiB, warm", data::half_large_warm, data::read_randomly),
    cold(
        "random-read-cold",
        "random 4 KiB reads, 4 jobs, caches dropped",
        data::half_large,
        data::read_randomly_by_four,
    ),
    warm("random-write", "random 4 KiB writes into 512 MiB, fsync at the end", data::half_large, data::write_randomly),
    warm("append-sync", "append 4 KiB + fdatasync", nothing, data::append_and_sync),
    warm("create-sync-8", "8 threads: create + write 4 KiB + fsync", nothing, data::create_and_sync_by_eight),
    warm("create", "create + write 1-4 KiB + close, 10,000 files", metadata::directories, metadata::create),
    warm("stat-warm", "stat of 10,000 files, warm", metadata::files_warm, metadata::stat),
    warm("ls-warm", "ls -l of 10,000 files, warm", metadata::files_warm, metadata::list),
    cold("ls-cold", "ls -l of 10,000 files, caches dropped", metadata::files, metadata::list),
    warm("rename", "rename of 10,000 files", metadata::files, metadata::rename),
    warm("unlink", "unlink of 10,000 files", metadata::files, metadata::unlink),
    warm("untar", "untar of 10,000 source files", real::archive, real::untar),
    warm("rm-rf", "rm -rf of 10,000 source files", real::sources, real::remove),
    warm("git-commit", "git add + commit of them", real::repository, real::git_commit),
    warm("git-status", "git status, warm", real::committed_repository, real::git_status),
    cold("grep-cold", "grep -r over them, caches dropped", real::sources, real::grep),
    warm("grep-warm", "grep -r over them, warm", real::sources_warm, real::grep),
    warm("sqlite", "sqlite WAL, synchronous=FULL, single-row transactions", real::database, real::sqlite),
];
