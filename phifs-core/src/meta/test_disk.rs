//! A disk for tests that can die at any operation, and loses any subset of the unsynced sectors when it does.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use parking_lot::Mutex;

use crate::disk::{Disk, File, FileName, Space, Stamp};
use crate::time::Timestamp;

const SECTOR: usize = 512;

/// Clones share the disk.
#[derive(Clone, Default)]
pub(super) struct TestDisk(Arc<Inner>);

#[derive(Default)]
struct Inner {
    files: Mutex<BTreeMap<FileName, Arc<TestFile>>>,
    shared: Arc<Shared>,
}

struct Shared {
    /// Writes and syncs that still succeed.
    ops_left: AtomicU64,
    full: AtomicBool,
}

impl Default for Shared {
    fn default() -> Self {
        Self { ops_left: AtomicU64::new(u64::MAX), full: AtomicBool::new(false) }
    }
}

impl Shared {
    fn op(&self) -> io::Result<()> {
        let left = self.ops_left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        left.map(|_| ()).map_err(|_| io::Error::other("the test disk died"))
    }
}

#[derive(Default)]
struct TestFile {
    shared: Arc<Shared>,
    bytes: Mutex<Content>,
}

#[derive(Default, Clone)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// The sectors that may or may not be on the platter, with what each unsynced write put there.
    unsynced: Vec<(usize, Vec<u8>)>,
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
pub(super) fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl TestDisk {
    /// The next `ops` writes and syncs succeed, all later ones fail.
    pub(super) fn die_after(&self, ops: u64) {
        self.0.shared.ops_left.store(ops, SeqCst);
    }

    /// Writes that make a file longer fail for lack of space.
    pub(super) fn set_full(&self, full: bool) {
        self.0.shared.full.store(full, SeqCst);
    }

    pub(super) fn flip(&self, name: FileName, byte: usize, mask: u8) {
        let files = self.0.files.lock();
        let mut content = files[&name].bytes.lock();
        content.now[byte] ^= mask;
        content.durable = content.now.clone();
    }

    pub(super) fn bytes(&self, name: FileName) -> Vec<u8> {
        self.0.files.lock()[&name].bytes.lock().now.clone()
    }

    /// The disk as found when power is back: of each unsynced sector, what was written, or not.
    pub(super) fn after_power_loss(&self, seed: u64) -> TestDisk {
        let mut random = seed;
        self.copy(|content| {
            let mut left = content.durable.clone();
            let keep_of_8 = splitmix(&mut random) % 9;
            for (at, bytes) in &content.unsynced {
                if splitmix(&mut random) % 8 < keep_of_8 {
                    left.resize(left.len().max(at + bytes.len()), 0);
                    left[*at..at + bytes.len()].copy_from_slice(bytes);
                }
            }
            left
        })
    }

    /// The disk as the next process finds it when this one is killed: the page cache survives.
    pub(super) fn after_kill(&self) -> TestDisk {
        self.copy(|content| content.now.clone())
    }

    fn copy(&self, mut state: impl FnMut(&Content) -> Vec<u8>) -> TestDisk {
        let shared = Arc::new(Shared::default());
        let files = self.0.files.lock();
        let copied = files.iter().map(|(name, file)| {
            let now = state(&file.bytes.lock());
            let content = Content { durable: now.clone(), now, unsynced: Vec::new() };
            (*name, Arc::new(TestFile { shared: shared.clone(), bytes: Mutex::new(content) }))
        });
        let files = Mutex::new(copied.collect());
        TestDisk(Arc::new(Inner { files, shared }))
    }
}

impl Disk for TestDisk {
    fn list(&self) -> io::Result<Vec<FileName>> {
        Ok(self.0.files.lock().keys().copied().collect())
    }

    fn open(&self, name: FileName) -> io::Result<Arc<dyn File>> {
        let file = self.0.files.lock().get(&name).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(file)
    }

    fn create(&self, name: FileName) -> io::Result<Arc<dyn File>> {
        let file = Arc::new(TestFile { shared: self.0.shared.clone(), ..TestFile::default() });
        match self.0.files.lock().insert(name, file.clone()) {
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
            None => Ok(file),
        }
    }

    fn remove(&self, name: FileName) -> io::Result<()> {
        self.0.files.lock().remove(&name).map(|_| ()).ok_or(io::ErrorKind::NotFound.into())
    }

    fn sync_names(&self) -> io::Result<()> {
        self.0.shared.op()
    }

    fn space(&self) -> io::Result<Space> {
        Ok(Space { total_bytes: u64::MAX, free_bytes: u64::MAX })
    }
}

impl File for TestFile {
    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<usize> {
        let content = self.bytes.lock();
        let rest = content.now.get(offset_bytes as usize..).unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> io::Result<()> {
        let mut content = self.bytes.lock();
        let offset = offset_bytes as usize;
        let end = offset + buf.len();
        if end > content.now.len() {
            if self.shared.full.load(SeqCst) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            content.now.resize(end, 0);
        }
        content.now[offset..end].copy_from_slice(buf);
        let mut at = offset;
        while at < end {
            let stop = (at / SECTOR + 1) * SECTOR;
            content.unsynced.push((at, buf[at - offset..stop.min(end) - offset].to_vec()));
            at = stop;
        }
        self.shared.op()
    }

    fn sync(&self) -> io::Result<()> {
        self.shared.op()?;
        let mut content = self.bytes.lock();
        content.durable = content.now.clone();
        content.unsynced.clear();
        Ok(())
    }

    fn stamp(&self) -> io::Result<Stamp> {
        let len_bytes = self.bytes.lock().now.len() as u64;
        Ok(Stamp { len_bytes, allocated_bytes: len_bytes, mtime: Timestamp::default() })
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.bytes.lock().now.resize(len_bytes as usize, 0);
        Ok(())
    }

    fn allocate(&self, offset_bytes: u64, len_bytes: u64, _keep_len: bool) -> io::Result<()> {
        let mut content = self.bytes.lock();
        let len = content.now.len().max((offset_bytes + len_bytes) as usize);
        content.now.resize(len, 0);
        Ok(())
    }

    fn punch_hole(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn seek_data(&self, _: u64) -> io::Result<Option<u64>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn seek_hole(&self, _: u64) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
