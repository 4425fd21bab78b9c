//! One glyph in a pack: a 64-byte header, then the stored bytes, padded with zeroes to 8.
//!
//! The header carries its own checksum and the place it was written for (pack, offset), so that neither stale disk
//! blocks nor a pack stored as a file's bytes are ever taken for records. The id is the BLAKE3 hash of the plain
//! bytes; it verifies reads. The CRC32C of the stored bytes lets scrub and recovery run without decompressing.
//!
//! ```text
//! 0  magic  4 kind  5 codec  6 zero  8 plain length  12 stored length  16 id
//! 48 CRC32C of stored bytes  52 pack  56 offset / 8  60 CRC32C of bytes 0..60
//! ```

use std::borrow::Cow;
use std::cell::RefCell;

use bytes::Bytes;
use zstd::zstd_safe::{CCtx, CParameter};

use super::GlyphKind;
use crate::id::GlyphId;

pub(super) const HEADER_BYTES: usize = 64;
pub(super) const ALIGN: usize = 8;
/// The longest glyph that a store takes, plain.
pub const GLYPH_BYTES_MAX: usize = 16 << 20;

const MAGIC: [u8; 4] = *b"\xceGly";
pub(super) const DATA_LEVEL: i32 = 1;
const NODE_LEVEL: i32 = -1;
/// A node longer than this holds what users wrote, small files above all, and is compressed like their other data.
const NODE_BYTES_MAX: usize = 8 << 10;
/// Compression must save this part of the bytes, or reading pays for nothing.
const GAIN_MIN: usize = 32;
/// A delta must save this part of what the glyph takes by itself, as it has to be read along with its base.
const DELTA_GAIN_MIN: usize = 2;
const DELTA_LEVEL: i32 = 3;
/// So many deltas at most have to be read one after the other: rows are looked at all the time, the bytes of small files,
/// which take much more room, now and then.
pub(super) const DELTAS_MAX: usize = 64;
const DELTAS_OF_ROWS_MAX: usize = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    Raw,
    Zstd,
    /// What another glyph is not: see `Delta`.
    Delta,
}

/// The stored bytes of a glyph that is told by another one: the id of that, then a zstd frame with its plain bytes as
/// prefix.
pub(super) struct Delta {
    pub base: GlyphId,
    frame: Bytes,
}

/// What a node is to be told by.
pub(super) struct Base<'a> {
    pub id: &'a GlyphId,
    pub plain: &'a [u8],
    /// How many deltas tell it.
    pub deltas: usize,
}

impl Delta {
    /// Of the stored bytes, or of so many of them.
    pub fn decode(stored: Bytes) -> Option<Self> {
        let base = GlyphId(*stored.first_chunk()?);
        Some(Self { base, frame: stored.slice(GlyphId::LEN..) })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub kind: GlyphKind,
    pub codec: Codec,
    pub plain_bytes: u32,
    pub stored_bytes: u32,
    pub id: GlyphId,
    pub stored_crc: u32,
}

/// A record that may go to any place.
pub(super) struct Record<'a> {
    pub header: Header,
    pub stored: Cow<'a, [u8]>,
}

impl GlyphKind {
    pub fn tag(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::Node => 2,
        }
    }

    pub fn from_tag(tag: u8) -> Option<Self> {
        match tag {
            1 => Some(Self::Data),
            2 => Some(Self::Node),
            _ => None,
        }
    }
}

impl Codec {
    pub fn tag(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
            Self::Delta => 2,
        }
    }

    pub fn from_tag(tag: u8) -> Option<Self> {
        match tag {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            2 => Some(Self::Delta),
            _ => None,
        }
    }
}

/// The length of a record in its pack, padding included.
pub(super) fn padded(stored_bytes: u32) -> u32 {
    (HEADER_BYTES as u32 + stored_bytes).next_multiple_of(ALIGN as u32)
}

