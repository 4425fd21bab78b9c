//! What one map has and another lacks: both are walked at once, and what has equal hashes is never loaded.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::cursor::{Ahead, Cursor};
use super::{MapError, NodeSource, Root};

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
    let (mut old, mut new) = (Cursor::new(source, old)?, Cursor::new(source, new)?);
    loop {
        let next = match (old.ahead(), new.ahead()) {
            (Ahead::Unit(a, _), Ahead::Unit(b, _)) if a == b => {
                old.skip();
                new.skip();
                continue;
            }
            (Ahead::Unit(_, above), Ahead::Unit(_, below)) => {
                // From the higher level down, so that units of one level meet.
                if above.level >= below.level {
                    old.enter()?;
                }
                if below.level >= above.level {
                    new.enter()?;
                }
                continue;
            }
            (Ahead::Unit(..), _) => {
                old.enter()?;
                continue;
            }
            (_, Ahead::Unit(..)) => {
                new.enter()?;
                continue;
            }
            (Ahead::End, Ahead::End) => return Ok(()),
            (Ahead::Row, Ahead::End) => Ordering::Less,
            (Ahead::End, Ahead::Row) => Ordering::Greater,
            (Ahead::Row, Ahead::Row) => old.key().cmp(&new.key()),
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
