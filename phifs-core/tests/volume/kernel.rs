//! A disk whose staging files the kernel may be writing to, and on which something can happen in the middle of a sync
//! or a read.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use phifs_core::disk::{Disk, File, FileName, Space, Stamp};

type Hook = Box<dyn FnOnce() + Send>;

#[derive(Clone)]
pub struct KernelDisk {
    disk: Arc<dyn Disk>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Somebody may be writing to a staging file; which one is not told apart.
    written: AtomicBool,
    after_sync: Mutex<Option<Hook>>,
    after_read: Mutex<Option<Hook>>,
}

struct KernelFile {
    file: Arc<dyn File>,
    shared: Arc<Shared>,
}

impl KernelDisk {
    pub fn over(disk: Arc<dyn Disk>) -> Self {
        Self { disk, shared: Arc::default() }
    }

    pub fn set_written(&self, written: bool) {
        self.shared.written.store(written, Ordering::Relaxed);
    }

    /// Runs once, after the next sync of a staging file and before whoever asked for it hears of it.
    pub fn after_next_sync(&self, hook: impl FnOnce() + Send + 'static) {
        *self.shared.after_sync.lock() = Some(Box::new(hook));
    }

    /// As `after_next_sync`, for a read.
    pub fn after_next_read(&self, hook: impl FnOnce() + Send + 'static) {
        *self.shared.after_read.lock() = Some(Box::new(hook));
    }

    fn wrap(&self, name: FileName, file: Arc<dyn File>) -> Arc<dyn File> {
        match name {
            FileName::Staging(_) => Arc::new(KernelFile { file, shared: self.shared.clone() }),
            _ => file,
        }
    }
}

impl Disk for KernelDisk {
    fn list(&self) -> io::Result<Vec<FileName>> {
        self.disk.list()
    }

    fn open(&self, name: FileName) -> io::Result<Arc<dyn File>> {
        Ok(self.wrap(name, self.disk.open(name)?))
    }

    fn create(&self, name: FileName) -> io::Result<Arc<dyn File>> {
        Ok(self.wrap(name, self.disk.create(name)?))
    }

    fn remove(&self, name: FileName) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn sync_names(&self) -> io::Result<()> {
        self.disk.sync_names()
    }

    fn space(&self) -> io::Result<Space> {
        self.disk.space()
    }
}

impl File for KernelFile {
    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<usize> {
        let got = self.file.read_at(buf, offset_bytes)?;
        let hook = self.shared.after_read.lock().take();
        if let Some(hook) = hook {
            hook();
        }
        Ok(got)
    }

    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.file.write_at(buf, offset_bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()?;
        let hook = self.shared.after_sync.lock().take();
        if let Some(hook) = hook {
            hook();
        }
        Ok(())
    }

    fn stamp(&self) -> io::Result<Stamp> {
        self.file.stamp()
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.file.set_len(len_bytes)
    }

    fn allocate(&self, offset_bytes: u64, len_bytes: u64, keep_len: bool) -> io::Result<()> {
        self.file.allocate(offset_bytes, len_bytes, keep_len)
    }

    fn punch_hole(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        self.file.punch_hole(offset_bytes, len_bytes)
    }

    fn seek_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        self.file.seek_data(offset_bytes)
    }

    fn seek_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        self.file.seek_hole(offset_bytes)
    }

    fn has_writers(&self) -> io::Result<bool> {
        Ok(self.shared.written.load(Ordering::Relaxed))
    }
}
