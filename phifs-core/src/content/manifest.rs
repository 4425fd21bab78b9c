//! The list of a file's extents, kept as a tree of pages that are glyphs themselves.
//!
//! A leaf page lists extents (a glyph or a hole each), an inner page lists pages. Where a page ends depends only on
//! the ids in it, as with content-defined chunks: equal lists give equal trees, and a change in the middle of a long
//! list leaves the pages before and behind it as they were. With fixed page sizes one more extent would shift, and
//! so rewrite, every page behind it.
//!
//! Pages are stored as `GlyphKind::Data`: they die together with the file version whose glyphs they list, not with
//! the nodes of the metadata maps.
//!
//! What always holds, and is checked for every page read, as it may come from anybody:
//! - No extent is empty, no two holes touch within a page, and an extent of a glyph is at most one chunk long.
//! - The lengths in a page add up to what its parent says about it; so a tree cannot be longer than its file.
//! - Levels count down by one towards the leaves; so a tree has no cycles and a lookup reads at most `DEPTH_MAX + 1`
//!   pages.

use crate::chunker::CHUNK_BYTES_MAX;
use crate::codec::{DecodeError, Encode, Reader};
use crate::content::{Content, ContentError, LEN_MAX, Result, check_version};
use crate::id::GlyphId;
use crate::store::{GlyphKind, GlyphSink, GlyphSource};

/// The longest extent that a glyph may have: the largest chunk.
pub const EXTENT_MAX: u64 = CHUNK_BYTES_MAX as u64;
/// No page has more entries.
const ENTRIES_MAX: usize = 1024;
/// A page ends before this many entries only at the end of the list.
const ENTRIES_MIN: usize = 128;
/// Behind `ENTRIES_MIN`, a page ends at an entry whose id has these bits clear: one in 256.
const CUT_MASK: u8 = 0xff;
/// How many levels can lie below the root page.
pub const DEPTH_MAX: u8 = 7;

// The longest file, in the smallest chunks but with holes between them, still fits.
const _: () = assert!((ENTRIES_MIN as u128).pow(DEPTH_MAX as u32 + 1) >= (LEN_MAX as u128) / 1024);

const VERSION: u8 = 1;
const MALFORMED_LEN: DecodeError = DecodeError::NotCanonical("a length in a manifest");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Glyph(GlyphId),
    Hole,
}

/// A stretch of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub len_bytes: u64,
    pub what: What,
}

/// An extent and where in the file it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: u64,
    pub extent: Extent,
}

impl Span {
    pub fn end(&self) -> u64 {
        self.start + self.extent.len_bytes
    }
}

/// One line of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Extent(Extent),
    Page { len_bytes: u64, allocated_bytes: u64, id: GlyphId },
}

impl Entry {
    fn len_bytes(&self) -> u64 {
        match self {
            Self::Extent(extent) => extent.len_bytes,
            Self::Page { len_bytes, .. } => *len_bytes,
        }
    }

    fn allocated_bytes(&self) -> u64 {
        match self {
            Self::Extent(Extent { what: What::Hole, .. }) => 0,
            Self::Extent(extent) => extent.len_bytes,
            Self::Page { allocated_bytes, .. } => *allocated_bytes,
        }
    }

    fn ends_page(&self) -> bool {
        match self {
            Self::Extent(Extent { what: What::Glyph(id), .. }) | Self::Page { id, .. } => id.0[0] & CUT_MASK == 0,
            Self::Extent(Extent { what: What::Hole, .. }) => false,
        }
    }
}

/// Level 0 is a leaf. A glyph's line has the lowest bit of its first number set.
fn encode_page(level: u8, entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + entries.len() * 40);
    out.put_u8(VERSION);
    out.put_u8(level);
    out.put_varint(entries.len() as u64);
    for entry in entries {
        match entry {
            Entry::Extent(Extent { len_bytes, what: What::Hole }) => out.put_varint(len_bytes << 1),
            Entry::Extent(Extent { len_bytes, what: What::Glyph(id) }) => {
                out.put_varint(len_bytes << 1 | 1);
                out.put_glyph_id(id);
            }
            Entry::Page { len_bytes, allocated_bytes, id } => {
                out.put_varint(*len_bytes);
                out.put_varint(*allocated_bytes);
                out.put_glyph_id(id);
            }
        }
    }
    out
}

