//! Signed, hash-chained groups of operations, and the log that keeps them.
//!
//! The log keeps the groups of all authors verbatim, in the order in which this node took them in: replication ships
//! them again, `phifs log` shows them. It is a cache: what it no longer holds, because it was trimmed or damaged, a
//! peer learns by comparing states. What must not be lost are the *heads*, the chain value after the last operation of
//! each author; so every segment begins with them. What always holds:
//!
//! - A group in the log was signed by its author and continues the history that the log has of that author. Gaps are
//!   allowed (the caller learned the rest by a state diff) and marked; a second history is refused.
//! - Only the last segment is written, only at its end, and all others are durable. A segment's start is durable before
//!   a group follows; a group is durable after the next `sync`.
//! - A failed sync ends all writing, as nobody knows what the disk then holds.
//! - Segments disappear whole and oldest first.
//!
//! `group` is the unit, `segment` the bytes of a file; `recover` reads what a crash or decay left, `read` serves it.

mod group;
mod read;
mod recover;
mod segment;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;

use parking_lot::Mutex;

pub use group::{
    CONTEXT_AUTHORS_MAX, ChainHash, GROUP_BYTES_MAX, GROUP_OPS_BYTES, GroupBuilder, GroupError, Head, OP_BYTES_MAX,
    OP_NUMBER_MAX, SealedGroup,
};
pub use read::{Groups, Recent};
pub use recover::{Damage, Report};
pub use segment::Heads;

use crate::codec::DecodeError;
use crate::disk::{Disk, FileName};
use crate::id::AuthorId;
use recover::{Found, Link, Segment};
use segment::Place;

/// The latest groups stay in memory, up to so many bytes: peers ask for them within moments.
const TAIL_BYTES_MAX: usize = 4 << 20;
/// No more is read for a peer: comparing states is quicker then.
const RANGES_BYTES_MAX: usize = 64 << 20;

/// A segment grows to about this size before the next one begins.
pub const SEGMENT_BYTES: u64 = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum OplogError {
    #[error("the disk failed while {doing}: {source}")]
    Disk { doing: &'static str, source: io::Error },
    #[error("segment {segment} of the operation log: {source}")]
    Newer { segment: u32, source: DecodeError },
    #[error("segment {segment} of the operation log belongs to another store")]
    OtherStore { segment: u32 },
    /// Trimmed, damaged, or never known as groups. Whoever needs them compares states instead.
    #[error("operations {} to {} of {author} are not in the log", .range.start(), .range.end())]
    NotHeld { author: AuthorId, range: RangeInclusive<u64> },
    #[error("segment {} of the operation log is damaged in {} bytes at {}", .0.segment, .0.len_bytes, .0.offset_bytes)]
    Damaged(Damage),
    /// The author told two stories, or was copied. With the logged group, the refused one proves it to anyone
    /// (`SealedGroup::contradicts`); without, the log no longer holds it.
    #[error("the group has another history of {author} up to operation {n} than the log")]
    Forked { author: AuthorId, n: u64, logged: Option<Box<SealedGroup>> },
    #[error("the operation log is read-only since a failed sync")]
    ReadOnly,
}

pub type Result<T> = std::result::Result<T, OplogError>;

/// What became of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It continues its author's history.
    Next,
    /// It was taken in, and these operations before it are not in the log.
    AfterGap(RangeInclusive<u64>),
    /// The log had all of it; nothing was written.
    Known,
}

/// The log. All calls may come from any thread; reading does not hold up writing.
pub struct Oplog {
    disk: Arc<dyn Disk>,
    store: [u8; 16],
    segment_bytes: u64,
    state: Mutex<State>,
}

struct State {
    segments: Vec<Segment>,
    heads: Heads,
    /// How much of the last segment is durable.
    synced_bytes: u64,
    /// Whether the next group goes to the last segment: there is one, and it is sound.
    appendable: bool,
    failed: bool,
    tail: Tail,
}

/// The groups that were added last.
#[derive(Default)]
struct Tail {
    groups: VecDeque<SealedGroup>,
    bytes: usize,
}

impl Tail {
    fn push(&mut self, group: &SealedGroup) {
        self.bytes += group.encoded().len();
        self.groups.push_back(group.clone());
        while self.bytes > TAIL_BYTES_MAX
            && let Some(oldest) = self.groups.pop_front()
        {
            self.bytes -= oldest.encoded().len();
        }
    }
}

/// Picks out of groups, the newest first, those that somebody lacks.
struct Wanted {
    /// What is still to be found of each author.
    missing: BTreeMap<AuthorId, RangeInclusive<u64>>,
    found: Vec<SealedGroup>,
    bytes: usize,
}

