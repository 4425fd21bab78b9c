//! The bytes of a segment file: a header, then records.
//!
//! ```text
//! header   "phifsopl" | u32 version 1 | store id (16) | u32 number | u32 CRC32C of all before
//! record   "pOpR" | u32 length of payload | u32 CRC32C | u64 synced | u8 kind | payload
//! kind 1   heads: count x (author id (16), n, chain (32)), ascending
//! kind 2   a sealed group, verbatim
//! kind 3   the same, where the log was never given the operations before it
//! ```
//!
//! - A record's checksum also covers the store, the segment and the offset, so bytes that merely look like a record
//!   (a copy of a log inside an operation, a leftover) are not one.
//! - `synced` says how many bytes of the segment were durable when the record was written. Damage below a number that
//!   any record claims hit durable bytes; damage above all of them is what a power failure may leave.
//! - Only the first record is heads: those at the end of the segment before. Header and heads are durable before
//!   anything follows. The header keeps its first 36 bytes in every later version.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

use super::group::{ChainHash, Head, OP_NUMBER_MAX};
use crate::codec::{self, DecodeError, Encode, Reader};
use crate::id::{AuthorId, Dot};

const MAGIC: [u8; 8] = *b"phifsopl";
const VERSION: u32 = 1;
pub(super) const HEADER_LEN: usize = 36;

const RECORD_MAGIC: [u8; 4] = *b"pOpR";
const RECORD_HEADER_LEN: usize = 21;
const KIND_HEADS: u8 = 1;
const KIND_GROUP: u8 = 2;
const KIND_GROUP_AFTER_GAP: u8 = 3;

/// How far the history of each author goes.
pub type Heads = BTreeMap<AuthorId, Head>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    Good,
    Damaged,
    OtherStore,
}

/// Which segment of which store bytes belong to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub store: [u8; 16],
    pub number: u32,
}

pub(super) enum Payload {
    Heads(Heads),
    Group { bytes: Bytes, after_gap: bool },
}

pub(super) struct Record {
    pub payload: Payload,
    pub synced_bytes: u64,
}

/// What a stretch of a segment is.
pub(super) struct Stretch {
    pub at: Range<usize>,
    /// `None`: no record.
    pub record: Option<Record>,
}

