//! Reading the journal after a stop of any kind: what is replayed, what is dropped, what is damage.
//!
//! All batches that validate are found by scanning every segment, so nothing depends on where the last one should be.
//! Three questions remain, and the batch header answers them:
//!
//! 1. *Is a batch part of the history?* Each opening of the journal that writes starts a new epoch and notes in every
//!    batch where in the stream it began (`opened`). Whatever an older epoch has at or behind that point was dropped
//!    then, though its bytes may lie there still. So a stale tail is never taken for the continuation.
//! 2. *Where does the history end?* At the first position behind `after` that no batch covers, or rather at the end of
//!    the last whole record before it.
//! 3. *Is that end a torn tail or damage?* A group is written in one or more batches and then synced. Before the sync,
//!    any part of the group can be on disk without the rest, so a valid batch behind a hole proves nothing by itself.
//!    But each batch notes up to where the stream was durable when its group was written (`synced`). A batch of the
//!    torn group says that all before the *group* was durable, which is so. If any batch says that more was durable
//!    than can be read now, then durable bytes were lost.
//!
//! The very last synced group is the one case that cannot be told from a torn one, as nothing was written after it.

use std::sync::Arc;

use super::format::{BATCH_HEADER, BatchHeader, Place, SECTOR, check_segment_header, decode_batch, decode_record};
use super::format::{encode_segment_header, padded};
use super::segments::{Current, Layout, Segment, failed};
use super::{JournalError, Lsn, Repair, Replay};
use crate::disk::{Disk, FileName};
use crate::meta::superblock::StoreId;

/// More than any segment has; a longer file is not read to its end.
const SEGMENT_BYTES_READ_MAX: u64 = 64 << 20;

pub(super) struct Recovered {
    /// The end of the last whole record.
    pub end: Lsn,
    /// The epoch that starts now.
    pub epoch: u32,
    pub layout: Layout,
    /// There are batches behind `end`. That they are dropped must be on disk before anything else happens: a checkpoint
    /// could pass over them without a batch of the new epoch being written, and the next start would revive the rest.
    pub dropped: bool,
}

/// A batch that validates.
struct Found {
    /// Index into the segments.
    segment: usize,
    place: Place,
    header: BatchHeader,
    /// Where its part in the history ends.
    end: Lsn,
}

struct Scanned {
    segment: Segment,
    header_intact: bool,
}

pub(super) fn recover(
    disk: &Arc<dyn Disk>,
    store: StoreId,
    after: Lsn,
    repair: Repair,
    replay: &mut Replay<'_>,
) -> Result<Recovered, JournalError> {
    let (scanned, batches) = scan(disk, store)?;
    if scanned.is_empty() && after > Lsn(0) && repair == Repair::Refuse {
        return Err(JournalError::Gone { after });
    }
    let newest = batches.iter().map(|found| found.header.epoch).max().unwrap_or(0);
    let epoch = newest.checked_add(1).ok_or(JournalError::Malformed(crate::codec::DecodeError::Unknown {
        what: "the epoch of the journal",
        value: u64::from(newest),
    }))?;
    let history = history(batches);
    let (reached, end) = read(&scanned, &history, store, after, replay)?;

    let durable = history.iter().map(|found| found.header.synced).max().unwrap_or(after);
    if durable > end {
        if repair == Repair::Refuse {
            return Err(JournalError::DamagedMiddle { intact: end, durable });
        }
        tracing::warn!(intact = end.0, durable = durable.0, "journal records are lost");
    }
    let behind = history.iter().any(|found| found.end > end);
    let (kept, dropped) = history.into_iter().partition::<Vec<_>, _>(|found| found.end <= reached);
    Ok(Recovered { end, epoch, layout: settle(disk, store, after, scanned, &kept, &dropped)?, dropped: behind })
}

/// Reads all segments and finds every batch that validates.
fn scan(disk: &Arc<dyn Disk>, store: StoreId) -> Result<(Vec<Scanned>, Vec<Found>), JournalError> {
    let (mut scanned, mut batches) = (Vec::new(), Vec::new());
    for name in disk.list().map_err(failed("listing the journal"))? {
        let FileName::Journal(number) = name else { continue };
        let file = disk.open(name).map_err(failed("opening the journal"))?;
        let len = file.stamp().map_err(failed("opening the journal"))?.len_bytes.min(SEGMENT_BYTES_READ_MAX);
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, 0).map_err(failed("reading the journal"))?;
        let header_intact = check_segment_header(&bytes[..bytes.len().min(SECTOR)], store)?;
        let mut at = SECTOR;
        while at < bytes.len() {
            let place = Place { segment: number, offset_bytes: at as u32 };
            at += match decode_batch(&bytes[at..], store, place) {
                Some((header, body)) => {
                    batches.push(Found { segment: scanned.len(), place, header, end: header.end() });
                    padded(BATCH_HEADER + body.len())
                }
                None => SECTOR,
            };
        }
        scanned.push(Scanned { segment: Segment { number, file }, header_intact });
    }
    Ok((scanned, batches))
}

