//! A disk whose calls fail on demand, for tests and simulation.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Disk, File, FileName, Space, Stamp};

/// What a call does to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    /// Any change: bytes, length, allocation, creation, removal.
    Write,
    /// Of a file or of the names.
    Sync,
}

/// Wraps another disk. Clones share the same faults.
#[derive(Clone)]
pub struct FaultDisk {
    disk: Arc<dyn Disk>,
    faults: Arc<Mutex<Faults>>,
}

#[derive(Default)]
struct Faults {
    /// Calls so far: reads, writes, syncs.
    calls: [u64; 3],
    planned: Vec<Fault>,
}

struct Fault {
    access: Access,
    first: u64,
    last: u64,
    errno: i32,
}

struct FaultFile {
    file: Arc<dyn File>,
    faults: Arc<Mutex<Faults>>,
}

impl FaultDisk {
    pub const EIO: i32 = 5;
    pub const ENOSPC: i32 = 28;
    pub const EROFS: i32 = 30;

    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, faults: Arc::default() }
    }

    /// Fails one call: the one after `skip` more of its sort.
    pub fn fail_once(&self, access: Access, skip: u64, errno: i32) {
        let first = self.calls(access) + skip;
        self.faults.lock().planned.push(Fault { access, first, last: first, errno });
    }

    /// Fails every call of its sort after `skip` more, until `heal`.
    pub fn fail_from(&self, access: Access, skip: u64, errno: i32) {
        let first = self.calls(access) + skip;
        self.faults.lock().planned.push(Fault { access, first, last: u64::MAX, errno });
    }

    /// Refuses every change from now on, as a filesystem that was remounted read-only.
    pub fn make_read_only(&self) {
        self.fail_from(Access::Write, 0, Self::EROFS);
    }

    pub fn heal(&self) {
        self.faults.lock().planned.clear();
    }

    /// Calls of this sort so far, failed ones too.
    pub fn calls(&self, access: Access) -> u64 {
        self.faults.lock().calls[access as usize]
    }

    fn file(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(FaultFile { file, faults: self.faults.clone() })
    }
}

impl Faults {
    fn check(&mut self, access: Access) -> io::Result<()> {
        let call = self.calls[access as usize];
        self.calls[access as usize] += 1;
        let hit =
            self.planned.iter().find(|fault| fault.access == access && (fault.first..=fault.last).contains(&call));
        hit.map_or(Ok(()), |fault| Err(io::Error::from_raw_os_error(fault.errno)))
    }
}

impl Disk for FaultDisk {
    fn list(&self) -> io::Result<Vec<FileName>> {
        self.faults.lock().check(Access::Read)?;
        self.disk.list()
    }

    fn open(&self, name: FileName) -> io::Result<Arc<dyn File>> {
        self.faults.lock().check(Access::Read)?;
        Ok(self.file(self.disk.open(name)?))
    }

    fn create(&self, name: FileName) -> io::Result<Arc<dyn File>> {
        self.faults.lock().check(Access::Write)?;
        Ok(self.file(self.disk.create(name)?))
    }

    fn remove(&self, name: FileName) -> io::Result<()> {
        self.faults.lock().check(Access::Write)?;
        self.disk.remove(name)
    }

    fn sync_names(&self) -> io::Result<()> {
        self.faults.lock().check(Access::Sync)?;
        self.disk.sync_names()
    }

    fn space(&self) -> io::Result<Space> {
        self.disk.space()
    }
}

impl File for FaultFile {
    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<usize> {
        self.faults.lock().check(Access::Read)?;
        self.file.read_at(buf, offset_bytes)
    }

    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.faults.lock().check(Access::Write)?;
        self.file.write_at(buf, offset_bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.faults.lock().check(Access::Sync)?;
        self.file.sync()
    }

    fn stamp(&self) -> io::Result<Stamp> {
        self.file.stamp()
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.faults.lock().check(Access::Write)?;
        self.file.set_len(len_bytes)
    }

    fn allocate(&self, offset_bytes: u64, len_bytes: u64, keep_len: bool) -> io::Result<()> {
        self.faults.lock().check(Access::Write)?;
        self.file.allocate(offset_bytes, len_bytes, keep_len)
    }

    fn punch_hole(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        self.faults.lock().check(Access::Write)?;
        self.file.punch_hole(offset_bytes, len_bytes)
    }

    fn seek_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        self.faults.lock().check(Access::Read)?;
        self.file.seek_data(offset_bytes)
    }

    fn seek_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        self.faults.lock().check(Access::Read)?;
        self.file.seek_hole(offset_bytes)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.file.fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemDisk;

    #[test]
    fn the_chosen_call_fails_and_only_that() {
        let disk = FaultDisk::new(Arc::new(MemDisk::new()));
        let file = disk.create(FileName::Pack(1)).unwrap();
        disk.fail_once(Access::Write, 1, FaultDisk::ENOSPC);
        file.write_at(b"a", 0).unwrap();
        assert_eq!(file.write_at(b"b", 1).unwrap_err().kind(), io::ErrorKind::StorageFull);
        file.write_at(b"c", 1).unwrap();
        file.sync().unwrap();
    }

    #[test]
    fn a_read_only_disk_still_reads() {
        let disk = FaultDisk::new(Arc::new(MemDisk::new()));
        let file = disk.create(FileName::Pack(1)).unwrap();
        file.write_at(b"a", 0).unwrap();
        disk.make_read_only();
        assert_eq!(file.write_at(b"b", 0).unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(file.read_at(&mut [0], 0).unwrap(), 1);
        disk.heal();
        file.write_at(b"b", 0).unwrap();
    }
}
