//! Glyphs as they lie in packs, to be carried from one store to another without compressing them anew.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::glyphs::GlyphStore;
use super::record::{self, Codec, DELTAS_MAX, GLYPH_BYTES_MAX, Header, Record};
use super::room::Purpose;
use super::{GlyphKind, GlyphSource, StoreError};
use crate::codec::{self, DecodeError, Encode, Reader};
use crate::id::GlyphId;

/// A glyph in the form in which it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredGlyph {
    header: Header,
    bytes: Bytes,
}

impl StoredGlyph {
    /// Bytes that somebody calls this glyph. `kind` and `codec` are as `tags` gives them.
    ///
    /// # Errors
    /// There are no such glyphs. Whether it is the one of this id only `plain` finds out.
    pub fn new((kind, tag): (u8, u8), id: GlyphId, plain_bytes: u32, bytes: Bytes) -> Result<Self, DecodeError> {
        let unknown = |what, value| DecodeError::Unknown { what, value: u64::from(value) };
        let kind = GlyphKind::from_tag(kind).ok_or(unknown("the kind of a glyph", kind))?;
        // Nobody is told how to make a glyph of another one.
        let codec = Codec::from_tag(tag).filter(|codec| *codec != Codec::Delta);
        let codec = codec.ok_or(unknown("the codec of a glyph", tag))?;
        Self::check_lengths(plain_bytes, bytes.len() as u64)?;
        let (stored_bytes, stored_crc) = (bytes.len() as u32, crc32c::crc32c(&bytes));
        Ok(Self { header: Header { kind, codec, plain_bytes, stored_bytes, id, stored_crc }, bytes })
    }

    /// These plain bytes, as they are.
    pub fn of(kind: GlyphKind, plain: &Bytes) -> Self {
        let id = GlyphId::of(plain);
        let len = plain.len() as u32;
        let stored_crc = crc32c::crc32c(plain);
        let header = Header { kind, codec: Codec::Raw, plain_bytes: len, stored_bytes: len, id, stored_crc };
        Self { header, bytes: plain.clone() }
    }

    /// Checks what a header claims before anything is read or reserved for it.
    pub fn check_lengths(plain_bytes: u32, stored_bytes: u64) -> Result<(), DecodeError> {
        let is_sane = plain_bytes as usize <= GLYPH_BYTES_MAX && stored_bytes <= u64::from(plain_bytes);
        if is_sane { Ok(()) } else { Err(DecodeError::NotCanonical("the length of a glyph")) }
    }

    /// Everything but the id, for whoever asked for it: kind and codec, the plain length, the stored bytes.
    pub fn encode(&self) -> Bytes {
        let (kind, codec) = self.tags();
        let mut out = Vec::with_capacity(2 + 4 + self.bytes.len());
        out.put_u8(kind);
        out.put_u8(codec);
        out.put_u32(self.plain_bytes());
        out.put_bytes(&self.bytes);
        out.into()
    }

    /// What `encode` made of this glyph, or what somebody says it made of it: see `new`.
    pub fn decode(id: GlyphId, bytes: &Bytes) -> codec::Result<Self> {
        let mut reader = Reader::new(bytes);
        let (kind, codec, plain_bytes) = (reader.u8()?, reader.u8()?, reader.u32()?);
        let stored = bytes.slice(bytes.len() - reader.remaining()..);
        Self::check_lengths(plain_bytes, stored.len() as u64)?;
        Self::new((kind, codec), id, plain_bytes, stored)
    }

    pub fn kind(&self) -> GlyphKind {
        self.header.kind
    }

    pub fn id(&self) -> GlyphId {
        self.header.id
    }

    /// Kind and codec as numbers.
    pub fn tags(&self) -> (u8, u8) {
        (self.header.kind.tag(), self.header.codec.tag())
    }

    pub fn plain_bytes(&self) -> u32 {
        self.header.plain_bytes
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The plain bytes, or `None` if they do not hash to the id.
    pub fn plain(&self) -> Option<Bytes> {
        self.header.plain(self.bytes.clone())
    }
}

impl GlyphStore {
    /// Reads a glyph as it is stored. Its plain bytes were verified.
    pub fn read_stored(&self, kind: GlyphKind, id: &GlyphId) -> Result<StoredGlyph, StoreError> {
        if self.lane(kind).quarantined(id).is_none()
            && let Some((location, pack)) = self.locate(kind, id)
            && let Ok((header, bytes)) = self.whole(&pack, location, id)
        {
            let glyph = StoredGlyph { header, bytes };
            if glyph.plain().is_some() {
                return Ok(glyph);
            }
        }
        // Another copy, or a good reason why there is none.
        let plain = self.read(kind, id)?;
        let Record { header, stored } = record::encode(kind, *id, &plain, self.data_level.load(Ordering::Relaxed));
        Ok(StoredGlyph { header, bytes: stored.into_owned().into() })
    }

    /// Stores a glyph as it is, unless it is there. Says whether it was new.
    ///
    /// # Errors
    /// `Malformed` if the bytes are not those of the id.
    pub fn write_stored(&self, glyph: &StoredGlyph) -> Result<bool, StoreError> {
        self.shared.check_writable()?;
        let StoredGlyph { header, bytes } = glyph;
        let (kind, id) = (header.kind, header.id);
        if glyph.plain().is_none() {
            let source = DecodeError::NotCanonical("the bytes of a glyph");
            return Err(StoreError::Malformed { what: format!("glyph {id}"), source });
        }
        if self.pin_stored(kind, &id) {
            return Ok(false);
        }
        let lane = self.lane(kind);
        let record = Record { header: *header, stored: bytes[..].into() };
        // Nodes leave the reserve alone here, too: nobody needs them to get out of a full disk.
        lane.append(&self.shared, &record, Purpose::Data, lane.place(&id))?;
        Ok(true)
    }

    /// Whether a glyph is there. If it is, it is treated from now on as if it had just been put.
    pub fn pin_stored(&self, kind: GlyphKind, id: &GlyphId) -> bool {
        let _gate = self.gate.read();
        self.pin_chain(kind, id).is_some()
    }

    /// The same for a glyph of contents, by whoever looks for many at a time: see `has`.
    pub fn pin_known(&self, id: &GlyphId) -> bool {
        let _gate = self.gate.read();
        self.pins.pin(GlyphKind::Data, id);
        self.has(GlyphKind::Data, id).unwrap_or(false)
    }

    /// Pins a glyph and those that tell it. Says how many these are, or `None` if one of them is not there or they are too many.
    pub(super) fn pin_chain(&self, kind: GlyphKind, id: &GlyphId) -> Option<usize> {
        let _gate = self.gate.read_recursive();
        let mut id = *id;
        for deltas in 0..=DELTAS_MAX {
            self.pins.pin(kind, &id);
            // A glyph whose place cannot be read is as good as absent: it is stored again.
            if !self.contains(kind, &id).unwrap_or(false) {
                return None;
            }
            if kind == GlyphKind::Data {
                return Some(deltas);
            }
            let (location, pack) = self.locate(kind, &id)?;
            match self.base_of(&pack, location, &id).ok()? {
                Some(base) => id = base,
                None => return Some(deltas),
            }
        }
        None
    }
}
