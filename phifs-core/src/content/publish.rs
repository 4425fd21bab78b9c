//! Turns a file that was changed into a version: chunks its bytes, stores the glyphs, writes the manifest.
//!
//! Only what changed is read. A chunk's end depends on nothing but the bytes since its start, so extents of the base
//! before a change stay as they are, and behind it chunking goes on only until it cuts where the base has a boundary
//! too: from there on the base's extents are what chunking would find again. The result is the same as if the whole
//! file had been chunked, for the price of a few glyphs around every change.
//!
//! What is a hole stays one if it is at least [`HOLE_MIN`] long, rounded inwards to blocks of the host; shorter ones
//! would cut the file into tiny glyphs and become zeroes. Zeroes that somebody wrote stay data: they cost one small
//! glyph that all of them share, and looking for them would cost a look at every byte.

use bytes::Bytes;

use crate::chunker::{CHUNK_BYTES_MAX, Chunker};
use crate::content::manifest::{Builder, Extent, What};
use crate::content::overlay::{Overlay, Sources};
use crate::content::ranges::RangeSet;
use crate::content::validate::{Form, Verdict, is_blank, validate, validate_bytes};
use crate::content::{BLOCK, Content, ContentError, INLINE_MAX, Result, SINGLE_MAX};
use crate::id::GlyphId;
use crate::store::{GlyphKind, GlyphSink};

/// Shorter holes are stored as zeroes.
pub const HOLE_MIN: u64 = 16 * 1024;
/// How much is read at once when a change turns out to be long.
const READ_BYTES: usize = 1024 * 1024;

const _: () = assert!(HOLE_MIN.is_multiple_of(BLOCK) && SINGLE_MAX <= CHUNK_BYTES_MAX as u64);

/// A version's content, and the bytes to keep beside its record if it is inline (else none).
#[derive(Clone, Debug)]
pub struct Published {
    pub content: Content,
    pub inline: Bytes,
    /// What the bytes seem to be; nothing if they did not change, or those that tell are not here.
    pub verdict: Option<Verdict>,
    /// Whether there is nothing but zeroes, or nothing at all.
    pub is_blank: bool,
}

/// Publishes the file as it is now. The glyphs are durable after the next sync of the store.
///
/// If the file is written meanwhile, the version is a mix of both states, though a readable one: the caller looks at
/// the staging file's stamp before and after. The overlay learns of the result by `Overlay::published`.
pub fn publish(overlay: &Overlay, from: &mut Sources<'_>, sink: &dyn GlyphSink) -> Result<Published> {
    let len = overlay.len_bytes();
    if len <= SINGLE_MAX {
        return publish_small(overlay, from, sink);
    }
    let (mut content, mut verdict) = (*overlay.base(), None);
    if overlay.is_dirty() {
        content = Publisher::new(overlay, from, sink).run()?;
        let looked = validate(len, |buf, offset| overlay.read_at(from, buf, offset).map(drop));
        verdict = unless_away(looked)?;
    }
    let is_blank = match verdict {
        // Only what begins with a zero can be blank, and that is of no known form.
        Some(Verdict { form: Form::Opaque, .. }) => {
            let mut first = [0];
            overlay.read_at(from, &mut first, 0)?;
            first == [0] && is_blank(content, from.glyphs)?
        }
        _ => false,
    };
    Ok(Published { content, inline: Bytes::new(), verdict, is_blank })
}

fn publish_small(overlay: &Overlay, from: &mut Sources<'_>, sink: &dyn GlyphSink) -> Result<Published> {
    let len_bytes = overlay.len_bytes();
    let blank =
        |content| Ok(Published { content, inline: Bytes::new(), verdict: Some(Verdict::default()), is_blank: true });
    if len_bytes == 0 {
        return blank(Content::Empty);
    }
    if overlay.seek_data(from, 0)?.is_none() {
        return blank(Content::Hole { len_bytes });
    }
    let mut bytes = vec![0; len_bytes as usize];
    overlay.read_at(from, &mut bytes, 0)?;
    let verdict = Some(validate_bytes(&bytes));
    let is_blank = bytes.iter().all(|byte| *byte == 0);
    if len_bytes <= INLINE_MAX {
        let content = Content::Inline { len_bytes, hash: GlyphId::of(&bytes) };
        return Ok(Published { content, inline: bytes.into(), verdict, is_blank });
    }
    let content = Content::Single { len_bytes, glyph: sink.write(GlyphKind::Data, &bytes)? };
    Ok(Published { content, inline: Bytes::new(), verdict, is_blank })
}