impl Header {
    pub fn encode(&self, pack: u32, offset: u32) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = self.kind.tag();
        bytes[5] = self.codec.tag();
        bytes[8..12].copy_from_slice(&self.plain_bytes.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.stored_bytes.to_le_bytes());
        bytes[16..48].copy_from_slice(&self.id.0);
        bytes[48..52].copy_from_slice(&self.stored_crc.to_le_bytes());
        bytes[52..56].copy_from_slice(&pack.to_le_bytes());
        bytes[56..60].copy_from_slice(&(offset / ALIGN as u32).to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header at this place, or `None` if there is none.
    pub fn decode(bytes: &[u8], pack: u32, offset: u32) -> Option<Self> {
        let bytes: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if bytes[..4] != MAGIC || number(60) != crc32c::crc32c(&bytes[..60]) {
            return None;
        }
        let header = Self {
            kind: GlyphKind::from_tag(bytes[4])?,
            codec: Codec::from_tag(bytes[5])?,
            plain_bytes: number(8),
            stored_bytes: number(12),
            id: GlyphId(bytes[16..48].try_into().ok()?),
            stored_crc: number(48),
        };
        let in_place = number(52) == pack && number(56) == offset / ALIGN as u32;
        let sane = header.plain_bytes as usize <= GLYPH_BYTES_MAX && header.stored_bytes <= header.plain_bytes;
        (in_place && sane).then_some(header)
    }

    pub fn stored_is_intact(&self, stored: &[u8]) -> bool {
        stored.len() == self.stored_bytes as usize && crc32c::crc32c(stored) == self.stored_crc
    }

    /// The plain bytes, or `None` if they do not hash to the id, or are told by another glyph.
    pub fn plain(&self, stored: Bytes) -> Option<Bytes> {
        let plain = match self.codec {
            Codec::Raw => stored,
            Codec::Zstd => decompress(&stored, self.plain_bytes as usize)?.into(),
            Codec::Delta => return None,
        };
        self.verified(plain)
    }

    /// The same for a delta, with the plain bytes of its base.
    pub fn plain_after(&self, delta: &Delta, base: &[u8]) -> Option<Bytes> {
        thread_local! {
            static DECOMPRESSOR: RefCell<zstd::bulk::Decompressor<'static>> = RefCell::default();
        }
        let mut plain = Vec::with_capacity(self.plain_bytes as usize);
        DECOMPRESSOR
            .with_borrow_mut(|decompressor| {
                decompressor.set_dictionary(base)?;
                decompressor.decompress_to_buffer(&delta.frame[..], &mut plain)
            })
            .ok()?;
        self.verified(plain.into())
    }

    fn verified(&self, plain: Bytes) -> Option<Bytes> {
        (plain.len() == self.plain_bytes as usize && GlyphId::of(&plain) == self.id).then_some(plain)
    }
}

/// Compresses where that gains. `id` is the hash of `plain`, which is at most `GLYPH_BYTES_MAX` long.
///
/// `data_level` is how hard to try with data: a level of zstd, 0 for not at all.
pub(super) fn encode(kind: GlyphKind, id: GlyphId, plain: &[u8], data_level: i32) -> Record<'_> {
    let level = match kind {
        GlyphKind::Node if plain.len() <= NODE_BYTES_MAX => NODE_LEVEL,
        GlyphKind::Node => DATA_LEVEL,
        GlyphKind::Data if looks_random(plain) => 0,
        GlyphKind::Data => data_level,
    };
    let compressed = if level == 0 { None } else { compress(level, plain) };
    let (codec, stored): (Codec, Cow<[u8]>) = match compressed {
        Some(bytes) => (Codec::Zstd, bytes.into()),
        None => (Codec::Raw, plain.into()),
    };
    let header = Header {
        kind,
        codec,
        plain_bytes: plain.len() as u32,
        stored_bytes: stored.len() as u32,
        id,
        stored_crc: crc32c::crc32c(&stored),
    };
    Record { header, stored }
}

