//! `phifs-bench-merge`: how long one merge takes the volume itself, and how much memory, without a mount.
//!
//! One merge for each run, so that the memory of one does not count for another. The states that are merged are settled
//! before; what is timed is the whole call, the durable record in the journal included, on one thread.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use phifs_core::store::MemIndex;
use phifs_core::volume::local::{LocalVolume, MergeOptions, Options, Side};
use phifs_core::volume::{Caller, Ino, NewKind, NewNode, OpenHow, RenameMode, SetAttr, Volume};
use phifs_node::env::SystemEnv;
use phifs_node::file_disk::FileDisk;

/// Measure one merge, without a mount
#[derive(Parser)]
#[command(after_help = "Examples:\n  phifs-bench-merge branches --count 100000 --store /var/tmp/empty\n  \
    phifs-bench-merge moves --count 20000 --store /var/tmp/empty")]
struct Arguments {
    /// What is merged
    what: What,
    /// Operations of each side, or files of the volume
    #[arg(long)]
    count: usize,
    /// An empty directory for the store
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// Two branches with so many operations each, a tenth of them on the same names
    Branches,
    /// Two branches that have moved so many directories into each other, in opposite order
    Moves,
    /// Ten changes, into a volume with so many files
    Few,
    /// What is done in a volume into which two branches were merged, and in one where all was done in one line
    After,
}

const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 1 };
const FILES_PER_DIR: usize = 100;
/// Few enough that what is not published yet needs no more files than a process may open.
const OPS_PER_TICK: usize = 10_000;

fn main() -> Result<()> {
    let Arguments { what, count, store } = Arguments::parse();
    ensure!(std::fs::read_dir(&store)?.next().is_none(), "{} is not empty", store.display());
    if let What::After = what {
        return after(&store, count);
    }
    let volume = open(&store)?;
    let (source, target) = match what {
        What::After => unreachable!("it has just been asked for"),
        What::Branches => branches(&volume, count)?,
        What::Moves => moves(&volume, count)?,
        What::Few => few(&volume, count)?,
    };
    reset_peak()?;
    let before = memory_kib("VmRSS:")?;
    let start = Instant::now();
    let merged = volume.merge(&source, &target, &MergeOptions::default())?;
    let took = start.elapsed();
    let grown = memory_kib("VmHWM:")?.saturating_sub(before);
    println!(
        "{{\"seconds\":{:.6},\"operations\":{},\"grown_kib\":{grown},\"before_kib\":{before}}}",
        took.as_secs_f64(),
        merged.operations
    );
    Ok(())
}

fn open(store: &Path) -> Result<LocalVolume> {
    let options = Options { reserve_bytes: Some(0), ..Options::default() };
    let (disk, index) = (Arc::new(FileDisk::open(store)?), Arc::new(MemIndex::default()));
    Ok(LocalVolume::open(disk, index, Arc::new(SystemEnv), &[7; 32], options, &|_| {})?)
}

/// From here on the peak of the memory is counted anew.
fn reset_peak() -> Result<()> {
    std::fs::write("/proc/self/clear_refs", "5").context("cannot reset the peak of the memory")
}

fn memory_kib(what: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(what)).context("the kernel tells nothing of memory")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// A line of changes, and how much was done in it since its background work.
struct Line<'a> {
    volume: &'a LocalVolume,
    done: usize,
}

impl<'a> Line<'a> {
    fn new(volume: &'a LocalVolume) -> Self {
        Self { volume, done: 0 }
    }

    fn tick(&mut self) -> Result<()> {
        self.done += 1;
        if self.done.is_multiple_of(OPS_PER_TICK) {
            self.settle()?;
        }
        Ok(())
    }

    /// Does what the publishing threads and the ticks do, and makes a checkpoint.
    fn settle(&self) -> Result<()> {
        self.volume.stop_publishers();
        self.volume.run_publisher();
        self.volume.tick()?;
        Ok(self.volume.make_checkpoint(false)?)
    }

    fn make(&mut self, parent: Ino, name: &[u8], kind: NewKind<'_>) -> Result<Ino> {
        let node = NewNode { kind, permissions: 0o755, umask: 0o022 };
        self.tick()?;
        Ok(self.volume.make(&CALLER, parent, name, &node)?.ino)
    }

    fn rename(&mut self, from: (Ino, &[u8]), to: (Ino, &[u8])) -> Result<()> {
        self.tick()?;
        Ok(self.volume.rename(from.0, from.1, to.0, to.1, RenameMode::Replace)?)
    }

