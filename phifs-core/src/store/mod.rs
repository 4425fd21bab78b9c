//! The content-addressed glyph store.

use bytes::Bytes;

use crate::id::GlyphId;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A replica may still hold it, so the caller asks the cluster before giving up.
    #[error("glyph {0} is not stored here")]
    Missing(GlyphId),
    /// The bytes no longer hash to their name. They go to healing, never to a reader.
    #[error("glyph {id} in pack {pack} at byte {offset_bytes} is damaged")]
    Corrupt { id: GlyphId, pack: u32, offset_bytes: u64 },
    /// What was asked for is written in a form that this program does not know.
    #[error("{what} is damaged: {source}")]
    Malformed { what: String, source: crate::codec::DecodeError },
    #[error("the disk failed while {doing}: {source}")]
    Disk { doing: &'static str, source: std::io::Error },
    /// New data is refused so that deletes and metadata still have room.
    #[error("the disk is full up to the reserve")]
    Full,
    /// An earlier failure to make bytes durable; nothing more is accepted until the store is opened again.
    #[error("the store is read-only since a failed sync")]
    ReadOnly,
}

/// Bytes of user files and bytes of the Merkle maps live in packs of their own, as they die at different rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GlyphKind {
    Data,
    Node,
}

/// Reads glyphs; what comes back was verified against its name.
pub trait GlyphSource: Send + Sync {
    fn read(&self, kind: GlyphKind, id: &GlyphId) -> Result<Bytes, StoreError>;
}

/// Accepts glyphs. A glyph is durable after the next sync of the store, not before.
pub trait GlyphSink: Send + Sync {
    fn write(&self, kind: GlyphKind, plain: &[u8]) -> Result<GlyphId, StoreError>;
}
