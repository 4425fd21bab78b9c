//! Writes that their caller need not wait for.
//!
//! A program that writes a long file waits for each of its writes, and each is copied three times on its way: so while
//! one thread brings bytes into the host's cache, another can already take the next ones. Only long writes are worth
//! that; they wait here, in order, and every other call on the file comes after them.
//!
//! A write that fails stays where it is and is tried again by the next call, which tells of the error if it fails too.
//! So a sync that succeeds has all bytes behind it, and nothing else ever sees a file without them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use parking_lot::Mutex;
use phifs_core::disk::{File, Stamp};

/// Shorter writes are made at once.
const LONG_BYTES: usize = 128 << 10;
/// What may wait of one file, and of all.
const FILE_BYTES_MAX: usize = 8 << 20;
const ALL_BYTES_MAX: usize = 32 << 20;
const SPARE_BUFFERS: usize = 8;

/// The thread that writes, and what all files share. The thread ends after the last of them.
#[derive(Clone)]
pub struct Writer {
    files: Sender<Arc<Inner>>,
    memory: Arc<Memory>,
}

#[derive(Default)]
struct Memory {
    waiting_bytes: AtomicUsize,
    spare: Mutex<Vec<Vec<u8>>>,
}

impl Memory {
    /// A copy of these bytes, unless too many wait already.
    fn hold(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let add = |waiting: usize| (waiting + bytes.len() <= ALL_BYTES_MAX).then_some(waiting + bytes.len());
        self.waiting_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        let mut buffer = self.spare.lock().pop().unwrap_or_default();
        buffer.extend_from_slice(bytes);
        Some(buffer)
    }

    fn release(&self, mut buffer: Vec<u8>) {
        self.waiting_bytes.fetch_sub(buffer.len(), Ordering::Relaxed);
        buffer.clear();
        let mut spare = self.spare.lock();
        if spare.len() < SPARE_BUFFERS {
            spare.push(buffer);
        }
    }
}

impl Writer {
    pub fn start() -> io::Result<Self> {
        let (files, written) = channel();
        thread::Builder::new().name("phifs-write".to_owned()).spawn(move || run(&written))?;
        Ok(Self { files, memory: Arc::default() })
    }

    pub fn file(&self, file: Arc<dyn File>) -> WriteBehind {
        let inner = Inner { file, memory: self.memory.clone(), queue: Mutex::default(), io: Mutex::new(()) };
        WriteBehind { inner: Arc::new(inner), files: self.files.clone() }
    }
}

fn run(files: &Receiver<Arc<Inner>>) {
    for file in files {
        if let Err(error) = file.drain() {
            tracing::warn!(%error, "a staging file could not be written; it is tried again");
        }
    }
}

/// A file whose long writes are made by another thread.
pub struct WriteBehind {
    inner: Arc<Inner>,
    files: Sender<Arc<Inner>>,
}

struct Inner {
    file: Arc<dyn File>,
    memory: Arc<Memory>,
    queue: Mutex<Queue>,
    /// Held while the queue is worked off, and locked before it.
    io: Mutex<()>,
}

#[derive(Default)]
struct Queue {
    work: VecDeque<Work>,
    waiting_bytes: usize,
}

enum Work {
    Write { bytes: Vec<u8>, offset_bytes: u64 },
    BeginWriteback { offset_bytes: u64, len_bytes: u64 },
}

impl Inner {
    /// Makes all writes that wait.
    fn drain(&self) -> io::Result<()> {
        let _io = self.io.lock();
        loop {
            let Some(work) = self.queue.lock().work.pop_front() else { return Ok(()) };
            let failed = match &work {
                Work::Write { bytes, offset_bytes } => self.file.write_at(bytes, *offset_bytes).err(),
                Work::BeginWriteback { offset_bytes, len_bytes } => {
                    self.file.begin_writeback(*offset_bytes, *len_bytes);
                    None
                }
            };
            if let Some(error) = failed {
                self.queue.lock().work.push_front(work);
                return Err(error);
            }
            self.release(work);
        }
    }

    /// Forgets all writes that wait.
    fn discard(&self) {
        let _io = self.io.lock();
        let work = std::mem::take(&mut self.queue.lock().work);
        work.into_iter().for_each(|work| self.release(work));
    }

    fn release(&self, work: Work) {
        if let Work::Write { bytes, .. } = work {
            self.queue.lock().waiting_bytes -= bytes.len();
            self.memory.release(bytes);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.discard();
    }
}

impl WriteBehind {
    /// The file, with all writes made.
    fn drained(&self) -> io::Result<&dyn File> {
        self.inner.drain()?;
        Ok(&*self.inner.file)
    }

    /// Leaves the work to the other thread, if it fits.
    fn enqueue(&self, bytes: &[u8], offset_bytes: u64) -> bool {
        if self.inner.queue.lock().waiting_bytes + bytes.len() > FILE_BYTES_MAX {
            return false;
        }
        let Some(bytes) = self.inner.memory.hold(bytes) else { return false };
        let mut queue = self.inner.queue.lock();
        queue.waiting_bytes += bytes.len();
        queue.work.push_back(Work::Write { bytes, offset_bytes });
        drop(queue);
        // If the thread is gone, the next call does its work.
        let _ = self.files.send(self.inner.clone());
        true
    }
}

impl File for WriteBehind {
    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> io::Result<()> {
        if buf.len() >= LONG_BYTES && self.enqueue(buf, offset_bytes) {
            return Ok(());
        }
        self.drained()?.write_at(buf, offset_bytes)
    }

