//! A disk in memory: for the bytes of small files before they are published, for tests and simulation. Nothing of it
//! needs a sync.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::sparse::Sparse;
use super::{Disk, File, FileName, Space, Stamp};

/// Clones share the same files; `snapshot` makes an independent copy.
#[derive(Clone)]
pub struct MemDisk {
    files: Arc<Mutex<BTreeMap<FileName, Arc<MemFile>>>>,
    quota: Arc<Quota>,
}

struct Quota {
    total_bytes: u64,
    used_bytes: Mutex<u64>,
}

struct MemFile {
    contents: Mutex<Sparse>,
    quota: Arc<Quota>,
}

impl MemDisk {
    const TOTAL_BYTES: u64 = 1 << 44;

    pub fn new() -> Self {
        Self::with_capacity(Self::TOTAL_BYTES)
    }

    /// A disk on which writes and allocations beyond `total_bytes` fail with `StorageFull`, in pages of 4 KiB.
    pub fn with_capacity(total_bytes: u64) -> Self {
        Self { files: Arc::default(), quota: Arc::new(Quota { total_bytes, used_bytes: Mutex::new(0) }) }
    }

    pub(super) fn with_files(files: impl IntoIterator<Item = (FileName, Sparse)>) -> Self {
        let disk = Self::new();
        for (name, contents) in files {
            disk.insert(name, contents);
        }
        disk
    }

    /// An independent copy of every file, as it is now. It shares memory with the original where both stay equal.
    pub fn snapshot(&self) -> Self {
        let copy = Self::with_capacity(self.quota.total_bytes);
        for (name, contents) in self.contents() {
            copy.insert(name, contents);
        }
        copy
    }

    /// A file without a name, which lives as long as its handle.
    pub fn create_unnamed(&self) -> Arc<dyn File> {
        Arc::new(MemFile { contents: Mutex::default(), quota: self.quota.clone() })
    }

    /// All bytes of a file, as a plain vector: for small files.
    pub fn bytes_of(&self, name: FileName) -> io::Result<Vec<u8>> {
        let file = self.find(name)?;
        let contents = file.contents.lock();
        let mut bytes = vec![0; contents.len_bytes() as usize];
        contents.read_at(&mut bytes, 0);
        Ok(bytes)
    }

