//! Names every node of a map, for marking what is still in use; or loads every node, to find those that are lost.

use super::node::Node;
use super::read::{descend, load_root};
use super::{MapError, NodeSource, Root};
use crate::id::GlyphId;

/// Calls `visit` with the id and level of each node, parents first. Where it says no, the nodes below are left out,
/// as they were seen before. Leaves are named by their parents and never loaded.
pub fn walk(
    source: &dyn NodeSource,
    root: &Root,
    visit: &mut dyn FnMut(&GlyphId, u16) -> bool,
) -> Result<(), MapError> {
    let Some(id) = root.id else { return Ok(()) };
    if !visit(&id, root.level) || root.level == 0 {
        return Ok(());
    }
    let mut path: Vec<(Node, usize)> = load_root(source, root)?.map(|(_, node)| (node, 0)).into_iter().collect();
    while let Some((node, next)) = path.last_mut() {
        let index = *next;
        *next += 1;
        if index == node.count() {
            path.pop();
            continue;
        }
        let (id, summary) = node.child(index);
        if visit(&id, summary.level) && summary.level > 0 {
            let child = descend(source, node, index)?;
            path.push((child, 0));
        }
    }
    Ok(())
}

/// Rows that cannot be read, as a node above them cannot: those from `from` up to `until`, or to the end.
#[derive(Debug)]
pub struct Gap {
    pub from: Vec<u8>,
    /// The first key behind them.
    pub until: Option<Vec<u8>>,
    pub error: MapError,
}

/// Loads every node, and goes on beside those that cannot be loaded.
pub fn survey(source: &dyn NodeSource, root: &Root) -> Vec<Gap> {
    let mut gaps = Vec::new();
    let mut path: Vec<(Node, usize, Option<Vec<u8>>)> = Vec::new();
    match load_root(source, root) {
        Ok(node) => path.extend(node.map(|(_, node)| (node, 0, None))),
        Err(error) => gaps.push(Gap { from: Vec::new(), until: None, error }),
    }
    while let Some((node, next, until)) = path.last_mut() {
        let index = *next;
        *next += 1;
        if node.is_leaf() || index == node.count() {
            path.pop();
            continue;
        }
        let end = if index + 1 < node.count() { Some(node.key(index + 1).to_vec()) } else { until.clone() };
        match descend(source, node, index) {
            Ok(child) => path.push((child, 0, end)),
            Err(error) => gaps.push(Gap { from: node.key(index).to_vec(), until: end, error }),
        }
    }
    gaps
}