impl Wanted {
    /// Says whether to go on. It is in vain when something is missing in the middle.
    fn pick(&mut self, group: SealedGroup) -> bool {
        if let Some(missing) = self.missing.get_mut(&group.author_id()) {
            let has = group.first()..=group.last();
            if has.contains(missing.end()) {
                *missing = *missing.start()..=has.start() - 1;
                self.bytes += group.encoded().len();
                self.found.push(group);
            } else if group.last() < *missing.end() {
                return false;
            }
        }
        self.missing.retain(|_, missing| !missing.is_empty());
        !self.missing.is_empty() && self.bytes <= RANGES_BYTES_MAX
    }
}

impl Oplog {
    /// Opens the log of this store, or begins one. `segment_bytes` is usually `SEGMENT_BYTES`.
    ///
    /// Damage is in the report and does not keep the log from opening. The caller compares `heads` with what its
    /// checkpoint says: damage to the very end of the log looks like a write that never finished.
    ///
    /// # Errors
    /// `Newer` and `OtherStore` for segments that are not this program's or this store's, and `Disk`.
    pub fn open(disk: Arc<dyn Disk>, store: [u8; 16], segment_bytes: u64) -> Result<(Self, Report)> {
        let (Found { segments, heads, appendable }, report) = recover::recover(&*disk, store)?;
        let synced_bytes = segments.last().map_or(0, |segment| segment.len_bytes);
        let tail = Tail::default();
        let state = State { segments, heads, synced_bytes, appendable, failed: false, tail };
        Ok((Self { disk, store, segment_bytes, state: Mutex::new(state) }, report))
    }

    /// How far the log knows each author.
    pub fn heads(&self) -> Heads {
        self.state.lock().heads.clone()
    }

    pub fn head(&self, author: AuthorId) -> Option<Head> {
        self.state.lock().heads.get(&author).copied()
    }

    /// The bytes that all segments take.
    pub fn size_bytes(&self) -> u64 {
        self.state.lock().size_bytes()
    }

    /// Adds a group; it is durable after the next `sync`.
    ///
    /// A group that the log knows by number is compared with what it holds, which reads the log: filter by `head` what
    /// comes from trusted places.
    ///
    /// # Errors
    /// `Forked`, `ReadOnly` and `Disk`; after each of them the log is as it was.
    pub fn append(&self, group: &SealedGroup) -> Result<Appended> {
        let author = group.author_id();
        let mut state = self.state.lock();
        if state.failed {
            return Err(OplogError::ReadOnly);
        }
        let appended = match recover::link(&state.heads, group) {
            Link::Next => Appended::Next,
            Link::AfterGap { known } => Appended::AfterGap(known + 1..=group.before().n),
            Link::Fork { n } => {
                drop(state);
                let logged = self.logged(author, n)?.map(Box::new);
                return Err(OplogError::Forked { author, n, logged });
            }
            Link::Known => {
                drop(state);
                return match self.logged(author, group.last())? {
                    Some(logged) => match group.contradicts(&logged) {
                        Some(n) => Err(OplogError::Forked { author, n, logged: Some(Box::new(logged)) }),
                        None => Ok(Appended::Known),
                    },
                    None => Ok(Appended::Known),
                };
            }
        };

        let full = |last: &Segment| last.len_bytes + group.encoded().len() as u64 > self.segment_bytes;
        if !state.appendable || state.segments.last().is_none_or(full) && state.has_groups() {
            self.begin_segment(&mut state)?;
        }
        let synced_bytes = state.synced_bytes;
        let last = state.segments.last_mut().expect("a segment was begun if there was none");
        let after_gap = matches!(appended, Appended::AfterGap(_));
        let bytes = last.place.group(last.len_bytes, synced_bytes, group.encoded(), after_gap);
        // Whatever an error leaves behind the end, the next group overwrites it or recovery cuts it off.
        last.file.write_at(&bytes, last.len_bytes).map_err(disk_error("writing to the operation log"))?;
        last.len_bytes += bytes.len() as u64;
        state.heads.insert(author, group.head());
        state.tail.push(group);
        Ok(appended)
    }

    /// Makes every group appended so far durable.
    ///
    /// # Errors
    /// `Disk`, and from then on `ReadOnly`.
    pub fn sync(&self) -> Result<()> {
        let (file, number, len_bytes) = {
            let state = self.state.lock();
            if state.failed {
                return Err(OplogError::ReadOnly);
            }
            match state.segments.last() {
                Some(last) if last.len_bytes > state.synced_bytes => {
                    (last.file.clone(), last.place.number, last.len_bytes)
                }
                _ => return Ok(()),
            }
        };
        let synced = file.sync();
        let mut state = self.state.lock();
        state.latch(synced)?;
        // A new segment may have begun meanwhile; then this one was synced before.
        if state.segments.last().is_some_and(|last| last.place.number == number) {
            state.synced_bytes = state.synced_bytes.max(len_bytes);
        }
        Ok(())
    }

