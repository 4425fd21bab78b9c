//! The bytes of the journal: segment headers, batches, and the records inside the stream that batches carry.
//!
//! ```text
//! segment  = header sector | batch | batch | ..          a batch starts at a sector boundary
//! header   = magic 8 | version u32 | store id 16 | crc u32 | zeroes
//! batch    = magic 4 | crc u32 | body length u32 | epoch u32 | opened u64 | start u64 | synced u64 | body | zeroes
//! record   = payload length u32 | kind u8 | payload      may cross from one batch to the next
//! ```
//!
//! Integers are little-endian. The header never changes after the segment was prepared. The checksum of a batch is
//! CRC32C over everything behind it up to the end of the body, seeded with the store id and the place (segment, offset),
//! so that a batch copied from another store or to another place does not validate.

use super::{JournalError, Lsn};
use crate::codec::{DecodeError, Encode, Reader};
use crate::meta::superblock::StoreId;

/// The unit that a disk writes whole. No sector that was synced is ever written again before it is recycled.
pub(super) const SECTOR: usize = 512;
pub(super) const BATCH_HEADER: usize = 40;
pub(super) const RECORD_HEADER: usize = 5;
/// The longest payload of a record.
pub const RECORD_BYTES_MAX: usize = 16 << 20;

const SEGMENT_MAGIC: [u8; 8] = *b"PHIFS-JL";
const BATCH_MAGIC: [u8; 4] = *b"PhJb";
const VERSION: u32 = 1;
const CRC_AT: usize = 4;
const CHECKED_FROM: usize = 8;

pub(super) fn padded(len: usize) -> usize {
    len.next_multiple_of(SECTOR)
}

pub(super) fn encode_segment_header(store: StoreId) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SECTOR);
    bytes.put_bytes(&SEGMENT_MAGIC);
    bytes.put_u32(VERSION);
    bytes.put_bytes(&store.0);
    let crc = crc32c::crc32c(&bytes);
    bytes.put_u32(crc);
    bytes.resize(SECTOR, 0);
    bytes
}

/// Whether this is the header of a segment of this store; `false` if it was never finished or is damaged.
///
/// # Errors
/// The segment is of another store, or in a newer format.
pub(super) fn check_segment_header(sector: &[u8], store: StoreId) -> Result<bool, JournalError> {
    let parse = || -> Result<(u32, StoreId, bool), DecodeError> {
        let mut reader = Reader::new(sector);
        if reader.array()? != SEGMENT_MAGIC {
            return Err(DecodeError::NotCanonical("a segment header"));
        }
        let (version, found) = (reader.u32()?, StoreId(reader.array()?));
        Ok((version, found, crc32c::crc32c(&sector[..28]) == reader.u32()?))
    };
    match parse() {
        // Behind a newer version number nothing else can be expected to stand where this program looks for it.
        Ok((version, ..)) if version > VERSION => Err(JournalError::Malformed(DecodeError::NewerVersion {
            what: "the journal",
            found: version,
            known: VERSION,
        })),
        Ok((_, found, true)) if found != store => Err(JournalError::ForeignStore { found, expected: store }),
        Ok((_, _, intact)) => Ok(intact),
        Err(_) => Ok(false),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchHeader {
    /// Counts the openings of the journal that wrote something.
    pub epoch: u32,
    /// Where this epoch began. What older epochs wrote at or behind it was dropped when it did.
    pub opened: Lsn,
    /// The stream position of the first byte of the body.
    pub start: Lsn,
    /// All of the stream before this was durable when this batch was written.
    pub synced: Lsn,
    pub body_bytes: u32,
}

impl BatchHeader {
    pub(super) fn end(&self) -> Lsn {
        Lsn(self.start.0 + u64::from(self.body_bytes))
    }
}

/// Where a batch lies; part of its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub segment: u32,
    pub offset_bytes: u32,
}

impl Place {
    fn seed(self, store: StoreId) -> u32 {
        let seed = crc32c::crc32c(&store.0);
        let seed = crc32c::crc32c_append(seed, &self.segment.to_le_bytes());
        crc32c::crc32c_append(seed, &self.offset_bytes.to_le_bytes())
    }
}

/// Replaces `out` with the batch, padded to whole sectors.
pub(super) fn encode_batch(out: &mut Vec<u8>, store: StoreId, place: Place, header: &BatchHeader, body: &[u8]) {
    assert_eq!(body.len(), header.body_bytes as usize);
    out.clear();
    out.put_bytes(&BATCH_MAGIC);
    out.put_u32(0);
    out.put_u32(header.body_bytes);
    out.put_u32(header.epoch);
    out.put_u64(header.opened.0);
    out.put_u64(header.start.0);
    out.put_u64(header.synced.0);
    out.put_bytes(body);
    let crc = crc32c::crc32c_append(place.seed(store), &out[CHECKED_FROM..]);
    out[CRC_AT..CHECKED_FROM].copy_from_slice(&crc.to_le_bytes());
    out.resize(padded(out.len()), 0);
}

/// The batch at the front of `bytes`, with its body, if a whole and undamaged one is there.
pub(super) fn decode_batch(bytes: &[u8], store: StoreId, place: Place) -> Option<(BatchHeader, &[u8])> {
    let mut reader = Reader::new(bytes);
    if reader.array().ok()? != BATCH_MAGIC {
        return None;
    }
    let crc = reader.u32().ok()?;
    let header = BatchHeader {
        body_bytes: reader.u32().ok()?,
        epoch: reader.u32().ok()?,
        opened: Lsn(reader.u64().ok()?),
        start: Lsn(reader.u64().ok()?),
        synced: Lsn(reader.u64().ok()?),
    };
    let body = reader.bytes(header.body_bytes as usize).ok()?;
    let checked = &bytes[CHECKED_FROM..BATCH_HEADER + body.len()];
    let sound = crc32c::crc32c_append(place.seed(store), checked) == crc
        && header.opened <= header.synced
        && header.synced <= header.start
        && header.start.0.checked_add(u64::from(header.body_bytes)).is_some();
    sound.then_some((header, body))
}

pub(super) fn encode_record(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    assert!(payload.len() <= RECORD_BYTES_MAX, "a record of {} bytes", payload.len());
    out.put_u32(payload.len() as u32);
    out.put_u8(kind);
    out.put_bytes(payload);
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub kind: u8,
    pub payload: &'a [u8],
}

impl Record<'_> {
    /// What it takes of the stream.
    pub(super) fn len(&self) -> usize {
        RECORD_HEADER + self.payload.len()
    }
}