    fn chmod(&mut self, ino: Ino, permissions: u32) -> Result<()> {
        self.tick()?;
        let change = SetAttr { permissions: Some(permissions), ..SetAttr::default() };
        Ok(self.volume.setattr(&CALLER, ino, &change).map(drop)?)
    }

    fn unlink(&mut self, dir: Ino, name: &[u8]) -> Result<()> {
        self.tick()?;
        Ok(self.volume.unlink(dir, name)?)
    }

    fn write(&mut self, ino: Ino, bytes: &[u8]) -> Result<()> {
        self.tick()?;
        let how = OpenHow { write: true, truncate: true, ..OpenHow::default() };
        let opened = self.volume.open(&CALLER, ino, &how)?;
        self.volume.write(&CALLER, ino, opened.handle, 0, bytes, false)?;
        self.volume.release(ino, opened.handle);
        Ok(())
    }

    fn find(&self, dir: Ino, name: &[u8]) -> Result<Ino> {
        Ok(self.volume.lookup(&CALLER, dir, name)?.ino)
    }

    /// So many empty files in directories of a hundred, which are called by `what`.
    fn fill(&mut self, what: &str, count: usize) -> Result<Vec<Ino>> {
        let mut dirs = Vec::new();
        for at in 0..count.div_ceil(FILES_PER_DIR) {
            dirs.push(self.make(Ino::ROOT, &name(what, at), NewKind::Directory)?);
        }
        for at in 0..count {
            self.make(dirs[at / FILES_PER_DIR], &name("f", at), NewKind::File)?;
        }
        Ok(dirs)
    }
}

fn name(kind: &str, at: usize) -> Vec<u8> {
    format!("{kind}{at:07}").into_bytes()
}

fn branch(name: &str) -> Side {
    Side::Branch(name.to_owned())
}

fn two_branches(volume: &LocalVolume) -> Result<[Arc<LocalVolume>; 2]> {
    volume.create_snapshot("base", Vec::new(), false)?;
    volume.clone_snapshot("base", "one")?;
    volume.clone_snapshot("base", "two")?;
    Ok([volume.open_branch("one", &|_| {})?, volume.open_branch("two", &|_| {})?])
}

/// Of ten operations one is about a file that both sides change.
fn branches(volume: &LocalVolume, count: usize) -> Result<(Side, Side)> {
    let (shared, own) = (count / 10, count / 10 * 9);
    Line::new(volume).fill("base", shared)?;
    let lines = two_branches(volume)?;
    for (which, line) in lines.iter().enumerate() {
        let mut line = Line::new(line);
        edit_shared(&mut line, which, shared)?;
        edit_own(&mut line, which, own)?;
        line.settle()?;
    }
    Ok((branch("two"), branch("one")))
}

/// Changes of so many files, each in one way: its bytes, its mode, its name, or that it is there at all.
fn edit_shared(line: &mut Line<'_>, which: usize, shared: usize) -> Result<()> {
    for at in 0..shared {
        let dir = line.find(Ino::ROOT, &name("base", at / FILES_PER_DIR))?;
        let file = name("f", at);
        match at % 4 {
            0 => line.write(line.find(dir, &file)?, format!("of {which}").as_bytes())?,
            1 => line.chmod(line.find(dir, &file)?, 0o600 + which as u32 * 0o40)?,
            2 => line.rename((dir, &file), (dir, &name(if which == 0 { "a" } else { "b" }, at)))?,
            _ if which == 0 => line.unlink(dir, &file)?,
            _ => line.write(line.find(dir, &file)?, b"kept")?,
        }
    }
    Ok(())
}

/// Makes files and directories, and changes, renames and removes some of them again.
fn edit_own(line: &mut Line<'_>, which: usize, own: usize) -> Result<()> {
    let files = own / 10 * 6;
    let dirs = line.fill(["one", "two"][which], files)?;
    for at in 0..own - files - dirs.len() {
        let (dir, file) = (dirs[at / FILES_PER_DIR], name("f", at));
        match at % 4 {
            0 => line.rename((dir, &file), (dir, &name("g", at)))?,
            1 => line.chmod(line.find(dir, &file)?, 0o600)?,
            2 => line.write(line.find(dir, &file)?, &file)?,
            _ => line.unlink(dir, &file)?,
        }
    }
    Ok(())
}

