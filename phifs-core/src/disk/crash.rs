//! A disk that loses power, for tests and simulation.
//!
//! Until a sync, a write may or may not be on the medium, whole, torn at a 512-byte sector or with any of its sectors
//! missing; the same holds for a creation, a removal and a change of length. `PowerLoss` says when the power goes;
//! from then on every call fails, and `after_power_loss` gives what a machine would find after it came back.
//! What survives is a function of the seed: seed 0 keeps nothing that was not synced, seed 1 keeps everything,
//! any other keeps some of it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::mem::check_range;
use super::sparse::Sparse;
use super::{Disk, File, FileName, MemDisk, Space, Stamp};

const SECTOR_BYTES: usize = 512;

/// When the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerLoss {
    Never,
    /// During the sync with this number, of files or names, from 0. The sync fails and promises nothing.
    AtSync(u64),
    /// During the change or sync with this number, from 0. A write may still reach the medium in part.
    AtOp(u64),
}

/// Clones share the same disk.
#[derive(Clone)]
pub struct CrashDisk {
    state: Arc<Mutex<State>>,
}

struct State {
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<FileName, u64>,
    synced_names: BTreeMap<FileName, u64>,
    /// Creations (the inode) and removals (`None`) since names were synced.
    unsynced_names: Vec<(FileName, Option<u64>)>,
    next_inode: u64,
    power_loss: PowerLoss,
    syncs: u64,
    ops: u64,
    dead: bool,
}

#[derive(Default)]
struct Inode {
    contents: Sparse,
    synced: Sparse,
    unsynced: Vec<Change>,
}

enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    SetLen(u64),
    Allocate { offset: u64, len: u64, keep_len: bool },
    PunchHole { offset: u64, len: u64 },
}

struct CrashFile {
    state: Arc<Mutex<State>>,
    inode: u64,
}

impl CrashDisk {
    pub fn healthy() -> Self {
        Self::over(&MemDisk::new(), PowerLoss::Never)
    }

    pub fn dies_at_sync(sync: u64) -> Self {
        Self::over(&MemDisk::new(), PowerLoss::AtSync(sync))
    }

    pub fn dies_at_op(op: u64) -> Self {
        Self::over(&MemDisk::new(), PowerLoss::AtOp(op))
    }

    /// A disk that starts with a copy of these files, all of them durable.
    pub fn over(files: &MemDisk, power_loss: PowerLoss) -> Self {
        let mut inodes = BTreeMap::new();
        let mut names = BTreeMap::new();
        for (number, (name, contents)) in (0..).zip(files.contents()) {
            inodes.insert(number, Inode { synced: contents.clone(), contents, unsynced: Vec::new() });
            names.insert(name, number);
        }
        let state = State {
            next_inode: inodes.len() as u64,
            inodes,
            synced_names: names.clone(),
            names,
            unsynced_names: Vec::new(),
            power_loss,
            syncs: 0,
            ops: 0,
            dead: false,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Syncs so far, of files and of names.
    pub fn syncs(&self) -> u64 {
        self.state.lock().syncs
    }

    /// Changes and syncs so far.
    pub fn ops(&self) -> u64 {
        self.state.lock().ops
    }

    pub fn is_dead(&self) -> bool {
        self.state.lock().dead
    }

    pub fn cut_power(&self) {
        self.state.lock().dead = true;
    }

    /// What is on the medium if the power goes now (or went, if it did).
    pub fn after_power_loss(&self, seed: u64) -> MemDisk {
        let state = self.state.lock();
        let mut chance = Chance::new(seed);
        let mut names = state.synced_names.clone();
        // Changes of one name keep their order, so a prefix of them survives; different names are independent.
        let mut lost = std::collections::BTreeSet::new();
        for (name, inode) in &state.unsynced_names {
            if lost.contains(name) || !chance.survives() {
                lost.insert(*name);
                continue;
            }
            match inode {
                Some(inode) => names.insert(*name, *inode),
                None => names.remove(name),
            };
        }
        let files = names.into_iter().map(|(name, inode)| (name, state.inodes[&inode].after_power_loss(&mut chance)));
        MemDisk::with_files(files.collect::<Vec<_>>())
    }
}

impl Inode {
    fn after_power_loss(&self, chance: &mut Chance) -> Sparse {
        let mut contents = self.synced.clone();
        for change in &self.unsynced {
            match change {
                Change::Write { offset, bytes } => chance.torn(bytes.len(), |from, to| {
                    contents.write_at(&bytes[from..to], offset + from as u64);
                }),
                other if chance.survives() => other.apply(&mut contents),
                _ => {}
            }
        }
        contents
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.contents);
        self.unsynced.push(change);
    }
}

impl Change {
    fn apply(&self, contents: &mut Sparse) {
        match self {
            Self::Write { offset, bytes } => contents.write_at(bytes, *offset),
            Self::SetLen(len) => contents.set_len(*len),
            Self::Allocate { offset, len, keep_len } => contents.allocate(*offset, *len, *keep_len),
            Self::PunchHole { offset, len } => contents.punch_hole(*offset, *len),
        }
    }
}

impl State {
    /// Counts a change or a sync. False: the power goes during it.
    fn begin(&mut self, sync: bool) -> io::Result<bool> {
        if self.dead {
            return Err(power_is_off());
        }
        self.dead = match self.power_loss {
            PowerLoss::Never => false,
            PowerLoss::AtSync(fatal) => sync && self.syncs == fatal,
            PowerLoss::AtOp(fatal) => self.ops == fatal,
        };
        self.ops += 1;
        self.syncs += u64::from(sync);
        Ok(!self.dead)
    }

