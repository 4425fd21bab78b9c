//! The nodes that one map has and another lacks: what must be carried to somebody who has the other one.
//!
//! Both are walked at once in key order. Equal rows make equal nodes in equal places, so a node that both have is met
//! on both sides, and is never loaded.

use bytes::Bytes;

use super::bits::critical_bit;
use super::cursor::{Ahead, Cursor};
use super::node::{Node, Summary};
use super::read::{descend, load_root};
use super::{MapError, NodeSource, Root};
use crate::id::GlyphId;
use crate::store::StoreError;

/// What the walk comes to.
pub enum Added<'a> {
    /// A node. It is loaded only after this, so the visitor may just be storing it.
    Node(&'a GlyphId),
    /// The last node was this leaf.
    Leaf(&'a Node),
}

/// Visits the nodes of `new` that are not in `old`, parents first and in key order. Each is validated, and is the one
/// that its parent tells of.
pub fn added<E: From<StoreError>>(
    source: &dyn NodeSource,
    old: &Root,
    new: &Root,
    visit: &mut dyn FnMut(Added<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let Some(id) = new.id.filter(|_| old != new) else { return Ok(()) };
    visit(Added::Node(&id))?;
    let failed = |error: MapError| E::from(error.into());
    let mut known = Known(Cursor::new(source, old).map_err(failed)?);
    let mut path = Vec::new();
    let mut next = load_root(source, new).map_err(failed)?.map(|(_, node)| node);
    loop {
        match next.take() {
            Some(leaf) if leaf.is_leaf() => visit(Added::Leaf(&leaf))?,
            Some(node) => path.push((node, 0)),
            None => {}
        }
        let Some((node, index)) = path.last_mut() else { return Ok(()) };
        if *index == node.count() {
            path.pop();
            continue;
        }
        let at = *index;
        *index += 1;
        let (id, summary) = node.child(at);
        if !known.has(&Unit { id, summary, key: node.key(at) }).map_err(failed)? {
            visit(Added::Node(&id))?;
            next = Some(descend(source, node, at).map_err(failed)?);
        }
    }
}

/// A subtree of the trie, as the parent tells of it.
struct Unit {
    id: GlyphId,
    summary: Summary,
    /// The smallest in it.
    key: Bytes,
}

impl Unit {
    /// Whether all keys that could be in the other one could be in here.
    fn contains(&self, other: &Self) -> bool {
        let bits = self.summary.prefix_bits;
        bits <= other.summary.prefix_bits && critical_bit(&self.key, &other.key) >= u32::from(bits)
    }
}

/// The old map, as far as it has been walked.
struct Known<'a>(Cursor<'a>);

impl Known<'_> {
    /// Whether the old map has this unit. To be asked in key order, for the children of a unit after it.
    fn has(&mut self, wanted: &Unit) -> Result<bool, MapError> {
        while let Ahead::Unit(id, summary) = self.0.ahead() {
            if id == wanted.id {
                self.0.skip();
                return Ok(true);
            }
            let next = Unit { id, summary, key: self.0.key() };
            // A leaf has no units in it.
            if next.contains(wanted) && summary.level > 0 {
                self.0.enter()?;
            } else if !next.contains(wanted) && (wanted.contains(&next) || next.key > wanted.key) {
                // It may be one of the children, or have some of them; or it lies behind.
                return Ok(false);
            } else {
                self.0.skip();
            }
        }
        Ok(false)
    }
}
