//! Reads the bytes of a version.
//!
//! A reader belongs to one open file. It remembers where it was: the manifest pages that led there and the plain
//! bytes of the last glyph, so that small reads in sequence decompress every glyph once.

use std::ops::Range;

use bytes::Bytes;

use crate::codec::DecodeError;
use crate::content::manifest::{Builder, Cursor, Span, What};
use crate::content::{Content, ContentError, Result};
use crate::id::GlyphId;
use crate::store::{GlyphKind, GlyphSource};

pub struct ContentReader {
    cursor: Cursor,
    /// The glyph read last; for an inline content its bytes, for ever.
    current: Option<(GlyphId, Bytes)>,
}

impl ContentReader {
    /// `inline` is what lies beside the version record of an inline content; for all others it is not looked at.
    pub fn new(content: Content, inline: Bytes) -> Result<Self> {
        let current = match content {
            Content::Inline { len_bytes, hash } => {
                if inline.len() as u64 != len_bytes || GlyphId::of(&inline) != hash {
                    return Err(ContentError::InlineDamaged(hash));
                }
                Some((hash, inline))
            }
            _ => None,
        };
        Ok(Self { cursor: Cursor::new(content), current })
    }

    pub fn content(&self) -> &Content {
        self.cursor.content()
    }

    /// The extent over this offset; `None` at and behind the end of the file.
    pub fn find(&mut self, source: &dyn GlyphSource, offset: u64) -> Result<Option<Span>> {
        self.cursor.find(source, offset)
    }

    /// Adds a range of the content's extents to a new manifest, see `Builder::reuse`.
    pub(super) fn reuse(&mut self, source: &dyn GlyphSource, range: Range<u64>, out: &mut Builder<'_>) -> Result<()> {
        out.reuse(&mut self.cursor, source, range)
    }

    /// Reads up to `buf.len()` bytes; fewer only at the end of the file.
    pub fn read_at(&mut self, source: &dyn GlyphSource, buf: &mut [u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset.saturating_add(done as u64);
            let Some(span) = self.cursor.find(source, at)? else { break };
            let len = (span.end() - at).min((buf.len() - done) as u64) as usize;
            let out = &mut buf[done..done + len];
            match span.extent.what {
                What::Hole => out.fill(0),
                What::Glyph(id) => {
                    let skip = (at - span.start) as usize;
                    out.copy_from_slice(&self.glyph(source, id, span.extent.len_bytes)?[skip..skip + len]);
                }
            }
            done += len;
        }
        Ok(done)
    }

    /// The first byte at or after `offset` that is not in a hole; `None` if only a hole follows.
    pub fn seek_data(&mut self, source: &dyn GlyphSource, offset: u64) -> Result<Option<u64>> {
        let mut at = offset;
        while let Some(span) = self.cursor.find(source, at)? {
            if matches!(span.extent.what, What::Glyph(_)) {
                return Ok(Some(at));
            }
            at = span.end();
        }
        Ok(None)
    }

    /// The first byte at or after `offset` that is in a hole; the end of the file counts as one.
    pub fn seek_hole(&mut self, source: &dyn GlyphSource, offset: u64) -> Result<u64> {
        self.seek_hole_before(source, offset, u64::MAX)
    }

    /// As `seek_hole`, but may stop anywhere at or behind `limit`.
    pub(super) fn seek_hole_before(&mut self, source: &dyn GlyphSource, offset: u64, limit: u64) -> Result<u64> {
        let content = *self.content();
        // Without a hole there is no need to walk the extents of a long file.
        if content.allocated_bytes() == content.len_bytes() {
            return Ok(content.len_bytes().max(offset));
        }
        let mut at = offset;
        while at < limit
            && let Some(span) = self.cursor.find(source, at)?
            && span.extent.what != What::Hole
        {
            at = span.end();
        }
        Ok(at)
    }