/// The record at the front of `stream`, if all of it is there.
///
/// # Errors
/// The length is beyond what a record can have, which no torn write explains as checksums were right.
pub(super) fn decode_record(stream: &[u8]) -> Result<Option<Record<'_>>, DecodeError> {
    let Some((&head, rest)) = stream.split_first_chunk::<RECORD_HEADER>() else { return Ok(None) };
    let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    if len > RECORD_BYTES_MAX {
        return Err(DecodeError::NotCanonical("the length of a journal record"));
    }
    Ok(rest.get(..len).map(|payload| Record { kind: head[4], payload }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STORE: StoreId = StoreId([7; 16]);
    const PLACE: Place = Place { segment: 3, offset_bytes: 1024 };

    fn batch(body: &[u8]) -> (BatchHeader, Vec<u8>) {
        let header =
            BatchHeader { epoch: 2, opened: Lsn(10), start: Lsn(40), synced: Lsn(40), body_bytes: body.len() as u32 };
        let mut bytes = Vec::new();
        encode_batch(&mut bytes, STORE, PLACE, &header, body);
        (header, bytes)
    }

    #[test]
    fn a_batch_validates_only_at_its_own_place_in_its_own_store() {
        let (header, bytes) = batch(b"records");
        assert_eq!(bytes.len(), SECTOR);
        assert_eq!(decode_batch(&bytes, STORE, PLACE), Some((header, &b"records"[..])));
        assert_eq!(decode_batch(&bytes, StoreId([8; 16]), PLACE), None);
        assert_eq!(decode_batch(&bytes, STORE, Place { segment: 4, ..PLACE }), None);
        assert_eq!(decode_batch(&bytes, STORE, Place { offset_bytes: 512, ..PLACE }), None);
    }

    #[test]
    fn version_1_is_what_it_was() {
        let mut record = Vec::new();
        encode_record(&mut record, 4, b"payload");
        assert_eq!(record, b"\x07\0\0\0\x04payload");
        let (_, bytes) = batch(&record);
        assert_eq!(bytes[..8], *b"PhJb\x15\x55\x0e\x8a");
        assert_eq!(bytes[8..24], *b"\x0c\0\0\0\x02\0\0\0\x0a\0\0\0\0\0\0\0");
        assert_eq!(bytes[24..40], *b"\x28\0\0\0\0\0\0\0\x28\0\0\0\0\0\0\0");
        assert_eq!(bytes[40..52], record);
        let header = encode_segment_header(STORE);
        assert_eq!(header[..12], *b"PHIFS-JL\x01\0\0\0");
        assert_eq!(
            header[12..32],
            *b"\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\xc3\x1a\x4e\x6c"
        );
    }

    #[test]
    fn any_flipped_bit_or_missing_end_of_a_batch_is_noticed() {
        let (_, bytes) = batch(b"some records");
        let used = BATCH_HEADER + b"some records".len();
        for bit in 0..used * 8 {
            let mut bent = bytes.clone();
            bent[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_batch(&bent, STORE, PLACE), None, "bit {bit}");
        }
        assert!((0..used).all(|len| decode_batch(&bytes[..len], STORE, PLACE).is_none()));
    }

    #[test]
    fn segments_of_other_stores_and_newer_formats_are_refused() {
        let header = encode_segment_header(STORE);
        assert!(check_segment_header(&header, STORE).unwrap());
        assert!(matches!(check_segment_header(&header, StoreId([1; 16])), Err(JournalError::ForeignStore { .. })));
        let mut newer = header.clone();
        newer[8] = 2;
        let refused = check_segment_header(&newer, STORE).unwrap_err();
        assert!(refused.to_string().contains("version 2; this program knows versions up to 1"), "{refused}");
        assert!(!check_segment_header(&[0; SECTOR], STORE).unwrap());
        assert!(!check_segment_header(&[], STORE).unwrap());
    }

    proptest! {
        #[test]
        fn records_round_trip_and_a_prefix_is_not_one(kind: u8, payload: Vec<u8>) {
            let mut bytes = Vec::new();
            encode_record(&mut bytes, kind, &payload);
            let record = decode_record(&bytes).unwrap().unwrap();
            prop_assert_eq!(record.len(), bytes.len());
            prop_assert_eq!(record, Record { kind, payload: &payload });
            for len in 0..bytes.len() {
                prop_assert_eq!(decode_record(&bytes[..len]), Ok(None));
            }
        }
    }
}