fn decode_page(bytes: &[u8], level: u8) -> std::result::Result<Vec<Entry>, DecodeError> {
    let mut reader = Reader::new(bytes);
    check_version("a page of a manifest", reader.u8()?, VERSION)?;
    if reader.u8()? != level {
        return Err(DecodeError::NotCanonical("the level of a manifest page"));
    }
    let count = reader.count()?;
    if count == 0 || count > ENTRIES_MAX {
        return Err(DecodeError::NotCanonical("the number of entries in a manifest page"));
    }
    let mut entries = Vec::with_capacity(count);
    let mut after_hole = false;
    for _ in 0..count {
        let number = reader.varint()?;
        let entry = match (level, number & 1) {
            (0, 0) if after_hole => return Err(DecodeError::NotCanonical("two holes in a row")),
            (0, 0) => Entry::Extent(Extent { len_bytes: number >> 1, what: What::Hole }),
            (0, _) => Entry::Extent(Extent { len_bytes: number >> 1, what: What::Glyph(reader.glyph_id()?) }),
            _ => Entry::Page { len_bytes: number, allocated_bytes: reader.varint()?, id: reader.glyph_id()? },
        };
        after_hole = matches!(entry, Entry::Extent(Extent { what: What::Hole, .. }));
        let len_max = if level == 0 && !after_hole { EXTENT_MAX } else { LEN_MAX };
        if entry.len_bytes() == 0 || entry.len_bytes() > len_max || entry.allocated_bytes() > entry.len_bytes() {
            return Err(MALFORMED_LEN);
        }
        entries.push(entry);
    }
    reader.finish()?;
    Ok(entries)
}

/// A page in memory.
struct Page {
    /// Where in the file it starts.
    start: u64,
    level: u8,
    entries: Vec<Entry>,
    /// Where in the file every entry ends.
    ends: Vec<u64>,
}

impl Page {
    /// Reads the page and checks it against what its parent says.
    fn load(source: &dyn GlyphSource, start: u64, level: u8, id: GlyphId, len: u64, allocated: u64) -> Result<Self> {
        let bytes = source.read(GlyphKind::Data, &id)?;
        let malformed = |source| ContentError::Malformed { id, source };
        let entries = decode_page(&bytes, level).map_err(malformed)?;
        let mut ends = Vec::with_capacity(entries.len());
        let mut end = start;
        let mut allocated_sum = 0u64;
        for entry in &entries {
            end = end.checked_add(entry.len_bytes()).ok_or(malformed(MALFORMED_LEN))?;
            allocated_sum = allocated_sum.saturating_add(entry.allocated_bytes());
            ends.push(end);
        }
        if end - start != len || allocated_sum != allocated {
            return Err(malformed(MALFORMED_LEN));
        }
        Ok(Self { start, level, entries, ends })
    }

    fn covers(&self, offset: u64) -> bool {
        self.start <= offset && self.ends.last().is_some_and(|&end| offset < end)
    }

    /// The entry over this offset, which the page covers, and where it starts.
    fn entry_at(&self, offset: u64) -> (u64, Entry) {
        let index = self.ends.partition_point(|&end| end <= offset);
        let start = if index == 0 { self.start } else { self.ends[index - 1] };
        (start, self.entries[index])
    }
}

/// Finds extents by offset. It keeps the pages on the way to the last one found, so going on from there is cheap.
pub struct Cursor {
    content: Content,
    /// From the root page downwards, each covering the one behind it.
    path: Vec<Page>,
}

impl Cursor {
    pub fn new(content: Content) -> Self {
        Self { content, path: Vec::new() }
    }

    pub fn content(&self) -> &Content {
        &self.content
    }