    fn glyph(&mut self, source: &dyn GlyphSource, id: GlyphId, len_bytes: u64) -> Result<&Bytes> {
        if self.current.as_ref().is_none_or(|(current, _)| *current != id) {
            self.current = Some((id, source.read(GlyphKind::Data, &id)?));
        }
        let (_, bytes) = self.current.as_ref().expect("it was just put there");
        if bytes.len() as u64 != len_bytes {
            let source = DecodeError::NotCanonical("the length of a glyph in a manifest");
            return Err(ContentError::Malformed { id, source });
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::manifest::Extent;
    use crate::content::testing::{Glyphs, noise};

    /// Data, hole, data, hole; all odd lengths.
    fn sparse(glyphs: &Glyphs) -> (Content, Vec<u8>) {
        let (first, second) = (noise(1, 200_001), noise(2, 100_003));
        let mut builder = Builder::new(glyphs);
        for (bytes, hole) in [(&first, 70_007), (&second, 50_005)] {
            let what = What::Glyph(glyphs.put(bytes));
            builder.push(Extent { len_bytes: bytes.len() as u64, what }).unwrap();
            builder.push(Extent { len_bytes: hole, what: What::Hole }).unwrap();
        }
        let content = builder.finish().unwrap();
        (content, [first, vec![0; 70_007], second, vec![0; 50_005]].concat())
    }

    fn reader(content: Content) -> ContentReader {
        ContentReader::new(content, Bytes::new()).unwrap()
    }

    #[test]
    fn reads_cross_glyphs_and_holes_and_end_with_the_file() {
        let glyphs = Glyphs::default();
        let (content, bytes) = sparse(&glyphs);
        let mut reader = reader(content);
        for (offset, len) in [(0, 1), (200_000, 2), (199_999, 70_010), (0, 500_000), (420_015, 10), (420_016, 10)] {
            let mut buf = vec![7; len];
            let got = reader.read_at(&glyphs, &mut buf, offset as u64).unwrap();
            let end = bytes.len().min(offset + len);
            assert!(buf[..got] == bytes[offset..end], "{offset} {len}");
        }
        assert_eq!(reader.read_at(&glyphs, &mut [0], u64::MAX).unwrap(), 0);
    }

    #[test]
    fn small_reads_in_sequence_read_every_glyph_once() {
        let glyphs = Glyphs::default();
        let (content, bytes) = sparse(&glyphs);
        let mut reader = reader(content);
        for offset in (0..bytes.len()).step_by(4096) {
            reader.read_at(&glyphs, &mut [0; 4096], offset as u64).unwrap();
        }
        assert_eq!(glyphs.reads(), 3, "the root page and two glyphs");
    }

    #[test]
    fn holes_and_data_are_found() {
        let glyphs = Glyphs::default();
        let (content, bytes) = sparse(&glyphs);
        let mut reader = reader(content);
        let len = bytes.len() as u64;
        for (offset, data, hole) in [
            (0, Some(0), 200_001),
            (200_000, Some(200_000), 200_001),
            (200_001, Some(270_008), 200_001),
            (270_008, Some(270_008), 370_011),
            (370_011, None, 370_011),
            (len, None, len),
        ] {
            assert_eq!(reader.seek_data(&glyphs, offset).unwrap(), data, "{offset}");
            assert_eq!(reader.seek_hole(&glyphs, offset).unwrap(), hole, "{offset}");
        }
    }

    #[test]
    fn inline_bytes_must_be_the_ones_that_the_version_names() {
        let content = Content::Inline { len_bytes: 3, hash: GlyphId::of(b"abc") };
        let mut reader = ContentReader::new(content, Bytes::from_static(b"abc")).unwrap();
        let mut buf = [0; 5];
        assert_eq!(reader.read_at(&Glyphs::default(), &mut buf, 1).unwrap(), 2);
        assert_eq!(&buf[..2], b"bc");
        for wrong in [&b"abd"[..], b"ab", b""] {
            let result = ContentReader::new(content, Bytes::copy_from_slice(wrong));
            assert!(matches!(result, Err(ContentError::InlineDamaged(_))));
        }
    }

    #[test]
    fn a_glyph_of_another_length_than_its_extent_is_refused() {
        let glyphs = Glyphs::default();
        for len_bytes in [2, 4] {
            let content = Content::Single { len_bytes, glyph: glyphs.put(b"abc") };
            let result = reader(content).read_at(&glyphs, &mut [0; 4], 0);
            assert!(matches!(result, Err(ContentError::Malformed { .. })));
        }
    }
}
