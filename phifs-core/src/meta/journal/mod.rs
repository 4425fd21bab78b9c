//! The journal: a stream of records, made durable by group commit into recycled files.
//!
//! `append` puts a record into memory and names its place in the stream; `commit` returns once the record is durable.
//! Of all who wait, one leads: it takes everything pending, lets the packs be synced that the records refer to, does
//! one write and one sync, and wakes the rest. What always holds:
//!
//! - A record is reported durable only after a sync that followed its write, or after a checkpoint that contains it.
//! - Records become durable in order: a group is written only after all groups before it are durable.
//! - After a failed write or sync nothing is accepted any more, since what the kernel kept of it cannot be known.
//!
//! `format` has the bytes, `segments` the files, `recovery` the rules for reading them after a crash.

mod format;
mod recovery;
mod segments;

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

pub use self::format::RECORD_BYTES_MAX;
use self::segments::Segments;
use super::superblock::StoreId;
use crate::codec::DecodeError;
use crate::disk::Disk;
use crate::store::StoreError;

/// A position in the stream of records, in bytes. The LSN of a record is where it ends, so 0 is before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The records stay pending: once `recycle` has made room, or the disk has some, `commit` works again.
    #[error("the journal is full")]
    Full,
    #[error("the journal accepts nothing since a failed write or sync")]
    ReadOnly,
    #[error("what the journal refers to could not be made durable: {0}")]
    Barrier(#[source] StoreError),
    #[error("the disk failed while {doing}: {source}")]
    Disk { doing: &'static str, source: std::io::Error },
    /// Not a torn tail, which is dropped without a word: these records had been synced.
    #[error("the journal is damaged: its records are intact up to {intact}, but were durable up to {durable} at least")]
    DamagedMiddle { intact: Lsn, durable: Lsn },
    #[error("there is no journal, though the checkpoint at {after} expects one")]
    Gone { after: Lsn },
    #[error("the journal belongs to store {found}, not to {expected}")]
    ForeignStore { found: StoreId, expected: StoreId },
    #[error(transparent)]
    Malformed(DecodeError),
    #[error("the journal record that ends at {lsn} cannot be replayed: {source}")]
    Replay { lsn: Lsn, source: BoxError },
}

pub type BoxError = Box<dyn Error + Send + Sync>;

/// Makes durable what the records appended so far refer to. Called before each write of the journal.
pub type Barrier = Box<dyn Fn() -> Result<(), StoreError> + Send + Sync>;

/// Gets each record that is to be replayed: its LSN, kind and payload.
pub type Replay<'a> = dyn FnMut(Lsn, u8, &[u8]) -> Result<(), BoxError> + 'a;

/// What to do about records that were durable once and cannot be read now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repair {
    #[default]
    Refuse,
    /// Keep what comes before the damage and forget all that follows.
    DropAfterDamage,
}

/// The size and number of the files. The number grows on demand and shrinks when the journal is idle.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// A multiple of 512, and at least 1536: a header, a batch, and a sector in reserve.
    pub segment_bytes: u32,
    /// At least 2: one to write, one to go on in.
    pub segments_min: u32,
    pub segments_max: u32,
}

impl Default for Geometry {
    /// 2 to 64 segments of 1 MiB.
    fn default() -> Self {
        Self { segment_bytes: 1 << 20, segments_min: 2, segments_max: 64 }
    }
}

pub struct Options {
    pub store: StoreId,
    /// Replay what follows this record: the position that the newest checkpoint stands for.
    pub after: Lsn,
    pub geometry: Geometry,
    pub repair: Repair,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Groups made durable.
    pub groups: u64,
    /// Syncs done for them.
    pub syncs: u64,
    /// Files there are.
    pub segments: u32,
}

/// Beyond this many pending bytes, callers should commit before they append more.
const BACKLOG_BYTES: usize = 8 << 20;

pub struct Journal {
    segments: Segments,
    barrier: Barrier,
    state: Mutex<State>,
    /// Signalled when a leader is done and when `committed` goes up.
    done: Condvar,
}

struct State {
    /// The stream from `pending_start` to `appended`; empty once failed.
    pending: Vec<u8>,
    pending_start: Lsn,
    appended: Lsn,
    committed: Lsn,
    /// Somebody is writing a group.
    led: bool,
    failed: bool,
    groups: u64,
}

impl Journal {
    /// Opens the journal, or makes it; replays the records after `options.after` in order.
    ///
    /// # Errors
    /// Besides those of the disk: damage (unless it is to be dropped), a foreign store, a newer format, and whatever
    /// `replay` returned.
    pub fn open(
        disk: Arc<dyn Disk>,
        options: Options,
        barrier: Barrier,
        replay: &mut Replay<'_>,
    ) -> Result<Self, JournalError> {
        let Options { store, after, geometry, repair } = options;
        assert!(geometry.segment_bytes >= 1536 && geometry.segment_bytes.is_multiple_of(512));
        assert!(geometry.segments_min >= 2 && geometry.segments_max >= geometry.segments_min);
        let recovered = recovery::recover(&disk, store, after, repair, replay)?;
        let end = recovered.end;
        let segments = Segments::new(disk, store, geometry, recovered.epoch, end, recovered.layout)?;
        if recovered.dropped {
            segments.write_mark()?;
        }
        let state = State {
            pending: Vec::new(),
            pending_start: end,
            appended: end,
            committed: end,
            led: false,
            failed: false,
            groups: 0,
        };
        Ok(Self { segments, barrier, state: Mutex::new(state), done: Condvar::new() })
    }

