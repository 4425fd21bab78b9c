//! The nodes that one map has and another lacks: what must be carried to somebody who has the other one.
//!
//! Both are walked at once in key order. Equal rows make equal nodes in equal places, so a node that both have is met
//! on both sides, and is never loaded.

use bytes::Bytes;

use super::bits::critical_bit;
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
    let mut known = Known::new(source, old).map_err(failed)?;
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

/// How far the old map has been walked.
struct Known<'a> {
    source: &'a dyn NodeSource,
    /// The topmost node, until it is entered or skipped.
    root: Option<(GlyphId, Node)>,
    path: Vec<(Node, usize)>,
}

impl<'a> Known<'a> {
    fn new(source: &'a dyn NodeSource, root: &Root) -> Result<Self, MapError> {
        Ok(Self { source, root: load_root(source, root)?, path: Vec::new() })
    }

    /// Whether the old map has this unit. To be asked in key order, for the children of a unit after it.
    fn has(&mut self, wanted: &Unit) -> Result<bool, MapError> {
        while let Some(next) = self.next() {
            if next.id == wanted.id {
                self.skip();
                return Ok(true);
            }
            if next.contains(wanted) {
                self.enter(next.summary.level)?;
            } else if wanted.contains(&next) || next.key > wanted.key {
                // It may be one of the children, or have some of them; or it lies behind.
                return Ok(false);
            } else {
                self.skip();
            }
        }
        Ok(false)
    }

    fn next(&mut self) -> Option<Unit> {
        if let Some((id, node)) = &self.root {
            return Some(Unit { id: *id, summary: node.summary(), key: node.key(0) });
        }
        while self.path.pop_if(|(node, next)| *next == node.count()).is_some() {}
        let (node, next) = self.path.last()?;
        let (id, summary) = node.child(*next);
        Some(Unit { id, summary, key: node.key(*next) })
    }

    fn skip(&mut self) {
        if self.root.take().is_none() {
            self.path.last_mut().expect("there is something next").1 += 1;
        }
    }

    fn enter(&mut self, level: u16) -> Result<(), MapError> {
        let node = match self.root.take() {
            Some((_, root)) => Some(root),
            None => {
                let (parent, next) = self.path.last_mut().expect("there is something next");
                *next += 1;
                // A leaf has no units in it.
                if level == 0 { None } else { Some(descend(self.source, parent, *next - 1)?) }
            }
        };
        self.path.extend(node.filter(|node| !node.is_leaf()).map(|node| (node, 0)));
        Ok(())
    }
}
