//! The workloads. Each is a preparation that is not timed and a run that is.

mod data;
mod metadata;
mod real;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::Result;

use crate::sources::Sources;

pub use data::{noise, write_incompressible};

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

/// What all rows work with.
pub struct Bench {
    pub scale: Scale,
    /// A directory of the host for what lies outside of what is measured.
    pub scratch: PathBuf,
    sources: OnceLock<Sources>,
}

impl Bench {
    pub fn new(scale: Scale, scratch: PathBuf) -> Bench {
        Bench { scale, scratch, sources: OnceLock::new() }
    }

    /// Ten thousand source files, made when a row first needs them.
    pub fn sources(&self) -> Result<&Sources> {
        if self.sources.get().is_none() {
            eprintln!("making a tree of source files");
            let sources = Sources::make(&self.scratch, self.scale.count(real::SOURCES))?;
            return Ok(self.sources.get_or_init(|| sources));
        }
        Ok(self.sources.get().expect("it was there"))
    }
}

/// What a row is compared with JuiceFS for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Data,
    /// Names and attributes, and the work of real programs.
    Metadata,
}

impl Kind {
    /// Floor and goal of the ratio to JuiceFS.
    pub fn against_juicefs(self) -> (f64, f64) {
        match self {
            Kind::Data => (1.0, 2.0),
            Kind::Metadata => (5.0, 20.0),
        }
    }
}

pub struct Row {
    pub name: &'static str,
    pub what: &'static str,
    /// The ratio to the host's filesystem that must be reached, and the one that is wished for.
    pub floor: f64,
    pub goal: f64,
    pub kind: Kind,
    /// Whether the caches are dropped between preparation and run.
    pub cold: bool,
    /// Whether the time until everything is settled counts, with one copy in the host's cache.
    pub settled: bool,
    /// How many operations it makes, for the requests that each of them takes.
    pub operations: fn(&Bench) -> usize,
    /// How often the disk must have flushed its cache when the run is over.
    pub flushes_min: fn(&Bench) -> usize,
    pub prepare: fn(&Path, &Bench) -> Result<()>,
    pub run: fn(&Path, &Bench) -> Result<()>,
}

const fn none(_: &Bench) -> usize {
    0
}

const DATA: Row = Row {
    name: "",
    what: "",
    floor: 0.0,
    goal: 0.0,
    kind: Kind::Data,
    cold: false,
    settled: false,
    operations: none,
    flushes_min: none,
    prepare: |_, _| Ok(()),
    run: |_, _| Ok(()),
};
const FILES: Row = Row { kind: Kind::Metadata, operations: metadata::count, ..DATA };
const REAL: Row = Row { kind: Kind::Metadata, operations: real::count, ..DATA };

