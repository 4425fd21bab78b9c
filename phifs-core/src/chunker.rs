//! Cuts a stream of bytes at content-defined boundaries, so that an insertion changes only the chunks around it.
//!
//! FastCDC, 2020 form (Xia et al., "The Design of Fast Content Defined Chunking for Data Deduplication Based Storage
//! Systems", IEEE TPDS 2020), at 16/64/256 KiB. A stream of at most 64 KiB is one chunk. The boundaries are a function
//! of the bytes alone: they do not depend on the sizes in which the caller reads them.

use fastcdc::v2020::{MASKS, cut};

/// No chunk is smaller, except the last of a stream.
pub const CHUNK_BYTES_MIN: usize = 16 << 10;
/// The size that the cuts aim at.
pub const CHUNK_BYTES_AVG: usize = 64 << 10;
/// No chunk is larger.
pub const CHUNK_BYTES_MAX: usize = 256 << 10;
/// A stream up to this size is not cut at all: one glyph is cheaper than two.
pub const WHOLE_BYTES_MAX: usize = 64 << 10;

const AVG_BITS: usize = CHUNK_BYTES_AVG.ilog2() as usize;
// Normalised chunking, level 1: harder to cut before the average size, easier after it.
const MASK_SMALL: u64 = MASKS[AVG_BITS + 1];
const MASK_LARGE: u64 = MASKS[AVG_BITS - 1];

const _: () = assert!(WHOLE_BYTES_MAX <= CHUNK_BYTES_MAX);

/// Finds the boundaries of one stream, from its start.
///
/// The caller keeps a buffer of at least `CHUNK_BYTES_MAX` bytes (1 MiB does well), fills it from the stream, calls
/// `cut` on its front until that returns `None`, and refills.
#[derive(Clone, Debug)]
pub struct Chunker {
    at_start: bool,
}

impl Chunker {
    pub fn new() -> Self {
        Self { at_start: true }
    }

    /// Continues a stream at a boundary that an earlier pass over the same bytes found, other than its start.
    pub fn resume() -> Self {
        Self { at_start: false }
    }

    /// The length of the chunk at the front of `buf`. `last`: the stream ends with `buf`.
    ///
    /// `None` when `buf` is too short to tell (less than `CHUNK_BYTES_MAX`, more to come), or empty.
    pub fn cut(&mut self, buf: &[u8], last: bool) -> Option<usize> {
        if buf.is_empty() || (!last && buf.len() < CHUNK_BYTES_MAX) {
            return None;
        }
        if std::mem::take(&mut self.at_start) && buf.len() <= WHOLE_BYTES_MAX {
            return Some(buf.len());
        }
        let window = &buf[..buf.len().min(CHUNK_BYTES_MAX)];
        let (_, len) = cut(
            window,
            CHUNK_BYTES_MIN,
            CHUNK_BYTES_AVG,
            CHUNK_BYTES_MAX,
            MASK_SMALL,
            MASK_LARGE,
            MASK_SMALL << 1,
            MASK_LARGE << 1,
        );
        Some(len)
    }
}

impl Default for Chunker {
    fn default() -> Self {
        Self::new()
    }
}

/// The chunks of bytes that are all in memory.
pub fn chunks(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut chunker = Chunker::new();
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (chunk, tail) = rest.split_at(chunker.cut(rest, true)?);
        rest = tail;
        Some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes that look random, from BLAKE3 in its extendable form.
    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn lengths(bytes: &[u8]) -> Vec<usize> {
        chunks(bytes).map(<[u8]>::len).collect()
    }

    fn lengths_read_by(bytes: &[u8], read_sizes: &[usize]) -> Vec<usize> {
        let mut chunker = Chunker::new();
        let mut reads = read_sizes.iter().cycle();
        let (mut found, mut buf, mut rest) = (Vec::new(), Vec::new(), bytes);
        loop {
            while let Some(len) = chunker.cut(&buf, rest.is_empty()) {
                buf.drain(..len);
                found.push(len);
            }
            if rest.is_empty() {
                return found;
            }
            let (head, tail) = rest.split_at(rest.len().min(*reads.next().unwrap()));
            buf.extend_from_slice(head);
            rest = tail;
        }
    }

    #[test]
    fn small_streams_are_one_chunk() {
        assert_eq!(lengths(&[]), [0; 0]);
        assert_eq!(lengths(&[1]), [1]);
        assert_eq!(lengths(&noise(1, WHOLE_BYTES_MAX)), [WHOLE_BYTES_MAX]);
        assert!(lengths(&noise(3, 4 * WHOLE_BYTES_MAX)).len() > 1);
    }

    #[test]
    fn boundaries_are_those_of_the_reference() {
        let bytes = noise(2, 3 << 20);
        let reference = fastcdc::v2020::FastCDC::new(&bytes, CHUNK_BYTES_MIN, CHUNK_BYTES_AVG, CHUNK_BYTES_MAX);
        assert_eq!(lengths(&bytes), reference.map(|chunk| chunk.length).collect::<Vec<_>>());
    }

    #[test]
    fn an_insertion_leaves_later_chunks_alone() {
        let old = noise(3, 2 << 20);
        let mut new = old.clone();
        new.splice(300_000..300_000, *b"inserted");
        let kept: std::collections::BTreeSet<&[u8]> = chunks(&old).collect();
        let fresh = chunks(&new).filter(|chunk| !kept.contains(chunk)).count();
        assert!(fresh <= 3, "{fresh} chunks changed");
    }

    #[test]
    fn a_resumed_stream_has_the_same_boundaries() {
        let bytes = noise(4, 1 << 20);
        let all = lengths(&bytes);
        let (mut chunker, mut rest, mut found) = (Chunker::resume(), &bytes[all[0]..], vec![all[0]]);
        while let Some(len) = chunker.cut(rest, true) {
            found.push(len);
            rest = &rest[len..];
        }
        assert_eq!(found, all);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn boundaries_do_not_depend_on_read_sizes(
            seed: u64,
            len in 0..900_000usize,
            zeroes in 0..600_000usize,
            reads in prop::collection::vec(1..400_000usize, 1..5),
        ) {
            let mut bytes = noise(seed, len);
            bytes.resize(len + zeroes, 0);
            let whole = lengths(&bytes);
            prop_assert_eq!(whole.iter().sum::<usize>(), bytes.len());
            prop_assert!(whole.iter().all(|len| *len <= CHUNK_BYTES_MAX));
            prop_assert_eq!(lengths_read_by(&bytes, &reads), whole);
        }
    }
}
