//! What the engine needs of a disk: named files that can be read, written and synced.
//!
//! A write is durable only after `File::sync` returned; a file that was created or removed is durable only after
//! `Disk::sync_names`. Real files live in phifs-node. For tests and simulation there are a disk in memory (`MemDisk`),
//! one that loses power (`CrashDisk`) and one that fails on demand (`FaultDisk`).

mod branch;
mod crash;
mod fault;
mod mem;
mod sparse;

pub use branch::BranchDisk;
pub use crash::{CrashDisk, PowerLoss};
pub use fault::{Access, FaultDisk};
pub use mem::MemDisk;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use bytes::Bytes;

use crate::time::Timestamp;

/// Every file of a store, by what it is for. The mapping to paths belongs to the implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileName {
    Superblock,
    Journal(u32),
    Pack(u32),
    Oplog(u32),
    /// Space held back on a disk that is getting full, given up when making room itself needs room.
    Ballast,
    /// A mutable file with the bytes of one inode ("materialised"), numbered in order of creation.
    Staging(u64),
    /// A file of the branch of this number.
    Branch(u32, BranchFile),
}

/// The files that a branch has of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BranchFile {
    Superblock,
    Journal(u32),
    Oplog(u32),
    Staging(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub total_bytes: u64,
    /// What an unprivileged program could still write.
    pub free_bytes: u64,
}

/// What a file looks like from outside. Any change of the bytes changes it (Linux has multigrain mtimes since 6.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub len_bytes: u64,
    pub allocated_bytes: u64,
    pub mtime: Timestamp,
}

pub trait Disk: Send + Sync {
    /// All files there are, in order.
    fn list(&self) -> io::Result<Vec<FileName>>;
    /// Opens a file for reading and writing; `NotFound` if there is none.
    fn open(&self, name: FileName) -> io::Result<Arc<dyn File>>;
    /// Makes an empty file; `AlreadyExists` if there is one.
    fn create(&self, name: FileName) -> io::Result<Arc<dyn File>>;
    fn remove(&self, name: FileName) -> io::Result<()>;
    /// Makes all creations and removals so far durable.
    fn sync_names(&self) -> io::Result<()>;
    fn space(&self) -> io::Result<Space>;
}

pub trait File: Send + Sync {
    /// Reads up to `buf.len()` bytes; fewer only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<usize>;
    /// Writes all of `buf`, making the file longer where needed. After an error any part may have been written. A write
    /// may also be made later, in order: then every later call on this object, a sync above all, fails if it cannot be.
    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> io::Result<()>;
    /// The same for many bytes that nobody will read soon: they need not come to stay in memory on their way.
    fn write_past_cache(&self, buf: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.write_at(buf, offset_bytes)?;
        self.begin_writeback(offset_bytes, buf.len() as u64);
        Ok(())
    }
    /// Reads many bytes that nobody is to read from this machine's memory soon. Fewer only at the end of the file.
    fn read_past_cache(&self, len_bytes: usize, offset_bytes: u64) -> io::Result<Bytes> {
        let mut bytes = vec![0; len_bytes];
        let got = self.read_at(&mut bytes, offset_bytes)?;
        bytes.truncate(got);
        Ok(bytes.into())
    }
    /// Makes everything written so far durable, the length included.
    fn sync(&self) -> io::Result<()>;
    /// A hint: the bytes of this range will not be changed soon, and may be brought to the disk.
    fn begin_writeback(&self, _offset_bytes: u64, _len_bytes: u64) {}
    /// A hint: nobody will read this range soon, so what is durable of it need not stay in memory.
    fn forget(&self, _offset_bytes: u64, _len_bytes: u64) {}
    fn stamp(&self) -> io::Result<Stamp>;
    fn set_len(&self, len_bytes: u64) -> io::Result<()>;
    /// Reserves space so that later writes there do not fail for lack of it; `keep_len` leaves the length alone.
    fn allocate(&self, offset_bytes: u64, len_bytes: u64, keep_len: bool) -> io::Result<()>;
    /// Frees the space of a range, which then reads as zeroes; the length stays.
    fn punch_hole(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()>;
    /// The first byte at or after `offset_bytes` that may hold data; `None` when only a hole follows.
    fn seek_data(&self, offset_bytes: u64) -> io::Result<Option<u64>>;
    /// The first byte at or after `offset_bytes` in a hole; the length counts as one.
    fn seek_hole(&self, offset_bytes: u64) -> io::Result<u64>;
    /// Whether anybody but the holder of this object has it open for writing or mapped so that stores reach it:
    /// the kernel, on behalf of those whom it serves from this file.
    fn has_writers(&self) -> io::Result<bool> {
        Ok(false)
    }

    /// The descriptor behind it, where there is one, for kernel passthrough. It may be good for reading only.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Reads exactly `buf.len()` bytes, or fails with `UnexpectedEof`.
    fn read_exact_at(&self, mut buf: &mut [u8], mut offset_bytes: u64) -> io::Result<()> {
        while !buf.is_empty() {
            let got = self.read_at(buf, offset_bytes)?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buf = &mut buf[got..];
            offset_bytes += got as u64;
        }
        Ok(())
    }
}