/// Nothing if bytes of the base were wanted and cannot be had: that is no reason not to publish the others.
fn unless_away<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(error @ (ContentError::Staging { .. } | ContentError::TooLong)) => Err(error),
        Err(ContentError::Store(_) | ContentError::Malformed { .. } | ContentError::InlineDamaged(_)) => Ok(None),
        Ok(value) => Ok(Some(value)),
    }
}

struct Publisher<'a, 'b> {
    overlay: &'a Overlay,
    from: &'a mut Sources<'b>,
    sink: &'a dyn GlyphSink,
    out: Builder<'a>,
}

impl<'a, 'b> Publisher<'a, 'b> {
    fn new(overlay: &'a Overlay, from: &'a mut Sources<'b>, sink: &'a dyn GlyphSink) -> Self {
        Self { overlay, from, sink, out: Builder::new(sink) }
    }

    fn run(mut self) -> Result<Content> {
        let len = self.overlay.len_bytes();
        let mut at = 0;
        for region in self.regions()?.iter() {
            if at < region.start {
                self.from.base.reuse(self.from.glyphs, at..region.start, &mut self.out)?;
                at = region.start;
            }
            // Chunking the region before may have led into this one or past it.
            if at < region.end {
                at = self.rechunk(at, region.end)?;
            }
        }
        self.from.base.reuse(self.from.glyphs, at..len, &mut self.out)?;
        self.out.finish()
    }

    /// What is to be chunked again, in order: from a boundary of the base that no change can have moved, to the end
    /// of the change.
    fn regions(&mut self) -> Result<RangeSet> {
        let mut regions = RangeSet::new();
        for change in self.overlay.changed().iter() {
            regions.insert(self.boundary_before(change.start)?..change.end);
        }
        Ok(regions)
    }

    /// The start of the extent around this offset, or an earlier one: an extent that a hole or the end of the file
    /// cut short may go on where that is filled. So inline bytes, which have no glyph, are never reused here: the file
    /// has grown behind the end of their only extent.
    fn boundary_before(&mut self, offset: u64) -> Result<u64> {
        let here = self.from.base.find(self.from.glyphs, offset)?;
        let mut start = here.map_or(self.overlay.base().len_bytes(), |span| span.start);
        let mut after_data = here.is_some_and(|span| span.extent.what != What::Hole);
        while start > 0 {
            let before = self.from.base.find(self.from.glyphs, start - 1)?.expect("it lies in the base");
            let is_data = before.extent.what != What::Hole;
            if is_data && after_data {
                break;
            }
            start = before.start;
            if is_data {
                break;
            }
            after_data = false;
        }
        Ok(start)
    }

    /// Chunks from `at` until the cuts meet the base's at or behind `changed_end`, or to the end of the file. Returns
    /// where that is.
    fn rechunk(&mut self, mut at: u64, changed_end: u64) -> Result<u64> {
        let mut window = Window::default();
        while at < self.overlay.len_bytes() && (at < changed_end || !self.is_boundary(at)?) {
            if window.is_short() {
                self.refill(&mut window, at)?;
            }
            let extent = match window.bytes() {
                [] => {
                    let end = window.hole_end.expect("where no data is, there is a hole");
                    window = Window::default();
                    Extent { len_bytes: end - at, what: What::Hole }
                }
                bytes => {
                    // Always as in the middle of a stream, so that cuts do not depend on what came before.
                    let cut = Chunker::resume().cut(bytes, window.ended).expect("the window holds a whole chunk");
                    let id = self.sink.write(GlyphKind::Data, &bytes[..cut])?;
                    window.taken += cut;
                    Extent { len_bytes: cut as u64, what: What::Glyph(id) }
                }
            };
            self.out.push(extent)?;
            at += extent.len_bytes;
        }
        Ok(at)
    }

