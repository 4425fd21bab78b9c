//! Reading a log that may be damaged: what it holds, what is lost, and what was merely never finished.
//!
//! Opening reads the heads at the start of every segment and all of the last segment, the only one that a crash can
//! have left unfinished. Damage elsewhere shows when it is read, or when `Oplog::check` reads everything.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use bytes::Bytes;

use super::group::{GroupError, Head, SealedGroup};
use super::segment::{HEADER_LEN, Header, Heads, Payload, Place, Record};
use super::{OplogError, Result, disk_error};
use crate::codec::DecodeError;
use crate::disk::{Disk, File, FileName};
use crate::id::AuthorId;

/// Bytes of the log that should hold records and do not. A segment that is gone altogether has length 0 here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    pub segment: u32,
    pub offset_bytes: u64,
    pub len_bytes: u64,
}

/// What is wrong with a log. None of it keeps the log from working: whoever lacks lost operations gets them by
/// comparing states.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Cut off the end, as a crash left it there unfinished and nothing was ever promised about it.
    pub torn_bytes: u64,
    pub damage: Vec<Damage>,
    /// Operations that the damage took out of the log. Damage at the very end of the log can hide what it took.
    pub lost: Vec<(AuthorId, RangeInclusive<u64>)>,
}

impl Report {
    /// Whether everything that should be there is. A torn end is no damage.
    pub fn is_intact(&self) -> bool {
        self.damage.is_empty() && self.lost.is_empty()
    }

    fn miss(&mut self, segments: Range<u32>) {
        self.damage.extend(segments.map(|segment| Damage { segment, offset_bytes: 0, len_bytes: 0 }));
    }

    fn lose_between(&mut self, before: &Heads, after: &Heads) {
        for (&author, head) in after {
            let known = before.get(&author).map_or(0, |head| head.n);
            if known < head.n {
                self.lost.push((author, known + 1..=head.n));
            }
        }
    }
}

/// A segment file, and the heads at its start.
#[derive(Clone)]
pub(super) struct Segment {
    pub place: Place,
    pub file: Arc<dyn File>,
    pub len_bytes: u64,
    pub start: Arc<Heads>,
}

impl Segment {
    pub fn read(&self) -> Result<Bytes> {
        read_front(&*self.file, self.len_bytes)
    }
}

/// A log as it was found.
pub(super) struct Found {
    pub segments: Vec<Segment>,
    pub heads: Heads,
    /// Whether the last segment may be continued.
    pub appendable: bool,
}

/// How a group relates to what is known of its author.
pub(super) enum Link {
    /// It has new operations and continues the history.
    Next,
    /// Operations between the known history and the group are not known.
    AfterGap { known: u64 },
    /// All of it is known, by number.
    Known,
    /// It has another history than the one known, at this number.
    Fork { n: u64 },
}

pub(super) fn link(heads: &Heads, group: &SealedGroup) -> Link {
    let head = heads.get(&group.author_id()).copied().unwrap_or_else(|| Head::start(group.author()));
    if group.before().n > head.n {
        Link::AfterGap { known: head.n }
    } else if group.chain_at(head.n).is_some_and(|chain| chain != head.chain) {
        Link::Fork { n: head.n }
    } else if group.last() <= head.n {
        Link::Known
    } else {
        Link::Next
    }
}

/// Whether the end of a segment may be unfinished.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Finished,
    MaybeTorn,
}

struct Walked {
    heads: Heads,
    /// Where the unfinished end begins.
    torn_at: Option<usize>,
}

type ReadGroup = fn(Bytes) -> std::result::Result<SealedGroup, GroupError>;