    fn end(&self) -> io::Result<()> {
        if self.dead { Err(power_is_off()) } else { Ok(()) }
    }
}

fn power_is_off() -> io::Error {
    io::Error::other("the simulated disk has lost power")
}

impl CrashDisk {
    fn alive(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state.lock();
        state.end()?;
        Ok(state)
    }

    fn file(&self, inode: u64) -> Arc<dyn File> {
        Arc::new(CrashFile { state: self.state.clone(), inode })
    }
}

impl Disk for CrashDisk {
    fn list(&self) -> io::Result<Vec<FileName>> {
        Ok(self.alive()?.names.keys().copied().collect())
    }

    fn open(&self, name: FileName) -> io::Result<Arc<dyn File>> {
        let inode = self.alive()?.names.get(&name).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(self.file(inode))
    }

    fn create(&self, name: FileName) -> io::Result<Arc<dyn File>> {
        let mut state = self.state.lock();
        state.begin(false)?;
        if state.names.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.next_inode;
        state.next_inode += 1;
        state.inodes.insert(inode, Inode::default());
        state.names.insert(name, inode);
        state.unsynced_names.push((name, Some(inode)));
        state.end()?;
        Ok(self.file(inode))
    }

    fn remove(&self, name: FileName) -> io::Result<()> {
        let mut state = self.state.lock();
        state.begin(false)?;
        state.names.remove(&name).ok_or(io::ErrorKind::NotFound)?;
        state.unsynced_names.push((name, None));
        state.end()
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.begin(true)? {
            state.synced_names = state.names.clone();
            state.unsynced_names.clear();
        }
        state.end()
    }

    fn space(&self) -> io::Result<Space> {
        drop(self.alive()?);
        MemDisk::new().space()
    }
}

impl CrashFile {
    fn read<T>(&self, read: impl FnOnce(&Sparse) -> T) -> io::Result<T> {
        let state = self.state.lock();
        state.end()?;
        Ok(read(&state.inodes[&self.inode].contents))
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let mut state = self.state.lock();
        state.begin(false)?;
        // A change that the power loss interrupts is as unsynced as any other: it may still survive, in part too.
        state.inodes.get_mut(&self.inode).expect("inodes are never dropped").change(change);
        state.end()
    }
}

impl File for CrashFile {
    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<usize> {
        self.read(|contents| contents.read_at(buf, offset_bytes))
    }

    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> io::Result<()> {
        check_range(offset_bytes, buf.len() as u64)?;
        self.change(Change::Write { offset: offset_bytes, bytes: buf.to_vec() })
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.begin(true)? {
            let inode = state.inodes.get_mut(&self.inode).expect("inodes are never dropped");
            inode.synced = inode.contents.clone();
            inode.unsynced.clear();
        }
        state.end()
    }

    fn stamp(&self) -> io::Result<Stamp> {
        self.read(Sparse::stamp)
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        check_range(len_bytes, 0)?;
        self.change(Change::SetLen(len_bytes))
    }

    fn allocate(&self, offset_bytes: u64, len_bytes: u64, keep_len: bool) -> io::Result<()> {
        check_range(offset_bytes, len_bytes)?;
        self.change(Change::Allocate { offset: offset_bytes, len: len_bytes, keep_len })
    }

    fn punch_hole(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        self.change(Change::PunchHole { offset: offset_bytes, len: len_bytes })
    }

    fn seek_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        self.read(|contents| contents.seek_data(offset_bytes))
    }