    /// The extent over this offset; `None` at and behind the end of the file.
    ///
    /// Contents without a manifest have one extent, which for inline bytes names their hash.
    pub fn find(&mut self, source: &dyn GlyphSource, offset: u64) -> Result<Option<Span>> {
        if offset >= self.content.len_bytes() {
            return Ok(None);
        }
        let whole = |len_bytes, what| Ok(Some(Span { start: 0, extent: Extent { len_bytes, what } }));
        match self.content {
            Content::Empty => Ok(None),
            Content::Inline { len_bytes, hash } => whole(len_bytes, What::Glyph(hash)),
            Content::Single { len_bytes, glyph } => whole(len_bytes, What::Glyph(glyph)),
            Content::Hole { len_bytes } => whole(len_bytes, What::Hole),
            Content::Manifest { len_bytes, allocated_bytes, root, depth } => {
                while self.path.last().is_some_and(|page| !page.covers(offset)) {
                    self.path.pop();
                }
                if self.path.is_empty() {
                    self.path.push(Page::load(source, 0, depth, root, len_bytes, allocated_bytes)?);
                }
                loop {
                    let page = self.path.last().expect("the root page was just put there");
                    match page.entry_at(offset) {
                        (start, Entry::Extent(extent)) => return Ok(Some(Span { start, extent })),
                        (start, Entry::Page { len_bytes, allocated_bytes, id }) => {
                            let level = page.level - 1;
                            self.path.push(Page::load(source, start, level, id, len_bytes, allocated_bytes)?);
                        }
                    }
                }
            }
        }
    }
}

/// Calls `each` for every glyph that a content needs: its pages, each before what it lists, and its data.
///
/// `each` says whether to look into a page; what it says about data is ignored. Glyphs may come more than once.
pub fn visit_glyphs(source: &dyn GlyphSource, content: &Content, each: &mut dyn FnMut(&GlyphId) -> bool) -> Result<()> {
    match *content {
        Content::Empty | Content::Inline { .. } | Content::Hole { .. } => Ok(()),
        Content::Single { glyph, .. } => {
            each(&glyph);
            Ok(())
        }
        Content::Manifest { len_bytes, allocated_bytes, root, depth } => {
            visit_page(source, depth, root, len_bytes, allocated_bytes, each)
        }
    }
}

fn visit_page(
    source: &dyn GlyphSource,
    level: u8,
    id: GlyphId,
    len: u64,
    allocated: u64,
    each: &mut dyn FnMut(&GlyphId) -> bool,
) -> Result<()> {
    if !each(&id) {
        return Ok(());
    }
    // Offsets do not matter here, so every page may start at zero.
    for entry in Page::load(source, 0, level, id, len, allocated)?.entries {
        match entry {
            Entry::Extent(Extent { what: What::Glyph(id), .. }) => {
                each(&id);
            }
            Entry::Extent(Extent { what: What::Hole, .. }) => {}
            Entry::Page { len_bytes, allocated_bytes, id } => {
                visit_page(source, level - 1, id, len_bytes, allocated_bytes, each)?;
            }
        }
    }
    Ok(())
}

/// Builds a manifest from extents in file order, writing every page as soon as it is full.
pub struct Builder<'a> {
    sink: &'a dyn GlyphSink,
    /// A hole is held back until something else follows it, so that holes coalesce.
    hole_bytes: u64,
    len_bytes: u64,
    /// The unfinished page of every level, from the leaf upwards.
    levels: Vec<Vec<Entry>>,
}

impl<'a> Builder<'a> {
    pub fn new(sink: &'a dyn GlyphSink) -> Self {
        Self { sink, hole_bytes: 0, len_bytes: 0, levels: vec![Vec::new()] }
    }

    pub fn push(&mut self, extent: Extent) -> Result<()> {
        self.len_bytes = self.len_bytes.checked_add(extent.len_bytes).ok_or(ContentError::TooLong)?;
        if self.len_bytes > LEN_MAX {
            return Err(ContentError::TooLong);
        }
        match extent.what {
            What::Hole => {
                self.hole_bytes += extent.len_bytes;
                Ok(())
            }
            What::Glyph(_) => {
                assert!((1..=EXTENT_MAX).contains(&extent.len_bytes), "chunks have a bounded length");
                self.push_hole()?;
                self.push_entry(0, Entry::Extent(extent))
            }
        }
    }