    /// The groups of an author from operation `from` on, in order. The first may begin before it.
    ///
    /// Where operations are missing, the iterator yields `NotHeld` and goes on behind them.
    pub fn read(&self, author: AuthorId, from: u64) -> Groups {
        let state = self.state.lock();
        Groups::new(&state.segments, &state.heads, author, from)
    }

    /// The groups with these operations, in the order in which they were taken in; nothing if the log does not have all of
    /// them, or they are so many that it is better not to read them. The first of an author may begin earlier.
    pub fn ranges(&self, wanted: &[(AuthorId, RangeInclusive<u64>)]) -> Result<Option<Vec<SealedGroup>>> {
        let missing = wanted.iter().filter(|(_, range)| !range.is_empty()).cloned().collect();
        let mut wanted = Wanted { missing, found: Vec::new(), bytes: 0 };
        let mut goes_on = !wanted.missing.is_empty();
        let (segments, in_memory) = {
            let state = self.state.lock();
            // Behind its head nothing is in the log.
            let beyond = |(author, range): (&AuthorId, &RangeInclusive<u64>)| {
                state.heads.get(author).is_none_or(|head| head.n < *range.end())
            };
            if wanted.missing.iter().any(beyond) {
                return Ok(None);
            }
            for group in state.tail.groups.iter().rev() {
                goes_on = goes_on && wanted.pick(group.clone());
            }
            (state.segments.clone(), state.tail.groups.len())
        };
        if goes_on {
            for group in Recent::new(segments).skip(in_memory) {
                let goes_on = match group {
                    Ok(group) => wanted.pick(group),
                    Err(OplogError::Damaged(_)) => false,
                    Err(error) => return Err(error),
                };
                if !goes_on {
                    break;
                }
            }
        }
        wanted.found.reverse();
        Ok(wanted.missing.is_empty().then_some(wanted.found))
    }

    /// All groups, the newest first. Damaged places yield `Damaged`.
    pub fn recent(&self) -> Recent {
        Recent::new(self.state.lock().segments.clone())
    }

    /// Reads and verifies everything.
    pub fn check(&self) -> Result<Report> {
        let segments = self.state.lock().segments.clone();
        recover::check(&segments)
    }

    /// Removes the oldest segments until the log takes no more than `max_bytes`, or only the one in use is left.
    /// Returns how many bytes that freed.
    pub fn trim(&self, max_bytes: u64) -> Result<u64> {
        let mut state = self.state.lock();
        let before_bytes = state.size_bytes();
        while state.segments.len() > 1 && state.size_bytes() > max_bytes {
            let oldest = FileName::Oplog(state.segments[0].place.number);
            self.disk.remove(oldest).map_err(disk_error("trimming the operation log"))?;
            state.segments.remove(0);
            // One by one, as a crash must not bring back an older segment than one that stays removed.
            self.disk.sync_names().map_err(disk_error("trimming the operation log"))?;
        }
        Ok(before_bytes - state.size_bytes())
    }

    /// The group of the log that contains this operation.
    fn logged(&self, author: AuthorId, n: u64) -> Result<Option<SealedGroup>> {
        match self.read(author, n).next() {
            None | Some(Err(OplogError::NotHeld { .. })) => Ok(None),
            Some(group) => group.map(Some),
        }
    }

    /// Ends the last segment and begins the next one, both durably.
    fn begin_segment(&self, state: &mut State) -> Result<()> {
        let mut number = 0;
        if let Some(last) = state.segments.last() {
            number = last.place.number.checked_add(1).expect("four billion segments are never written");
            let synced = last.file.sync();
            state.latch(synced)?;
        }
        let place = Place { store: self.store, number };
        let start = place.start(&state.heads);
        let make = || {
            let name = FileName::Oplog(number);
            let file = match self.disk.create(name) {
                // Left by an attempt that failed half-way.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.disk.open(name)?,
                created => created?,
            };
            file.set_len(0)?;
            file.write_at(&start, 0)?;
            Ok(file)
        };
        let file = make().map_err(disk_error("beginning a segment of the operation log"))?;
        state.latch(file.sync())?;
        state.latch(self.disk.sync_names())?;
        let len_bytes = start.len() as u64;
        state.segments.push(Segment { place, file, len_bytes, start: Arc::new(state.heads.clone()) });
        state.synced_bytes = len_bytes;
        state.appendable = true;
        Ok(())
    }
}

impl State {
    /// Ends all writing if a sync failed.
    fn latch(&mut self, synced: io::Result<()>) -> Result<()> {
        self.failed |= synced.is_err();
        synced.map_err(disk_error("syncing the operation log"))
    }

    fn size_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len_bytes).sum()
    }

    /// Whether the last segment has more than its start.
    fn has_groups(&self) -> bool {
        self.segments.last().is_some_and(|last| *last.start != self.heads)
    }
}

fn disk_error(doing: &'static str) -> impl Fn(io::Error) -> OplogError {
    move |source| OplogError::Disk { doing, source }
}

#[cfg(test)]
mod tests;