/// The batches that no newer epoch dropped, in the order of the stream.
fn history(mut batches: Vec<Found>) -> Vec<Found> {
    batches.sort_by_key(|found| std::cmp::Reverse(found.header.epoch));
    let mut limit = Lsn(u64::MAX);
    let mut same_epoch = (u32::MAX, limit);
    batches.retain_mut(|found| {
        if found.header.epoch != same_epoch.0 {
            same_epoch = (found.header.epoch, limit);
        }
        limit = limit.min(found.header.opened);
        found.end = found.end.min(same_epoch.1);
        found.header.start < same_epoch.1
    });
    batches.sort_by_key(|found| (found.header.start, found.header.epoch));
    batches
}

/// Replays what is contiguous from `after`. Returns how far batches reach, and where the last whole record ends.
fn read(
    scanned: &[Scanned],
    history: &[Found],
    store: StoreId,
    after: Lsn,
    replay: &mut Replay<'_>,
) -> Result<(Lsn, Lsn), JournalError> {
    let (mut reached, mut end) = (after, after);
    let mut stream = Vec::new();
    let mut bytes = Vec::new();
    for found in history {
        if found.end <= reached {
            continue;
        }
        if found.header.start > reached {
            break;
        }
        bytes.resize(BATCH_HEADER + found.header.body_bytes as usize, 0);
        let file = &scanned[found.segment].segment.file;
        file.read_exact_at(&mut bytes, u64::from(found.place.offset_bytes)).map_err(failed("reading the journal"))?;
        let (_, body) = decode_batch(&bytes, store, found.place).ok_or_else(|| JournalError::Disk {
            doing: "reading the journal again",
            source: std::io::ErrorKind::InvalidData.into(),
        })?;
        let of_body = |lsn: Lsn| (lsn.0 - found.header.start.0) as usize;
        stream.extend_from_slice(&body[of_body(reached)..of_body(found.end)]);
        reached = found.end;

        let mut used = 0;
        while let Some(record) = decode_record(&stream[used..]).map_err(JournalError::Malformed)? {
            used += record.len();
            end.0 += record.len() as u64;
            replay(end, record.kind, record.payload).map_err(|source| JournalError::Replay { lsn: end, source })?;
        }
        stream.drain(..used);
    }
    Ok((reached, end))
}

/// Sorts the segments by what is in them, and makes what was replayed durable.
fn settle(
    disk: &Arc<dyn Disk>,
    store: StoreId,
    after: Lsn,
    scanned: Vec<Scanned>,
    kept: &[Found],
    dropped: &[Found],
) -> Result<Layout, JournalError> {
    let latest = kept.iter().max_by_key(|found| (found.end, found.header.epoch));
    let mut layout = Layout {
        next_number: scanned.iter().map(|scanned| scanned.segment.number.saturating_add(1)).max().unwrap_or(0),
        ..Layout::default()
    };
    for (index, Scanned { segment, header_intact }) in scanned.into_iter().enumerate() {
        // A segment that a dropped group began was free before, whatever older batches are left in it.
        let began = dropped.iter().any(|found| found.segment == index);
        let needed = !began || latest.is_some_and(|latest| latest.segment == index);
        let last = kept.iter().filter(|found| found.segment == index && needed).map(|found| found.end).max();
        if last.is_none() && !header_intact {
            // A stop while it was being made.
            disk.remove(FileName::Journal(segment.number)).map_err(failed("removing an unfinished journal segment"))?;
            continue;
        }
        if !header_intact {
            segment.file.write_at(&encode_segment_header(store), 0).map_err(failed("mending the journal"))?;
        }
        // A killed process leaves batches that only the page cache has. They count as committed from now on.
        if !header_intact || last.is_some_and(|last| last > after) {
            segment.file.sync().map_err(failed("syncing the journal"))?;
        }
        match (last, latest) {
            (None, _) => layout.free.push(segment),
            (Some(last), Some(latest)) if latest.segment == index => {
                let len = BATCH_HEADER + latest.header.body_bytes as usize;
                let cursor_bytes = latest.place.offset_bytes as usize + padded(len);
                layout.current = Some(Current { segment, cursor_bytes, last });
            }
            (Some(last), _) => layout.used.push((segment, last)),
        }
    }
    Ok(layout)
}
