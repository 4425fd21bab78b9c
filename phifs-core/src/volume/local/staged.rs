//! The mutable bytes of files that were written and not published yet.
//!
//! A small file is staged in memory of this process. It moves to a staging file on the disk when it grows long or
//! memory is short; long files start there. Some of those are handed to the kernel, which then writes to them by
//! itself; of all others every change is made here, and known.
//!
//! What always holds:
//! - Bytes in memory alone are no older than the last tick, which makes them durable. Whoever is promised more (fsync)
//!   waits for the journal.
//! - Records (see `records`) are made for bytes that are durable once the record is: those in the record itself, and
//!   those that were in a staging file when it was synced, before the record was made. One exception: a new file that
//!   is handed to the kernel has a record from the start, which takes whatever is in the staging file.
//! - While the kernel serves a handle through which it may sync by itself, a durable record takes whatever is in the
//!   staging file.
//! - The operation that publishes a file removes its records in the same transaction. So what a crash leaves is either
//!   newer than the version, or not there.
//! - A file that was handed to the kernel has no deltas: what the kernel wrote and synced by itself is newer. Nor is a
//!   staging file cut short while deltas lie over it as it was: they would come back over the hole.
//! - A number is given out only if neither a file on the disk nor a record in the journal has it, and a file is removed
//!   only after the transaction that made it superfluous is durable. So a record can never name a file that meanwhile
//!   serves another inode.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::content::Content;
use crate::content::overlay::Overlay;
use crate::content::ranges::RangeSet;
use crate::disk::{Disk, File, FileName, MemDisk, Stamp};
use crate::meta::Lsn;
use crate::time::Timestamp;

use super::records::{self, BYTES_MAX, Base, DELTA_BYTES_MAX, Delta, Records, Staged, WRITE_OVERHEAD_BYTES};

/// A file longer than this is not staged in memory.
pub const MEMORY_BYTES_MAX: u64 = 256 << 10;
/// A synced file up to this length goes to the journal as a whole, which costs one flush.
pub const JOURNAL_BYTES_MAX: u64 = records::BYTES_MAX as u64;
/// What all deltas over one base may hold: to replay more than that takes longer than to sync the file now and then.
const DELTAS_BYTES_MAX: u64 = 1 << 20;
const STREAM_BYTES: u64 = 8 << 20;
/// A file that is written all the time is published after this many times the interval.
const RESTLESS_INTERVALS: u32 = 10;

/// The staged bytes of one inode and what is known of them.
pub struct Staging {
    /// Tells this staging from all others, and names its file if that is on the disk.
    pub number: u64,
    pub file: Arc<dyn File>,
    pub in_memory: bool,
    pub overlay: Overlay,
    /// When it became this inode's. The host's clock may tick later than ours; times shown are never before this.
    pub since: Timestamp,
    pub mtime: Timestamp,
    /// When the bytes changed last.
    pub changed: Timestamp,
    pub dirty: bool,
    /// When its bytes were published last while it stayed open, or that was tried, or it was made.
    pub tried_at: Timestamp,
    /// Goes up with every change of the bytes.
    pub generation: u64,
    /// Its bytes were found when the volume was opened; a crash had kept them from being published.
    pub recovered: bool,
    pub records: Records,
    /// The generation that the records stand for, if they were made since it was published.
    pub recorded: Option<u64>,
    /// The generation that was published last.
    pub published: Option<u64>,
    /// What was written since the records were made; `None` if that is not known, or much.
    unrecorded: Option<Unrecorded>,
    /// What was written in sequence and is not on its way to the disk yet.
    streamed: Range<u64>,
    /// Staging files that this one replaced and that a record may still name.
    replaced: Vec<u64>,
    /// The kernel has it, and may write to it by itself.
    handed: bool,
    /// The time was set since it was recorded.
    time_is_set: bool,
    stamp: Stamp,
}

#[derive(Default)]
struct Unrecorded {
    ranges: RangeSet,
    /// What they take in a record, at the most: they may overlap.
    bytes: u64,
}

/// A change of the bytes made through here.
pub enum Change {
    Written(Range<u64>),
    Other,
}

