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

mod builder;
mod page;

pub use builder::Builder;

use std::collections::HashSet;
use std::ops::Range;

use crate::chunker::CHUNK_BYTES_MAX;
use crate::content::{Content, ContentError, LEN_MAX, Result};
use crate::id::GlyphId;
use crate::store::GlyphSource;
use page::{Child, ENTRIES_MIN, Entry, Page};

/// The longest extent that a glyph may have: the largest chunk.
pub const EXTENT_MAX: u64 = CHUNK_BYTES_MAX as u64;
/// How many levels can lie below the root page.
pub const DEPTH_MAX: u8 = 7;

// The longest file, in the smallest chunks but with holes between them, still fits.
const _: () = assert!((ENTRIES_MIN as u128).pow(DEPTH_MAX as u32 + 1) >= (LEN_MAX as u128) / 1024);

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
        let (start, extent) = match self.content {
            Content::Inline { len_bytes, hash } => (0, Extent { len_bytes, what: What::Glyph(hash) }),
            Content::Single { len_bytes, glyph } => (0, Extent { len_bytes, what: What::Glyph(glyph) }),
            Content::Empty | Content::Hole { .. } => {
                (0, Extent { len_bytes: self.content.len_bytes(), what: What::Hole })
            }
            Content::Manifest { len_bytes, allocated_bytes, root, depth } => {
                let root = Child { len_bytes, allocated_bytes, id: root };
                match self.descend(source, root, depth, offset, |_, _, _| false)? {
                    (start, _, Entry::Extent(extent)) => (start, extent),
                    (_, _, Entry::Page(_)) => unreachable!("only extents end a descent that nothing stops"),
                }
            }
        };
        Ok(Some(Span { start, extent }))
    }

    /// The largest page that starts at `start` and can stand in a new manifest as it is, and its level: it ends by
    /// `end`, its level is below `level_end`, and it is not the last of its level, as only that one may end early.
    fn find_page(
        &mut self,
        source: &dyn GlyphSource,
        start: u64,
        end: u64,
        level_end: usize,
    ) -> Result<Option<(usize, Child)>> {
        let Content::Manifest { len_bytes, allocated_bytes, root, depth } = self.content else { return Ok(None) };
        let root = Child { len_bytes, allocated_bytes, id: root };
        let fits = |page_start: u64, level: u8, page: &Child| {
            let page_end = page_start + page.len_bytes;
            page_start == start && page_end <= end && page_end < len_bytes && usize::from(level) < level_end
        };
        Ok(match self.descend(source, root, depth, start, fits)? {
            (_, level, Entry::Page(page)) => Some((usize::from(level) - 1, page)),
            (_, _, Entry::Extent(_)) => None,
        })
    }

    /// Walks down to the extent over this offset, or to the first page for which `stop` says so, given its start and
    /// its level. Returns where that starts, the level of the page that lists it, and what it is.
    fn descend(
        &mut self,
        source: &dyn GlyphSource,
        root: Child,
        depth: u8,
        offset: u64,
        stop: impl Fn(u64, u8, &Child) -> bool,
    ) -> Result<(u64, u8, Entry)> {
        while self.path.last().is_some_and(|page| !page.covers(offset)) {
            self.path.pop();
        }
        if self.path.is_empty() {
            self.path.push(Page::load(source, 0, depth, root)?);
        }
        // All pages on the path cover the offset, as each covers the ones behind it.
        for step in 0.. {
            let page = &self.path[step];
            let level = page.level;
            match page.entry_at(offset) {
                (start, Entry::Page(child)) if !stop(start, level - 1, &child) => {
                    if step + 1 == self.path.len() {
                        self.path.push(Page::load(source, start, level - 1, child)?);
                    }
                }
                (start, entry) => return Ok((start, level, entry)),
            }
        }
        unreachable!("the levels count down to the extents")
    }
}

/// What a glyph is to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    Page,
    Data,
}