    /// Whether an extent of the base starts here.
    fn is_boundary(&mut self, at: u64) -> Result<bool> {
        let span = self.from.base.find(self.from.glyphs, at)?;
        Ok(span.is_some_and(|span| span.start == at))
    }

    /// Reads on until the window holds a whole chunk or reaches a hole. `at` is where its bytes start.
    fn refill(&mut self, window: &mut Window, at: u64) -> Result<()> {
        window.buf.drain(..window.taken);
        window.taken = 0;
        let old_len = window.buf.len();
        let from = at + old_len as u64;
        // One chunk first: most changes are short, and what is read of the base costs decompression.
        let want = if window.buf.capacity() == 0 { CHUNK_BYTES_MAX } else { READ_BYTES };
        let (end, hole_end) = self.data_until(from, from.saturating_add(want as u64))?;
        window.hole_end = hole_end;
        window.ended = hole_end.is_some() || end == self.overlay.len_bytes();
        window.buf.resize(old_len + (end - from) as usize, 0);
        self.overlay.read_at(self.from, &mut window.buf[old_len..], from)?;
        Ok(())
    }

    /// How far data reaches from here, looking no further than `limit`; and where the hole ends that stops it, if one
    /// does.
    fn data_until(&mut self, from: u64, limit: u64) -> Result<(u64, Option<u64>)> {
        let len = self.overlay.len_bytes();
        let limit = limit.min(len);
        let mut at = from;
        while at < limit {
            let hole = self.overlay.seek_hole_before(self.from, at, limit)?;
            if hole >= limit {
                break;
            }
            let data = self.overlay.seek_data(self.from, hole)?;
            let hole_end = data.map_or(len, |data| data - data % BLOCK);
            let hole_start = hole.next_multiple_of(BLOCK);
            if hole_end.saturating_sub(hole_start) >= HOLE_MIN {
                return if hole_start < limit { Ok((hole_start, Some(hole_end))) } else { Ok((limit, None)) };
            }
            // Somebody may be writing into the file, so even contradictory answers must lead onwards.
            at = data.map_or(limit, |data| data.max(hole + 1));
        }
        Ok((limit, None))
    }
}

/// The bytes that are read but not yet cut.
#[derive(Default)]
struct Window {
    buf: Vec<u8>,
    /// How many bytes at the front of `buf` are cut already.
    taken: usize,
    /// Whether the data ends with the bytes in `buf`.
    ended: bool,
    /// The end of the hole that follows the bytes in `buf`.
    hole_end: Option<u64>,
}

impl Window {
    fn bytes(&self) -> &[u8] {
        &self.buf[self.taken..]
    }