/// Tells a node by another one that is so many deltas away from one that stands for itself, where that gains.
pub(super) fn encode_after<'a>(id: GlyphId, plain: &'a [u8], base: &Base<'_>) -> Record<'a> {
    let whole = encode(GlyphKind::Node, id, plain, DATA_LEVEL);
    let deltas_max = if plain.len() > NODE_BYTES_MAX { DELTAS_MAX } else { DELTAS_OF_ROWS_MAX };
    if base.deltas >= deltas_max {
        return whole;
    }
    let Some(room) = (whole.stored.len() / DELTA_GAIN_MIN).checked_sub(GlyphId::LEN) else { return whole };
    let mut frame = Vec::with_capacity(room);
    let mut compressor = CCtx::create();
    let fits = compressor
        .set_parameter(CParameter::CompressionLevel(DELTA_LEVEL))
        .and_then(|_| compressor.ref_prefix(base.plain))
        .and_then(|_| compressor.compress2(&mut frame, plain));
    if fits.is_err() {
        return whole;
    }
    let stored = [&base.id.0[..], &frame].concat();
    let (stored_bytes, stored_crc) = (stored.len() as u32, crc32c::crc32c(&stored));
    let header = Header { codec: Codec::Delta, stored_bytes, stored_crc, ..whole.header };
    Record { header, stored: stored.into() }
}

fn compress(level: i32, plain: &[u8]) -> Option<Vec<u8>> {
    thread_local! {
        // A context costs more to make than a small glyph to compress.
        static COMPRESSOR: RefCell<zstd::bulk::Compressor<'static>> = RefCell::default();
    }
    // More than this would be stored raw anyway, and zstd gives up as soon as the room is used.
    let mut stored = Vec::with_capacity(plain.len() - plain.len() / GAIN_MIN);
    let fits = COMPRESSOR.with_borrow_mut(|compressor| {
        compressor.set_compression_level(level)?;
        compressor.compress_to_buffer(plain, &mut stored)
    });
    (fits.is_ok() && stored.len() < plain.len()).then_some(stored)
}

fn decompress(stored: &[u8], plain_bytes: usize) -> Option<Vec<u8>> {
    thread_local! {
        static DECOMPRESSOR: RefCell<zstd::bulk::Decompressor<'static>> = RefCell::default();
    }
    let mut plain = Vec::with_capacity(plain_bytes);
    DECOMPRESSOR.with_borrow_mut(|decompressor| decompressor.decompress_to_buffer(stored, &mut plain)).ok()?;
    Some(plain)
}