    fn push_hole(&mut self) -> Result<()> {
        match std::mem::take(&mut self.hole_bytes) {
            0 => Ok(()),
            len_bytes => self.push_entry(0, Entry::Extent(Extent { len_bytes, what: What::Hole })),
        }
    }

    fn push_entry(&mut self, level: usize, entry: Entry) -> Result<()> {
        if level == self.levels.len() {
            self.levels.push(Vec::new());
        }
        let page = &mut self.levels[level];
        page.push(entry);
        if page.len() == ENTRIES_MAX || (page.len() >= ENTRIES_MIN && entry.ends_page()) {
            let full = std::mem::take(page);
            let entry = self.write_page(level, &full)?;
            self.push_entry(level + 1, entry)?;
        }
        Ok(())
    }

    fn write_page(&self, level: usize, entries: &[Entry]) -> Result<Entry> {
        let id = self.sink.write(GlyphKind::Data, &encode_page(level as u8, entries))?;
        Ok(Entry::Page {
            len_bytes: entries.iter().map(Entry::len_bytes).sum(),
            allocated_bytes: entries.iter().map(Entry::allocated_bytes).sum(),
            id,
        })
    }

    /// Writes what is still open and names the whole.
    pub fn finish(mut self) -> Result<Content> {
        let only_hole = self.levels.len() == 1 && self.levels[0].is_empty();
        if only_hole {
            let len_bytes = self.hole_bytes;
            return Ok(if len_bytes == 0 { Content::Empty } else { Content::Hole { len_bytes } });
        }
        self.push_hole()?;
        let mut level = 0;
        loop {
            let top = level + 1 == self.levels.len();
            let open = std::mem::take(&mut self.levels[level]);
            let (root, depth) = match open[..] {
                [] => {
                    level += 1;
                    continue;
                }
                // A page that lists one page would only be a detour.
                [only @ Entry::Page { .. }] if top => (only, level - 1),
                _ => {
                    let entry = self.write_page(level, &open)?;
                    if !top {
                        level += 1;
                        self.push_entry(level, entry)?;
                        continue;
                    }
                    (entry, level)
                }
            };
            let Entry::Page { len_bytes, allocated_bytes, id } = root else {
                unreachable!("pages are described by page entries")
            };
            assert!(depth <= usize::from(DEPTH_MAX), "the longest file fits into a tree of this depth");
            return Ok(Content::Manifest { len_bytes, allocated_bytes, root: id, depth: depth as u8 });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::content::testing::Glyphs;

    fn glyph(n: u64, len_bytes: u64) -> Extent {
        Extent { len_bytes, what: What::Glyph(GlyphId::of(&n.to_le_bytes())) }
    }

    fn hole(len_bytes: u64) -> Extent {
        Extent { len_bytes, what: What::Hole }
    }

    fn build(glyphs: &Glyphs, extents: &[Extent]) -> Content {
        let mut builder = Builder::new(glyphs);
        extents.iter().for_each(|extent| builder.push(*extent).unwrap());
        builder.finish().unwrap()
    }

    fn extents_of(glyphs: &Glyphs, content: Content) -> Result<Vec<Extent>> {
        let mut cursor = Cursor::new(content);
        let (mut at, mut extents) = (0, Vec::new());
        while let Some(span) = cursor.find(glyphs, at)? {
            assert_eq!(span.start, at);
            extents.push(span.extent);
            at = span.end();
        }
        Ok(extents)
    }

    /// A content over one page with these bytes.
    fn over(glyphs: &Glyphs, page: &[u8], len_bytes: u64, allocated_bytes: u64, depth: u8) -> Content {
        Content::Manifest { len_bytes, allocated_bytes, root: glyphs.put(page), depth }
    }

    fn is_malformed<T>(result: Result<T>) -> bool {
        matches!(result, Err(ContentError::Malformed { .. }))
    }

    #[test]
    fn long_lists_come_back_in_order_and_by_offset() {
        for count in [1, 2, 127, 128, 129, 1023, 1024, 1025, 70_000] {
            let glyphs = Glyphs::default();
            // The same glyph all along never ends a page by its id, or always does.
            for varied in [true, false] {
                let extents: Vec<_> = (0..count).map(|n| glyph(if varied { n } else { 1 }, 1 + n % 7)).collect();
                let content = build(&glyphs, &extents);
                assert_eq!(content.len_bytes(), extents.iter().map(|extent| extent.len_bytes).sum::<u64>());
                assert!(extents_of(&glyphs, content).unwrap() == extents, "{count}");
                let mut cursor = Cursor::new(content);
                for offset in (0..content.len_bytes()).rev().step_by(997) {
                    let span = cursor.find(&glyphs, offset).unwrap().unwrap();
                    assert!((span.start..span.end()).contains(&offset));
                }
                assert_eq!(cursor.find(&glyphs, content.len_bytes()).unwrap(), None);
            }
        }
    }

    #[test]
    fn a_new_extent_rewrites_only_the_pages_above_it() {
        let glyphs = Glyphs::default();
        let mut extents: Vec<_> = (0..70_000).map(|n| glyph(n, 65536)).collect();
        build(&glyphs, &extents);
        let pages = glyphs.count();
        assert!((70..560).contains(&pages), "{pages} pages");
        extents.insert(35_000, glyph(1 << 40, 1000));
        build(&glyphs, &extents);
        assert!(glyphs.count() - pages <= 6, "{} pages changed", glyphs.count() - pages);
    }

    #[test]
    fn a_lookup_in_a_long_list_reads_one_page_per_level() {
        let glyphs = Glyphs::default();
        let content = build(&glyphs, &(0..70_000).map(|n| glyph(n, 65536)).collect::<Vec<_>>());
        let Content::Manifest { depth, .. } = content else { panic!("{content:?}") };
        let mut cursor = Cursor::new(content);
        cursor.find(&glyphs, content.len_bytes() / 2).unwrap();
        assert_eq!(glyphs.reads(), usize::from(depth) + 1);
        cursor.find(&glyphs, content.len_bytes() / 2).unwrap();
        assert_eq!(glyphs.reads(), usize::from(depth) + 1, "the way there is remembered");
    }

    #[test]
    fn holes_coalesce_and_the_last_one_is_kept() {
        let glyphs = Glyphs::default();
        let content = build(&glyphs, &[hole(1), hole(2), glyph(1, 5), hole(3), hole(4)]);
        assert_eq!(extents_of(&glyphs, content).unwrap(), [hole(3), glyph(1, 5), hole(7)]);
        assert_eq!((content.len_bytes(), content.allocated_bytes()), (15, 5));
        assert_eq!(build(&glyphs, &[hole(LEN_MAX)]), Content::Hole { len_bytes: LEN_MAX });
        assert_eq!(build(&glyphs, &[]), Content::Empty);
    }

    #[test]
    fn a_file_longer_than_the_kernel_can_address_is_refused() {
        let glyphs = Glyphs::default();
        let mut builder = Builder::new(&glyphs);
        builder.push(hole(LEN_MAX)).unwrap();
        assert!(matches!(builder.push(hole(1)), Err(ContentError::TooLong)));
    }

    #[test]
    fn every_glyph_of_a_file_is_visited_and_known_pages_are_skipped() {
        let glyphs = Glyphs::default();
        let content = build(&glyphs, &(0..2000).map(|n| glyph(n, 10)).collect::<Vec<_>>());
        let pages = glyphs.count();
        let mut seen = std::collections::BTreeSet::new();
        visit_glyphs(&glyphs, &content, &mut |id| seen.insert(*id)).unwrap();
        assert_eq!(seen.len(), pages + 2000);
        let mut calls = 0;
        visit_glyphs(&glyphs, &content, &mut |id| {
            calls += 1;
            seen.insert(*id)
        })
        .unwrap();
        assert_eq!(calls, 1, "the root is known, so what it lists is");
    }

    #[test]
    fn a_page_that_does_not_add_up_to_what_its_parent_says_is_refused() {
        let glyphs = Glyphs::default();
        let leaf = encode_page(0, &[Entry::Extent(glyph(1, 10)), Entry::Extent(hole(10))]);
        assert!(extents_of(&glyphs, over(&glyphs, &leaf, 20, 10, 0)).is_ok());
        assert!(is_malformed(extents_of(&glyphs, over(&glyphs, &leaf, 21, 10, 0))));
        assert!(is_malformed(extents_of(&glyphs, over(&glyphs, &leaf, 20, 11, 0))));
        let child = |len_bytes| Entry::Page { len_bytes, allocated_bytes: 10, id: GlyphId::of(&leaf) };
        glyphs.put(&leaf);
        assert!(extents_of(&glyphs, over(&glyphs, &encode_page(1, &[child(20)]), 20, 10, 1)).is_ok());
        assert!(is_malformed(extents_of(&glyphs, over(&glyphs, &encode_page(1, &[child(30)]), 30, 10, 1))));
    }

    #[test]
    fn a_page_of_the_wrong_level_is_refused() {
        let glyphs = Glyphs::default();
        let leaf = encode_page(0, &[Entry::Extent(glyph(1, 10))]);
        assert!(is_malformed(extents_of(&glyphs, over(&glyphs, &leaf, 10, 10, 1))));
    }

    #[test]
    fn impossible_entries_are_refused() {
        let too_many = vec![Entry::Extent(glyph(1, 1)); ENTRIES_MAX + 1];
        let huge_pages = vec![Entry::Page { len_bytes: u64::MAX, allocated_bytes: 0, id: GlyphId([0; 32]) }; 3];
        let bad: [(u8, &[Entry]); 6] = [
            (0, &[]),
            (0, &[Entry::Extent(glyph(1, 0))]),
            (0, &[Entry::Extent(glyph(1, EXTENT_MAX + 1))]),
            (0, &[Entry::Extent(hole(1)), Entry::Extent(hole(1))]),
            (0, &too_many),
            (1, &huge_pages),
        ];
        for (level, entries) in bad {
            assert!(matches!(decode_page(&encode_page(level, entries), level), Err(DecodeError::NotCanonical(_))));
        }
        let lengths_that_overflow = [Entry::Extent(hole(LEN_MAX)), Entry::Extent(glyph(1, 1))].repeat(3);
        let glyphs = Glyphs::default();
        let page = encode_page(0, &lengths_that_overflow);
        assert!(is_malformed(extents_of(&glyphs, over(&glyphs, &page, 10, 3, 0))));
        let mut newer = encode_page(0, &[Entry::Extent(glyph(1, 1))]);
        newer[0] = VERSION + 1;
        assert!(matches!(decode_page(&newer, 0), Err(DecodeError::NewerVersion { .. })));
    }

    proptest! {
        #[test]
        fn any_page_decodes_to_its_only_encoding_or_fails(bytes: Vec<u8>, level in 0..2u8, count in 1..3u8) {
            let bytes = [&[VERSION, level, count][..], &bytes].concat();
            if let Ok(entries) = decode_page(&bytes, level) {
                prop_assert_eq!(encode_page(level, &entries), bytes);
            }
        }

        #[test]
        fn a_damaged_page_never_panics(at in 0..2000usize, mask in 1..=255u8) {
            let extents: Vec<_> = (0..40).map(|n| if n % 3 == 0 { hole(n + 1) } else { glyph(n, n + 1) }).collect();
            let mut page = encode_page(0, &extents.iter().copied().map(Entry::Extent).collect::<Vec<_>>());
            let index = at % page.len();
            page[index] ^= mask;
            let glyphs = Glyphs::default();
            let content = over(&glyphs, &page, extents.iter().map(|extent| extent.len_bytes).sum(), 546, 0);
            if let Ok(extents) = extents_of(&glyphs, content) {
                prop_assert_eq!(extents.iter().map(|extent| extent.len_bytes).sum::<u64>(), content.len_bytes());
            }
        }
    }
}