pub const ROWS: &[Row] = &[
    Row {
        name: "seq-write",
        what: "1 GiB incompressible in 1 MiB writes, fsync",
        floor: 0.8,
        goal: 1.0,
        flushes_min: |_| 1,
        run: data::write_sequentially,
        ..DATA
    },
    Row {
        name: "seq-write-settled",
        what: "the same until all is packed and the host caches one copy",
        floor: 0.35,
        goal: 0.5,
        settled: true,
        flushes_min: |_| 1,
        run: data::write_sequentially,
        ..DATA
    },
    Row {
        name: "seq-read-cold",
        what: "sequential read of 1 GiB, caches dropped",
        floor: 0.8,
        goal: 1.0,
        cold: true,
        prepare: data::one_large,
        run: data::read_sequentially,
        ..DATA
    },
    Row {
        name: "seq-read-warm",
        what: "sequential read of 1 GiB, warm",
        floor: 0.95,
        goal: 1.0,
        prepare: data::one_large_warm,
        run: data::read_sequentially,
        ..DATA
    },
    Row {
        name: "random-read-warm",
        what: "random 4 KiB reads of 512 MiB, warm",
        floor: 0.9,
        goal: 1.0,
        prepare: data::half_large_warm,
        run: data::read_randomly,
        ..DATA
    },
    Row {
        name: "random-read-cold",
        what: "random 4 KiB reads of 512 MiB, 4 jobs, caches dropped",
        floor: 0.6,
        goal: 1.0,
        cold: true,
        prepare: data::half_large,
        run: data::read_randomly_by_four,
        ..DATA
    },
    Row {
        name: "random-write",
        what: "random 4 KiB writes into 512 MiB, fsync at the end",
        floor: 0.7,
        goal: 1.0,
        flushes_min: |_| 1,
        prepare: data::half_large,
        run: data::write_randomly,
        ..DATA
    },
    Row {
        name: "append-sync",
        what: "append 4 KiB + fdatasync",
        floor: 0.85,
        goal: 1.2,
        operations: data::appends,
        flushes_min: data::appends,
        run: data::append_and_sync,
        ..DATA
    },
    Row {
        name: "create-sync-8",
        what: "8 threads: create + write 4 KiB + fsync",
        floor: 1.0,
        goal: 3.0,
        operations: data::synced_files,
        // All that wait at the same time may share one.
        flushes_min: |bench| data::synced_files(bench) / data::JOBS,
        run: data::create_and_sync_by_eight,
        ..DATA
    },
    Row {
        name: "create",
        what: "create + write 1-4 KiB + close, 10,000 files",
        floor: 0.45,
        goal: 0.8,
        prepare: metadata::directories,
        run: metadata::create,
        ..FILES
    },
    Row {
        name: "stat-warm",
        what: "stat of 10,000 files, warm",
        floor: 0.85,
        goal: 1.0,
        prepare: metadata::files_warm,
        run: metadata::stat,
        ..FILES
    },
    Row {
        name: "ls-warm",
        what: "ls -l of 10,000 files, warm",
        floor: 0.9,
        goal: 1.0,
        prepare: metadata::files_warm,
        run: metadata::list,
        ..FILES
    },
    Row {
        name: "ls-cold",
        what: "ls -l of 10,000 files, caches dropped",
        floor: 0.7,
        goal: 1.0,
        cold: true,
        prepare: metadata::files,
        run: metadata::list,
        ..FILES
    },
    Row {
        name: "rename",
        what: "rename of 10,000 files",
        floor: 0.25,
        goal: 0.4,
        prepare: metadata::files,
        run: metadata::rename,
        ..FILES
    },
    Row {
        name: "unlink",
        what: "unlink of 10,000 files",
        floor: 0.4,
        goal: 0.8,
        prepare: metadata::files,
        run: metadata::unlink,
        ..FILES
    },
    Row {
        name: "untar",
        what: "untar of 10,000 source files",
        floor: 0.4,
        goal: 0.7,
        prepare: real::archive,
        run: real::untar,
        ..REAL
    },
    Row {
        name: "rm-rf",
        what: "rm -rf of 10,000 source files",
        floor: 0.5,
        goal: 1.0,
        prepare: real::sources,
        run: real::remove,
        ..REAL
    },
    Row {
        name: "git-commit",
        what: "git add + commit of them",
        floor: 0.5,
        goal: 0.8,
        prepare: real::repository,
        run: real::git_commit,
        ..REAL
    },
    Row {
        name: "git-status",
        what: "git status, warm",
        floor: 0.9,
        goal: 1.0,
        prepare: real::committed_repository,
        run: real::git_status,
        ..REAL
    },
    Row {
        name: "grep-cold",
        what: "grep -r over them, caches dropped",
        floor: 0.6,
        goal: 0.9,
        cold: true,
        prepare: real::sources,
        run: real::grep,
        ..REAL
    },
    Row {
        name: "grep-warm",
        what: "grep -r over them, warm",
        floor: 0.8,
        goal: 1.0,
        prepare: real::sources_warm,
        run: real::grep,
        ..REAL
    },
    Row {
        name: "sqlite",
        what: "sqlite WAL, synchronous=FULL, single-row transactions",
        floor: 0.85,
        goal: 1.2,
        kind: Kind::Metadata,
        operations: real::transactions,
        flushes_min: real::transactions,
        prepare: real::database,
        run: real::sqlite,
        ..DATA
    },
];
