//! What one map has and another lacks: both are walked at once, and what has equal hashes is never loaded.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::node::Node;
use super::read::{descend, load_root};
use super::{MapError, NodeSource, Root};
use crate::id::GlyphId;

/// One row that differs. At least one of the values is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub key: Bytes,
    pub old: Option<Bytes>,
    pub new: Option<Bytes>,
}

/// Visits the rows in which two maps differ, in key order, until `visit` breaks. The work is proportional to the
/// differences, not to the maps.
pub fn diff(
    source: &dyn NodeSource,
    old: &Root,
    new: &Root,
    visit: &mut dyn FnMut(Difference) -> ControlFlow<()>,
) -> Result<(), MapError> {
    if old == new {
        return Ok(());
    }
    let (mut old, mut new) = (Side::new(source, old)?, Side::new(source, new)?);
    loop {
        let next = match (old.next(), new.next()) {
            (Next::Unit(a, _), Next::Unit(b, _)) if a == b => {
                old.skip();
                new.skip();
                continue;
            }
            (Next::Unit(_, above), Next::Unit(_, below)) => {
                // From the higher level down, so that units of one level meet.
                if above >= below {
                    old.enter()?;
                }
                if below >= above {
                    new.enter()?;
                }
                continue;
            }
            (Next::Unit(..), _) => {
                old.enter()?;
                continue;
            }
            (_, Next::Unit(..)) => {
                new.enter()?;
                continue;
            }
            (Next::End, Next::End) => return Ok(()),
            (Next::Row, Next::End) => Ordering::Less,
            (Next::End, Next::Row) => Ordering::Greater,
            (Next::Row, Next::Row) => old.key().cmp(&new.key()),
        };
        let (key, was, is) = match next {
            Ordering::Less => {
                let (key, value) = old.row();
                (key, Some(value), None)
            }
            Ordering::Greater => {
                let (key, value) = new.row();
                (key, None, Some(value))
            }
            Ordering::Equal => {
                let ((key, was), (_, is)) = (old.row(), new.row());
                (key, Some(was), Some(is))
            }
        };
        if was != is && visit(Difference { key, old: was, new: is }).is_break() {
            return Ok(());
        }
    }
}

/// What a side would come to next.
enum Next {
    Row,
    /// A node, with its level.
    Unit(GlyphId, u16),
    End,
}

/// How far one map has been walked.
struct Side<'a> {
    source: &'a dyn NodeSource,
    /// The topmost node, until it is entered or skipped.
    root: Option<(GlyphId, Node)>,
    /// The nodes from the root down, each with the index of what comes next in it.
    path: Vec<(Node, usize)>,
}

impl<'a> Side<'a> {
    fn new(source: &'a dyn NodeSource, root: &Root) -> Result<Self, MapError> {
        Ok(Self { source, root: load_root(source, root)?, path: Vec::new() })
    }

    fn next(&mut self) -> Next {
        if let Some((id, node)) = &self.root {
            return Next::Unit(*id, node.level());
        }
        while self.path.pop_if(|(node, next)| *next == node.count()).is_some() {}
        match self.path.last() {
            None => Next::End,
            Some((node, _)) if node.is_leaf() => Next::Row,
            Some((node, next)) => {
                let (id, summary) = node.child(*next);
                Next::Unit(id, summary.level)
            }
        }
    }

    fn skip(&mut self) {
        if self.root.take().is_none() {
            self.top().1 += 1;
        }
    }

    fn enter(&mut self) -> Result<(), MapError> {
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

    fn key(&mut self) -> Bytes {
        let (node, next) = self.top();
        node.key(*next)
    }

    fn row(&mut self) -> (Bytes, Bytes) {
        let (node, next) = self.top();
        *next += 1;
        (node.key(*next - 1), node.value(*next - 1))
    }

    fn top(&mut self) -> &mut (Node, usize) {
        self.path.last_mut().expect("there is something next")
    }
}
