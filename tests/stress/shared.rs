//! Sixteen threads mix all operations on the same few files and directories, held against a model.
//!
//! Every name has a cell of the model with a lock, and so has every inode. A thread locks the cells and the inode that
//! a call is about, makes the call, and compares its result, errors included, with what the model says. So all results
//! are decided, and yet the calls of all threads meet in the same directories, on the same inodes by other names and
//! handles, and under directories that are being renamed.
//!
//! One thing is not decided: the kernel keeps the link count of a FUSE inode by itself, and an `unlink` that meets a
//! look at the inode by another name can make it one too small, until phifs tells the kernel a moment later. So the
//! counts of files with several names are compared when everybody has stopped, and `link` may find no file.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use phifs_tests::{Place, both_modes, long, seed_or, wait_until};
use rustix::fs::XattrFlags;
use rustix::io::Errno;

const THREADS: u64 = 16;
const DIRS: usize = 4;
const NAMES: usize = 12;
const HELD_MAX: usize = 4;
const ATTRIBUTE: &str = "user.stress";

struct Inode(Mutex<Contents>);

struct Contents {
    bytes: Vec<u8>,
    names: u64,
    /// Had more than one name at some time.
    was_linked: bool,
    permissions: u32,
    attribute: Option<Vec<u8>>,
}

impl Inode {
    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().expect("no poisoned lock")
    }
}

#[derive(Clone)]
enum Entry {
    File(Arc<Inode>),
    /// An empty directory.
    Dir,
    Symlink(String),
}

type Cell = Option<Entry>;

struct Model {
    root: PathBuf,
    /// The names that the directories have now.
    dirs: Vec<RwLock<String>>,
    cells: Vec<Vec<Mutex<Cell>>>,
    /// For names and targets that nothing else has.
    unique: AtomicU64,
}

/// The cells that one call is about, in the order in which they were chosen, and their paths. They may be one.
struct Locked<'a> {
    _dirs: Vec<RwLockReadGuard<'a, String>>,
    cells: Vec<((usize, usize), MutexGuard<'a, Cell>)>,
    paths: [PathBuf; 2],
    chosen: [(usize, usize); 2],
}

impl Locked<'_> {
    fn get(&self, which: usize) -> Cell {
        self.cells.iter().find(|(at, _)| *at == self.chosen[which]).expect("a locked cell").1.clone()
    }

    fn set(&mut self, which: usize, entry: Cell) {
        let at = self.chosen[which];
        *self.cells.iter_mut().find(|(other, _)| *other == at).expect("a locked cell").1 = entry;
    }
}

