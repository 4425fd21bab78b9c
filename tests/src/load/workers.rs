//! The kinds of change that a crash may interrupt, each with the rule for what may be found afterwards.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{History, Syncing, Tail, Worker, child, describe, read_if_there};
use crate::pattern::{content, length};
use crate::run;

const PAGE: usize = 4096;

/// A log that grows by records of any length: what is found is a prefix of what was written, never shorter than what
/// was acknowledged.
pub struct Appends {
    dir: PathBuf,
    seed: u64,
    rng: fastrand::Rng,
    syncing: Syncing,
    generation: u64,
    file: Option<File>,
    written: usize,
    durable: Option<usize>,
    tail: Tail,
}

const LOG_BYTES_MAX: usize = 1 << 20;

impl Appends {
    pub fn new(dir: PathBuf, seed: u64, syncing: Syncing, tail: Tail) -> Appends {
        let rng = fastrand::Rng::with_seed(seed);
        Appends { dir, seed, rng, syncing, generation: 0, file: None, written: 0, durable: None, tail }
    }

    fn path(&self) -> PathBuf {
        child(&self.dir, format_args!("log-{}", self.generation))
    }
}

impl Appends {
    /// Cuts unsynced zeroes at the end off, in the bytes and in the file, so that the log can go on from there.
    fn cut_zeroes(&self, bytes: &mut Vec<u8>) -> Result<(), String> {
        let durable = self.durable.unwrap_or(0);
        while bytes.len() > durable && bytes.last() == Some(&0) {
            bytes.pop();
        }
        let file = File::options().write(true).open(self.path());
        file.and_then(|file| file.set_len(bytes.len() as u64)).map_err(|error| error.to_string())
    }
}

impl Worker for Appends {
    fn prepare(&mut self) -> io::Result<()> {
        fs::create_dir(&self.dir)
    }

    fn step(&mut self) -> io::Result<u64> {
        if self.written >= LOG_BYTES_MAX {
            fs::remove_file(self.path())?;
            (self.generation, self.written, self.durable, self.file) = (self.generation + 1, 0, None, None);
        }
        let mut file = match self.file.take() {
            Some(file) => file,
            None => File::options().append(true).create(true).open(self.path())?,
        };
        let record = self.rng.usize(1..12_000).min(LOG_BYTES_MAX - self.written);
        let all = content(self.seed, self.generation, LOG_BYTES_MAX);
        let from = self.written;
        self.written += record;
        file.write_all(&all[from..from + record])?;
        let synced = match self.rng.u8(..4) {
            0 => self.syncing.file(&file).map(|()| 1)?,
            1 => self.syncing.data(&file).map(|()| 1)?,
            _ => 0,
        };
        if synced > 0 {
            self.durable = Some(self.written);
        }
        self.file = Some(file);
        Ok(synced)
    }

    fn verify(&mut self) -> Vec<String> {
        self.file = None;
        let mut found = match read_if_there(&self.path()) {
            Ok(found) => found,
            Err(problem) => return vec![problem],
        };
        if self.tail == Tail::MayBeZero
            && let Some(bytes) = &mut found
            && let Err(problem) = self.cut_zeroes(bytes)
        {
            return vec![problem];
        }
        let all = content(self.seed, self.generation, LOG_BYTES_MAX);
        let len = found.as_ref().map(Vec::len);
        let fine = len >= self.durable
            && len.is_none_or(|len| len <= self.written)
            && found.as_ref().is_none_or(|bytes| all.starts_with(bytes));
        let problem = (!fine).then(|| {
            let (path, found) = (self.path(), describe(&found));
            format!("{}: {} written, {:?} acknowledged, found {found}", path.display(), self.written, self.durable)
        });
        // The next records would not continue a log that is not a prefix; such a run has failed anyway.
        (self.written, self.durable) = (len.unwrap_or(0).min(LOG_BYTES_MAX), len);
        problem.into_iter().collect()
    }
}

/// Files replaced by writing a new one and renaming it over the old: always one whole version, synced or not.
pub struct Replacements {
    dir: PathBuf,
    seed: u64,
    rng: fastrand::Rng,
    syncing: Syncing,
    version: u64,
    files: Vec<History<Option<u64>>>,
}

impl Replacements {
    pub fn new(dir: PathBuf, seed: u64, syncing: Syncing) -> Replacements {
        let files = (0..8).map(|_| History::starting_at(None)).collect();
        Replacements { dir, seed, rng: fastrand::Rng::with_seed(seed), syncing, version: 0, files }
    }
}

fn replacement(seed: u64, version: u64) -> Vec<u8> {
    content(seed, version, length(seed, version, 300_000))
}

