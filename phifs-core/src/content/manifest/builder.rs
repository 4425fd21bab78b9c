//! Writes manifests.

use std::ops::Range;

use super::page::{Child, Entry, encode_page, is_full};
use super::{Cursor, DEPTH_MAX, EXTENT_MAX, Extent, What};
use crate::codec::DecodeError;
use crate::content::{Content, ContentError, LEN_MAX, Result};
use crate::store::{GlyphKind, GlyphSink, GlyphSource};

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
        self.grow(extent.len_bytes)?;
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

    /// Takes over a range of another manifest, which starts and ends at boundaries of its extents and does not start
    /// with a hole behind one. Whole pages are taken over unread where they would come out the same.
    pub fn reuse(&mut self, cursor: &mut Cursor, source: &dyn GlyphSource, range: Range<u64>) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            if let Some((level, page)) = cursor.find_page(source, at, range.end, self.levels_at_start())? {
                self.grow(page.len_bytes)?;
                self.push_entry(level + 1, Entry::Page(page))?;
                at += page.len_bytes;
                continue;
            }
            let span = cursor.find(source, at)?.expect("what is reused is there");
            assert!(span.start == at && span.end() <= range.end, "reuse starts and ends at boundaries");
            self.push(span.extent)?;
            at = span.end();
        }
        Ok(())
    }

    /// How many levels, from the leaf upwards, are at the start of a page.
    fn levels_at_start(&self) -> usize {
        if self.hole_bytes > 0 {
            return 0;
        }
        // A level that does not exist yet is at its start as well.
        self.levels.iter().position(|open| !open.is_empty()).unwrap_or(usize::MAX)
    }

    fn grow(&mut self, len_bytes: u64) -> Result<()> {
        self.len_bytes = self.len_bytes.checked_add(len_bytes).ok_or(ContentError::TooLong)?;
        if self.len_bytes > LEN_MAX { Err(ContentError::TooLong) } else { Ok(()) }
    }

    fn push_hole(&mut self) -> Result<()> {
        match std::mem::take(&mut self.hole_bytes) {
            0 => Ok(()),
            len_bytes => self.push_entry(0, Entry::Extent(Extent { len_bytes, what: What::Hole })),
        }
    }

    fn push_entry(&mut self, level: usize, entry: Entry) -> Result<()> {
        if level >= self.levels.len() {
            self.levels.resize_with(level + 1, Vec::new);
        }
        let page = &mut self.levels[level];
        page.push(entry);
        if is_full(page) {
            let full = std::mem::take(page);
            let child = self.write_page(level, &full)?;
            self.push_entry(level + 1, Entry::Page(child))?;
        }
        Ok(())
    }

    fn write_page(&self, level: usize, entries: &[Entry]) -> Result<Child> {
        let id = self.sink.write(GlyphKind::Data, &encode_page(level as u8, entries))?;
        Ok(Child {
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
                [Entry::Page(only)] if top => (only, level - 1),
                _ => {
                    let child = self.write_page(level, &open)?;
                    if !top {
                        level += 1;
                        self.push_entry(level, Entry::Page(child))?;
                        continue;
                    }
                    (child, level)
                }
            };
            let Child { len_bytes, allocated_bytes, id } = root;
            // The pages that are written here always fit, but those taken over may hold fewer entries than they ought.
            let Some(depth) = u8::try_from(depth).ok().filter(|depth| *depth <= DEPTH_MAX) else {
                let source = DecodeError::NotCanonical("the depth of a manifest");
                return Err(ContentError::Malformed { id, source });
            };
            return Ok(Content::Manifest { len_bytes, allocated_bytes, root: id, depth });
        }
    }
}