/// How the bytes as they are now become durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recording {
    /// All of them go to the journal.
    Bytes,
    /// What was written since the last time goes there.
    Delta,
    /// The staging file is synced.
    File,
}

impl Staging {
    pub fn new(place: Place, overlay: Overlay, now: Timestamp, mtime: Timestamp) -> std::io::Result<Self> {
        let Place { number, file, in_memory } = place;
        let stamp = file.stamp()?;
        Ok(Self {
            number,
            file,
            in_memory,
            overlay,
            since: now,
            mtime,
            changed: now,
            dirty: false,
            tried_at: now,
            generation: 0,
            recovered: false,
            records: Records::default(),
            recorded: None,
            published: None,
            unrecorded: Some(Unrecorded::default()),
            streamed: 0..0,
            replaced: Vec::new(),
            handed: false,
            time_is_set: false,
            stamp,
        })
    }

    /// From now on the kernel reads the file, and may write to it.
    pub fn hand_over(&mut self) -> std::io::Result<()> {
        let is_whole = !self.in_memory && self.overlay.is_whole();
        assert!(is_whole && !self.records.has_deltas(), "it is safe in the kernel's hands");
        if !self.handed {
            self.stamp = self.file.stamp()?;
            self.handed = true;
        }
        Ok(())
    }

    /// As `hand_over`, for a new file. Gives the record that takes whatever the kernel makes of it.
    pub fn hand_over_new(&mut self) -> std::io::Result<Staged> {
        self.hand_over()?;
        self.records = Records::of_new_file();
        self.record()
    }

    pub fn is_handed(&self) -> bool {
        self.handed
    }

    /// Learns what the kernel did to the file by itself.
    pub fn observe(&mut self) -> std::io::Result<()> {
        if !self.handed {
            return Ok(());
        }
        let stamp = self.file.stamp()?;
        if (stamp.len_bytes, stamp.mtime) != (self.stamp.len_bytes, self.stamp.mtime) {
            // Which bytes changed is not known, so the file counts as new from end to end.
            self.overlay = Overlay::whole(stamp.len_bytes);
            self.changed = stamp.mtime.max(self.since);
            self.mtime = self.changed;
            self.dirty = true;
            self.generation += 1;
            self.unrecorded = None;
            self.stamp = stamp;
        }
        Ok(())
    }

    /// Notes a change made through here, at `now`.
    pub fn changed(&mut self, change: Change, now: Timestamp) -> std::io::Result<()> {
        self.changed = now.max(self.since);
        self.mtime = self.changed;
        self.dirty = true;
        self.generation += 1;
        if let Change::Written(range) = &change
            && !self.in_memory
        {
            self.stream(range);
        }
        self.unrecorded = match (change, self.unrecorded.take()) {
            (Change::Written(range), Some(mut unrecorded)) => {
                unrecorded.bytes += range.end - range.start + WRITE_OVERHEAD_BYTES;
                unrecorded.ranges.insert(range);
                (unrecorded.bytes <= DELTA_BYTES_MAX).then_some(unrecorded)
            }
            _ => None,
        };
        self.restamp()
    }

    /// What is written in one go is on its way to the disk before somebody waits for it.
    fn stream(&mut self, written: &Range<u64>) {
        let start = if written.start == self.streamed.end { self.streamed.start } else { written.start };
        self.streamed = start..written.end;
        if written.end - start >= STREAM_BYTES {
            self.file.begin_writeback(start, written.end - start);
            self.streamed.start = written.end;
        }
    }

    /// A change failed halfway: which bytes it changed is not known.
    pub fn change_failed(&mut self) {
        self.unrecorded = None;
    }

    /// Accepts the file as it is now for what is known of it.
    pub fn restamp(&mut self) -> std::io::Result<()> {
        if self.handed {
            self.stamp = self.file.stamp()?;
        }
        Ok(())
    }

    /// Moves to another place, which holds what `overlay` says. The old file can go once no record names it; `appended`
    /// is how far the journal goes now.
    pub fn move_to(&mut self, place: Place, pool: &StagingPool, appended: Lsn) {
        assert!(!self.handed, "the kernel knows the old place");
        let old = (!self.in_memory).then_some(self.number);
        (self.number, self.file, self.in_memory) = (place.number, place.file, place.in_memory);
        if self.records.name_a_file() {
            self.replaced.extend(old);
        } else if let Some(old) = old {
            pool.retire(old, appended);
        }
        self.records.file_replaced();
    }

