//! A file that is being changed: a mutable staging file laid over the version that it started from.
//!
//! Every byte has one truth. At first all of it is the base version; what is written goes to the staging file, which
//! is the truth from then on. So opening a long file for writing copies nothing, and `materialise` can bring over the
//! rest later, in pieces, until the staging file alone is the file and can be handed to the kernel.
//!
//! What always holds:
//! - The truth about a byte is the base iff it lies before `visible` and not in `local`; else it is the staging file,
//!   whose holes read as zeroes.
//! - `local` and `dirty` lie before `visible`, and `visible` exceeds neither the base's length nor the file's.
//! - A byte that differs from the base lies in `dirty` or behind `visible`.
//! - The staging file is as long as the file.
//!
//! An overlay is a plain value: the caller guards it, syncs the staging file, and journals `encode` only after that
//! sync, so that what a crash leaves behind never claims bytes that are not there. The staging file and the reader of
//! the base are handed to every call and must be the ones that the overlay was made for.

use std::io;
use std::ops::Range;

use crate::codec::{DecodeError, Encode, Reader};
use crate::content::manifest::What;
use crate::content::ranges::RangeSet;
use crate::content::reader::ContentReader;
use crate::content::{BLOCK, Content, ContentError, LEN_MAX, Result, check_version, staging};
use crate::disk::File;
use crate::store::GlyphSource;

/// More parts than this of a published version are not worth a copy of them.
const PARTS_MAX: usize = 1000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    base: Content,
    /// How much of the base a truncation has left.
    visible: u64,
    local: RangeSet,
    dirty: RangeSet,
    len: u64,
}

/// Where to read: the staging file, the base version under it, and the store with its glyphs.
pub struct Sources<'a> {
    pub file: &'a dyn File,
    pub base: &'a mut ContentReader,
    pub glyphs: &'a dyn GlyphSource,
}

impl Overlay {
    const VERSION: u8 = 1;

    /// A file that starts as this version, with an empty staging file, which gets the length of the file.
    pub fn over(base: Content, file: &dyn File) -> Result<Self> {
        let len = base.len_bytes();
        file.set_len(len).map_err(staging("setting the length"))?;
        Ok(Self { base, visible: len, local: RangeSet::new(), dirty: RangeSet::new(), len })
    }

    /// A file all of whose bytes are in the staging file, and of which nothing else is known: it is new, or the
    /// kernel has written to the staging file by itself.
    pub fn whole(len: u64) -> Self {
        Self { base: Content::Empty, visible: 0, local: RangeSet::new(), dirty: RangeSet::new(), len }
    }

    pub fn len_bytes(&self) -> u64 {
        self.len
    }

    /// The version that this file started from or was last published as.
    pub fn base(&self) -> &Content {
        &self.base
    }

    /// Whether the staging file alone is the file.
    pub fn is_whole(&self) -> bool {
        self.local.covers(0..self.visible)
    }

