//! One page of a manifest: its bytes, and what is checked when they are read.

use super::{EXTENT_MAX, Extent, What};
use crate::codec::{DecodeError, Encode, Reader};
use crate::content::{ContentError, LEN_MAX, Result, check_version};
use crate::id::GlyphId;
use crate::store::{GlyphKind, GlyphSource};

/// No page has more entries.
const ENTRIES_MAX: usize = 1024;
/// A page ends before this many entries only at the end of the list.
pub(super) const ENTRIES_MIN: usize = 128;
/// Behind `ENTRIES_MIN`, a page ends at an entry whose id has these bits clear: one in 256.
const CUT_MASK: u8 = 0xff;

const VERSION: u8 = 1;
const MALFORMED_LEN: DecodeError = DecodeError::NotCanonical("a length in a manifest");

/// What is said about a page from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Child {
    pub len_bytes: u64,
    pub allocated_bytes: u64,
    pub id: GlyphId,
}

/// One line of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Extent(Extent),
    Page(Child),
}

impl Entry {
    pub fn len_bytes(&self) -> u64 {
        match self {
            Self::Extent(extent) => extent.len_bytes,
            Self::Page(child) => child.len_bytes,
        }
    }

    pub fn allocated_bytes(&self) -> u64 {
        match self {
            Self::Extent(Extent { what: What::Hole, .. }) => 0,
            Self::Extent(extent) => extent.len_bytes,
            Self::Page(child) => child.allocated_bytes,
        }
    }

    /// Whether a page that is long enough ends with this line.
    fn ends_page(&self) -> bool {
        match self {
            Self::Extent(Extent { what: What::Glyph(id), .. }) | Self::Page(Child { id, .. }) => {
                id.0[0] & CUT_MASK == 0
            }
            Self::Extent(Extent { what: What::Hole, .. }) => false,
        }
    }
}

/// Whether a page ends here; if not, then only with the list.
pub(super) fn is_full(entries: &[Entry]) -> bool {
    entries.len() >= ENTRIES_MAX || (entries.len() >= ENTRIES_MIN && entries.last().is_some_and(Entry::ends_page))
}

/// Level 0 is a leaf. A glyph's line has the lowest bit of its first number set.
pub(super) fn encode_page(level: u8, entries: &[Entry]) -> Vec<u8> {
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
            Entry::Page(Child { len_bytes, allocated_bytes, id }) => {
                out.put_varint(*len_bytes);
                out.put_varint(*allocated_bytes);
                out.put_glyph_id(id);
            }
        }
    }
    out
}

pub(super) fn decode_page(bytes: &[u8], level: u8) -> std::result::Result<Vec<Entry>, DecodeError> {
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
            _ => Entry::Page(Child { len_bytes: number, allocated_bytes: reader.varint()?, id: reader.glyph_id()? }),
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
pub(super) struct Page {
    /// Where in the file it starts.
    pub start: u64,
    pub level: u8,
    pub child: Child,
    pub entries: Vec<Entry>,
    /// Where in the file every entry ends.
    ends: Vec<u64>,
}

impl Page {
    /// Reads the page and checks it against what its parent says.
    pub fn load(source: &dyn GlyphSource, start: u64, level: u8, child: Child) -> Result<Self> {
        let malformed = |source| ContentError::Malformed { id: child.id, source };
        let entries = decode_page(&source.read(GlyphKind::Data, &child.id)?, level).map_err(malformed)?;
        let mut ends = Vec::with_capacity(entries.len());
        let mut end = start;
        let mut allocated_bytes = 0u64;
        for entry in &entries {
            end = end.checked_add(entry.len_bytes()).ok_or(malformed(MALFORMED_LEN))?;
            allocated_bytes = allocated_bytes.saturating_add(entry.allocated_bytes());
            ends.push(end);
        }
        if end - start != child.len_bytes || allocated_bytes != child.allocated_bytes {
            return Err(malformed(MALFORMED_LEN));
        }
        Ok(Self { start, level, child, entries, ends })
    }

    pub fn end(&self) -> u64 {
        self.start + self.child.len_bytes
    }

    pub fn covers(&self, offset: u64) -> bool {
        (self.start..self.end()).contains(&offset)
    }

    /// The entry over this offset, which the page covers, and where it starts.
    pub fn entry_at(&self, offset: u64) -> (u64, Entry) {
        let index = self.ends.partition_point(|&end| end <= offset);
        let start = if index == 0 { self.start } else { self.ends[index - 1] };
        (start, self.entries[index])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn glyph(len_bytes: u64) -> Entry {
        Entry::Extent(Extent { len_bytes, what: What::Glyph(GlyphId([1; 32])) })
    }

    fn hole(len_bytes: u64) -> Entry {
        Entry::Extent(Extent { len_bytes, what: What::Hole })
    }

    #[test]
    fn impossible_entries_are_refused() {
        let too_many = vec![glyph(1); ENTRIES_MAX + 1];
        let huge_pages = vec![Entry::Page(Child { len_bytes: u64::MAX, allocated_bytes: 0, id: GlyphId([0; 32]) }); 3];
        let bad: [(u8, &[Entry]); 6] = [
            (0, &[]),
            (0, &[glyph(0)]),
            (0, &[glyph(EXTENT_MAX + 1)]),
            (0, &[hole(1), hole(1)]),
            (0, &too_many),
            (1, &huge_pages),
        ];
        for (level, entries) in bad {
            assert!(matches!(decode_page(&encode_page(level, entries), level), Err(DecodeError::NotCanonical(_))));
        }
        let mut newer = encode_page(0, &[glyph(1)]);
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
    }
}