    /// Whether a file that stays open should be published: its bytes have rested for the `interval`, or have not been
    /// published for long. To chunk what changes meanwhile is work for nothing.
    pub fn is_due(&self, now: Timestamp, interval: Duration) -> bool {
        let passed =
            |since: Timestamp, interval: Duration| now.millis() >= since.millis() + interval.as_millis() as u64;
        self.dirty
            && passed(self.tried_at, interval)
            && (passed(self.changed, interval) || passed(self.tried_at, interval * RESTLESS_INTERVALS))
    }

    /// Whether the bytes as they are now are in the journal, once that is synced, or published.
    pub fn is_recorded(&self) -> bool {
        !self.dirty || self.recorded == Some(self.generation)
    }

    /// `rebase`: not by one more delta.
    pub fn recording(&self, rebase: bool) -> Recording {
        let deltas_bytes = self.records.deltas_bytes();
        let is_delta = self.records.base() != Base::None
            && !rebase
            && self.unrecorded.as_ref().is_some_and(|known| deltas_bytes + known.bytes <= DELTAS_BYTES_MAX);
        if self.handed {
            // Only the sync makes the pages of a mapping read-only, so that the next store through it leaves a trace.
            Recording::File
        } else if self.overlay.len_bytes() <= JOURNAL_BYTES_MAX {
            Recording::Bytes
        } else if is_delta {
            Recording::Delta
        } else if self.in_memory {
            Recording::Bytes
        } else {
            Recording::File
        }
    }

    /// All bytes, as a base and deltas over it.
    pub fn bytes(&self) -> std::io::Result<(Staged, Vec<Delta>)> {
        let mut bytes = vec![0; self.overlay.len_bytes() as usize];
        self.file.read_exact_at(&mut bytes, 0)?;
        let mtime = self.mtime;
        let rest = bytes.split_off(bytes.len().min(BYTES_MAX));
        let parts = (BYTES_MAX as u64..).step_by(BYTES_MAX).zip(rest.chunks(BYTES_MAX));
        let deltas = parts.map(|(at, part)| Delta { mtime, writes: vec![(at, part.to_vec())] }).collect();
        Ok((Staged::Bytes { bytes, mtime }, deltas))
    }

    /// What was written since the records were made.
    pub fn delta(&self) -> std::io::Result<Delta> {
        let mut writes = Vec::new();
        for range in self.unrecorded.iter().flat_map(|known| known.ranges.iter()) {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            self.file.read_exact_at(&mut bytes, range.start)?;
            writes.push((range.start, bytes));
        }
        Ok(Delta { mtime: self.mtime, writes })
    }

    /// The records now stand for this generation and time.
    pub fn recorded(&mut self, generation: u64, mtime: Timestamp) {
        let is_latest = generation == self.generation && mtime == self.mtime;
        self.recorded = (mtime == self.mtime).then_some(generation);
        // What was written since stays noted with what was written before: it does no harm to record that twice.
        if is_latest {
            self.unrecorded = Some(Unrecorded::default());
            self.time_is_set = false;
        }
    }

    /// The time was set: the next fsync makes it durable too.
    pub fn set_mtime(&mut self, mtime: Timestamp) {
        self.mtime = mtime;
        self.recorded = None;
        self.time_is_set = true;
    }

    /// Whether the records, as they are, name the staging file with whatever is in it.
    pub fn is_recorded_whole(&self) -> bool {
        self.records.are_of_all() && !self.time_is_set && self.is_all_there_is()
    }

    /// Notes that all bytes are in this version. Its publication removed the records, or (`kept`) left one that names
    /// the whole staging file.
    pub fn published(&mut self, content: Content, now: Timestamp, kept: bool, lsn: Lsn) {
        self.overlay.published(content);
        self.dirty = false;
        self.tried_at = now;
        self.recovered = false;
        self.recorded = None;
        self.time_is_set = false;
        self.records.replaced(if kept { Base::WholeFile } else { Base::None }, lsn);
        self.unrecorded = Some(Unrecorded::default());
        self.published = Some(self.generation);
    }

