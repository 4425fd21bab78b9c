//! The content-addressed glyph store: immutable bytes, named by their hash, in packs on a `Disk`.
//!
//! `record` is one glyph as it is stored, `pack` a file of records, `lane` the packs of one kind with what still waits
//! in memory to be written, `glyphs` the store that the rest of the program sees, with `recover` (opening), `gc` and
//! `scrub`; `stored` carries glyphs from store to store as they are. `index` finds data glyphs and can be lost; node
//! glyphs, which are few, are found through a table in memory.
//!
//! What always holds:
//! - The packs are the truth. Every other structure can be rebuilt from them.
//! - A glyph is acknowledged as durable by `GlyphStore::sync`, never before; the index learns of it only after that.
//! - A location, wherever it comes from, is believed only when the record there carries the id.
//! - Bytes that do not hash to their name never reach a caller.
//! - A node that is told by another one (`record::Delta`) was written when that could be read, and a collection keeps that
//!   one as long, or writes this one anew first.

mod blocks;
mod gc;
mod glyphs;
mod index;
mod lane;
mod pack;
mod record;
mod recover;
mod room;
mod scrub;
mod stored;
#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use blocks::Stream;
pub use gc::{Hold, Mark, SweepReport};
pub use glyphs::{GlyphStore, StoreOptions, Usage};
pub use index::{GlyphIndex, IndexError, Location, MemIndex, Position};
pub use record::GLYPH_BYTES_MAX;
pub use recover::{DroppedTail, OpenReport, Progress, Stage};
pub use scrub::{ScrubCursor, ScrubProgress};
pub use stored::StoredGlyph;

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
    /// What was asked for would make a row of a table larger than a row can be.
    #[error("there would be too much of one thing: a row of {bytes} bytes in the table of {table}")]
    RowTooLarge { table: String, bytes: usize },
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

/// Bytes of a pack that hold no valid record where there should be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    pub pack: u32,
    pub offset_bytes: u32,
    pub len_bytes: u32,
    /// The glyph that was there, as far as it can be told.
    pub id: Option<GlyphId>,
}