/// Follows the histories through one segment, and reports what does not belong there.
fn walk(
    place: &Place,
    bytes: &Bytes,
    start: &Heads,
    end: End,
    read_group: ReadGroup,
    report: &mut Report,
) -> Result<Walked> {
    let mut stretches: Vec<_> = place.stretches(bytes).collect();
    let mut torn_at = None;
    if end == End::MaybeTorn {
        let synced_bytes = stretches.iter().filter_map(|s| s.record.as_ref()).map(|r| r.synced_bytes).max();
        let durable = |at: usize| (at as u64) < synced_bytes.unwrap_or(0);
        if let Some(torn) = stretches.iter().position(|s| s.record.is_none() && !durable(s.at.start)) {
            // What follows was not durable either, and does not continue the history without what is missing.
            torn_at = Some(stretches[torn].at.start);
            stretches.truncate(torn);
        }
    }

    let mut heads = start.clone();
    for stretch in stretches {
        let sound = match stretch.record.map(|record| record.payload) {
            None => false,
            // The caller has read them.
            Some(Payload::Heads(_)) => true,
            Some(Payload::Group { bytes, after_gap }) => match read_group(bytes) {
                Ok(group) => follow(&mut heads, &group, after_gap, report),
                Err(GroupError::Malformed(source @ DecodeError::NewerVersion { .. })) => {
                    return Err(OplogError::Newer { segment: place.number, source });
                }
                Err(_) => false,
            },
        };
        if !sound {
            let (offset_bytes, len_bytes) = (stretch.at.start as u64, stretch.at.len() as u64);
            report.damage.push(Damage { segment: place.number, offset_bytes, len_bytes });
        }
    }
    Ok(Walked { heads, torn_at })
}

/// Takes a group of the log into the heads; false if it does not belong to the history before it.
fn follow(heads: &mut Heads, group: &SealedGroup, after_gap: bool, report: &mut Report) -> bool {
    match link(heads, group) {
        Link::Fork { .. } => return false,
        Link::Known => return true,
        Link::AfterGap { .. } if after_gap => (),
        Link::AfterGap { known } => report.lost.push((group.author_id(), known + 1..=group.before().n)),
        Link::Next => (),
    }
    heads.insert(group.author_id(), group.head());
    true
}

/// Opens what is on the disk, cuts an unfinished end off, and reports what is damaged.
pub(super) fn recover(disk: &dyn Disk, store: [u8; 16]) -> Result<(Found, Report)> {
    let mut report = Report::default();
    let mut segments = open_segments(disk, store, &mut report)?;
    let (mut heads, mut appendable) = (Heads::new(), false);
    if let Some(last) = segments.last_mut() {
        let known_damage = report.damage.len();
        let start_is_damaged = report.damage.last().is_some_and(|damage| damage.segment == last.place.number);
        // A segment with a damaged start was in use, so its end is not taken for unfinished.
        let end = if start_is_damaged { End::Finished } else { End::MaybeTorn };
        let walked = walk(&last.place, &last.read()?, &last.start, end, SealedGroup::parse, &mut report)?;
        if let Some(torn_at) = walked.torn_at {
            report.torn_bytes += last.len_bytes - torn_at as u64;
            last.len_bytes = torn_at as u64;
            last.file.set_len(last.len_bytes).map_err(disk_error("cutting the end of the operation log"))?;
        }
        // What a crash left is built upon from now on, synced before or not.
        last.file.sync().map_err(disk_error("syncing the operation log"))?;
        heads = walked.heads;
        appendable = !start_is_damaged && report.damage.len() == known_damage;
    }
    Ok((Found { segments, heads, appendable }, report))
}