    /// The records have just been replaced: files that only the old ones named can go once the journal is durable up
    /// to `lsn`.
    pub fn retire_replaced(&mut self, pool: &StagingPool, lsn: Lsn) {
        for number in self.replaced.drain(..) {
            pool.retire(number, lsn);
        }
    }

    /// Nothing needs these bytes any more once the journal is durable up to `lsn`.
    pub fn retire(mut self, pool: &StagingPool, lsn: Lsn) {
        self.retire_replaced(pool, lsn);
        let Self { number, file, in_memory, .. } = self;
        pool.give_back(&Place { number, file, in_memory }, lsn);
    }

    /// Whether the file is what the staging file holds, whatever that is: it started empty, or the kernel may write to
    /// it.
    pub fn is_all_there_is(&self) -> bool {
        self.handed || *self.overlay.base() == Content::Empty
    }

    /// The record that fits the staging file as it is; of one that is all there is, whatever becomes of it.
    pub fn record(&self) -> std::io::Result<Staged> {
        let stamp = if self.handed { self.stamp } else { self.file.stamp()? };
        let overlay =
            if self.is_all_there_is() { Overlay::whole(self.overlay.len_bytes()) } else { self.overlay.clone() };
        Ok(Staged::File { number: self.number, overlay, mtime: self.mtime, host_mtime: stamp.mtime })
    }
}

/// Where bytes are staged.
#[derive(Clone)]
pub struct Place {
    pub number: u64,
    pub file: Arc<dyn File>,
    pub in_memory: bool,
}

/// How many staging files are kept ready, so that making a file does not wait for the host to make one.
const POOL: usize = 32;

/// Hands out places for bytes, and takes staging files back.
pub struct StagingPool {
    disk: Arc<dyn Disk>,
    /// As large as all that may be staged in memory.
    memory: MemDisk,
    inner: Mutex<Pool>,
}

struct Pool {
    next: u64,
    /// Names of files with a smaller number are durable.
    named: u64,
    ready: VecDeque<(u64, Arc<dyn File>)>,
    /// To be removed once the journal is durable up to the LSN.
    retired: VecDeque<(Lsn, u64)>,
}

impl StagingPool {
    /// `next` is larger than the number of any staging file there is.
    pub fn new(disk: Arc<dyn Disk>, next: u64, memory_bytes: u64) -> Self {
        let inner = Pool { next, named: next, ready: VecDeque::new(), retired: VecDeque::new() };
        Self { disk, memory: MemDisk::with_capacity(memory_bytes), inner: Mutex::new(inner) }
    }

    /// A place for bytes of which there are few, at least for now: in memory, if that is not short.
    pub fn take_short(&self) -> std::io::Result<Place> {
        if self.memory.space()?.free_bytes < MEMORY_BYTES_MAX {
            return self.take_file();
        }
        let mut inner = self.inner.lock();
        inner.next += 1;
        Ok(Place { number: inner.next - 1, file: self.memory.create_unnamed(), in_memory: true })
    }

    /// Whether more than half of the memory is in use.
    pub fn memory_is_short(&self) -> bool {
        self.memory.space().is_ok_and(|space| space.free_bytes < space.total_bytes / 2)
    }

    /// An empty file on the disk. Its name is durable only after `name_is_durable`.
    pub fn take_file(&self) -> std::io::Result<Place> {
        let ready = self.inner.lock().ready.pop_front();
        let (number, file) = ready.map_or_else(|| self.make(), Ok)?;
        Ok(Place { number, file, in_memory: false })
    }

    /// Whether few files are ready.
    pub fn is_low(&self) -> bool {
        self.inner.lock().ready.len() < POOL / 2
    }

    /// Whether the name of a staging file is known to be durable.
    pub fn is_named(&self, number: u64) -> bool {
        number < self.inner.lock().named
    }

