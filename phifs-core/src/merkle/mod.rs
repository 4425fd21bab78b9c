//! The history-independent ordered Merkle map: the database of a volume's metadata, and what its snapshots are made of.
//!
//! A map is a set of rows (key, value) in the byte order of their keys, kept as immutable nodes that name their
//! children by hash. The same rows give the same nodes and so the same root, whatever the order in which they came and
//! in whatever batches. No hash of the key decides the shape, so nobody can choose keys that defeat it.
//!
//! # The shape
//!
//! Read as bits (`bits`), the keys form one binary Patricia trie, a pure function of the set. It is paged by bytes:
//!
//! - A *unit of level 0* is a largest subtree whose rows together take at most `Shape::leaf_bytes`, or a single row.
//!   It is stored as a leaf.
//! - A *unit of level n* is a largest subtree whose units of level n - 1 take, as entries of a node, at most
//!   `Shape::inner_bytes`; any two fit. It is stored as an inner node. A subtree that is just one unit of the level
//!   below needs no node of its own and stands for itself, so a node's children may lie on several levels, and a
//!   lopsided trie costs depth only where it is lopsided.
//! - The level at which one unit is left is the root's.
//!
//! What always holds:
//!
//! - Two units are disjoint, or one contains the other; so whether two units belong together follows from their sizes
//!   and from the bit at which any two of their keys part, both of which stand in their parents' entries.
//! - An inner node has at least two children, and one of them is exactly one level lower.
//! - No path is longer than a key has bits; levels and prefix lengths fit 16 bits because keys are bounded.
//!
//! `node` is the bytes of one node, `partition` the paging rule, `edit` makes nodes (`build`, `apply`), `read` looks
//! rows up (`get`, `leaf`, `scan`), `diff` compares two maps by rows and `added` by nodes, `walk` names all nodes or finds
//! lost ones, `cache` keeps the validated ones.

mod added;
mod bits;
mod cache;
mod cursor;
mod diff;
mod edit;
mod node;
mod partition;
mod read;
mod walk;

#[cfg(test)]
mod tests;

pub use added::{Added, added};
pub use cache::NodeCache;
pub use diff::{Difference, diff};
pub use edit::{NodeSink, Replaced, apply, build};
pub use node::Node;
pub use read::{Scan, get, leaf, scan};
pub use walk::{Gap, survey, walk};

use crate::codec::{self, DecodeError, Encode, Reader};
use crate::id::GlyphId;
use crate::store::StoreError;

/// The longest key. It bounds the depth of the map, also against keys made to be deep.
pub const KEY_BYTES_MAX: usize = 640;
/// The longest value.
pub const VALUE_BYTES_MAX: usize = 72 << 10;
/// The largest sensible page; `Shape` must not ask for more.
pub const PAGE_BYTES_MAX: u32 = 1 << 20;

/// How large nodes become. Maps of different shapes have different roots for the same rows, so it never changes
/// during the life of a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Bytes of rows in a leaf, unless one row alone is larger.
    pub leaf_bytes: u32,
    /// Bytes of entries in an inner node, unless two entries alone are larger.
    pub inner_bytes: u32,
}

impl Default for Shape {
    fn default() -> Self {
        Self { leaf_bytes: 4096, inner_bytes: 4096 }
    }
}

/// Names one state of a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Root {
    /// The topmost node; `None` for the empty map.
    pub id: Option<GlyphId>,
    pub level: u16,
    pub rows: u64,
}

impl Root {
    pub const EMPTY: Self = Self { id: None, level: 0, rows: 0 };

    /// The number of rows; then, unless it is 0, the level and the id.
    pub fn encode(&self, out: &mut impl Encode) {
        out.put_varint(self.rows);
        if let Some(id) = &self.id {
            out.put_varint(u64::from(self.level));
            out.put_glyph_id(id);
        }
    }

    pub fn decode(reader: &mut Reader<'_>) -> codec::Result<Self> {
        let rows = reader.varint()?;
        if rows == 0 {
            return Ok(Self::EMPTY);
        }
        let level = u16::try_from(reader.varint()?).map_err(|_| DecodeError::NotCanonical("the level of a map"))?;
        Ok(Self { id: Some(reader.glyph_id()?), level, rows })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bytes are what their name says, yet no node that this program would write, or not the one its parent tells.
    #[error("map node {node} is malformed: {source}")]
    Malformed { node: GlyphId, source: DecodeError },
    /// A row beyond `KEY_BYTES_MAX` or `VALUE_BYTES_MAX`. The batch is refused as a whole.
    #[error("a row with a key of {key_bytes} bytes and a value of {value_bytes} bytes is too large")]
    RowTooLarge { key_bytes: usize, value_bytes: usize },
}

impl From<MapError> for StoreError {
    fn from(error: MapError) -> Self {
        match error {
            MapError::Store(error) => error,
            MapError::Malformed { node, source } => Self::Malformed { what: format!("map node {node}"), source },
            MapError::RowTooLarge { .. } => {
                let source = DecodeError::NotCanonical("the size of a row");
                Self::Malformed { what: error.to_string(), source }
            }
        }
    }
}

/// Reads validated nodes; a cache of them can stand behind it.
pub trait NodeSource: Send + Sync {
    fn node(&self, id: &GlyphId) -> Result<Node, MapError>;
}