    /// Whether the file may differ from its base.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || self.visible != self.len || self.visible != self.base.len_bytes()
    }

    /// What may differ from the base, in order. The last range is endless if the tail or the length changed.
    pub(super) fn changed(&self) -> RangeSet {
        let mut changed = self.dirty.clone();
        if self.visible != self.len || self.visible != self.base.len_bytes() {
            changed.insert(self.visible..u64::MAX);
        }
        changed
    }

    /// Bytes that take up space, for `st_blocks`: exact when the file is whole or untouched, else an upper bound.
    pub fn allocated_bytes(&self, file: &dyn File) -> Result<u64> {
        let stamp = file.stamp().map_err(staging("reading attributes"))?;
        let from_base = if self.is_whole() { 0 } else { self.base.allocated_bytes() };
        Ok(stamp.allocated_bytes.saturating_add(from_base))
    }

    /// Reads up to `buf.len()` bytes; fewer only at the end of the file.
    pub fn read_at(&self, from: &mut Sources<'_>, buf: &mut [u8], offset: u64) -> Result<usize> {
        let len = self.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let (truth, end) = self.truth(at);
            let out = &mut buf[done..len.min((end - offset) as usize)];
            match truth {
                Truth::Staging => {
                    from.file.read_exact_at(out, at).map_err(staging("reading"))?;
                }
                Truth::Base => {
                    let got = from.base.read_at(from.glyphs, out, at)?;
                    assert_eq!(got, out.len(), "the visible part of the base is no longer than the base");
                }
            }
            done += out.len();
        }
        Ok(len)
    }

    /// The first byte at or after `offset` that may hold data; `None` when only a hole follows.
    pub fn seek_data(&self, from: &mut Sources<'_>, offset: u64) -> Result<Option<u64>> {
        let mut at = offset;
        while at < self.len {
            let (truth, end) = self.truth(at);
            let data = match truth {
                Truth::Staging => from.file.seek_data(at).map_err(staging("looking for data"))?,
                Truth::Base => from.base.seek_data(from.glyphs, at)?,
            };
            match data {
                Some(data) if data < end => return Ok(Some(data)),
                _ => at = end,
            }
        }
        Ok(None)
    }

    /// The first byte at or after `offset` in a hole; the end of the file counts as one.
    pub fn seek_hole(&self, from: &mut Sources<'_>, offset: u64) -> Result<u64> {
        self.seek_hole_before(from, offset, u64::MAX)
    }

    /// As `seek_hole`, but may stop anywhere at or behind `limit`.
    pub(super) fn seek_hole_before(&self, from: &mut Sources<'_>, offset: u64, limit: u64) -> Result<u64> {
        let mut at = offset;
        while at < self.len.min(limit) {
            let (truth, end) = self.truth(at);
            let hole = match truth {
                Truth::Staging => from.file.seek_hole(at).map_err(staging("looking for holes"))?,
                Truth::Base => from.base.seek_hole_before(from.glyphs, at, end.min(limit))?,
            };
            if hole < end {
                return Ok(hole);
            }
            at = end;
        }
        Ok(at)
    }

    /// Writes all of `bytes`. After an error any part of the range may have been written.
    pub fn write(&mut self, file: &dyn File, bytes: &[u8], offset: u64) -> Result<()> {
        let range = checked_range(offset, bytes.len() as u64)?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.dirty.insert(self.in_base(&range));
        file.write_at(bytes, offset).map_err(|error| self.fail(file, "writing", error))?;
        self.local.insert(self.in_base(&range));
        self.len = self.len.max(range.end);
        Ok(())
    }

    /// Cuts the file, or extends it with a hole.
    pub fn truncate(&mut self, file: &dyn File, len: u64) -> Result<()> {
        if len > LEN_MAX {
            return Err(ContentError::TooLong);
        }
        file.set_len(len).map_err(staging("setting the length"))?;
        self.visible = self.visible.min(len);
        self.local.truncate(self.visible);
        self.dirty.truncate(self.visible);
        self.len = len;
        Ok(())
    }

    /// Frees a range, which then reads as zeroes. What lies behind the end of the file is ignored.
    pub fn punch_hole(&mut self, file: &dyn File, offset: u64, len: u64) -> Result<()> {
        let range = offset..checked_range(offset, len)?.end.min(self.len);
        if range.is_empty() {
            return Ok(());
        }
        self.dirty.insert(self.in_base(&range));
        file.punch_hole(range.start, range.end - range.start).map_err(staging("punching a hole"))?;
        self.local.insert(self.in_base(&range));
        Ok(())
    }

    /// Makes a range read as zeroes and reserves its space.
    pub fn zero_range(&mut self, file: &dyn File, offset: u64, len: u64, keep_len: bool) -> Result<()> {
        self.punch_hole(file, offset, len)?;
        self.allocate(file, offset, len, keep_len)
    }

    /// Reserves space for later writes; the file becomes longer where needed unless `keep_len`.
    pub fn allocate(&mut self, file: &dyn File, offset: u64, len: u64, keep_len: bool) -> Result<()> {
        let range = checked_range(offset, len)?;
        file.allocate(offset, len, keep_len).map_err(|error| self.fail(file, "reserving space", error))?;
        if !keep_len {
            self.len = self.len.max(range.end);
        }
        Ok(())
    }

    /// Copies what the staging file still lacks of this range, holes staying holes. What was copied before an error
    /// stays copied.
    pub fn materialise(&mut self, from: &mut Sources<'_>, range: Range<u64>) -> Result<()> {
        let mut buf = Vec::new();
        let missing: Vec<_> = self.local.gaps(self.in_base(&range)).collect();
        for gap in missing {
            let mut at = gap.start;
            while at < gap.end {
                let span = from.base.find(from.glyphs, at)?.expect("the base is no shorter than its visible part");
                let end = span.end().min(gap.end);
                match span.extent.what {
                    What::Hole => self.clear(from.file, at..end)?,
                    What::Glyph(_) => {
                        buf.resize((end - at) as usize, 0);
                        from.base.read_at(from.glyphs, &mut buf, at)?;
                        from.file.write_at(&buf, at).map_err(staging("copying into it"))?;
                    }
                }
                self.local.insert(at..end);
                at = end;
            }
        }
        Ok(())
    }

    /// The file was published as `content` and has not been written since. The staging file stays as a copy, unless the
    /// parts that it has are too many to keep account of.
    pub fn published(&mut self, content: Content) {
        assert_eq!(content.len_bytes(), self.len, "what was published is this file");
        self.local.insert(self.visible..self.len);
        if self.local.iter().count() > PARTS_MAX {
            self.local = RangeSet::new();
        }
        self.dirty = RangeSet::new();
        self.visible = self.len;
        self.base = content;
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(Self::VERSION);
        self.base.encode(out);
        out.put_varint(self.visible);
        out.put_varint(self.len);
        self.local.encode(out);
        self.dirty.encode(out);
    }

    pub fn decode(reader: &mut Reader<'_>) -> std::result::Result<Self, DecodeError> {
        check_version("the state of a changed file", reader.u8()?, Self::VERSION)?;
        let base = Content::decode(reader)?;
        let visible = reader.varint()?;
        let len = reader.varint()?;
        let local = RangeSet::decode(reader)?;
        let dirty = RangeSet::decode(reader)?;
        let inside = |set: &RangeSet| set.iter().all(|range| range.end <= visible);
        if visible > base.len_bytes().min(len) || len > LEN_MAX || !inside(&local) || !inside(&dirty) {
            return Err(DecodeError::NotCanonical("the state of a changed file"));
        }
        Ok(Self { base, visible, local, dirty, len })
    }

    /// Where to look for the byte at this offset, which lies before the end, and how far that holds.
    fn truth(&self, offset: u64) -> (Truth, u64) {
        if offset >= self.visible {
            return (Truth::Staging, self.len);
        }
        match self.local.span(offset) {
            // A local range that reaches the end of the base goes on behind it.
            (true, end) if end == self.visible => (Truth::Staging, self.len),
            (true, end) => (Truth::Staging, end),
            (false, end) => (Truth::Base, end.min(self.visible)),
        }
    }

    /// Makes a range of the staging file a hole. A failed write may have left something there; where nothing did, space
    /// that was reserved stays reserved.
    fn clear(&self, file: &dyn File, range: Range<u64>) -> Result<()> {
        match file.seek_data(range.start).map_err(staging("looking for data"))? {
            Some(data) if data < range.end => {
                // The block around the end of the file is freed only as a whole.
                let end = if range.end == self.len { range.end.next_multiple_of(BLOCK) } else { range.end };
                file.punch_hole(data, end - data).map_err(staging("punching a hole"))
            }
            _ => Ok(()),
        }
    }

    /// Undoes what a failed call may have added behind the end: it would show up when the file grows over it.
    fn fail(&self, file: &dyn File, doing: &'static str, source: io::Error) -> ContentError {
        // If this fails as well, the first error is still the one to report.
        let _ = file.set_len(self.len);
        ContentError::Staging { doing, source }
    }

    fn in_base(&self, range: &Range<u64>) -> Range<u64> {
        range.start..range.end.min(self.visible)
    }
}

