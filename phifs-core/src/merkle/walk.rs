//! Names every node of a map, for marking what is still in use.

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