/// Whether the byte entropy of four samples of 1 KiB says that compression is wasted time.
fn looks_random(plain: &[u8]) -> bool {
    const SAMPLE: usize = 1024;
    const BITS_MIN: f64 = 7.8;
    if plain.len() < 4 * SAMPLE {
        return false;
    }
    let mut counts = [0u32; 256];
    for part in 0..4 {
        let at = (plain.len() - SAMPLE) / 3 * part;
        for &byte in &plain[at..at + SAMPLE] {
            counts[usize::from(byte)] += 1;
        }
    }
    let total = (4 * SAMPLE) as f64;
    let bits: f64 =
        counts.iter().filter(|count| **count > 0).map(|count| f64::from(*count) / total).map(|p| -p * p.log2()).sum();
    bits > BITS_MIN
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    fn plain(header: &Header, stored: &[u8]) -> Option<Bytes> {
        header.plain(Bytes::copy_from_slice(stored))
    }

    #[test]
    fn text_is_compressed_and_noise_is_not() {
        let text = b"glyphs and glyphs ".repeat(1000);
        for kind in [GlyphKind::Data, GlyphKind::Node] {
            let record = encode(kind, GlyphId::of(&text), &text, DATA_LEVEL);
            assert_eq!(record.header.codec, Codec::Zstd);
            assert!(record.stored.len() < text.len() / 4);
            assert_eq!(plain(&record.header, &record.stored).unwrap(), text);
            for len in [0, 1, 100, 5000, 100_000] {
                let noise = noise(len);
                let record = encode(kind, GlyphId::of(&noise), &noise, DATA_LEVEL);
                assert_eq!(record.header.codec, Codec::Raw, "{len} bytes");
                assert_eq!(plain(&record.header, &record.stored).unwrap(), noise);
            }
        }
        assert!(looks_random(&noise(16 << 10)) && !looks_random(&text));
    }

    #[test]
    fn node_full_of_users_bytes_is_compressed_like_their_data() {
        // Half of every byte is random, and no string of bytes comes twice: only coding the bytes shorter helps.
        let plain: Vec<u8> = noise(32 << 10).iter().map(|byte| b'a' + (byte & 15)).collect();
        let stored_bytes = |kind| encode(kind, GlyphId::of(&plain), &plain, DATA_LEVEL).header.stored_bytes;
        assert_eq!(stored_bytes(GlyphKind::Node), stored_bytes(GlyphKind::Data));
        assert!((stored_bytes(GlyphKind::Node) as usize) < plain.len() * 6 / 10);
    }

    #[test]
    fn a_header_is_valid_only_unchanged_and_in_its_place() {
        let plain = b"some bytes";
        let header = encode(GlyphKind::Data, GlyphId::of(plain), plain, DATA_LEVEL).header;
        let bytes = header.encode(7, 640);
        assert_eq!(Header::decode(&bytes, 7, 640), Some(header));
        assert_eq!(Header::decode(&bytes, 8, 640), None);
        assert_eq!(Header::decode(&bytes, 7, 648), None);
        for at in 0..HEADER_BYTES {
            let mut bad = bytes;
            bad[at] ^= 1;
            assert_eq!(Header::decode(&bad, 7, 640), None, "byte {at}");
        }
    }

    #[test]
    fn plain_bytes_that_do_not_hash_to_the_id_are_refused() {
        let text = b"glyphs and glyphs ".repeat(1000);
        let record = encode(GlyphKind::Data, GlyphId::of(&text), &text, DATA_LEVEL);
        let mut stored = record.stored.to_vec();
        for at in 0..stored.len() {
            stored[at] ^= 0x10;
            assert!(!record.header.stored_is_intact(&stored));
            // A bit that zstd ignores may give the right bytes; wrong bytes never come back.
            assert!(plain(&record.header, &stored).is_none_or(|plain| plain == text));
            stored[at] ^= 0x10;
        }
    }

    /// As older programs have written them: in each codec a header at offset 64 of pack 3, and the stored bytes.
    #[test]
    fn records_of_version_1_are_read() {
        let base = HEXLOWER.encode(&noise(600));
        let plain = format!("{base} and a row more");
        let (base, plain) = (base.as_bytes(), plain.as_bytes());
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/src/store/golden/records-v1.hex");
        let records = std::fs::read_to_string(file).unwrap();
        let records: Vec<Vec<u8>> = records.lines().map(|line| HEXLOWER.decode(line.as_bytes()).unwrap()).collect();
        let mut codecs = Vec::new();
        for record in records {
            let (header, stored) = record.split_first_chunk::<HEADER_BYTES>().unwrap();
            let header = Header::decode(header, 3, 64).unwrap();
            assert!(header.stored_is_intact(stored));
            let read = match header.codec {
                Codec::Delta => {
                    let delta = Delta::decode(Bytes::copy_from_slice(stored)).unwrap();
                    assert_eq!(delta.base, GlyphId::of(base));
                    header.plain_after(&delta, base)
                }
                _ => header.plain(Bytes::copy_from_slice(stored)),
            };
            let wanted = if header.codec == Codec::Raw { &b"raw"[..] } else { plain };
            assert_eq!(read.unwrap(), wanted);
            codecs.push(header.codec);
        }
        assert_eq!(codecs, [Codec::Raw, Codec::Zstd, Codec::Delta]);
    }
}