enum Truth {
    Base,
    Staging,
}

fn checked_range(offset: u64, len: u64) -> Result<Range<u64>> {
    match offset.checked_add(len) {
        Some(end) if end <= LEN_MAX => Ok(offset..end),
        _ => Err(ContentError::TooLong),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::content::testing::{Open, bytes_of, noise, published};
    use crate::disk::{Disk, FileName, MemDisk, Stamp};
    use crate::id::GlyphId;
    use crate::store::StoreError;

    const LEN: usize = 300_000;

    /// A long file that was opened again, so that nothing of it is in the staging file.
    fn reopened() -> (Open, Vec<u8>) {
        let bytes = noise(1, LEN);
        let mut first = Open::with(&bytes);
        (Open::over(&first.publish(), first.glyphs), bytes)
    }

    #[test]
    fn opening_and_writing_reads_nothing_of_the_base() {
        let (mut open, mut bytes) = reopened();
        let before = open.glyphs.reads();
        open.write(b"new", 100_000);
        assert_eq!(open.glyphs.reads(), before);
        bytes[100_000..100_003].copy_from_slice(b"new");
        assert!(open.read(0, LEN + 1) == bytes);
    }

    #[test]
    fn what_a_truncation_removed_never_comes_back() {
        let (mut open, mut bytes) = reopened();
        let file = open.file.clone();
        open.overlay.truncate(&*file, 1000).unwrap();
        open.overlay.truncate(&*file, LEN as u64).unwrap();
        bytes[1000..].fill(0);
        assert!(open.read(0, LEN) == bytes);
        let (overlay, mut from) = open.parts();
        overlay.materialise(&mut from, 0..u64::MAX).unwrap();
        assert!(open.read(0, LEN) == bytes);
    }

    #[test]
    fn a_materialised_file_needs_no_glyph_and_is_not_dirty() {
        let (mut open, bytes) = reopened();
        assert!(!open.overlay.is_whole());
        let (overlay, mut from) = open.parts();
        overlay.materialise(&mut from, 0..u64::MAX).unwrap();
        assert!(overlay.is_whole() && !overlay.is_dirty());
        let published = published(*open.overlay.base(), Bytes::new());
        let mut alone = Open::over(&published, Arc::default());
        alone.overlay = open.overlay;
        alone.file = open.file;
        assert!(alone.read(0, LEN) == bytes);
    }

    #[test]
    fn materialising_keeps_holes() {
        let mut first = Open::new();
        first.write(&noise(1, 100_000), 0);
        first.write(&noise(2, 100_000), 10 << 20);
        let mut open = Open::over(&first.publish(), first.glyphs);
        let (overlay, mut from) = open.parts();
        overlay.materialise(&mut from, 0..u64::MAX).unwrap();
        assert_eq!(overlay.allocated_bytes(from.file).unwrap(), first.file.stamp().unwrap().allocated_bytes);
    }

    #[test]
    fn what_a_failed_write_left_behind_is_never_seen() {
        let mut first = Open::new();
        first.write(&noise(1, 100_000), 0);
        first.overlay.truncate(&*first.file, LEN as u64).unwrap();
        let bytes = first.read(0, LEN);
        let mut open = Open::over(&first.publish(), first.glyphs);
        // As if writes had stopped halfway: bytes in the staging file that the overlay does not know of.
        for offset in [5000, 200_000] {
            open.file.write_at(b"torn", offset).unwrap();
        }
        assert!(open.read(0, LEN) == bytes);
        let (overlay, mut from) = open.parts();
        overlay.materialise(&mut from, 0..u64::MAX).unwrap();
        assert!(open.read(0, LEN) == bytes);
    }

    /// Writes and reserves only half of what it is asked for, and fails.
    struct Halfway(Arc<dyn File>);

    impl File for Halfway {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            self.0.read_at(buf, offset)
        }
        fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
            self.0.write_at(&buf[..buf.len() / 2], offset)?;
            Err(io::ErrorKind::StorageFull.into())
        }
        fn sync(&self) -> io::Result<()> {
            self.0.sync()
        }
        fn stamp(&self) -> io::Result<Stamp> {
            self.0.stamp()
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }
        fn allocate(&self, offset: u64, len: u64, keep_len: bool) -> io::Result<()> {
            self.0.allocate(offset, len / 2, keep_len)?;
            Err(io::ErrorKind::StorageFull.into())
        }
        fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
            self.0.punch_hole(offset, len)
        }
        fn seek_data(&self, offset: u64) -> io::Result<Option<u64>> {
            self.0.seek_data(offset)
        }
        fn seek_hole(&self, offset: u64) -> io::Result<u64> {
            self.0.seek_hole(offset)
        }
    }

    #[test]
    fn a_call_that_failed_halfway_adds_nothing_behind_the_end() {
        let mut open = Open::with(&noise(1, 1000));
        let halfway = Halfway(open.file.clone());
        assert!(open.overlay.write(&halfway, &[1; 5000], 900).is_err());
        assert!(open.overlay.allocate(&halfway, 0, 5000, false).is_err());
        assert_eq!(open.file.stamp().unwrap().len_bytes, 1000);
        open.write(b"x", 4000);
        assert_eq!(open.read(1000, 3000), [0; 3000]);
        // What did change before the failure is published.
        let all = open.read(0, 4001);
        let published = open.publish();
        assert_eq!(bytes_of(&published, &open.glyphs), all);
    }

    #[test]
    fn a_full_disk_is_reported_as_such_and_changes_nothing() {
        let disk = MemDisk::with_capacity(8192);
        let file = disk.create(FileName::Staging(1)).unwrap();
        let mut overlay = Overlay::over(Content::Empty, &*file).unwrap();
        overlay.write(&*file, b"fits", 0).unwrap();
        let before = overlay.clone();
        let is_full = |result| match result {
            Err(ContentError::Staging { source, .. }) => source.kind() == io::ErrorKind::StorageFull,
            _ => false,
        };
        assert!(is_full(overlay.write(&*file, &[1; 9000], 2)));
        assert!(is_full(overlay.allocate(&*file, 0, 9000, false)));
        assert_eq!(overlay, before);
        assert_eq!(file.stamp().unwrap().len_bytes, 4);
    }

    #[test]
    fn a_file_longer_than_the_kernel_can_address_is_refused() {
        let (mut open, _) = reopened();
        let file = open.file.clone();
        assert!(matches!(open.overlay.write(&*file, b"x", LEN_MAX), Err(ContentError::TooLong)));
        assert!(matches!(open.overlay.truncate(&*file, LEN_MAX + 1), Err(ContentError::TooLong)));
        assert!(matches!(open.overlay.punch_hole(&*file, 1, u64::MAX), Err(ContentError::TooLong)));
        assert_eq!(open.overlay.len_bytes(), LEN as u64);
    }

    #[test]
    fn a_glyph_that_is_not_here_is_named() {
        let content = Content::Single { len_bytes: 60_000, glyph: GlyphId([9; 32]) };
        let mut open = Open::over(&published(content, Bytes::new()), Arc::default());
        let (overlay, mut from) = open.parts();
        let result = overlay.read_at(&mut from, &mut [0; 10], 0);
        assert!(matches!(result, Err(ContentError::Store(StoreError::Missing(id))) if id == GlyphId([9; 32])));
    }

    #[test]
    fn a_state_that_contradicts_itself_is_refused() {
        let good = Overlay { base: Content::Hole { len_bytes: 100 }, visible: 50, len: 80, ..Overlay::whole(0) };
        let decode = |overlay: &Overlay| {
            let mut bytes = Vec::new();
            overlay.encode(&mut bytes);
            Overlay::decode(&mut Reader::new(&bytes))
        };
        assert_eq!(decode(&good).as_ref(), Ok(&good));
        let mut outside = RangeSet::new();
        outside.insert(40..51);
        for bad in [
            Overlay { visible: 81, ..good.clone() },
            Overlay { visible: 101, len: 200, ..good.clone() },
            Overlay { len: LEN_MAX + 1, ..good.clone() },
            Overlay { local: outside.clone(), ..good.clone() },
            Overlay { dirty: outside, ..good.clone() },
        ] {
            assert_eq!(decode(&bad), Err(DecodeError::NotCanonical("the state of a changed file")));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_their_only_encoding_or_fail(bytes: Vec<u8>, len in 0..50u8) {
            let bytes = [&[Overlay::VERSION, Content::VERSION, 3, len, len / 2, len][..], &bytes].concat();
            let mut reader = Reader::new(&bytes);
            if let Ok(overlay) = Overlay::decode(&mut reader) {
                let mut again = Vec::new();
                overlay.encode(&mut again);
                prop_assert_eq!(&bytes[..bytes.len() - reader.remaining()], &again[..]);
            }
        }
    }
}