    /// Makes the name of a staging file durable, if it is not yet.
    pub fn name_is_durable(&self, number: u64) -> std::io::Result<()> {
        let next = {
            let inner = self.inner.lock();
            if number < inner.named {
                return Ok(());
            }
            inner.next
        };
        self.disk.sync_names()?;
        let mut inner = self.inner.lock();
        inner.named = inner.named.max(next);
        Ok(())
    }

    fn make(&self) -> std::io::Result<(u64, Arc<dyn File>)> {
        // Made under the lock, so that all below `next` are there when `name_is_durable` syncs their names.
        let mut inner = self.inner.lock();
        inner.next += 1;
        let number = inner.next - 1;
        Ok((number, self.disk.create(FileName::Staging(number))?))
    }

    /// Nothing needs this place any more once the journal is durable up to `after`. Memory goes with its last user.
    pub fn give_back(&self, place: &Place, after: Lsn) {
        if !place.in_memory {
            self.retire(place.number, after);
        }
    }

    pub fn retire(&self, number: u64, after: Lsn) {
        self.inner.lock().retired.push_back((after, number));
    }

    /// Background work: removes what is superfluous, this many files at the most.
    pub fn maintain(&self, committed: Lsn, files_max: usize) -> std::io::Result<()> {
        for _ in 0..files_max {
            // Taken out first: several threads do this, and none may take out what another is still removing.
            let next = {
                let retired = &mut self.inner.lock().retired;
                let is_due = retired.front().is_some_and(|(lsn, _)| *lsn <= committed);
                if is_due { retired.pop_front() } else { None }
            };
            let Some((lsn, number)) = next else { return Ok(()) };
            match self.disk.remove(FileName::Staging(number)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    self.inner.lock().retired.push_front((lsn, number));
                    return Err(e);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Background work: makes files ready, a few at a time.
    pub fn refill(&self) -> std::io::Result<()> {
        for _ in 0..POOL / 4 {
            let made = self.make()?;
            self.inner.lock().ready.push_back(made);
        }
        Ok(())
    }

    /// Gives back what was kept ready, for a clean stop.
    pub fn drain(&self) -> std::io::Result<()> {
        let mut inner = self.inner.lock();
        let ready: Vec<u64> = inner.ready.drain(..).map(|(number, _)| number).collect();
        let retired: Vec<u64> = inner.retired.drain(..).map(|(_, number)| number).collect();
        drop(inner);
        for number in ready.into_iter().chain(retired) {
            match self.disk.remove(FileName::Staging(number)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemDisk;

    #[test]
    fn file_that_is_written_all_the_time_is_published_late() {
        let at = |millis: u64| Timestamp::new((millis / 1000) as i64, (millis % 1000) as u32 * 1_000_000);
        let interval = Duration::from_secs(1);
        let pool = StagingPool::new(Arc::new(MemDisk::new()), 1, 1 << 20);
        let mut staging = Staging::new(pool.take_short().unwrap(), Overlay::whole(0), at(1000), at(1000)).unwrap();
        assert!(!staging.is_due(at(5000), interval), "there is nothing to publish");
        staging.changed(Change::Written(0..1), at(5000)).unwrap();
        assert!(!staging.is_due(at(5999), interval));
        assert!(staging.is_due(at(6000), interval), "it has rested");
        staging.changed(Change::Written(0..1), at(10_500)).unwrap();
        assert!(!staging.is_due(at(10_999), interval));
        assert!(staging.is_due(at(11_000), interval), "it has waited for long");
        staging.tried_at = at(11_000);
        assert!(!staging.is_due(at(11_400), interval));
        assert!(staging.is_due(at(12_000), interval), "it has rested");
    }

    #[test]
    fn superfluous_files_are_removed_when_due_and_no_more_than_asked_for() {
        let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
        let pool = StagingPool::new(disk.clone(), 1, 0);
        for lsn in 1..=5 {
            let number = pool.take_file().unwrap().number;
            pool.retire(number, Lsn(lsn));
        }
        let left = |committed, files_max| {
            pool.maintain(Lsn(committed), files_max).unwrap();
            disk.list().unwrap().len()
        };
        assert_eq!(left(0, 10), 5);
        assert_eq!(left(5, 2), 3);
        assert_eq!(left(4, 10), 1);
        assert_eq!(left(5, 10), 0);
    }
}