/// An error as its number; what a call that may not fail here gives is told in full by the caller.
fn errno<T>(result: io::Result<T>) -> Result<T, Errno> {
    result.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Compares how a call ended with how it must end.
fn expect<T>(what: &str, path: &Path, found: io::Result<T>, wanted: Result<(), Errno>) -> Result<Option<T>> {
    let found = errno(found);
    let ended = found.as_ref().map(|_| ()).map_err(|errno| *errno);
    ensure!(ended == wanted, "{what} of {}: {ended:?} instead of {wanted:?}", path.display());
    Ok(found.ok())
}

fn lookup(cell: &Cell) -> Result<(), Errno> {
    cell.as_ref().map(|_| ()).ok_or(Errno::NOENT)
}

fn absent(cell: &Cell) -> Result<(), Errno> {
    if cell.is_some() { Err(Errno::EXIST) } else { Ok(()) }
}

impl Model {
    fn new(root: PathBuf) -> Model {
        let dirs: Vec<_> = (0..DIRS).map(|dir| RwLock::new(format!("dir-{dir}"))).collect();
        dirs.iter().for_each(|dir| fs::create_dir(root.join(&*dir.read().unwrap())).expect("a directory"));
        let cells = (0..DIRS).map(|_| (0..NAMES).map(|_| Mutex::new(None)).collect()).collect();
        Model { root, dirs, cells, unique: AtomicU64::new(0) }
    }

    fn unique(&self) -> u64 {
        self.unique.fetch_add(1, Ordering::Relaxed)
    }

    /// Locks in one order, whatever was chosen: directories first, then cells.
    fn lock(&self, chosen: [(usize, usize); 2]) -> Locked<'_> {
        let mut order = chosen.to_vec();
        order.sort_unstable();
        order.dedup();
        let mut dirs: Vec<usize> = order.iter().map(|at| at.0).collect();
        dirs.dedup();
        let guards: Vec<_> = dirs.iter().map(|&dir| self.dirs[dir].read().expect("no poisoned lock")).collect();
        let paths = chosen.map(|(dir, name)| {
            let at = dirs.iter().position(|&other| other == dir).expect("a locked directory");
            self.root.join(&*guards[at]).join(name.to_string())
        });
        let cell = |at: (usize, usize)| self.cells[at.0][at.1].lock().expect("no poisoned lock");
        let cells = order.into_iter().map(|at| (at, cell(at))).collect();
        Locked { _dirs: guards, cells, paths, chosen }
    }

    fn create(&self, locked: &mut Locked<'_>, rng: &mut fastrand::Rng) -> Result<()> {
        let path = locked.paths[0].clone();
        let made = File::options().read(true).write(true).create_new(true).open(&path);
        let Some(file) = expect("create", &path, made, absent(&locked.get(0)))? else { return Ok(()) };
        file.set_permissions(Permissions::from_mode(0o640))?;
        let bytes = some_bytes(rng);
        file.write_all_at(&bytes, 0)?;
        let contents = Contents { bytes, names: 1, was_linked: false, permissions: 0o640, attribute: None };
        locked.set(0, Some(Entry::File(Arc::new(Inode(Mutex::new(contents))))));
        Ok(())
    }

    fn mkdir(&self, locked: &mut Locked<'_>) -> Result<()> {
        if expect("mkdir", &locked.paths[0], fs::create_dir(&locked.paths[0]), absent(&locked.get(0)))?.is_some() {
            locked.set(0, Some(Entry::Dir));
        }
        Ok(())
    }

    fn symlink(&self, locked: &mut Locked<'_>) -> Result<()> {
        let target = format!("nowhere-{}", self.unique());
        let made = symlink(&target, &locked.paths[0]);
        if expect("symlink", &locked.paths[0], made, absent(&locked.get(0)))?.is_some() {
            locked.set(0, Some(Entry::Symlink(target)));
        }
        Ok(())
    }

    fn unlink(&self, locked: &mut Locked<'_>) -> Result<()> {
        let (path, cell) = (locked.paths[0].clone(), locked.get(0));
        match &cell {
            // The number of names changes with the call.
            Some(Entry::File(inode)) => {
                let mut contents = inode.lock();
                expect("unlink", &path, fs::remove_file(&path), Ok(()))?;
                contents.names -= 1;
            }
            Some(Entry::Dir) => return expect("unlink", &path, fs::remove_file(&path), Err(Errno::ISDIR)).map(drop),
            _ => drop(expect("unlink", &path, fs::remove_file(&path), lookup(&cell))?),
        }
        locked.set(0, None);
        Ok(())
    }

    fn rmdir(&self, locked: &mut Locked<'_>) -> Result<()> {
        let wanted = match locked.get(0) {
            None => Err(Errno::NOENT),
            Some(Entry::Dir) => Ok(()),
            Some(_) => Err(Errno::NOTDIR),
        };
        if expect("rmdir", &locked.paths[0], fs::remove_dir(&locked.paths[0]), wanted)?.is_some() {
            locked.set(0, None);
        }
        Ok(())
    }

    fn rename(&self, locked: &mut Locked<'_>) -> Result<()> {
        let (from, to) = (locked.get(0), locked.get(1));
        let same = locked.chosen[0] == locked.chosen[1];
        let wanted = match (&from, &to) {
            (None, _) => Err(Errno::NOENT),
            _ if same => Ok(()),
            (Some(Entry::Dir), Some(Entry::File(_) | Entry::Symlink(_))) => Err(Errno::NOTDIR),
            (Some(Entry::File(_) | Entry::Symlink(_)), Some(Entry::Dir)) => Err(Errno::ISDIR),
            _ => Ok(()),
        };
        let of_one_inode =
            matches!((&from, &to), (Some(Entry::File(one)), Some(Entry::File(other))) if Arc::ptr_eq(one, other));
        let replaced = match &to {
            Some(Entry::File(inode)) if !of_one_inode => Some(inode.lock()),
            _ => None,
        };
        let [path, target] = &locked.paths;
        if expect("rename", path, fs::rename(path, target), wanted)?.is_some() && !same && !of_one_inode {
            if let Some(mut contents) = replaced {
                contents.names -= 1;
            }
            locked.set(1, from);
            locked.set(0, None);
        }
        Ok(())
    }

    fn link(&self, locked: &mut Locked<'_>) -> Result<()> {
        let (from, to) = (locked.get(0), locked.get(1));
        let wanted = match &from {
            None => Err(Errno::NOENT),
            Some(Entry::Symlink(_)) => return Ok(()),
            Some(_) if to.is_some() => Err(Errno::EXIST),
            Some(Entry::Dir) => Err(Errno::PERM),
            Some(Entry::File(_)) => Ok(()),
        };
        let mut contents = match &from {
            Some(Entry::File(inode)) => Some(inode.lock()),
            _ => None,
        };
        let [path, target] = &locked.paths;
        let linked = fs::hard_link(path, target);
        let was_linked = contents.as_ref().is_some_and(|contents| contents.was_linked);
        if was_linked && wanted.is_ok() && linked.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Ok(());
        }
        if expect("link", path, linked, wanted)?.is_some() {
            let contents = contents.as_mut().expect("only files are linked");
            (contents.names, contents.was_linked) = (contents.names + 1, true);
            locked.set(1, from.clone());
        }
        Ok(())
    }

    /// Opens by name; the handle is to be kept for later, whatever becomes of the name.
    fn open(&self, locked: &mut Locked<'_>, write: bool) -> Result<Option<(File, Arc<Inode>)>> {
        let (path, cell) = (&locked.paths[0], locked.get(0));
        let wanted = match &cell {
            Some(Entry::File(_)) => Ok(()),
            Some(Entry::Dir) if write => Err(Errno::ISDIR),
            Some(Entry::Dir) => Ok(()),
            // To nowhere.
            Some(Entry::Symlink(_)) | None => Err(Errno::NOENT),
        };
        let opened = expect("open", path, File::options().read(true).write(write).open(path), wanted)?;
        Ok(opened.zip(match cell {
            Some(Entry::File(inode)) => Some(inode),
            _ => None,
        }))
    }

    fn empty(&self, locked: &mut Locked<'_>) -> Result<()> {
        if let Some(Entry::File(inode)) = locked.get(0) {
            let mut contents = inode.lock();
            File::options().write(true).truncate(true).open(&locked.paths[0]).context("emptying")?;
            contents.bytes.clear();
        }
        Ok(())
    }

    fn change_attributes(&self, locked: &mut Locked<'_>, rng: &mut fastrand::Rng) -> Result<()> {
        if let Some(Entry::File(inode)) = locked.get(0) {
            let (path, mut contents) = (&locked.paths[0], inode.lock());
            if rng.bool() {
                contents.permissions = 0o600 | rng.u32(..0o100);
                fs::set_permissions(path, Permissions::from_mode(contents.permissions)).context("chmod")?;
            } else {
                let value = vec![rng.u8(..); rng.usize(..300)];
                rustix::fs::setxattr(path, ATTRIBUTE, &value, XattrFlags::empty()).context("setxattr")?;
                contents.attribute = Some(value);
            }
        }
        Ok(())
    }

    /// A name that nobody changes meanwhile is listed once if it is there, and not at all if it is not.
    fn list(&self, locked: &mut Locked<'_>) -> Result<()> {
        let path = &locked.paths[0];
        let (dir, name) = (path.parent().expect("a directory"), path.file_name().expect("a name").to_string_lossy());
        let found = names_in(dir)?.iter().filter(|other| **other == name).count();
        let wanted = usize::from(locked.get(0).is_some());
        ensure!(found == wanted, "{} is listed {found} times instead of {wanted}", path.display());
        Ok(())
    }

    fn rename_directory(&self, dir: usize) -> Result<()> {
        let mut name = self.dirs[dir].write().expect("no poisoned lock");
        let new = format!("dir-{dir}-{}", self.unique());
        fs::rename(self.root.join(&*name), self.root.join(&new)).context("renaming a directory")?;
        *name = new;
        Ok(())
    }

    /// Everything is as the model says. To be called when nobody works.
    fn verify(&self) -> Result<()> {
        let listed = names_in(&self.root)?;
        let mut dirs: Vec<String> = self.dirs.iter().map(|dir| dir.read().unwrap().clone()).collect();
        dirs.sort();
        ensure!(listed == dirs, "directories {listed:?} instead of {dirs:?}");
        for dir in 0..DIRS {
            let path = self.root.join(&*self.dirs[dir].read().unwrap());
            let cells: Vec<Cell> = self.cells[dir].iter().map(|cell| cell.lock().unwrap().clone()).collect();
            let mut wanted: Vec<String> = (0..NAMES).filter(|&n| cells[n].is_some()).map(|n| n.to_string()).collect();
            wanted.sort();
            let listed = names_in(&path)?;
            ensure!(listed == wanted, "{} has {listed:?} instead of {wanted:?}", path.display());
            let below = cells.iter().filter(|cell| matches!(cell, Some(Entry::Dir))).count() as u64;
            let links = fs::metadata(&path)?.nlink();
            ensure!(links == 2 + below, "{} has {links} links and {below} directories", path.display());
            for (name, cell) in cells.iter().enumerate() {
                let path = path.join(name.to_string());
                match cell {
                    None => {}
                    Some(Entry::Dir) => ensure!(names_in(&path)?.is_empty(), "{} is not empty", path.display()),
                    Some(Entry::Symlink(target)) => ensure!(fs::read_link(&path)? == Path::new(target), "a target"),
                    Some(Entry::File(inode)) => {
                        let (file, contents) = (File::open(&path)?, inode.lock());
                        check_all(&file, &contents).with_context(|| format!("at the end, {}", path.display()))?;
                        let (links, names) = (file.metadata()?.nlink(), contents.names);
                        ensure!(links == names, "{} has {links} links and {names} names", path.display());
                    }
                }
            }
        }
        Ok(())
    }
}