/// One side puts each directory into the next one, the other one into the one before, at the same time; in the end none
/// of them could be where both want it.
fn moves(volume: &LocalVolume, count: usize) -> Result<(Side, Side)> {
    let mut line = Line::new(volume);
    for at in 0..=count {
        line.make(Ino::ROOT, &name("d", at), NewKind::Directory)?;
    }
    let lines = two_branches(volume)?;
    let [mut one, mut two] = [Line::new(&lines[0]), Line::new(&lines[1])];
    for at in 0..count {
        let next = one.find(Ino::ROOT, &name("d", at + 1))?;
        one.rename((Ino::ROOT, &name("d", at)), (next, b"x"))?;
        let before = two.find(Ino::ROOT, &name("d", count - at - 1))?;
        two.rename((Ino::ROOT, &name("d", count - at)), (before, b"x"))?;
    }
    one.settle()?;
    two.settle()?;
    Ok((branch("two"), branch("one")))
}

fn few(volume: &LocalVolume, count: usize) -> Result<(Side, Side)> {
    const CHANGES: usize = 10;
    Line::new(volume).fill("base", count)?;
    let lines = two_branches(volume)?;
    let mut line = Line::new(&lines[0]);
    for at in (0..count).step_by(count / CHANGES) {
        let dir = line.find(Ino::ROOT, &name("base", at / FILES_PER_DIR))?;
        line.write(line.find(dir, &name("f", at))?, b"changed")?;
    }
    line.settle()?;
    Line::new(volume).settle()?;
    if volume.status().inodes < count as u64 {
        bail!("there are not so many files");
    }
    Ok((branch("one"), Side::Live))
}

/// The same work in two volumes that have the same files, in turns. Prints the processor time of the calling thread for
/// each kind of operation: the medians of the rounds.
fn after(store: &Path, count: usize) -> Result<()> {
    const ROUNDS: usize = 15;
    const FILES: usize = 3000;
    let stores = ["none", "merged"].map(|which| store.join(which));
    stores.iter().try_for_each(std::fs::create_dir)?;
    let volumes = [open(&stores[0])?, open(&stores[1])?];
    let (shared, own) = (count / 10, count / 10 * 9);
    {
        let mut line = Line::new(&volumes[0]);
        line.fill("base", shared)?;
        edit_shared(&mut line, 1, shared)?;
        edit_own(&mut line, 0, own)?;
        edit_own(&mut line, 1, own)?;
        line.settle()?;
    }
    branches(&volumes[1], count)?;
    for side in ["one", "two"] {
        volumes[1].merge(&branch(side), &Side::Live, &MergeOptions::default())?;
    }
    Line::new(&volumes[1]).settle()?;
    let mut took: [[Vec<f64>; 3]; 2] = Default::default();
    for round in 0..ROUNDS {
        for turn in 0..2 {
            let which = (round + turn) % 2;
            let times = work(&volumes[which], round, FILES, shared / FILES_PER_DIR)?;
            took[which].iter_mut().zip(times).for_each(|(all, time)| all.push(time));
        }
    }
    let [none, merged] = took.map(|kinds| {
        kinds.map(|mut times: Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2] / FILES as f64 * 1e6
        })
    });
    println!("{{\"none\":{none:?},\"merged\":{merged:?}}}");
    Ok(())
}

/// Creates, renames and publishes so many files in directories that both sides worked in. Says what each of it took.
fn work(volume: &LocalVolume, round: usize, files: usize, dirs: usize) -> Result<[f64; 3]> {
    let mut line = Line::new(volume);
    let dirs = (0..dirs).map(|at| line.find(Ino::ROOT, &name("base", at))).collect::<Result<Vec<_>>>()?;
    let place = |at: usize| (dirs[at % dirs.len()], format!("new-{round}-{at}").into_bytes());
    let moved = |at: usize| (dirs[(at + 1) % dirs.len()], format!("moved-{round}-{at}").into_bytes());
    let mut made = Vec::with_capacity(files);
    let start = thread_seconds();
    for at in 0..files {
        let (dir, name) = place(at);
        made.push(line.make(dir, &name, NewKind::File)?);
    }
    let created = thread_seconds();
    for at in 0..files {
        let ((from, old), (to, new)) = (place(at), moved(at));
        line.rename((from, &old), (to, &new))?;
    }
    let renamed = thread_seconds();
    for (at, ino) in made.into_iter().enumerate() {
        line.write(ino, format!("{round} {at}").as_bytes())?;
    }
    volume.stop_publishers();
    volume.run_publisher();
    let published = thread_seconds();
    for at in 0..files {
        let (dir, name) = moved(at);
        line.unlink(dir, &name)?;
    }
    line.settle()?;
    Ok([created - start, renamed - created, published - renamed])
}

fn thread_seconds() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}