impl Place {
    /// The beginning of a new segment.
    pub fn start(&self, heads: &Heads) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN + RECORD_HEADER_LEN + 10 + heads.len() * 58);
        bytes.put_bytes(&MAGIC);
        bytes.put_u32(VERSION);
        bytes.put_bytes(&self.store);
        bytes.put_u32(self.number);
        let crc = crc32c::crc32c(&bytes);
        bytes.put_u32(crc);
        let mut payload = Vec::with_capacity(10 + heads.len() * 58);
        payload.put_varint(heads.len() as u64);
        for (&author, head) in heads {
            payload.put_dot(Dot { author, n: head.n });
            payload.put_bytes(&head.chain.0);
        }
        let record = self.record(HEADER_LEN as u64, 0, KIND_HEADS, &payload);
        bytes.put_bytes(&record);
        bytes
    }

    /// # Errors
    /// `NewerVersion`, for an intact header only.
    pub fn check_header(&self, bytes: &[u8]) -> codec::Result<Header> {
        let mut reader = Reader::new(bytes);
        let Ok(magic) = reader.array::<8>() else { return Ok(Header::Damaged) };
        let (version, store, number, crc) = (reader.u32(), reader.array::<16>(), reader.u32(), reader.u32());
        let (Ok(version), Ok(store), Ok(number), Ok(crc)) = (version, store, number, crc) else {
            return Ok(Header::Damaged);
        };
        if magic != MAGIC || crc != crc32c::crc32c(&bytes[..HEADER_LEN - 4]) {
            return Ok(Header::Damaged);
        }
        if version > VERSION {
            let what = "a segment of the operation log";
            return Err(DecodeError::NewerVersion { what, found: version, known: VERSION });
        }
        Ok(if store != self.store {
            Header::OtherStore
        } else if number != self.number || version != VERSION {
            Header::Damaged
        } else {
            Header::Good
        })
    }

    /// The record of a group that will begin at `offset_bytes` of the segment, of which `synced_bytes` are durable.
    pub fn group(&self, offset_bytes: u64, synced_bytes: u64, group: &[u8], after_gap: bool) -> Vec<u8> {
        let kind = if after_gap { KIND_GROUP_AFTER_GAP } else { KIND_GROUP };
        self.record(offset_bytes, synced_bytes, kind, group)
    }

    fn record(&self, offset_bytes: u64, synced_bytes: u64, kind: u8, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).expect("heads and groups stay far below 4 GiB");
        let mut record = Vec::with_capacity(RECORD_HEADER_LEN + payload.len());
        record.put_bytes(&RECORD_MAGIC);
        record.put_u32(len);
        record.put_u32(self.checksum(offset_bytes, synced_bytes, kind, payload));
        record.put_u64(synced_bytes);
        record.put_u8(kind);
        record.put_bytes(payload);
        record
    }

    fn checksum(&self, offset_bytes: u64, synced_bytes: u64, kind: u8, payload: &[u8]) -> u32 {
        let mut place = Vec::with_capacity(48);
        place.put_bytes(&self.store);
        place.put_u32(self.number);
        place.put_u64(offset_bytes);
        place.put_u64(payload.len() as u64);
        place.put_u64(synced_bytes);
        place.put_u8(kind);
        crc32c::crc32c_append(crc32c::crc32c(&place), payload)
    }

    /// The record that begins at `at`, and where it ends.
    pub fn record_at(&self, segment: &Bytes, at: usize) -> Option<(Record, usize)> {
        let mut reader = Reader::new(segment.get(at..)?);
        if reader.array().ok()? != RECORD_MAGIC {
            return None;
        }
        let len = reader.u32().ok()? as usize;
        let crc = reader.u32().ok()?;
        let synced_bytes = reader.u64().ok()?;
        let kind = reader.u8().ok()?;
        let payload = reader.bytes(len).ok()?;
        if crc != self.checksum(at as u64, synced_bytes, kind, payload) {
            return None;
        }
        let payload = match kind {
            KIND_HEADS if at == HEADER_LEN => Payload::Heads(decode_heads(payload).ok()?),
            KIND_GROUP | KIND_GROUP_AFTER_GAP => {
                Payload::Group { bytes: segment.slice_ref(payload), after_gap: kind == KIND_GROUP_AFTER_GAP }
            }
            _ => return None,
        };
        Some((Record { payload, synced_bytes }, at + RECORD_HEADER_LEN + len))
    }

    /// How long header and heads claim to be, from the first 44 bytes of a segment.
    pub fn start_len(&self, segment_front: &[u8]) -> Option<usize> {
        let mut reader = Reader::new(segment_front.get(HEADER_LEN..)?);
        if reader.array().ok()? != RECORD_MAGIC {
            return None;
        }
        Some(HEADER_LEN + RECORD_HEADER_LEN + reader.u32().ok()? as usize)
    }

    /// Everything behind the header, without gaps and in order. After damage it goes on at the next record.
    pub fn stretches<'a>(&'a self, segment: &'a Bytes) -> impl Iterator<Item = Stretch> + 'a {
        let mut at = HEADER_LEN;
        std::iter::from_fn(move || {
            let start = at;
            if start >= segment.len() {
                return None;
            }
            if let Some((record, end)) = self.record_at(segment, start) {
                at = end;
                return Some(Stretch { at: start..end, record: Some(record) });
            }
            let candidates = segment[start + 1..].windows(RECORD_MAGIC.len()).enumerate();
            at = candidates
                .filter(|(_, window)| *window == RECORD_MAGIC)
                .map(|(skipped, _)| start + 1 + skipped)
                .find(|&candidate| self.record_at(segment, candidate).is_some())
                .unwrap_or(segment.len());
            Some(Stretch { at: start..at, record: None })
        })
    }
}