fn open_segments(disk: &dyn Disk, store: [u8; 16], report: &mut Report) -> Result<Vec<Segment>> {
    let names = disk.list().map_err(disk_error("listing the operation log"))?;
    let number = |name| if let FileName::Oplog(number) = name { Some(number) } else { None };
    let mut numbers: Vec<u32> = names.into_iter().filter_map(number).collect();
    numbers.sort_unstable();

    let mut segments: Vec<Segment> = Vec::with_capacity(numbers.len());
    for (i, &number) in numbers.iter().enumerate() {
        let place = Place { store, number };
        let file = disk.open(FileName::Oplog(number)).map_err(disk_error("opening a segment of the operation log"))?;
        let len_bytes = file.stamp().map_err(disk_error("opening a segment of the operation log"))?.len_bytes;
        let start = read_start(&place, &*file, len_bytes)?;
        let missing = segments.last().map_or(number..number, |previous| previous.place.number + 1..number);
        report.miss(missing.clone());

        let start = match start {
            Some(start) if missing.is_empty() => start,
            Some(start) => {
                report.lose_between(&end_heads(segments.last())?, &start);
                start
            }
            None => {
                let start = end_heads(segments.last())?;
                // Beginning a segment was the last thing that happened, and did not get far: nothing followed it.
                if i + 1 == numbers.len() && len_bytes <= place.start(&start).len() as u64 {
                    let removed = disk.remove(FileName::Oplog(number)).and_then(|()| disk.sync_names());
                    removed.map_err(disk_error("removing an unfinished segment of the operation log"))?;
                    report.torn_bytes += len_bytes;
                    break;
                }
                report.damage.push(Damage { segment: number, offset_bytes: 0, len_bytes: HEADER_LEN as u64 });
                start
            }
        };
        segments.push(Segment { place, file, len_bytes, start: Arc::new(start) });
    }
    Ok(segments)
}

/// The heads at the end of a segment. They are also at the start of the next one, unless that is damaged or missing.
fn end_heads(segment: Option<&Segment>) -> Result<Heads> {
    let Some(segment) = segment else { return Ok(Heads::new()) };
    let elsewhere = &mut Report::default();
    let walked = walk(&segment.place, &segment.read()?, &segment.start, End::Finished, SealedGroup::parse, elsewhere)?;
    Ok(walked.heads)
}

/// The heads at the start of a segment; `None` if its start is damaged or unfinished.
fn read_start(place: &Place, file: &dyn File, len_bytes: u64) -> Result<Option<Heads>> {
    let front = read_front(file, len_bytes.min(4096))?;
    match place.check_header(&front) {
        Ok(Header::Good) => (),
        Ok(Header::Damaged) => return Ok(None),
        Ok(Header::OtherStore) => return Err(OplogError::OtherStore { segment: place.number }),
        Err(source) => return Err(OplogError::Newer { segment: place.number, source }),
    }
    let Some(end) = place.start_len(&front).filter(|&end| end as u64 <= len_bytes) else { return Ok(None) };
    let front = if end > front.len() { read_front(file, end as u64)? } else { front };
    match place.record_at(&front, HEADER_LEN) {
        Some((Record { payload: Payload::Heads(heads), .. }, _)) => Ok(Some(heads)),
        _ => Ok(None),
    }
}

/// Reads every segment and checks everything: checksums, signatures, and that the histories are whole.
pub(super) fn check(segments: &[Segment]) -> Result<Report> {
    let mut report = Report::default();
    let mut previous: Option<(u32, Heads)> = None;
    for segment in segments {
        let number = segment.place.number;
        let bytes = segment.read()?;
        if let Some((before, heads)) = previous {
            report.miss(before + 1..number);
            report.lose_between(&heads, &segment.start);
        }
        let header = segment.place.check_header(&bytes);
        if header != Ok(Header::Good) {
            report.damage.push(Damage { segment: number, offset_bytes: 0, len_bytes: HEADER_LEN as u64 });
        }
        let walked = walk(&segment.place, &bytes, &segment.start, End::Finished, SealedGroup::decode, &mut report)?;
        previous = Some((number, walked.heads));
    }
    Ok(report)
}

fn read_front(file: &dyn File, len_bytes: u64) -> Result<Bytes> {
    let mut bytes = vec![0; len_bytes as usize];
    file.read_exact_at(&mut bytes, 0).map_err(disk_error("reading the operation log"))?;
    Ok(bytes.into())
}