impl Worker for Replacements {
    fn prepare(&mut self) -> io::Result<()> {
        fs::create_dir(&self.dir)
    }

    fn step(&mut self) -> io::Result<u64> {
        self.version += 1;
        let at = self.rng.usize(..self.files.len());
        let (temporary, target) = (self.dir.join("new"), child(&self.dir, at));
        let mut file = File::create(&temporary)?;
        file.write_all(&replacement(self.seed, self.version))?;
        if self.syncing.is_of_host() || self.rng.bool() {
            self.syncing.file(&file)?;
        }
        self.files[at].issue(Some(self.version));
        fs::rename(&temporary, &target)?;
        match self.rng.u8(..3) {
            // The rename of synced bytes is durable with the directory, that of any bytes with the file.
            0 => {
                self.syncing.file(&file)?;
                self.syncing.dir(&self.dir)?;
            }
            1 => self.syncing.file(&file)?,
            _ => return Ok(0),
        }
        self.files[at].acknowledge();
        Ok(1)
    }

    fn verify(&mut self) -> Vec<String> {
        let seed = self.seed;
        let bytes = |version| replacement(seed, version);
        let found = find_states(&self.dir, &mut self.files, |_, version, found| version.map(bytes) == *found);
        found.problems
    }
}

/// Files created, written and removed in place: before its fsync a new file may be missing or a prefix of itself.
pub struct Creates {
    dir: PathBuf,
    seed: u64,
    rng: fastrand::Rng,
    syncing: Syncing,
    version: u64,
    files: Vec<History<Option<u64>>>,
    tail: Tail,
}

impl Creates {
    pub fn new(dir: PathBuf, seed: u64, syncing: Syncing, tail: Tail) -> Creates {
        let files = (0..64).map(|_| History::starting_at(None)).collect();
        Creates { dir, seed, rng: fastrand::Rng::with_seed(seed), syncing, version: 0, files, tail }
    }
}

fn new_file(seed: u64, version: u64) -> Vec<u8> {
    content(seed, version, length(seed, version, 100_000))
}

impl Worker for Creates {
    fn prepare(&mut self) -> io::Result<()> {
        fs::create_dir(&self.dir)
    }

    fn step(&mut self) -> io::Result<u64> {
        let at = self.rng.usize(..self.files.len());
        let path = child(&self.dir, at);
        if self.files[at].latest().is_some() {
            self.files[at].issue(None);
            fs::remove_file(&path)?;
            if self.rng.u8(..4) > 0 {
                return Ok(0);
            }
            self.syncing.dir(&self.dir)?;
        } else {
            self.version += 1;
            self.files[at].issue(Some(self.version));
            let mut file = File::options().write(true).create_new(true).open(&path)?;
            file.write_all(&new_file(self.seed, self.version))?;
            if self.rng.bool() {
                return Ok(0);
            }
            self.syncing.file(&file)?;
        }
        self.files[at].acknowledge();
        Ok(1)
    }

    fn verify(&mut self) -> Vec<String> {
        let (seed, tail) = (self.seed, self.tail);
        let mut outcome = find_states(&self.dir, &mut self.files, |durable, version, found| match (version, found) {
            (None, None) => true,
            (Some(version), Some(found)) if durable => new_file(seed, version) == *found,
            (Some(version), Some(found)) => new_file(seed, version).starts_with(tail.written(found)),
            _ => false,
        });
        // A prefix is nobody's durable state: take what is there away, which starts each name anew.
        for at in outcome.there {
            let path = child(&self.dir, at);
            if let Err(error) = fs::remove_file(&path) {
                outcome.problems.push(format!("{}: cannot be removed: {error}", path.display()));
            }
        }
        self.files.fill_with(|| History::starting_at(None));
        if let Err(error) = Syncing::Real.dir(&self.dir) {
            outcome.problems.push(format!("{}: {error}", self.dir.display()));
        }
        outcome.problems
    }
}

/// What was found in a directory of files that are each in one of several states.
struct Found {
    problems: Vec<String>,
    /// The numbers of those that are there at all.
    there: Vec<usize>,
}

