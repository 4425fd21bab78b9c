//! Lookups and scans, node by node from the root.

use bytes::Bytes;

use super::node::{Node, Summary};
use super::{MapError, NodeSource, Root};
use crate::codec::DecodeError;
use crate::id::GlyphId;

/// Loads the root node, if there is one.
pub(super) fn load_root(source: &dyn NodeSource, root: &Root) -> Result<Option<(GlyphId, Node)>, MapError> {
    let Some(id) = root.id else { return Ok(None) };
    let node = source.node(&id)?;
    let found = node.summary();
    if (found.level, found.rows) != (root.level, root.rows) {
        return Err(mismatch(&id));
    }
    Ok(Some((id, node)))
}

/// Loads a child and checks that it is the one its parent tells of: the smallest key (in two pieces) and the rest.
pub(super) fn load_child(
    source: &dyn NodeSource,
    id: &GlyphId,
    smallest: (&[u8], &[u8]),
    summary: Summary,
) -> Result<Node, MapError> {
    let node = source.node(id)?;
    if node.matches(smallest, summary) { Ok(node) } else { Err(mismatch(id)) }
}

/// Loads a child of an inner node.
pub(super) fn descend(source: &dyn NodeSource, parent: &Node, index: usize) -> Result<Node, MapError> {
    let (id, summary) = parent.child(index);
    load_child(source, &id, (parent.prefix(), parent.suffix(index)), summary)
}

fn mismatch(node: &GlyphId) -> MapError {
    MapError::Malformed { node: *node, source: DecodeError::NotCanonical("the entry of the parent") }
}

/// The value of a key, as a slice of its node.
pub fn get(source: &dyn NodeSource, root: &Root, key: &[u8]) -> Result<Option<Bytes>, MapError> {
    Ok(leaf(source, root, key)?.and_then(|leaf| leaf.get(key)))
}

/// The leaf in which a key would be, if it can be in any.
pub fn leaf(source: &dyn NodeSource, root: &Root, key: &[u8]) -> Result<Option<Node>, MapError> {
    let Some((_, mut node)) = load_root(source, root)? else { return Ok(None) };
    while !node.is_leaf() {
        let index = match node.find(key) {
            Ok(index) => index,
            // No key is smaller than the smallest one.
            Err(0) => return Ok(None),
            Err(after) => after - 1,
        };
        node = descend(source, &node, index)?;
    }
    Ok(Some(node))
}

/// All rows from the key `from` on, in order. Nodes are loaded as the scan reaches them.
pub fn scan<'a>(source: &'a dyn NodeSource, root: &Root, from: &[u8]) -> Scan<'a> {
    Scan { source, start: Some((*root, from.to_vec())), path: Vec::new() }
}

/// See [`scan`]. It ends after the first error.
pub struct Scan<'a> {
    source: &'a dyn NodeSource,
    /// Where to begin, until the first row is asked for.
    start: Option<(Root, Vec<u8>)>,
    /// The nodes from the root down, each with the index of what comes next in it.
    path: Vec<(Node, usize)>,
}

impl Scan<'_> {
    fn seek(&mut self, root: &Root, from: &[u8]) -> Result<(), MapError> {
        let Some((_, mut node)) = load_root(self.source, root)? else { return Ok(()) };
        while !node.is_leaf() {
            let index = node.find(from).unwrap_or_else(|after| after.saturating_sub(1));
            let child = descend(self.source, &node, index)?;
            self.path.push((node, index + 1));
            node = child;
        }
        let index = node.find(from).unwrap_or_else(|after| after);
        self.path.push((node, index));
        Ok(())
    }

    fn step(&mut self) -> Result<Option<(Bytes, Bytes)>, MapError> {
        if let Some((root, from)) = self.start.take() {
            self.seek(&root, &from)?;
        }
        while let Some((node, next)) = self.path.last_mut() {
            let index = *next;
            *next += 1;
            if index == node.count() {
                self.path.pop();
            } else if node.is_leaf() {
                return Ok(Some((node.key(index), node.value(index))));
            } else {
                let child = descend(self.source, node, index)?;
                self.path.push((child, 0));
            }
        }
        Ok(None)
    }
}

impl Iterator for Scan<'_> {
    type Item = Result<(Bytes, Bytes), MapError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.path.clear();
        }
        step.transpose()
    }
}