/// Calls `each` for every glyph that a content needs, a page before what it lists. Glyphs may come more than once.
///
/// `each` says whether to look into a page; what it says about data is ignored. It should do so once per page, as a
/// hostile tree can list one page very often, but it must not take a page for known because it has seen its id as
/// data: a file may hold the bytes of a page.
pub fn visit_glyphs(
    source: &dyn GlyphSource,
    content: &Content,
    each: &mut dyn FnMut(Part, &GlyphId) -> bool,
) -> Result<()> {
    visit_sized_glyphs(source, content, &mut |part, id, _| each(part, id))
}

/// The same. `each` also hears for how many bytes of the file a glyph is needed: with a page, for all that it lists.
pub fn visit_sized_glyphs(
    source: &dyn GlyphSource,
    content: &Content,
    each: &mut dyn FnMut(Part, &GlyphId, u64) -> bool,
) -> Result<()> {
    match *content {
        Content::Empty | Content::Inline { .. } | Content::Hole { .. } => Ok(()),
        Content::Single { glyph, len_bytes } => {
            each(Part::Data, &glyph, len_bytes);
            Ok(())
        }
        Content::Manifest { len_bytes, allocated_bytes, root, depth } => {
            visit_page(source, depth, Child { len_bytes, allocated_bytes, id: root }, each)
        }
    }
}

fn visit_page(
    source: &dyn GlyphSource,
    level: u8,
    child: Child,
    each: &mut dyn FnMut(Part, &GlyphId, u64) -> bool,
) -> Result<()> {
    if !each(Part::Page, &child.id, child.len_bytes) {
        return Ok(());
    }
    // Offsets do not matter here, so every page may start at zero.
    for entry in Page::load(source, 0, level, child)?.entries {
        match entry {
            Entry::Extent(Extent { what: What::Glyph(id), len_bytes }) => {
                each(Part::Data, &id, len_bytes);
            }
            Entry::Extent(Extent { what: What::Hole, .. }) => {}
            Entry::Page(child) => visit_page(source, level - 1, child, each)?,
        }
    }
    Ok(())
}

/// Pages below which nothing was missing when they were looked at.
#[derive(Default)]
pub struct GoodPages(HashSet<(u8, Child)>);

/// Finds what is lost of a content: hands each glyph to `read`, and `lost` hears of the bytes of the file that cannot be
/// had, in order. Pages in `good` are left out, as a hostile tree can list one page very often.
pub fn survey(
    source: &dyn GlyphSource,
    content: &Content,
    good: &mut GoodPages,
    read: &mut dyn FnMut(&GlyphId) -> Result<()>,
    lost: &mut dyn FnMut(Range<u64>, ContentError),
) {
    match *content {
        Content::Empty | Content::Inline { .. } | Content::Hole { .. } => {}
        Content::Single { len_bytes, glyph } => {
            if let Err(error) = read(&glyph) {
                lost(0..len_bytes, error);
            }
        }
        Content::Manifest { len_bytes, allocated_bytes, root, depth } => {
            let child = Child { len_bytes, allocated_bytes, id: root };
            Survey { source, good, read, lost }.page(depth, 0, child);
        }
    }
}

struct Survey<'a> {
    source: &'a dyn GlyphSource,
    good: &'a mut GoodPages,
    read: &'a mut dyn FnMut(&GlyphId) -> Result<()>,
    lost: &'a mut dyn FnMut(Range<u64>, ContentError),
}