/// Finds out in which state each file is, and starts its next history from there. `fits` is asked whether a durable or
/// later version may look like what was found. Of several that may, the latest counts.
fn find_states(
    dir: &Path,
    files: &mut [History<Option<u64>>],
    fits: impl Fn(bool, Option<u64>, &Option<Vec<u8>>) -> bool,
) -> Found {
    let mut outcome = Found { problems: Vec::new(), there: Vec::new() };
    for (at, history) in files.iter_mut().enumerate() {
        let path = child(dir, at);
        let found = match read_if_there(&path) {
            Ok(found) => found,
            Err(problem) => {
                outcome.problems.push(problem);
                continue;
            }
        };
        if found.is_some() {
            outcome.there.push(at);
        }
        let fitting = history.possible().filter(|(durable, version)| fits(*durable, **version, &found)).last();
        match fitting.map(|(_, version)| *version) {
            Some(version) => *history = History::starting_at(version),
            None => {
                let (states, found) = (&history.states, describe(&found));
                outcome.problems.push(format!("{}: none of versions {states:?} is there but {found}", path.display()));
            }
        }
    }
    outcome
}

/// A file of pages overwritten in place, as a database does: each page is one of its versions, whole.
pub struct Pages {
    dir: PathBuf,
    seed: u64,
    rng: fastrand::Rng,
    syncing: Syncing,
    file: Option<File>,
    version: u64,
    pages: Vec<History<u64>>,
}

impl Pages {
    pub fn new(dir: PathBuf, seed: u64, syncing: Syncing, pages: usize) -> Pages {
        let pages = (0..pages).map(|_| History::starting_at(0)).collect();
        Pages { dir, seed, rng: fastrand::Rng::with_seed(seed), syncing, file: None, version: 0, pages }
    }

    fn bytes(&self, page: usize, version: u64) -> Vec<u8> {
        content(self.seed + 1000 * (page as u64 + 1), version, PAGE)
    }
}

impl Worker for Pages {
    fn prepare(&mut self) -> io::Result<()> {
        fs::create_dir(&self.dir)?;
        let mut file = File::create_new(self.dir.join("db"))?;
        for page in 0..self.pages.len() {
            file.write_all(&self.bytes(page, 0))?;
        }
        // Prepared for real whatever the load pretends later.
        Syncing::Real.file(&file)
    }

    fn step(&mut self) -> io::Result<u64> {
        let file = match self.file.take() {
            Some(file) => file,
            None => File::options().read(true).write(true).open(self.dir.join("db"))?,
        };
        self.version += 1;
        for _ in 0..self.rng.usize(1..5) {
            let page = self.rng.usize(..self.pages.len());
            self.pages[page].issue(self.version);
            file.write_all_at(&self.bytes(page, self.version), (page * PAGE) as u64)?;
        }
        let sync = self.rng.u8(..5) < 3;
        if sync {
            self.syncing.data(&file)?;
            // The sync covers the whole file, also what earlier steps left unsynced.
            self.pages.iter_mut().for_each(History::acknowledge);
        }
        if self.rng.u8(..50) > 0 {
            self.file = Some(file);
        }
        Ok(u64::from(sync))
    }

    fn verify(&mut self) -> Vec<String> {
        self.file = None;
        let path = self.dir.join("db");
        let bytes = match read_if_there(&path) {
            Ok(Some(bytes)) if bytes.len() == self.pages.len() * PAGE => bytes,
            Ok(found) => return vec![format!("{}: found {}", path.display(), describe(&found))],
            Err(problem) => return vec![problem],
        };
        let mut problems = Vec::new();
        for (page, found) in bytes.chunks(PAGE).enumerate() {
            let versions = self.pages[page].possible().map(|(_, version)| *version);
            let versions = versions.filter(|&version| self.bytes(page, version) == found);
            match versions.last() {
                Some(version) => self.pages[page] = History::starting_at(version),
                None => problems.push(format!(
                    "{} page {page}: none of versions {:?} is there but {}",
                    path.display(),
                    self.pages[page].states,
                    describe(&Some(found.to_vec()))
                )),
            }
        }
        problems
    }
}

/// A file of pages that are stored to through a mapping and synced by msync(2), by a program that has just opened it.
pub struct Stores {
    pages: Pages,
}

impl Stores {
    pub fn new(dir: PathBuf, seed: u64, syncing: Syncing) -> Stores {
        Stores { pages: Pages::new(dir, seed, syncing, 96) }
    }
}

impl Worker for Stores {
    fn prepare(&mut self) -> io::Result<()> {
        self.pages.prepare()
    }

