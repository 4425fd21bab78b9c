//! The disk of a node: it loses power at a chosen change, and is full for a while.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use phifs_core::disk::{CrashDisk, Disk, File, FileName, MemDisk, PowerLoss, Space, Stamp};

#[derive(Clone)]
pub struct NodeDisk {
    disk: CrashDisk,
    trouble: Arc<Trouble>,
}

#[derive(Default)]
struct Trouble {
    is_full: AtomicBool,
    /// So many changes more, and the power goes. 0: it does not.
    changes_left: AtomicU64,
}

struct NodeFile {
    file: Arc<dyn File>,
    disk: CrashDisk,
    trouble: Arc<Trouble>,
}

impl NodeDisk {
    pub fn over(files: &MemDisk) -> Self {
        Self { disk: CrashDisk::over(files, PowerLoss::Never), trouble: Arc::default() }
    }

    pub fn set_full(&self, is_full: bool) {
        self.trouble.is_full.store(is_full, Ordering::Relaxed);
    }

    pub fn is_full(&self) -> bool {
        self.trouble.is_full.load(Ordering::Relaxed)
    }

    /// The power goes in the middle of the change with this number from now on.
    pub fn cut_power_at(&self, change: u64) {
        self.trouble.changes_left.store(change, Ordering::Relaxed);
    }

    pub fn cut_power(&self) {
        self.disk.cut_power();
    }

    pub fn is_dead(&self) -> bool {
        self.disk.is_dead()
    }

    pub fn after_power_loss(&self, seed: u64) -> MemDisk {
        self.disk.after_power_loss(seed)
    }
}

impl Trouble {
    fn change(&self, disk: &CrashDisk) {
        match self.changes_left.load(Ordering::Relaxed) {
            0 => {}
            1 => disk.cut_power(),
            left => self.changes_left.store(left - 1, Ordering::Relaxed),
        }
    }

    fn grow(&self) -> io::Result<()> {
        if self.is_full.load(Ordering::Relaxed) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl NodeDisk {
    fn file(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(NodeFile { file, disk: self.disk.clone(), trouble: self.trouble.clone() })
    }
}

impl Disk for NodeDisk {
    fn list(&self) -> io::Result<Vec<FileName>> {
        self.disk.list()
    }

    fn open(&self, name: FileName) -> io::Result<Arc<dyn File>> {
        Ok(self.file(self.disk.open(name)?))
    }

    fn create(&self, name: FileName) -> io::Result<Arc<dyn File>> {
        self.trouble.change(&self.disk);
        Ok(self.file(self.disk.create(name)?))
    }

    fn remove(&self, name: FileName) -> io::Result<()> {
        self.trouble.change(&self.disk);
        self.disk.remove(name)
    }

    fn sync_names(&self) -> io::Result<()> {
        self.trouble.change(&self.disk);
        self.disk.sync_names()
    }

    fn space(&self) -> io::Result<Space> {
        let space = self.disk.space()?;
        Ok(if self.is_full() { Space { free_bytes: 0, ..space } } else { space })
    }
}

impl File for NodeFile {
    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset_bytes)
    }

    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.trouble.change(&self.disk);
        if offset_bytes + buf.len() as u64 > self.file.stamp()?.len_bytes {
            self.trouble.grow()?;
        }
        self.file.write_at(buf, offset_bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.trouble.change(&self.disk);
        self.file.sync()
    }

    fn stamp(&self) -> io::Result<Stamp> {
        self.file.stamp()
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.trouble.change(&self.disk);
        self.file.set_len(len_bytes)
    }

    fn allocate(&self, offset_bytes: u64, len_bytes: u64, keep_len: bool) -> io::Result<()> {
        self.trouble.change(&self.disk);
        self.trouble.grow()?;
        self.file.allocate(offset_bytes, len_bytes, keep_len)
    }

    fn punch_hole(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        self.trouble.change(&self.disk);
        self.file.punch_hole(offset_bytes, len_bytes)
    }

    fn seek_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        self.file.seek_data(offset_bytes)
    }

    fn seek_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        self.file.seek_hole(offset_bytes)
    }
}