    fn begin_writeback(&self, offset_bytes: u64, len_bytes: u64) {
        let mut queue = self.inner.queue.lock();
        if queue.work.is_empty() {
            drop(queue);
            self.inner.file.begin_writeback(offset_bytes, len_bytes);
        } else {
            queue.work.push_back(Work::BeginWriteback { offset_bytes, len_bytes });
        }
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        if len_bytes == 0 {
            self.inner.discard();
        }
        self.drained()?.set_len(len_bytes)
    }

    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<usize> {
        self.drained()?.read_at(buf, offset_bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.drained()?.sync()
    }

    fn forget(&self, offset_bytes: u64, len_bytes: u64) {
        self.inner.file.forget(offset_bytes, len_bytes);
    }

    fn stamp(&self) -> io::Result<Stamp> {
        self.drained()?.stamp()
    }

    fn allocate(&self, offset_bytes: u64, len_bytes: u64, keep_len: bool) -> io::Result<()> {
        self.drained()?.allocate(offset_bytes, len_bytes, keep_len)
    }

    fn punch_hole(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        self.drained()?.punch_hole(offset_bytes, len_bytes)
    }

    fn seek_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        self.drained()?.seek_data(offset_bytes)
    }

    fn seek_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        self.drained()?.seek_hole(offset_bytes)
    }

    fn has_writers(&self) -> io::Result<bool> {
        self.inner.file.has_writers()
    }

    /// Whoever writes through the descriptor comes after all writes made here so far; if they cannot be made, nobody
    /// gets it.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.drained().ok()?.fd()
    }
}

#[cfg(test)]
mod tests {
    use phifs_core::disk::{Disk, FileName, MemDisk};

    use super::*;

    fn file_on(disk: &MemDisk) -> (WriteBehind, Arc<dyn File>) {
        let file = disk.create(FileName::Staging(1)).unwrap();
        (Writer::start().unwrap().file(file.clone()), file)
    }

    /// A file with a long write behind it for which there is no room; the file below it; and the one that has the room.
    fn waiting_on_a_full_disk() -> (WriteBehind, Arc<dyn File>, Arc<dyn File>) {
        let disk = MemDisk::with_capacity(1 << 20);
        let (behind, file) = file_on(&disk);
        let other = disk.create(FileName::Staging(2)).unwrap();
        other.write_at(&[1; 1 << 20], 0).unwrap();
        behind.write_at(&[7; LONG_BYTES], 0).unwrap();
        (behind, file, other)
    }

    #[test]
    fn every_call_comes_after_the_writes_before_it() {
        let mut rng = fastrand::Rng::with_seed(1);
        let (behind, plain) = (MemDisk::new(), MemDisk::new());
        let ((behind, _), plain) = (file_on(&behind), plain.create(FileName::Staging(1)).unwrap());
        for round in 0..2000 {
            let at = rng.u64(..4 << 20);
            match rng.u8(..10) {
                0..6 => {
                    let bytes = vec![rng.u8(..); if rng.bool() { rng.usize(..300 << 10) } else { rng.usize(..100) }];
                    behind.write_at(&bytes, at).unwrap();
                    plain.write_at(&bytes, at).unwrap();
                }
                6 => {
                    let len = if rng.bool() { 0 } else { at };
                    behind.set_len(len).unwrap();
                    plain.set_len(len).unwrap();
                }
                7 => assert_eq!(behind.stamp().unwrap().len_bytes, plain.stamp().unwrap().len_bytes),
                8 => behind.punch_hole(at, 5000).and_then(|()| plain.punch_hole(at, 5000)).unwrap(),
                _ => {
                    let (mut found, mut wanted) = ([0; 5000], [0; 5000]);
                    assert_eq!(behind.read_at(&mut found, at).unwrap(), plain.read_at(&mut wanted, at).unwrap());
                    assert!(found == wanted, "round {round}");
                }
            }
        }
    }

    #[test]
    fn failed_write_is_told_by_the_next_call_and_made_when_there_is_room_again() {
        let (behind, file, other) = waiting_on_a_full_disk();
        assert_eq!(behind.sync().unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(behind.read_at(&mut [0; 1], 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(behind.fd().is_none());
        other.set_len(0).unwrap();
        behind.sync().unwrap();
        let mut found = vec![0; LONG_BYTES];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == [7; LONG_BYTES]);
    }

    #[test]
    fn emptied_file_needs_none_of_its_writes() {
        let (behind, _, _) = waiting_on_a_full_disk();
        behind.set_len(0).unwrap();
        behind.sync().unwrap();
        assert_eq!(behind.inner.memory.waiting_bytes.load(Ordering::Relaxed), 0);
    }
}
