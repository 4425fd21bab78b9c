//! The files of the journal: which one is written, which are free, and when there are more or fewer of them.
//!
//! Segments are filled with zeroes once and then overwritten for ever, since a commit into a growing file costs about
//! twice as much. What always holds:
//!
//! - A segment is free only when nothing in it is needed: all its records are before a checkpoint, or were dropped.
//! - A group is written only when there is room for all of it, so a full disk never leaves half a group behind.
//! - Groups leave the last sector of each segment alone. It is for the mark that recovery may have to write, which must
//!   not fail for lack of room.
//! - Locks are taken in the order writer, growth, pool, and the pool is never held during I/O.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::format::{BATCH_HEADER, BatchHeader, Place, SECTOR, encode_batch, encode_segment_header};
use super::{Geometry, JournalError, Lsn};
use crate::disk::{Disk, File, FileName};
use crate::meta::superblock::StoreId;

pub(super) struct Segment {
    pub number: u32,
    pub file: Arc<dyn File>,
}

/// The segment being written.
pub(super) struct Current {
    pub segment: Segment,
    pub cursor_bytes: usize,
    /// Where the last batch in it ends.
    pub last: Lsn,
}

/// What recovery found, sorted by use.
#[derive(Default)]
pub(super) struct Layout {
    pub current: Option<Current>,
    /// Each with the end of its last batch.
    pub used: Vec<(Segment, Lsn)>,
    pub free: Vec<Segment>,
    /// Larger than the number of any segment there is.
    pub next_number: u32,
}

pub(super) struct Segments {
    disk: Arc<dyn Disk>,
    store: StoreId,
    geometry: Geometry,
    epoch: u32,
    opened: Lsn,
    writer: Mutex<Writer>,
    /// The number of the next new segment. Held while one is made, so that growing happens once.
    growth: Mutex<u32>,
    pool: Mutex<Pool>,
    syncs: AtomicU64,
}

struct Writer {
    current: Option<Current>,
    /// Kept for its capacity.
    batch: Vec<u8>,
}

struct Pool {
    used: Vec<(Segment, Lsn)>,
    free: Vec<Segment>,
    /// All segments, the current one included.
    total: u32,
    /// How many were taken into use since the last `recycle`.
    taken: u32,
}