    fn seek_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        self.read(|contents| contents.seek_hole(offset_bytes))
    }
}

/// Decides what survives. SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
struct Chance {
    seed: u64,
    state: u64,
}

impl Chance {
    fn new(seed: u64) -> Self {
        Self { seed, state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn survives(&mut self) -> bool {
        match self.seed {
            0 => false,
            1 => true,
            _ => self.next() & 1 == 0,
        }
    }

    /// Calls `keep` with the ranges of a write that survive.
    fn torn(&mut self, len: usize, mut keep: impl FnMut(usize, usize)) {
        let whole = match self.seed {
            0 => return,
            1 => 0,
            _ => self.next() % 4,
        };
        match whole {
            0 => keep(0, len),
            1 => {}
            2 => {
                let sectors = len.div_ceil(SECTOR_BYTES) as u64 + 1;
                keep(0, len.min((self.next() % sectors) as usize * SECTOR_BYTES));
            }
            _ => {
                for from in (0..len).step_by(SECTOR_BYTES) {
                    if self.next() & 1 == 0 {
                        keep(from, len.min(from + SECTOR_BYTES));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(disk: &MemDisk) -> Vec<FileName> {
        disk.list().unwrap()
    }

    #[test]
    fn only_synced_bytes_of_synced_names_are_sure() {
        let disk = CrashDisk::healthy();
        let file = disk.create(FileName::Pack(1)).unwrap();
        file.write_at(&[1; 2048], 0).unwrap();
        file.sync().unwrap();
        assert_eq!(names(&disk.after_power_loss(0)), []);
        disk.sync_names().unwrap();
        file.write_at(&[2; 2048], 2048).unwrap();
        for seed in 0..50 {
            let bytes = disk.after_power_loss(seed).bytes_of(FileName::Pack(1)).unwrap();
            assert_eq!(bytes[..2048], [1; 2048]);
        }
        assert_eq!(disk.after_power_loss(0).bytes_of(FileName::Pack(1)).unwrap().len(), 2048);
        assert_eq!(disk.after_power_loss(1).bytes_of(FileName::Pack(1)).unwrap().len(), 4096);
    }

    #[test]
    fn an_unsynced_write_may_be_whole_gone_or_torn() {
        let disk = CrashDisk::healthy();
        let file = disk.create(FileName::Pack(1)).unwrap();
        disk.sync_names().unwrap();
        file.write_at(&[1; 2048], 0).unwrap();
        let outcomes: std::collections::BTreeSet<Vec<u8>> =
            (0..200).map(|seed| disk.after_power_loss(seed).bytes_of(FileName::Pack(1)).unwrap()).collect();
        assert!(outcomes.contains(&vec![]) && outcomes.contains(&vec![1; 2048]) && outcomes.contains(&vec![1; 512]));
        let holed = |bytes: &Vec<u8>| bytes.len() == 2048 && bytes[0] == 0;
        assert!(outcomes.iter().any(holed), "a later sector may survive without an earlier one");
    }

    #[test]
    fn an_unsynced_removal_may_not_have_happened() {
        let disk = CrashDisk::healthy();
        disk.create(FileName::Pack(1)).unwrap();
        disk.sync_names().unwrap();
        disk.remove(FileName::Pack(1)).unwrap();
        assert_eq!(names(&disk.after_power_loss(0)), [FileName::Pack(1)]);
        assert_eq!(names(&disk.after_power_loss(1)), []);
    }

    #[test]
    fn everything_fails_after_the_fatal_sync() {
        let disk = CrashDisk::dies_at_sync(1);
        let file = disk.create(FileName::Pack(1)).unwrap();
        file.sync().unwrap();
        file.write_at(b"late", 0).unwrap();
        disk.sync_names().unwrap_err();
        file.read_at(&mut [0], 0).unwrap_err();
        file.write_at(b"x", 0).unwrap_err();
        disk.list().unwrap_err();
        assert!(disk.is_dead());
        assert_eq!(disk.syncs(), 2);
    }

    #[test]
    fn the_fatal_write_may_still_arrive() {
        let disk = CrashDisk::dies_at_op(2);
        let file = disk.create(FileName::Pack(1)).unwrap();
        disk.sync_names().unwrap();
        file.write_at(b"last", 0).unwrap_err();
        assert_eq!(disk.after_power_loss(0).bytes_of(FileName::Pack(1)).unwrap(), b"");
        assert_eq!(disk.after_power_loss(1).bytes_of(FileName::Pack(1)).unwrap(), b"last");
    }
}