    fn is_short(&self) -> bool {
        !self.ended && self.bytes().len() < CHUNK_BYTES_MAX
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::content::testing::{Glyphs, Open, bytes_of, noise, published};

    const MIB: usize = 1 << 20;

    #[test]
    fn every_size_around_the_thresholds_comes_back() {
        let thresholds = [0, INLINE_MAX as usize, SINGLE_MAX as usize, CHUNK_BYTES_MAX, READ_BYTES, 3 * MIB];
        for len in thresholds.into_iter().flat_map(|size| [size.saturating_sub(1), size, size + 1]) {
            let bytes = noise(len as u64, len);
            let mut open = Open::new();
            open.write(&bytes, 0);
            let published = open.publish();
            let kind_fits = match published.content {
                Content::Empty => len == 0,
                Content::Inline { .. } => (1..=INLINE_MAX as usize).contains(&len),
                Content::Single { .. } => (INLINE_MAX as usize + 1..=SINGLE_MAX as usize).contains(&len),
                Content::Manifest { .. } => len > SINGLE_MAX as usize,
                Content::Hole { .. } => false,
            };
            assert!(kind_fits, "{len}: {:?}", published.content);
            assert_eq!(published.content.allocated_bytes(), len as u64);
            assert!(bytes_of(&published, &open.glyphs) == bytes, "{len}");
        }
    }

    #[test]
    fn a_hole_of_any_length_needs_no_glyph() {
        for len in [1, 4096, 1 << 43, i64::MAX as u64] {
            let mut open = Open::new();
            open.overlay.truncate(&*open.file, len).unwrap();
            assert_eq!(open.publish().content, Content::Hole { len_bytes: len });
            assert_eq!(open.glyphs.count(), 0);
            assert_eq!(open.read(len - 1, 10), [0]);
        }
    }

    #[test]
    fn data_at_both_ends_of_eight_tebibytes_needs_a_page_and_two_glyphs() {
        let mut open = Open::new();
        open.overlay.truncate(&*open.file, 8 << 40).unwrap();
        open.write(b"start", 0);
        open.write(b"end", (8 << 40) - 3);
        let published = open.publish();
        assert_eq!(open.glyphs.count(), 3);
        assert_eq!(published.content.allocated_bytes(), 2 * BLOCK);
        let mut again = Open::over(&published, open.glyphs.clone());
        assert_eq!(again.read((8 << 40) - 4, 10), *b"\0end");
        let (overlay, mut from) = again.parts();
        assert_eq!(overlay.seek_hole(&mut from, 0).unwrap(), BLOCK);
        assert_eq!(overlay.seek_data(&mut from, BLOCK).unwrap(), Some((8 << 40) - BLOCK));
    }

    #[test]
    fn short_holes_become_zeroes_and_long_ones_stay() {
        let mut open = Open::with(&noise(1, MIB));
        open.overlay.punch_hole(&*open.file, 100_000, HOLE_MIN - 1).unwrap();
        assert_eq!(open.publish().content.allocated_bytes(), MIB as u64);
        open.overlay.punch_hole(&*open.file, 500_000, HOLE_MIN + 2 * BLOCK).unwrap();
        let hole = HOLE_MIN + BLOCK;
        assert_eq!(open.publish().content.allocated_bytes(), MIB as u64 - hole);
    }

    #[test]
    fn a_small_write_into_a_long_file_stores_and_reads_only_what_is_around_it() {
        let bytes = noise(2, 32 * MIB);
        let base = Open::with(&bytes).publish_all();
        let glyphs = Open::with(&bytes).glyphs;
        let mut open = Open::over(&base, glyphs.clone());
        let (stored, read) = (glyphs.new_bytes(), glyphs.reads());
        open.write(&noise(3, 4096), 20_000_000);
        let published = open.publish();
        assert!(glyphs.new_bytes() - stored < 3 * CHUNK_BYTES_MAX, "{}", glyphs.new_bytes() - stored);
        assert!(glyphs.reads() - read < 20, "{}", glyphs.reads() - read);
        let mut model = bytes;
        model[20_000_000..][..4096].copy_from_slice(&noise(3, 4096));
        assert!(bytes_of(&published, &glyphs) == model);
        assert_eq!(published.content, open.publish_all().content);
    }

    #[test]
    fn a_small_write_into_a_very_long_file_reads_and_writes_few_pages() {
        let glyphs = Arc::new(Glyphs::default());
        let mut builder = Builder::new(&*glyphs);
        let count = 100_000u64;
        for n in 0..count {
            let id = GlyphId::of(&n.to_le_bytes());
            builder.push(Extent { len_bytes: 65536, what: What::Glyph(id) }).unwrap();
        }
        let base = published(builder.finish().unwrap(), Bytes::new());
        let mut open = Open::over(&base, glyphs.clone());
        // None of the base's data is there, so reading any fails. The hole is a whole extent, so none need be read.
        open.overlay.punch_hole(&*open.file, count / 2 * 65536, 65536).unwrap();
        let (stored, read) = (glyphs.new_bytes(), glyphs.reads());
        let published = open.publish();
        assert_eq!(published.content.allocated_bytes(), base.content.allocated_bytes() - 65536);
        assert_eq!(published.verdict, None, "what would tell is not here");
        assert!(glyphs.new_bytes() - stored < 200_000, "{}", glyphs.new_bytes() - stored);
        assert!(glyphs.reads() - read < 20, "{}", glyphs.reads() - read);
    }

    #[test]
    fn an_untouched_file_is_published_as_what_it_was() {
        let base = Open::with(&noise(4, MIB)).publish_all();
        // The store is empty: nothing may be read.
        assert_eq!(Open::over(&base, Arc::default()).publish().content, base.content);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Write {
            offset: usize,
            len: usize,
            seed: u64,
        },
        Truncate(usize),
        Punch {
            offset: usize,
            len: usize,
        },
        Zero {
            offset: usize,
            len: usize,
            keep_len: bool,
        },
        Allocate {
            offset: usize,
            len: usize,
            keep_len: bool,
        },
        Read {
            offset: usize,
            len: usize,
        },
        Materialise {
            offset: usize,
            len: usize,
        },
        Publish,
        /// Close, lose the staging file, open again.
        Reopen,
        /// Stop after the journal wrote down the overlay, start again.
        Restart,
    }

    fn op(space: usize) -> impl Strategy<Value = Op> {
        let spot = prop_oneof![0..space, (0..space / 4096).prop_map(|block| block * 4096)];
        let len = prop_oneof![0..100usize, 0..space / 4, (0..space / 16384).prop_map(|block| block * 4096)];
        let range = (spot.clone(), len);
        prop_oneof![
            6 => (range.clone(), any::<u64>()).prop_map(|((offset, len), seed)| Op::Write { offset, len, seed }),
            2 => spot.prop_map(Op::Truncate),
            2 => range.clone().prop_map(|(offset, len)| Op::Punch { offset, len }),
            1 => (range.clone(), any::<bool>())
                .prop_map(|((offset, len), keep_len)| Op::Zero { offset, len, keep_len }),
            1 => (range.clone(), any::<bool>())
                .prop_map(|((offset, len), keep_len)| Op::Allocate { offset, len, keep_len }),
            2 => range.clone().prop_map(|(offset, len)| Op::Read { offset, len }),
            1 => range.prop_map(|(offset, len)| Op::Materialise { offset, len }),
            2 => Just(Op::Publish),
            2 => Just(Op::Reopen),
            1 => Just(Op::Restart),
        ]
    }

    fn run(ops: Vec<Op>) {
        let mut open = Open::new();
        let mut model: Vec<u8> = Vec::new();
        for op in ops {
            let file = open.file.clone();
            match op {
                Op::Write { offset, len, seed } => {
                    open.write(&noise(seed, len), offset as u64);
                    if len > 0 {
                        model.resize(model.len().max(offset + len), 0);
                        model[offset..offset + len].copy_from_slice(&noise(seed, len));
                    }
                }
                Op::Truncate(len) => {
                    open.overlay.truncate(&*file, len as u64).unwrap();
                    model.resize(len, 0);
                }
                Op::Punch { offset, len } => {
                    open.overlay.punch_hole(&*file, offset as u64, len as u64).unwrap();
                    zero(&mut model, offset, len);
                }
                Op::Zero { offset, len, keep_len } => {
                    open.overlay.zero_range(&*file, offset as u64, len as u64, keep_len).unwrap();
                    zero(&mut model, offset, len);
                    grow(&mut model, offset + len, keep_len);
                }
                Op::Allocate { offset, len, keep_len } => {
                    open.overlay.allocate(&*file, offset as u64, len as u64, keep_len).unwrap();
                    grow(&mut model, offset + len, keep_len);
                }
                Op::Read { offset, len } => {
                    let end = model.len().min(offset + len);
                    assert!(open.read(offset as u64, len) == model[offset.min(end)..end]);
                }
                Op::Materialise { offset, len } => {
                    let (overlay, mut from) = open.parts();
                    overlay.materialise(&mut from, offset as u64..(offset + len) as u64).unwrap();
                }
                Op::Publish => {
                    let published = open.publish();
                    assert!(bytes_of(&published, &open.glyphs) == model);
                    assert!(!open.overlay.is_dirty());
                }
                Op::Reopen => {
                    let published = open.publish();
                    open = Open::over(&published, open.glyphs);
                }
                Op::Restart => {
                    let mut bytes = Vec::new();
                    open.overlay.encode(&mut bytes);
                    open.overlay = Overlay::decode(&mut crate::codec::Reader::new(&bytes)).unwrap();
                }
            }
            assert_eq!(open.overlay.len_bytes(), model.len() as u64);
            assert_eq!(open.file.stamp().unwrap().len_bytes, model.len() as u64);
            assert_holes_are_zero(&mut open, &model);
        }
        assert!(open.read(0, model.len() + 1) == model);
        let published = open.publish();
        assert!(bytes_of(&published, &open.glyphs) == model);
        let all = open.publish_all();
        assert!(bytes_of(&all, &open.glyphs) == model);
    }

    fn zero(model: &mut [u8], offset: usize, len: usize) {
        let end = model.len().min(offset + len);
        model[offset.min(end)..end].fill(0);
    }

    fn grow(model: &mut Vec<u8>, end: usize, keep_len: bool) {
        if !keep_len {
            model.resize(model.len().max(end), 0);
        }
    }

    fn assert_holes_are_zero(open: &mut Open, model: &[u8]) {
        let (overlay, mut from) = open.parts();
        let mut at = 0;
        while at < model.len() {
            let data = overlay.seek_data(&mut from, at as u64).unwrap().map_or(model.len(), |data| data as usize);
            assert!(model[at..data].iter().all(|&byte| byte == 0), "{at}..{data} is no hole");
            at = overlay.seek_hole(&mut from, data as u64).unwrap() as usize;
            assert!(at > data || data == model.len());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn long_files_behave_like_a_plain_vector(ops in prop::collection::vec(op(3 * MIB), 1..14)) {
            run(ops);
        }

        #[test]
        fn small_files_behave_like_a_plain_vector(ops in prop::collection::vec(op(100_000), 1..24)) {
            run(ops);
        }

        #[test]
        fn publishing_the_changes_gives_what_publishing_everything_gives(
            len in 0..3 * MIB,
            hole in 0..MIB,
            changes in prop::collection::vec((0..3 * MIB, 1..50_000usize, any::<u64>(), any::<bool>()), 1..6),
            cut in prop::option::of(0..3 * MIB),
        ) {
            let mut base = Open::with(&noise(5, len));
            base.overlay.punch_hole(&*base.file, 300_000, hole as u64).unwrap();
            let mut open = Open::over(&base.publish_all(), base.glyphs);
            for (offset, len, seed, write) in changes {
                if write {
                    open.write(&noise(seed, len), offset as u64);
                } else {
                    open.overlay.punch_hole(&*open.file, offset as u64, len as u64).unwrap();
                }
            }
            if let Some(cut) = cut {
                open.overlay.truncate(&*open.file, cut as u64).unwrap();
            }
            let changes = open.publish();
            prop_assert_eq!(changes.content, open.publish_all().content);
        }
    }

    #[test]
    fn a_publication_says_what_the_bytes_seem_to_be() {
        let text = Verdict { form: Form::Text, passes: true };
        for len in [10, 5000, 100_000, 3 * MIB] {
            let mut open = Open::with(&vec![b'x'; len]);
            assert_eq!(open.publish().verdict.is_some(), len <= SINGLE_MAX as usize, "a long file did not change");
            open.write(b"y", len as u64 / 2);
            let published = open.publish();
            assert_eq!((published.verdict, published.is_blank), (Some(text), false), "{len}");
            open.overlay.truncate(&*open.file, 0).unwrap();
            open.overlay.truncate(&*open.file, len as u64).unwrap();
            let published = open.publish();
            assert_eq!((published.verdict, published.is_blank), (Some(Verdict::default()), true), "{len}");
        }
    }

    #[test]
    fn glyphs_that_are_gone_fail_the_publication_by_name() {
        let base = Open::with(&noise(6, MIB)).publish_all();
        let mut open = Open::over(&base, Arc::new(Glyphs::default()));
        open.write(b"x", 500_000);
        let (overlay, mut from) = open.parts();
        let glyphs = Glyphs::default();
        let result = publish(overlay, &mut from, &glyphs);
        assert!(matches!(result, Err(crate::content::ContentError::Store(crate::store::StoreError::Missing(_)))));
    }
}
