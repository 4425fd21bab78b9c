//! Writing to the disk, and reading from it, without the page cache in between: many bytes come there faster, and displace nothing.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::OFlags;
use rustix::io::Errno;

/// Disks take no less than this at a time, nor what begins elsewhere.
const PAGE_BYTES: usize = 4096;

/// The other way into an open file.
#[derive(Default)]
pub struct Direct(Mutex<Way>);

#[derive(Default)]
enum Way {
    #[default]
    NotYetOpen,
    Open(Arc<File>),
    /// The host does not do that.
    None,
}

impl Direct {
    /// Writes what fills whole pages of the file past the cache. What shares a page with other bytes goes through the
    /// cache, so no page is written in both ways. False if nothing is written, as the host does not do that.
    pub fn write_at(&self, file: &File, bytes: &[u8], offset_bytes: u64) -> io::Result<bool> {
        let head = (offset_bytes.next_multiple_of(PAGE_BYTES as u64) - offset_bytes) as usize;
        let (head, rest) = bytes.split_at(head.min(bytes.len()));
        let (pages, tail) = rest.split_at(rest.len() / PAGE_BYTES * PAGE_BYTES);
        let pages_at = offset_bytes + head.len() as u64;
        let Some(direct) = self.open(file) else { return Ok(false) };
        match direct.write_all_at(aligned(&mut Vec::new(), pages), pages_at) {
            Err(error) if is_misaligned(&error) => {
                *self.0.lock() = Way::None;
                return Ok(false);
            }
            written => written?,
        }
        file.write_all_at(head, offset_bytes)?;
        file.write_all_at(tail, pages_at + pages.len() as u64)?;
        Ok(true)
    }

    /// Reads pages past the cache; fewer bytes only at the end of the file. Nothing if the host does not do that, or these are
    /// no whole pages.
    pub fn read_at(&self, file: &File, len_bytes: usize, offset_bytes: u64) -> io::Result<Option<Bytes>> {
        let is_aligned = len_bytes.is_multiple_of(PAGE_BYTES) && offset_bytes.is_multiple_of(PAGE_BYTES as u64);
        let Some(direct) = self.open(file).filter(|_| is_aligned) else { return Ok(None) };
        let mut memory: Vec<u8> = Vec::with_capacity(len_bytes + PAGE_BYTES);
        let start = memory.as_ptr().align_offset(PAGE_BYTES);
        memory.resize(start + len_bytes, 0);
        let mut end = start;
        // What ends within a page is the end of the file, and behind it a read would begin where none may.
        while end < memory.len() && (end - start).is_multiple_of(PAGE_BYTES) {
            match direct.read_at(&mut memory[end..], offset_bytes + (end - start) as u64) {
                Ok(0) => break,
                Ok(got) => end += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_misaligned(&error) => {
                    *self.0.lock() = Way::None;
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        memory.truncate(end);
        Ok(Some(Bytes::from(memory).slice(start..)))
    }

    /// Descriptors are scarce. The next write opens it again.
    pub fn close(&self) {
        let mut way = self.0.lock();
        if let Way::Open(_) = *way {
            *way = Way::NotYetOpen;
        }
    }

    fn open(&self, file: &File) -> Option<Arc<File>> {
        let mut way = self.0.lock();
        if let Way::NotYetOpen = *way {
            // By descriptor, as the name may be gone.
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let flags = OFlags::DIRECT.bits().cast_signed();
            let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
            *way = opened.map_or(Way::None, |file| Way::Open(Arc::new(file)));
        }
        if let Way::Open(file) = &*way { Some(Arc::clone(file)) } else { None }
    }
}

/// Whether the disk asks for another alignment.
fn is_misaligned(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::INVAL.raw_os_error())
}

/// The bytes, or a copy that begins where a page of memory begins, as the disk is to read them from there.
fn aligned<'a>(memory: &'a mut Vec<u8>, bytes: &'a [u8]) -> &'a [u8] {
    if bytes.as_ptr().align_offset(PAGE_BYTES) == 0 {
        return bytes;
    }
    memory.reserve_exact(bytes.len() + PAGE_BYTES);
    memory.resize(memory.as_ptr().align_offset(PAGE_BYTES), 0);
    let start = memory.len();
    memory.extend_from_slice(bytes);
    &memory[start..]
}
