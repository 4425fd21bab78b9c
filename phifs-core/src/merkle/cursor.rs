//! A place in a walk over one map, for walks over two maps at once: what comes next can be looked at, skipped as a whole,
//! or entered.

use bytes::Bytes;

use super::node::{Node, Summary};
use super::read::{descend, load_root};
use super::{MapError, NodeSource, Root};
use crate::id::GlyphId;

/// What a walk would come to next.
pub(super) enum Ahead {
    Row,
    /// A node, as its parent tells of it.
    Unit(GlyphId, Summary),
    End,
}

/// How far a map has been walked.
pub(super) struct Cursor<'a> {
    source: &'a dyn NodeSource,
    /// The topmost node, until it is entered or skipped.
    root: Option<(GlyphId, Node)>,
    /// The nodes from the root down, each with the index of what comes next in it.
    path: Vec<(Node, usize)>,
}

impl<'a> Cursor<'a> {
    pub fn new(source: &'a dyn NodeSource, root: &Root) -> Result<Self, MapError> {
        Ok(Self { source, root: load_root(source, root)?, path: Vec::new() })
    }

    pub fn ahead(&mut self) -> Ahead {
        if let Some((id, node)) = &self.root {
            return Ahead::Unit(*id, node.summary());
        }
        while self.path.pop_if(|(node, next)| *next == node.count()).is_some() {}
        match self.path.last() {
            None => Ahead::End,
            Some((node, _)) if node.is_leaf() => Ahead::Row,
            Some((node, next)) => {
                let (id, summary) = node.child(*next);
                Ahead::Unit(id, summary)
            }
        }
    }

    /// The key of the row ahead, or the smallest one in the unit ahead.
    pub fn key(&mut self) -> Bytes {
        match &self.root {
            Some((_, root)) => root.key(0),
            None => {
                let (node, next) = self.top();
                node.key(*next)
            }
        }
    }

    /// Goes on behind what is ahead, without loading it.
    pub fn skip(&mut self) {
        if self.root.take().is_none() {
            self.top().1 += 1;
        }
    }

    /// Goes into the unit ahead.
    pub fn enter(&mut self) -> Result<(), MapError> {
        let child = match self.root.take() {
            Some((_, root)) => root,
            None => {
                let source = self.source;
                let (node, next) = self.top();
                let child = descend(source, node, *next)?;
                *next += 1;
                child
            }
        };
        self.path.push((child, 0));
        Ok(())
    }

    /// Goes on behind the row ahead.
    pub fn row(&mut self) -> (Bytes, Bytes) {
        let (node, next) = self.top();
        *next += 1;
        (node.key(*next - 1), node.value(*next - 1))
    }

    fn top(&mut self) -> &mut (Node, usize) {
        self.path.last_mut().expect("there is something ahead")
    }
}