fn names_in(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))?;
    let mut names =
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn some_bytes(rng: &mut fastrand::Rng) -> Vec<u8> {
    let most = if rng.u8(..10) == 0 { 200_000 } else { 6000 };
    vec![rng.u8(1..); rng.usize(..most)]
}

/// Length, names if there was never more than one, permissions, attribute and bytes.
fn check_all(file: &File, contents: &Contents) -> Result<()> {
    let meta = file.metadata()?;
    let links = if contents.was_linked { contents.names } else { meta.nlink() };
    let found = (meta.size(), links, meta.mode() & 0o7777);
    let wanted = (contents.bytes.len() as u64, contents.names, contents.permissions);
    ensure!(found == wanted, "length, links and permissions are {found:?} instead of {wanted:?}");
    let mut value = [0; 300];
    let value = match rustix::fs::fgetxattr(file, ATTRIBUTE, &mut value) {
        Ok(len) => Some(&value[..len]),
        Err(Errno::NODATA) => None,
        Err(errno) => return Err(errno.into()),
    };
    ensure!(value == contents.attribute.as_deref(), "another attribute");
    let mut bytes = vec![0; contents.bytes.len()];
    file.read_exact_at(&mut bytes, 0)?;
    let differs = bytes.iter().zip(&contents.bytes).position(|(found, wanted)| found != wanted);
    ensure!(differs.is_none(), "other bytes from {differs:?} on");
    Ok(())
}

