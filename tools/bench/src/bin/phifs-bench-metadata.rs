//! `phifs-bench-metadata`: what operations on names and attributes cost the volume itself, without a mount.
//!
//! Counted is processor time of the calling thread, which other programs on the machine disturb little. What background
//! threads would do (sealing, checkpoints) runs between the rows and is given per operation, beside the call's own cost.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Parser;
use phifs_core::disk::{Disk, MemDisk};
use phifs_core::store::{GlyphIndex, MemIndex};
use phifs_core::volume::local::{LocalVolume, Options};
use phifs_core::volume::{Caller, Ino, NewKind, NewNode, RenameMode, SetAttr, Volume, VolumeError};
use phifs_node::env::SystemEnv;
use phifs_node::file_disk::FileDisk;
use phifs_node::sled_index::SledIndex;
use rustix::time::{ClockId, clock_gettime};

/// Measure the processor time of metadata operations, without a mount
#[derive(Parser)]
#[command(after_help = "Examples:\n  phifs-bench-metadata --files 200000\n  \
    valgrind --tool=callgrind --toggle-collect='*rename_name*' target/release/phifs-bench-metadata --files 2000")]
struct Arguments {
    /// How many files to work on, in directories of 100
    #[arg(long, default_value_t = 20_000)]
    files: usize,
    /// An empty directory for the store, instead of memory
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Run these rows only; others that they need run unprinted
    #[arg(long, value_delimiter = ',', value_name = "ROW,..")]
    rows: Vec<String>,
}

const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 1 };
const FILES_PER_DIR: usize = 100;
/// Operations between two ticks, about what a busy mount does in that time.
const OPS_PER_TICK: usize = 20_000;
/// Operations timed together. A noisy neighbour spoils caches for some batches, not for the tenth that went best.
const OPS_PER_BATCH: usize = 200;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let (disk, index): (Arc<dyn Disk>, Arc<dyn GlyphIndex>) = match &arguments.store {
        None => (Arc::new(MemDisk::default()), Arc::new(MemIndex::default())),
        Some(dir) => {
            if std::fs::read_dir(dir).context("cannot read the store directory")?.next().is_some() {
                bail!("{} is not empty", dir.display());
            }
            (Arc::new(FileDisk::open(dir)?), Arc::new(SledIndex::open(&dir.join("index"))?))
        }
    };
    let options = Options { reserve_bytes: Some(0), ..Options::default() };
    let volume = LocalVolume::open(disk, index, Arc::new(SystemEnv), &[7; 32], options, &|_| {})?;
    let bench = Bench { volume, rows: arguments.rows };
    println!("{:<14} {:>8} {:>8} {:>8} {:>14}", "operation", "count", "best us", "mean us", "background us");
    bench.run(arguments.files)
}

struct Bench {
    volume: LocalVolume,
    rows: Vec<String>,
}

impl Bench {
    fn run(&self, files: usize) -> Result<()> {
        let volume = &self.volume;
        let mut dirs = Vec::new();
        self.row("mkdir", 0..files.div_ceil(FILES_PER_DIR), |at| {
            dirs.push(self.make(Ino::ROOT, &name("d", at), NewKind::Directory)?);
            Ok(())
        })?;
        let dir = |at: usize| dirs[at / FILES_PER_DIR];
        let mut inos = Vec::with_capacity(files);
        self.row("create", 0..files, |at| {
            inos.push(self.make(dir(at), &name("f", at), NewKind::File)?);
            Ok(())
        })?;
        // Not in the order of creation, as nobody looks at files in that order.
        let mixed: Vec<usize> = (0..files).map(|at| at * 7_919 % files).collect();
        let mixed = || mixed.iter().copied();
        self.row("lookup", mixed(), |at| Ok(volume.lookup(&CALLER, dir(at), &name("f", at)).map(|_| ())?))?;
        self.row("lookup-miss", mixed(), |at| match volume.lookup(&CALLER, dir(at), &name("x", at)) {
            Err(VolumeError::NotFound) => Ok(()),
            _ => bail!("a name that was never made was found"),
        })?;
        self.row("getattr", mixed(), |at| Ok(volume.getattr(inos[at], None).map(|_| ())?))?;
        let mut listed = 0;
        self.row("readdir-100", 0..dirs.len(), |at| {
            Ok(volume.readdir(dirs[at], 0, &mut |_| {
                listed += 1;
                true
            })?)
        })?;
        self.row("chmod", mixed(), |at| {
            let change = SetAttr { permissions: Some(0o600), ..SetAttr::default() };
            Ok(volume.setattr(&CALLER, inos[at], &change).map(|_| ())?)
        })?;
        self.row("rename", 0..files, |at| {
            Ok(volume.rename(dir(at), &name("f", at), dir(at), &name("g", at), RenameMode::Replace)?)
        })?;
        self.row("link", 0..files, |at| Ok(volume.link(inos[at], dir(at), &name("l", at)).map(|_| ())?))?;
        self.row("unlink-linked", 0..files, |at| Ok(volume.unlink(dir(at), &name("l", at))?))?;
        self.row("unlink", 0..files, |at| Ok(volume.unlink(dir(at), &name("g", at))?))?;
        self.row("forget", 0..files, |at| {
            volume.forget(inos[at]);
            Ok(())
        })?;
        self.row("rmdir+forget", 0..dirs.len(), |at| {
            volume.rmdir(Ino::ROOT, &name("d", at))?;
            volume.forget(dirs[at]);
            Ok(())
        })
    }

    fn make(&self, parent: Ino, name: &[u8], kind: NewKind<'_>) -> Result<Ino> {
        let node = NewNode { kind, permissions: 0o755, umask: 0o022 };
        Ok(self.volume.make(&CALLER, parent, name, &node)?.ino)
    }

    /// Calls `each` with every number, and does the background's work now and then, and at the end.
    fn row(
        &self,
        what: &str,
        numbers: impl ExactSizeIterator<Item = usize>,
        mut each: impl FnMut(usize) -> Result<()>,
    ) -> Result<()> {
        let count = numbers.len();
        let (mut batches, mut background) = (Vec::new(), 0.0);
        let mut numbers = numbers.peekable();
        while numbers.peek().is_some() {
            for _ in 0..OPS_PER_TICK / OPS_PER_BATCH {
                let (start, left) = (cpu_us(), numbers.len());
                numbers.by_ref().take(OPS_PER_BATCH).try_for_each(&mut each).with_context(|| what.to_owned())?;
                if left > 0 {
                    batches.push((cpu_us() - start) / (left - numbers.len()) as f64);
                }
            }
            let start = cpu_us();
            self.volume.tick()?;
            if self.volume.needs_checkpoint() || numbers.peek().is_none() {
                self.volume.make_checkpoint(false)?;
            }
            background += cpu_us() - start;
        }
        if self.rows.is_empty() || self.rows.iter().any(|row| row == what) {
            batches.sort_by(f64::total_cmp);
            let (best, mean) = (batches[batches.len() / 10], batches.iter().sum::<f64>() / batches.len() as f64);
            println!("{what:<14} {count:>8} {best:>8.2} {mean:>8.2} {:>14.2}", background / count as f64);
        }
        Ok(())
    }
}

fn name(kind: &str, at: usize) -> Vec<u8> {
    format!("{kind}{at:07}.txt").into_bytes()
}

fn cpu_us() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 * 1e6 + now.tv_nsec as f64 / 1e3
}
