//! Where glyphs are: the index of data glyphs, which may be lost at any time, and the place markers that go with it.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::id::GlyphId;

/// The place of one glyph's record. Packs are numbered in the order of their creation, and no number is used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    pub pack: u32,
    pub offset_bytes: u32,
    /// The length of the stored bytes, without the record's header.
    pub stored_bytes: u32,
}

impl Location {
    pub const LEN: usize = 12;

    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.pack.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.offset_bytes.to_be_bytes());
        bytes[8..].copy_from_slice(&self.stored_bytes.to_be_bytes());
        bytes
    }

    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let number = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self { pack: number(0), offset_bytes: number(4), stored_bytes: number(8) }
    }
}

/// How much of the packs an index reflects. Opaque to the index, which keeps it in the same batch as the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub(super) store_id: [u8; 16],
    pub(super) pack: u32,
    pub(super) offset: u32,
}

impl Position {
    pub const LEN: usize = 24;

    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..16].copy_from_slice(&self.store_id);
        bytes[16..20].copy_from_slice(&self.pack.to_be_bytes());
        bytes[20..].copy_from_slice(&self.offset.to_be_bytes());
        bytes
    }

    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let number = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mut store_id = [0; 16];
        store_id.copy_from_slice(&bytes[..16]);
        Self { store_id, pack: number(16), offset: number(20) }
    }
}

/// The index is damaged or out of reach. It will be rebuilt; no glyph is lost by it.
#[derive(Debug, thiserror::Error)]
#[error("the glyph index failed: {0}")]
pub struct IndexError(pub String);

/// Finds data glyphs. Never the truth: it may be empty, lack its latest batches or fail, and the store rebuilds it.
///
/// What it must keep: batches are atomic, in order, and only the latest of them may be lost.
pub trait GlyphIndex: Send + Sync {
    fn get(&self, id: &GlyphId) -> Result<Option<Location>, IndexError>;
    /// Sets (`Some`) and removes (`None`) entries, and the position, all or nothing. It need not be durable.
    fn apply(&self, changes: &[(GlyphId, Option<Location>)], position: Position) -> Result<(), IndexError>;
    /// What the last `apply` set; `None` for an index that is new or was cleared.
    fn position(&self) -> Result<Option<Position>, IndexError>;
    /// Removes everything, the position too.
    fn clear(&self) -> Result<(), IndexError>;
}

/// An index in memory, for tests and for stores small enough to rebuild it at every start.
#[derive(Default)]
pub struct MemIndex {
    state: Mutex<(HashMap<GlyphId, Location>, Option<Position>)>,
}

impl GlyphIndex for MemIndex {
    fn get(&self, id: &GlyphId) -> Result<Option<Location>, IndexError> {
        Ok(self.state.lock().0.get(id).copied())
    }

    fn apply(&self, changes: &[(GlyphId, Option<Location>)], position: Position) -> Result<(), IndexError> {
        let mut state = self.state.lock();
        for (id, location) in changes {
            match location {
                Some(location) => state.0.insert(*id, *location),
                None => state.0.remove(id),
            };
        }
        state.1 = Some(position);
        Ok(())
    }

    fn position(&self) -> Result<Option<Position>, IndexError> {
        Ok(self.state.lock().1)
    }

    fn clear(&self) -> Result<(), IndexError> {
        *self.state.lock() = Default::default();
        Ok(())
    }
}