    fn step(&mut self) -> io::Result<u64> {
        const SCRIPT: &str = "
import mmap, os, sys
path, new, sync = sys.argv[1:4]
with open(new, 'rb') as new:
    f = os.open(path, os.O_RDWR)
    m = mmap.mmap(f, 0)
    for page in map(int, sys.argv[4:]):
        m[page * 4096:(page + 1) * 4096] = new.read(4096)
    if sync == 'True': m.flush()
";
        let Pages { dir, rng, syncing, version, pages, .. } = &mut self.pages;
        let (syncing, path) = (*syncing, dir.join("db"));
        *version += 1;
        let version = *version;
        let changed: Vec<usize> = (0..rng.usize(1..4)).map(|_| rng.usize(..pages.len())).collect();
        let mut new = tempfile::NamedTempFile::new()?;
        for page in &changed {
            new.write_all(&self.pages.bytes(*page, version))?;
            self.pages.pages[*page].issue(version);
        }
        let store = |sync: &str| {
            let mut python = Command::new("python3");
            python.args(["-c", SCRIPT]).args([&path, new.path()]).arg(sync);
            let ran = run(python.args(changed.iter().map(ToString::to_string)), Duration::from_secs(20));
            if ran.success() { Ok(()) } else { Err(io::Error::other(ran.to_string())) }
        };
        if matches!(syncing, Syncing::Pretended) {
            store("False")?;
        }
        syncing.with(|| store("True"))?;
        // All of the file is mapped, so it is synced as a whole.
        self.pages.pages.iter_mut().for_each(History::acknowledge);
        Ok(1)
    }

    fn verify(&mut self) -> Vec<String> {
        self.pages.verify()
    }
}

/// Directories renamed with everything below them: found under exactly one of their names, with their leaf.
pub struct Trees {
    dir: PathBuf,
    seed: u64,
    rng: fastrand::Rng,
    syncing: Syncing,
    /// For each tree its number of renames so far, which gives its name; `None` before it is made.
    trees: Vec<History<Option<u64>>>,
}

impl Trees {
    pub fn new(dir: PathBuf, seed: u64, syncing: Syncing) -> Trees {
        let trees = (0..12).map(|_| History::starting_at(None)).collect();
        Trees { dir, seed, rng: fastrand::Rng::with_seed(seed), syncing, trees }
    }

    fn path(&self, tree: usize, renames: u64) -> PathBuf {
        child(&self.dir, format_args!("{tree}-{renames}"))
    }

    fn leaf(&self, tree: usize) -> Vec<u8> {
        content(self.seed, tree as u64, 5000)
    }
}

impl Worker for Trees {
    fn prepare(&mut self) -> io::Result<()> {
        fs::create_dir(&self.dir)
    }

    fn step(&mut self) -> io::Result<u64> {
        let tree = self.rng.usize(..self.trees.len());
        match *self.trees[tree].latest() {
            None => {
                self.trees[tree].issue(Some(0));
                let below = self.path(tree, 0).join("a/b");
                fs::create_dir_all(&below)?;
                let mut file = File::create_new(below.join("leaf"))?;
                file.write_all(&self.leaf(tree))?;
                // A file's fsync makes its name and those of all directories above it durable.
                self.syncing.file(&file)?;
            }
            Some(renames) => {
                self.trees[tree].issue(Some(renames + 1));
                fs::rename(self.path(tree, renames), self.path(tree, renames + 1))?;
                if self.rng.bool() {
                    return Ok(0);
                }
                self.syncing.dir(&self.dir)?;
            }
        }
        self.trees[tree].acknowledge();
        Ok(1)
    }

    fn verify(&mut self) -> Vec<String> {
        let mut problems = Vec::new();
        for tree in 0..self.trees.len() {
            let mut found = Vec::new();
            let may_be_missing = self.trees[tree].states.iter().any(Option::is_none);
            for renames in self.trees[tree].states.iter().flatten() {
                if self.path(tree, *renames).exists() {
                    found.push(*renames);
                }
            }
            let names = &self.trees[tree].states;
            let dir = self.dir.display();
            let next = match found[..] {
                [] if may_be_missing => None,
                [renames] => Some(renames),
                _ => {
                    problems.push(format!("{dir}: tree {tree} should have one of the names {names:?}, has {found:?}"));
                    continue;
                }
            };
            if let Some(renames) = next {
                match read_if_there(&self.path(tree, renames).join("a/b/leaf")) {
                    Ok(Some(bytes)) if bytes == self.leaf(tree) => {}
                    // Its making was interrupted: it is made anew in the next round.
                    Ok(_) if may_be_missing => {
                        if let Err(error) = fs::remove_dir_all(self.path(tree, renames)) {
                            problems.push(format!("{dir}: tree {tree} cannot be removed: {error}"));
                        }
                        self.trees[tree] = History::starting_at(None);
                        continue;
                    }
                    Ok(found) => problems.push(format!("{dir}: the leaf of tree {tree} is {}", describe(&found))),
                    Err(problem) => problems.push(problem),
                }
            }
            self.trees[tree] = History::starting_at(next);
        }
        problems
    }
}