/// One thread's work. Descriptors that it keeps open outlive the names of their files.
struct Worker<'a> {
    model: &'a Model,
    rng: fastrand::Rng,
    held: Vec<(File, Arc<Inode>)>,
}

impl Worker<'_> {
    fn step(&mut self) -> Result<()> {
        let any = |rng: &mut fastrand::Rng| (rng.usize(..DIRS), rng.usize(..NAMES));
        let kind = self.rng.u8(..100);
        if kind < 40 {
            return self.use_handle();
        }
        let first = any(&mut self.rng);
        if kind >= 99 {
            return self.model.rename_directory(first.0);
        }
        let second = if matches!(kind, 66..80) { any(&mut self.rng) } else { first };
        let (model, mut locked) = (self.model, self.model.lock([first, second]));
        match kind {
            40..49 => model.create(&mut locked, &mut self.rng),
            49..51 => model.mkdir(&mut locked),
            51..54 => model.symlink(&mut locked),
            54..63 => model.unlink(&mut locked),
            63..66 => model.rmdir(&mut locked),
            66..74 => model.rename(&mut locked),
            74..80 => model.link(&mut locked),
            80..90 => {
                if let Some(held) = model.open(&mut locked, true)? {
                    check_all(&held.0, &held.1.lock()).with_context(|| format!("{}", locked.paths[0].display()))?;
                    self.held.push(held);
                    if self.held.len() > HELD_MAX {
                        self.held.swap_remove(self.rng.usize(..HELD_MAX));
                    }
                }
                Ok(())
            }
            90..92 => model.empty(&mut locked),
            92..96 => model.change_attributes(&mut locked, &mut self.rng),
            _ => model.list(&mut locked),
        }
    }

    fn use_handle(&mut self) -> Result<()> {
        let Some((file, inode)) = self.rng.choice(&self.held) else { return Ok(()) };
        let (rng, mut contents) = (&mut self.rng, inode.lock());
        match rng.u8(..10) {
            0..4 => {
                let (at, bytes) = (rng.usize(..=contents.bytes.len() + 5000), some_bytes(rng));
                file.write_all_at(&bytes, at as u64).context("writing")?;
                if !bytes.is_empty() {
                    let end = (at + bytes.len()).max(contents.bytes.len());
                    contents.bytes.resize(end, 0);
                    contents.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
                }
            }
            4 => {
                let len = rng.usize(..=contents.bytes.len() + 5000);
                file.set_len(len as u64).context("changing the length")?;
                contents.bytes.resize(len, 0);
            }
            5 => file.sync_all().context("syncing")?,
            _ => check_all(file, &contents).context("by a handle")?,
        }
        Ok(())
    }
}