fn decode_heads(payload: &[u8]) -> codec::Result<Heads> {
    let mut reader = Reader::new(payload);
    let mut heads = Heads::new();
    for _ in 0..reader.count()? {
        let Dot { author, n } = reader.dot()?;
        let ascends = heads.last_key_value().is_none_or(|(&last, _)| last < author);
        if !ascends || n > OP_NUMBER_MAX {
            return Err(DecodeError::NotCanonical("a list of heads"));
        }
        heads.insert(author, Head { n, chain: ChainHash(reader.array()?) });
    }
    reader.finish()?;
    Ok(heads)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { store: [7; 16], number: 3 };

    fn heads() -> Heads {
        (1..4).map(|i| (AuthorId([i; 16]), Head { n: u64::from(i) * 1000, chain: ChainHash([i; 32]) })).collect()
    }

    #[test]
    fn header_belongs_to_one_store_and_one_number() {
        let bytes = PLACE.start(&heads());
        assert_eq!(PLACE.check_header(&bytes), Ok(Header::Good));
        assert_eq!(Place { number: 4, ..PLACE }.check_header(&bytes), Ok(Header::Damaged));
        assert_eq!(Place { store: [8; 16], ..PLACE }.check_header(&bytes), Ok(Header::OtherStore));
        for i in 0..HEADER_LEN {
            let mut damaged = bytes.clone();
            damaged[i] ^= 0x40;
            assert_eq!(PLACE.check_header(&damaged), Ok(Header::Damaged), "byte {i}");
            assert_eq!(PLACE.check_header(&bytes[..i]), Ok(Header::Damaged), "cut at {i}");
        }
    }

    /// Logs are kept for years.
    #[test]
    fn format_is_fixed() {
        let mut bytes = PLACE.start(&heads());
        bytes.extend(PLACE.group(bytes.len() as u64, 99, b"group", false));
        bytes.extend(PLACE.group(bytes.len() as u64, 99, b"group", true));
        let hash = blake3::hash(&bytes).to_hex();
        assert_eq!((bytes.len(), &hash[..16]), (260, "5c8cc8c79b1d0003"));
    }

    #[test]
    fn newer_segment_is_refused_by_name() {
        let mut bytes = PLACE.start(&Heads::new());
        bytes[8] = 2;
        let crc = crc32c::crc32c(&bytes[..HEADER_LEN - 4]);
        bytes[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(PLACE.check_header(&bytes), Err(DecodeError::NewerVersion { found: 2, known: 1, .. })));
    }

    #[test]
    fn records_come_back_where_they_were_put_and_nowhere_else() {
        let mut bytes = PLACE.start(&heads());
        let at = bytes.len();
        bytes.extend(PLACE.group(at as u64, 57, b"group", true));
        let bytes = Bytes::from(bytes);
        assert_eq!(PLACE.start_len(&bytes), Some(at));
        let (first, end) = PLACE.record_at(&bytes, HEADER_LEN).unwrap();
        assert!(matches!(first.payload, Payload::Heads(found) if found == heads()));
        assert_eq!(end, at);
        let (second, end) = PLACE.record_at(&bytes, at).unwrap();
        assert!(matches!(second.payload, Payload::Group { bytes, after_gap: true } if bytes == "group"));
        assert_eq!((second.synced_bytes, end), (57, bytes.len()));

        assert!(PLACE.record_at(&bytes.slice(1..), at - 1).is_none(), "at another offset");
        assert!(Place { number: 4, ..PLACE }.record_at(&bytes, at).is_none(), "in another segment");
        assert!(Place { store: [8; 16], ..PLACE }.record_at(&bytes, at).is_none(), "in another store");
    }

    #[test]
    fn damage_ends_at_the_next_record() {
        let mut bytes = PLACE.start(&Heads::new());
        let mut ends = vec![HEADER_LEN, bytes.len()];
        for group in [&b"one"[..], b"two pOpR two", b"three"] {
            bytes.extend(PLACE.group(bytes.len() as u64, 0, group, false));
            ends.push(bytes.len());
        }
        for hit in HEADER_LEN..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[hit] ^= 1;
            let damaged = Bytes::from(damaged);
            for (stretch, range) in PLACE.stretches(&damaged).zip(ends.windows(2)) {
                assert_eq!(stretch.at, range[0]..range[1]);
                assert_eq!(stretch.record.is_none(), stretch.at.contains(&hit), "byte {hit}");
            }
        }
    }
}
