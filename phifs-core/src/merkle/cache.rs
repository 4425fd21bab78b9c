//! Validated nodes in memory, bounded in bytes.

use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::node::Node;
use super::{MapError, NodeSource};
use crate::id::GlyphId;
use crate::store::{GlyphKind, GlyphSource};

/// A cache in front of the glyph store. Nodes are immutable, so nothing in it is ever stale; what nobody asks for
/// any more is evicted in time.
pub struct NodeCache {
    source: Arc<dyn GlyphSource>,
    nodes: Cache<GlyphId, Node, ByBytes>,
}

impl NodeCache {
    pub fn new(source: Arc<dyn GlyphSource>, bytes_max: u64) -> Self {
        // The number of entries is only an estimate that sizes the tables.
        let nodes_expected = usize::try_from(bytes_max / 4096).unwrap_or(usize::MAX).max(16);
        Self { source, nodes: Cache::with_weighter(nodes_expected, bytes_max, ByBytes) }
    }
}

impl NodeSource for NodeCache {
    fn node(&self, id: &GlyphId) -> Result<Node, MapError> {
        self.nodes.get_or_insert_with(id, || Node::decode(id, self.source.read(GlyphKind::Node, id)?))
    }
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<GlyphId, Node> for ByBytes {
    fn weight(&self, _: &GlyphId, node: &Node) -> u64 {
        const OVERHEAD: usize = size_of::<GlyphId>() + size_of::<Node>() + 64;
        (node.len_bytes() + OVERHEAD) as u64
    }
}