both_modes!(sixteen_threads_on_shared_files_do_what_the_model_says, |place| {
    let root = place.dir().join("shared");
    fs::create_dir(&root).unwrap();
    let (model, seed) = (Model::new(root), seed_or(1));
    let (over, steps) = (AtomicBool::new(false), AtomicU64::new(0));
    let problem = Mutex::new(None);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (model, over, steps, problem) = (&model, &over, &steps, &problem);
            scope.spawn(move || {
                let rng = fastrand::Rng::with_seed(seed * THREADS + thread);
                let mut worker = Worker { model, rng, held: Vec::new() };
                while !over.load(Ordering::Relaxed) {
                    if let Err(error) = worker.step() {
                        problem.lock().unwrap().get_or_insert(format!("thread {thread}: {error:#}"));
                        over.store(true, Ordering::Relaxed);
                    }
                    steps.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let end = Duration::from_secs(if long() { 90 } else { 8 });
        wait_until(end, || over.load(Ordering::Relaxed));
        over.store(true, Ordering::Relaxed);
    });
    // Until phifs has told the kernel which link counts to ask for again.
    std::thread::sleep(Duration::from_millis(2500));
    let problem = problem.into_inner().unwrap();
    assert!(problem.is_none(), "{}", problem.unwrap());
    let check = |place: &mut Place, when: &str| {
        model.verify().unwrap_or_else(|error| panic!("{when}: {error:#}"));
        place.assert_healthy();
    };
    check(place, "after the last call");
    place.restart();
    check(place, "after a restart");
    eprintln!("{} steps of {THREADS} threads", steps.into_inner());
});