impl Segments {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        store: StoreId,
        geometry: Geometry,
        epoch: u32,
        opened: Lsn,
        layout: Layout,
    ) -> Result<Self, JournalError> {
        let Layout { current, used, free, next_number } = layout;
        let total = (used.len() + free.len() + usize::from(current.is_some())) as u32;
        let segments = Self {
            disk,
            store,
            geometry,
            epoch,
            opened,
            writer: Mutex::new(Writer { current, batch: Vec::new() }),
            growth: Mutex::new(next_number),
            pool: Mutex::new(Pool { used, free, total, taken: 0 }),
            syncs: AtomicU64::new(0),
        };
        while segments.pool.lock().total < geometry.segments_min {
            match segments.grow() {
                // What there is allows reading, and the deletes that make room.
                Err(JournalError::Full) if segments.pool.lock().total > 0 => break,
                grown => grown?,
            }
        }
        Ok(segments)
    }

    /// Writes and syncs one group: in one write and one sync, or one more of each for every segment it enters.
    ///
    /// # Errors
    /// `Full` when there is no room and none can be made; nothing was written then. After any other error part of the
    /// group may be on disk.
    pub(super) fn write_group(&self, start: Lsn, group: &[u8]) -> Result<(), JournalError> {
        let Writer { current, batch } = &mut *self.writer.lock();
        let room = current.as_ref().map_or(0, |current| self.room_bytes(current.cursor_bytes));
        let count = group.len().saturating_sub(room).div_ceil(self.room_bytes(SECTOR));
        let mut fresh = self.take(count)?.into_iter();
        let mut touched = Vec::with_capacity(count + 1);
        let (mut rest, mut at) = (group, start);
        while !rest.is_empty() {
            let room = current.as_ref().map_or(0, |current| self.room_bytes(current.cursor_bytes));
            if room == 0 {
                self.enter(current, fresh.next().expect("as many were taken as the group needs"), at);
                continue;
            }
            let current = current.as_mut().expect("it has room");
            let (body, behind) = rest.split_at(rest.len().min(room));
            touched.push(self.write_batch(current, batch, at, start, body)?);
            (rest, at) = (behind, current.last);
        }
        touched.into_iter().try_for_each(|file| self.sync(&*file))
    }

    /// Notes on disk, by an empty batch, that this epoch began at `opened`.
    ///
    /// # Errors
    /// Those of the disk. There is room: the last sector of the current segment, or a segment that recovery freed.
    pub(super) fn write_mark(&self) -> Result<(), JournalError> {
        let Writer { current, batch } = &mut *self.writer.lock();
        let fits = |current: &Current| current.cursor_bytes + SECTOR <= self.geometry.segment_bytes as usize;
        if !current.as_ref().is_some_and(fits) {
            self.take(1)?.into_iter().for_each(|segment| self.enter(current, segment, self.opened));
        }
        let current = current.as_mut().expect("it has room");
        let file = self.write_batch(current, batch, self.opened, self.opened, &[])?;
        self.sync(&*file)
    }

    fn enter(&self, current: &mut Option<Current>, segment: Segment, at: Lsn) {
        let entered = Current { segment, cursor_bytes: SECTOR, last: at };
        if let Some(Current { segment, last, .. }) = current.replace(entered) {
            self.pool.lock().used.push((segment, last));
        }
    }

    /// Returns the file that is now to be synced.
    fn write_batch(
        &self,
        current: &mut Current,
        batch: &mut Vec<u8>,
        start: Lsn,
        synced: Lsn,
        body: &[u8],
    ) -> Result<Arc<dyn File>, JournalError> {
        let place = Place { segment: current.segment.number, offset_bytes: current.cursor_bytes as u32 };
        let (epoch, opened, body_bytes) = (self.epoch, self.opened, body.len() as u32);
        let header = BatchHeader { epoch, opened, start, synced, body_bytes };
        encode_batch(batch, self.store, place, &header, body);
        current.segment.file.write_at(batch, current.cursor_bytes as u64).map_err(failed("writing the journal"))?;
        current.cursor_bytes += batch.len();
        current.last = header.end();
        Ok(current.segment.file.clone())
    }

    fn sync(&self, file: &dyn File) -> Result<(), JournalError> {
        file.sync().map_err(failed("syncing the journal"))?;
        self.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// How many bytes of the stream fit behind the cursor, in front of the last sector.
    fn room_bytes(&self, cursor_bytes: usize) -> usize {
        (self.geometry.segment_bytes as usize).saturating_sub(cursor_bytes + BATCH_HEADER + SECTOR)
    }

    fn take(&self, count: usize) -> Result<Vec<Segment>, JournalError> {
        loop {
            let mut pool = self.pool.lock();
            if let Some(keep) = pool.free.len().checked_sub(count) {
                pool.taken += count as u32;
                return Ok(pool.free.split_off(keep));
            }
            let wanted = pool.total + (count - pool.free.len()) as u32;
            drop(pool);
            if wanted > self.geometry.segments_max {
                return Err(JournalError::Full);
            }
            self.grow_to(count)?;
        }
    }

    /// Makes segments ahead of need: when none is free, as many as there are, so that their number doubles.
    pub(super) fn prepare(&self) -> Result<(), JournalError> {
        let pool = self.pool.lock();
        let target = if pool.free.is_empty() {
            pool.total.min(self.geometry.segments_max.saturating_sub(pool.total))
        } else {
            0
        };
        drop(pool);
        for count in 1..=target as usize {
            match self.grow_to(count) {
                Err(JournalError::Full) if count > 1 => return Ok(()),
                grown => grown?,
            }
        }
        Ok(())
    }

    /// Makes one segment unless `count` are free by now.
    fn grow_to(&self, count: usize) -> Result<(), JournalError> {
        let next_number = self.growth.lock();
        let pool = self.pool.lock();
        let (enough, at_limit) = (pool.free.len() >= count, pool.total >= self.geometry.segments_max);
        drop(pool);
        match (enough, at_limit) {
            (true, _) => Ok(()),
            (false, true) => Err(JournalError::Full),
            (false, false) => self.make(next_number),
        }
    }

    fn grow(&self) -> Result<(), JournalError> {
        self.make(self.growth.lock())
    }

    fn make(&self, mut next_number: parking_lot::MutexGuard<'_, u32>) -> Result<(), JournalError> {
        let number = *next_number;
        *next_number += 1;
        let file = self.fill(number).map_err(|source| {
            // Half a segment is worthless; should removing it fail too, the next start does it.
            let _ = self.disk.remove(FileName::Journal(number));
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => JournalError::Full,
                _ => JournalError::Disk { doing: "making a journal segment", source },
            }
        })?;
        let mut pool = self.pool.lock();
        pool.free.push(Segment { number, file });
        pool.total += 1;
        Ok(())
    }

    fn fill(&self, number: u32) -> io::Result<Arc<dyn File>> {
        const STEP: usize = 128 << 10;
        let file = self.disk.create(FileName::Journal(number))?;
        let len = self.geometry.segment_bytes as usize;
        let zeroes = vec![0; STEP.min(len)];
        for at in (0..len).step_by(STEP) {
            file.write_at(&zeroes[..STEP.min(len - at)], at as u64)?;
        }
        file.write_at(&encode_segment_header(self.store), 0)?;
        file.sync()?;
        self.disk.sync_names()?;
        Ok(file)
    }

    /// Frees the segments whose records all end at or before `upto`, and removes those that the last two checkpoints'
    /// worth of records would not have needed.
    pub(super) fn recycle(&self, upto: Lsn) -> Result<(), JournalError> {
        let mut pool = self.pool.lock();
        let (done, used) = std::mem::take(&mut pool.used).into_iter().partition(|(_, last)| *last <= upto);
        pool.used = used;
        let done: Vec<(Segment, Lsn)> = done;
        pool.free.extend(done.into_iter().map(|(segment, _)| segment));
        let keep = self.geometry.segments_min.max(2 * std::mem::take(&mut pool.taken) + 2);
        let surplus = (pool.total.saturating_sub(keep) as usize).min(pool.free.len().saturating_sub(1));
        pool.total -= surplus as u32;
        // Without a sync of names one may come back after a power loss. It holds nothing after the checkpoint.
        let given_back = pool.free.drain(..surplus).collect::<Vec<_>>();
        drop(pool);
        for segment in given_back {
            self.disk.remove(FileName::Journal(segment.number)).map_err(failed("removing a journal segment"))?;
        }
        Ok(())
    }

    pub(super) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    pub(super) fn total(&self) -> u32 {
        self.pool.lock().total
    }
}

pub(super) fn failed(doing: &'static str) -> impl FnOnce(io::Error) -> JournalError {
    move |source| JournalError::Disk { doing, source }
}

// A cursor moves by whole sectors, so a segment of whole sectors has room for a header and some body, or for nothing.
const _: () = assert!(BATCH_HEADER < SECTOR);