impl Survey<'_> {
    /// Whether nothing below is missing.
    fn page(&mut self, level: u8, start: u64, child: Child) -> bool {
        if self.good.0.contains(&(level, child)) {
            return true;
        }
        let page = match Page::load(self.source, start, level, child) {
            Ok(page) => page,
            Err(error) => {
                (self.lost)(start..start.saturating_add(child.len_bytes), error);
                return false;
            }
        };
        let (mut at, mut whole) = (start, true);
        for entry in &page.entries {
            let end = at + entry.len_bytes();
            match entry {
                Entry::Extent(Extent { what: What::Glyph(id), .. }) => {
                    if let Err(error) = (self.read)(id) {
                        (self.lost)(at..end, error);
                        whole = false;
                    }
                }
                Entry::Extent(Extent { what: What::Hole, .. }) => {}
                Entry::Page(below) => whole &= self.page(level - 1, at, *below),
            }
            at = end;
        }
        if whole {
            self.good.0.insert((level, child));
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::page::{Entry, encode_page};
    use super::*;
    use crate::content::testing::Glyphs;
    use crate::content::{ContentError, LEN_MAX};

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
    fn an_edited_list_that_reuses_pages_is_the_list_built_anew() {
        let glyphs = Glyphs::default();
        // Here and there a hole; lengths do not matter.
        let varied = |n: u64| if n % 50 == 7 { hole(1 + n % 3) } else { glyph(n, 1 + n % 5) };
        let old: Vec<_> = (0..70_000).map(varied).collect();
        let base = build(&glyphs, &old);
        let offset = |index: usize| old[..index].iter().map(|extent| extent.len_bytes).sum::<u64>();
        for (from, to, new) in
            [(0, 0, 1), (35_003, 35_003, 1), (35_003, 35_020, 5), (20_000, 60_000, 900), (69_999, 70_000, 3)]
        {
            let new: Vec<_> = (0..new).map(|n| glyph(1 << 40 | n, 9)).collect();
            let expected = build(&glyphs, &[&old[..from], &new, &old[to..]].concat());
            let reads = glyphs.reads();
            let mut builder = Builder::new(&glyphs);
            let mut cursor = Cursor::new(base);
            builder.reuse(&mut cursor, &glyphs, 0..offset(from)).unwrap();
            new.iter().for_each(|extent| builder.push(*extent).unwrap());
            builder.reuse(&mut cursor, &glyphs, offset(to)..base.len_bytes()).unwrap();
            assert_eq!(builder.finish().unwrap(), expected, "{from}..{to}");
            assert!(glyphs.reads() - reads < 60, "{} pages read", glyphs.reads() - reads);
        }
    }

    #[test]
    fn a_reused_tree_that_is_thinner_than_it_ought_to_be_fails_cleanly() {
        let glyphs = Glyphs::default();
        let mut content = over(&glyphs, &encode_page(0, &[Entry::Extent(glyph(1, 1))]), 1, 1, 0);
        for level in 1..=DEPTH_MAX {
            let Content::Manifest { len_bytes, allocated_bytes, root: id, .. } = content else { unreachable!() };
            let width = if level == DEPTH_MAX { 1024 } else { 1 };
            let page = encode_page(level, &vec![Entry::Page(Child { len_bytes, allocated_bytes, id }); width]);
            content = over(&glyphs, &page, width as u64 * len_bytes, width as u64 * allocated_bytes, level);
        }
        let mut builder = Builder::new(&glyphs);
        for _ in 0..2 {
            // All but the last page, so that the next one starts a page as well.
            builder.reuse(&mut Cursor::new(content), &glyphs, 0..content.len_bytes() - 1).unwrap();
        }
        assert!(is_malformed(builder.finish()));
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
        visit_glyphs(&glyphs, &content, &mut |part, id| seen.insert((part, *id))).unwrap();
        assert_eq!(seen.len(), pages + 2000);
        let mut calls = 0;
        visit_glyphs(&glyphs, &content, &mut |part, id| {
            calls += 1;
            seen.insert((part, *id))
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
        let child = |len_bytes| Entry::Page(Child { len_bytes, allocated_bytes: 10, id: GlyphId::of(&leaf) });
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
    fn lengths_that_overflow_are_refused() {
        let glyphs = Glyphs::default();
        let entries = [Entry::Extent(hole(LEN_MAX)), Entry::Extent(glyph(1, 1))].repeat(3);
        let page = encode_page(0, &entries);
        assert!(is_malformed(extents_of(&glyphs, over(&glyphs, &page, 10, 3, 0))));
    }

    proptest! {
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