    /// Inverts the bits of `mask` in one byte, as a failing medium would.
    pub fn flip(&self, name: FileName, offset_bytes: u64, mask: u8) -> io::Result<()> {
        let file = self.find(name)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset_bytes)?;
        file.write_at(&[byte[0] ^ mask], offset_bytes)
    }

    /// Cuts a file to its first `len_bytes`.
    pub fn truncate(&self, name: FileName, len_bytes: u64) -> io::Result<()> {
        self.find(name)?.set_len(len_bytes)
    }

    pub(super) fn contents(&self) -> Vec<(FileName, Sparse)> {
        let files = self.files.lock();
        files.iter().map(|(name, file)| (*name, file.contents.lock().clone())).collect()
    }

    fn insert(&self, name: FileName, contents: Sparse) {
        *self.quota.used_bytes.lock() += contents.reserved_bytes();
        let file = MemFile { contents: Mutex::new(contents), quota: self.quota.clone() };
        self.files.lock().insert(name, Arc::new(file));
    }

    fn find(&self, name: FileName) -> io::Result<Arc<MemFile>> {
        self.files.lock().get(&name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Default for MemDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl Disk for MemDisk {
    fn list(&self) -> io::Result<Vec<FileName>> {
        Ok(self.files.lock().keys().copied().collect())
    }

    fn open(&self, name: FileName) -> io::Result<Arc<dyn File>> {
        Ok(self.find(name)?)
    }

    fn create(&self, name: FileName) -> io::Result<Arc<dyn File>> {
        let mut files = self.files.lock();
        if files.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = Arc::new(MemFile { contents: Mutex::default(), quota: self.quota.clone() });
        files.insert(name, file.clone());
        Ok(file)
    }

    fn remove(&self, name: FileName) -> io::Result<()> {
        let gone = self.files.lock().remove(&name);
        gone.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        let used_bytes = *self.quota.used_bytes.lock();
        let total_bytes = self.quota.total_bytes;
        Ok(Space { total_bytes, free_bytes: total_bytes.saturating_sub(used_bytes) })
    }
}

impl MemFile {
    /// Changes the contents if the disk has room for what they grow by.
    fn change(&self, growth: impl FnOnce(&Sparse) -> u64, change: impl FnOnce(&mut Sparse)) -> io::Result<()> {
        let mut contents = self.contents.lock();
        let mut used_bytes = self.quota.used_bytes.lock();
        let growth = growth(&contents);
        if growth > 0 && *used_bytes + growth > self.quota.total_bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let before = contents.reserved_bytes();
        change(&mut contents);
        *used_bytes = *used_bytes - before + contents.reserved_bytes();
        Ok(())
    }
}

impl Drop for MemFile {
    fn drop(&mut self) {
        *self.quota.used_bytes.lock() -= self.contents.get_mut().reserved_bytes();
    }
}

impl File for MemFile {
    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<usize> {
        Ok(self.contents.lock().read_at(buf, offset_bytes))
    }

    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> io::Result<()> {
        check_range(offset_bytes, buf.len() as u64)?;
        self.change(|file| file.missing_bytes(offset_bytes, buf.len() as u64), |file| file.write_at(buf, offset_bytes))
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn stamp(&self) -> io::Result<Stamp> {
        Ok(self.contents.lock().stamp())
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        check_range(len_bytes, 0)?;
        self.change(|_| 0, |file| file.set_len(len_bytes))
    }

    fn allocate(&self, offset_bytes: u64, len_bytes: u64, keep_len: bool) -> io::Result<()> {
        check_range(offset_bytes, len_bytes)?;
        self.change(
            |file| file.missing_bytes(offset_bytes, len_bytes),
            |file| file.allocate(offset_bytes, len_bytes, keep_len),
        )
    }

    fn punch_hole(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        self.change(|_| 0, |file| file.punch_hole(offset_bytes, len_bytes))
    }

    fn seek_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        Ok(self.contents.lock().seek_data(offset_bytes))
    }

    fn seek_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        Ok(self.contents.lock().seek_hole(offset_bytes))
    }
}

/// Refuses what no filesystem of Linux can hold, so that offsets never overflow further in.
pub(super) fn check_range(offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    match offset_bytes.checked_add(len_bytes) {
        Some(end) if end <= i64::MAX as u64 => Ok(()),
        _ => Err(io::ErrorKind::FileTooLarge.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_file_lives_as_long_as_its_handle() {
        let disk = MemDisk::new();
        let file = disk.create(FileName::Pack(1)).unwrap();
        file.write_at(b"bytes", 0).unwrap();
        disk.remove(FileName::Pack(1)).unwrap();
        assert_eq!(disk.list().unwrap(), []);
        let mut buf = [0; 5];
        file.read_exact_at(&mut buf, 0).unwrap();
        assert_eq!(&buf, b"bytes");
        let used = |disk: &MemDisk| disk.space().unwrap().total_bytes - disk.space().unwrap().free_bytes;
        assert_eq!(used(&disk), 4096);
        drop(file);
        assert_eq!(used(&disk), 0);
    }

    #[test]
    fn a_full_disk_refuses_growth_but_not_overwriting() {
        let disk = MemDisk::with_capacity(8192);
        let file = disk.create(FileName::Pack(1)).unwrap();
        file.allocate(0, 8192, true).unwrap();
        file.write_at(&[1; 8192], 0).unwrap();
        assert_eq!(file.write_at(&[1], 8192).unwrap_err().kind(), io::ErrorKind::StorageFull);
        file.write_at(&[2; 8192], 0).unwrap();
        file.set_len(4096).unwrap();
        assert_eq!(disk.space().unwrap().free_bytes, 4096);
    }

    #[test]
    fn a_snapshot_is_independent() {
        let disk = MemDisk::new();
        disk.create(FileName::Superblock).unwrap().write_at(b"abc", 0).unwrap();
        let copy = disk.snapshot();
        disk.flip(FileName::Superblock, 1, 0xff).unwrap();
        disk.truncate(FileName::Superblock, 2).unwrap();
        assert_eq!(copy.bytes_of(FileName::Superblock).unwrap(), b"abc");
        assert_eq!(disk.bytes_of(FileName::Superblock).unwrap(), [b'a', !b'b']);
    }
}