    /// Adds a record, in memory only, and returns its LSN. Cheap enough to call under the lock that orders changes.
    ///
    /// # Panics
    /// If the payload is longer than `RECORD_BYTES_MAX`.
    pub fn append(&self, kind: u8, payload: &[u8]) -> Lsn {
        let mut state = self.state.lock();
        if !state.failed {
            format::encode_record(&mut state.pending, kind, payload);
        }
        state.appended.0 += (format::RECORD_HEADER + payload.len()) as u64;
        state.appended
    }

    /// Returns once all records up to `lsn` are durable.
    ///
    /// # Errors
    /// `Full` can be cured (see there). After any other error the journal accepts nothing more.
    pub fn commit(&self, lsn: Lsn) -> Result<(), JournalError> {
        let mut state = self.state.lock();
        assert!(lsn <= state.appended, "commit of {lsn}, which was not appended");
        loop {
            if state.committed >= lsn {
                return Ok(());
            }
            if state.failed {
                return Err(JournalError::ReadOnly);
            }
            if !state.led {
                break;
            }
            self.done.wait(&mut state);
        }
        state.led = true;
        let mut lead = Lead {
            journal: self,
            start: state.pending_start,
            group: std::mem::take(&mut state.pending),
            outcome: Outcome::Failed,
        };
        state.pending_start = state.appended;
        drop(state);
        let written = lead.write();
        lead.outcome = match written {
            Ok(()) => Outcome::Durable,
            Err(JournalError::Full) => Outcome::Full,
            Err(_) => Outcome::Failed,
        };
        drop(lead);
        match written {
            // A checkpoint may have made it durable meanwhile.
            Err(JournalError::Full) if self.committed() >= lsn => Ok(()),
            written => written,
        }
    }

    /// The LSN of the last record.
    pub fn appended(&self) -> Lsn {
        self.state.lock().appended
    }

    /// All records up to here are durable.
    pub fn committed(&self) -> Lsn {
        self.state.lock().committed
    }

    /// Whether a write or sync failed: nothing more is accepted until the store is opened again.
    pub fn is_failed(&self) -> bool {
        self.state.lock().failed
    }

    /// How long the stream is behind `lsn`, durable or not: what a restart from there would have to replay.
    pub fn bytes_since(&self, lsn: Lsn) -> u64 {
        self.appended().0.saturating_sub(lsn.0)
    }

    /// Whether so much is pending that callers should `commit` before they append more.
    pub fn is_backlogged(&self) -> bool {
        self.state.lock().pending.len() > BACKLOG_BYTES
    }

    /// Makes files ahead of need. A background thread calls this now and then, so that commits do not have to.
    ///
    /// # Errors
    /// `Full` when no file is free and the disk has no room for one; commits go on in what is left of the current one.
    pub fn prepare(&self) -> Result<(), JournalError> {
        self.segments.prepare()
    }

    /// A durable checkpoint contains all records up to `upto`: they need not be replayed again. Pending ones among
    /// them count as committed.
    ///
    /// Which checkpoint that is decides what a damaged superblock can fall back to: pass the position of the older
    /// slot to be able to start from it. After `open` no segment with old records counts as free until this is called.
    ///
    /// # Errors
    /// A file could not be removed; the journal works on.
    pub fn recycle(&self, upto: Lsn) -> Result<(), JournalError> {
        let mut state = self.state.lock();
        assert!(upto <= state.appended, "recycling up to {upto}, which was not appended");
        state.committed = state.committed.max(upto);
        state.trim();
        drop(state);
        self.done.notify_all();
        self.segments.recycle(upto)
    }

    pub fn stats(&self) -> Stats {
        let groups = self.state.lock().groups;
        Stats { groups, syncs: self.segments.syncs(), segments: self.segments.total() }
    }
}

impl State {
    /// Forgets what is pending though it is durable by a checkpoint.
    fn trim(&mut self) {
        let durable = self.committed.0.saturating_sub(self.pending_start.0) as usize;
        let durable = durable.min(self.pending.len());
        self.pending.drain(..durable);
        self.pending_start.0 += durable as u64;
    }
}

enum Outcome {
    Durable,
    Full,
    Failed,
}

/// The leader's turn. It ends when dropped, also by a panic in the barrier or the disk: others must not wait for ever.
struct Lead<'a> {
    journal: &'a Journal,
    start: Lsn,
    group: Vec<u8>,
    outcome: Outcome,
}

impl Lead<'_> {
    fn write(&self) -> Result<(), JournalError> {
        (self.journal.barrier)().map_err(|error| match error {
            StoreError::Full => JournalError::Full,
            other => JournalError::Barrier(other),
        })?;
        self.journal.segments.write_group(self.start, &self.group)
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut state = self.journal.state.lock();
        state.led = false;
        let mut group = std::mem::take(&mut self.group);
        match self.outcome {
            Outcome::Durable => {
                state.committed = state.committed.max(Lsn(self.start.0 + group.len() as u64));
                state.groups += 1;
                if state.pending.is_empty() && group.capacity() <= BACKLOG_BYTES {
                    group.clear();
                    state.pending = group;
                }
            }
            Outcome::Full => {
                group.append(&mut state.pending);
                state.pending = group;
                state.pending_start = self.start;
                state.trim();
            }
            Outcome::Failed => {
                state.failed = true;
                state.pending = Vec::new();
            }
        }
        drop(state);
        self.journal.done.notify_all();
    }
}

#[cfg(test)]
mod tests;
