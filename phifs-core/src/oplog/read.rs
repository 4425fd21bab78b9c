//! Reading groups back. Every group that leaves the log here was verified on the way.
//!
//! A reader works on the segments as they were when it began; it holds one segment in memory at a time, and neither
//! appending nor trimming disturbs it.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use bytes::Bytes;

use super::group::SealedGroup;
use super::recover::{Damage, Segment};
use super::segment::{Heads, Payload, Record, Stretch};
use super::{OplogError, Result};
use crate::id::AuthorId;

/// The groups of one author, in order; see `Oplog::read`.
pub struct Groups {
    author: AuthorId,
    /// The operations still to come.
    wanted: RangeInclusive<u64>,
    segments: VecDeque<Segment>,
    ready: VecDeque<SealedGroup>,
}

impl Groups {
    pub(super) fn new(segments: &[Segment], heads: &Heads, author: AuthorId, from: u64) -> Self {
        let known = |heads: &Heads| heads.get(&author).map_or(0, |head| head.n);
        let end_of = |i: usize| segments.get(i + 1).map_or(known(heads), |next| known(&next.start));
        let from = from.max(1);
        // A segment's own operations of the author lie between the heads at its start and at its end.
        let has_some = |&i: &usize| end_of(i) >= from && end_of(i) > known(&segments[i].start);
        let segments = (0..segments.len()).filter(has_some).map(|i| segments[i].clone()).collect();
        Self { author, wanted: from..=known(heads), segments, ready: VecDeque::new() }
    }

    fn load(&mut self, segment: &Segment) -> Result<()> {
        let bytes = segment.read()?;
        let groups = segment.place.stretches(&bytes).filter_map(|stretch| parsed(stretch.record?));
        self.ready.extend(groups.filter(|group| group.author_id() == self.author));
        Ok(())
    }

    /// The next group that has wanted operations. What is damaged is passed over here: it leaves a gap in the numbers.
    fn next_held(&mut self) -> Result<Option<SealedGroup>> {
        loop {
            while let Some(group) = self.ready.pop_front() {
                if group.last() >= *self.wanted.start() && group.verify().is_ok() {
                    return Ok(Some(group));
                }
            }
            match self.segments.pop_front() {
                Some(segment) => self.load(&segment)?,
                None => return Ok(None),
            }
        }
    }
}

impl Iterator for Groups {
    type Item = Result<SealedGroup>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.wanted.is_empty() {
            return None;
        }
        let (next, last) = (*self.wanted.start(), *self.wanted.end());
        let group = match self.next_held() {
            Ok(group) => group,
            Err(error) => return Some(Err(error)),
        };
        let held_from = group.as_ref().map_or(last + 1, |group| group.first().min(last + 1));
        if held_from > next {
            self.wanted = held_from..=last;
            if let Some(group) = group {
                self.ready.push_front(group);
            }
            return Some(Err(OplogError::NotHeld { author: self.author, range: next..=held_from - 1 }));
        }
        let group = group?;
        self.wanted = group.last() + 1..=last;
        Some(Ok(group))
    }
}

/// All groups, the newest first; see `Oplog::recent`.
pub struct Recent {
    segments: Vec<Segment>,
    /// What is left of a segment, oldest first, and its number.
    loaded: Option<(u32, Vec<Stretch>)>,
}

impl Recent {
    pub(super) fn new(segments: Vec<Segment>) -> Self {
        Self { segments, loaded: None }
    }
}

impl Iterator for Recent {
    type Item = Result<SealedGroup>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some((number, stretches)) = &mut self.loaded else {
                let segment = self.segments.pop()?;
                match segment.read() {
                    Ok(bytes) => {
                        let stretches = segment.place.stretches(&bytes).collect();
                        self.loaded = Some((segment.place.number, stretches));
                    }
                    Err(error) => return Some(Err(error)),
                }
                continue;
            };
            let Some(Stretch { at, record }) = stretches.pop() else {
                self.loaded = None;
                continue;
            };
            if matches!(record, Some(Record { payload: Payload::Heads(_), .. })) {
                continue;
            }
            let group = record.and_then(parsed).filter(|group| group.verify().is_ok());
            return Some(group.ok_or_else(|| {
                let (offset_bytes, len_bytes) = (at.start as u64, at.len() as u64);
                OplogError::Damaged(Damage { segment: *number, offset_bytes, len_bytes })
            }));
        }
    }
}

/// The group in a record, with bytes of its own: it must not keep a whole segment in memory.
fn parsed(record: Record) -> Option<SealedGroup> {
    match record.payload {
        Payload::Group { bytes, .. } => SealedGroup::parse(Bytes::copy_from_slice(&bytes)).ok(),
        Payload::Heads(_) => None,
    }
}
