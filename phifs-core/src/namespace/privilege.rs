//! What makes a program run with the rights of others: set-id bits and file capabilities.
//!
//! They are granted to certain bytes of a certain owner. So who grants them writes down which versions and which owner
//! there were, and they hold only as long as there are no others: a write or chown(2) by somebody who had not seen the
//! grant takes it away, in whatever order the two arrive. Whoever writes with the right to keep a bit grants it anew.
//!
//! That is a pure function of the rows: nothing is removed when a grant ceases to hold, it is just not shown.

use crate::codec::{DecodeError, Encode, Reader, Result};
use crate::id::Dot;
use crate::volume::FileKind;

use super::row::{InodeRow, Mode};

/// The extended attribute that holds the capabilities of a program.
pub const CAPABILITY: &[u8] = b"security.capability";

pub const SET_ID_BITS: u16 = 0o6000;

/// How many dots a grant lists at the most. With more versions than that to decide about, none of its bits hold.
pub const SEEN_MAX: usize = 64;

/// A mode as it was set. Nearly all have no set-id bits and list nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub mode: Mode,
    /// The dots of the versions and owners that its set-id bits are for, in order.
    pub seen: Vec<Dot>,
}

impl Grant {
    /// A mode that `dot` sets for an inode that is so until then.
    pub fn new(mode: Mode, row: &InodeRow, dot: Dot) -> Self {
        let seen = if has_set_id(&mode) && row.kind() != FileKind::Directory { grounds(row, dot) } else { Vec::new() };
        Self { mode, seen }
    }

    /// A mode that `dot` sets for the inode that it makes.
    pub fn of_new(mode: Mode, kind: FileKind, dot: Dot) -> Self {
        let seen = if has_set_id(&mode) && kind != FileKind::Directory { vec![dot] } else { Vec::new() };
        Self { mode, seen }
    }

    /// A mode of a directory, whose set-id bits give nobody any rights.
    pub fn of_dir(mode: Mode) -> Self {
        Self { mode, seen: Vec::new() }
    }

    /// The same where `dot` replaces these versions.
    pub fn renewed(&self, row: &InodeRow, dot: Dot) -> Self {
        let kept = self.seen.iter().copied().filter(|seen| row.versions.get(*seen).is_none());
        Self { mode: self.mode.clone(), seen: listed(kept.chain([dot])) }
    }

    /// Whether its set-id bits are for what there is.
    pub fn holds(&self, row: &InodeRow) -> bool {
        holds(&self.seen, row)
    }
}

pub fn has_set_id(mode: &Mode) -> bool {
    mode.permissions & SET_ID_BITS != 0
}

/// What there is, and what `dot` makes of it.
fn grounds(row: &InodeRow, dot: Dot) -> Vec<Dot> {
    listed(row.versions.dots().chain(row.owner.dots()).chain([dot]))
}

fn listed(dots: impl Iterator<Item = Dot>) -> Vec<Dot> {
    let mut dots: Vec<Dot> = dots.collect();
    dots.sort_unstable();
    dots.dedup();
    dots.truncate(SEEN_MAX);
    dots
}

fn holds(seen: &[Dot], row: &InodeRow) -> bool {
    let is_seen = |dot: Dot| seen.binary_search(&dot).is_ok();
    row.kind() == FileKind::Directory || row.versions.dots().chain(row.owner.dots()).all(is_seen)
}

pub(super) fn put_seen(out: &mut Vec<u8>, seen: &[Dot]) {
    out.put_varint(seen.len() as u64);
    seen.iter().for_each(|dot| out.put_dot(*dot));
}

pub(super) fn get_seen(reader: &mut Reader<'_>) -> Result<Vec<Dot>> {
    let count = reader.count()?;
    if count == 0 || count > SEEN_MAX {
        return Err(DecodeError::NotCanonical("the number of versions that a grant is for"));
    }
    let seen = (0..count).map(|_| reader.dot()).collect::<Result<Vec<_>>>()?;
    if !seen.is_sorted_by(|a, b| a < b) {
        return Err(DecodeError::NotCanonical("the order of the versions that a grant is for"));
    }
    Ok(seen)
}

/// The first byte of a stored capability. Those that the kernel makes begin with another one.
const CAPABILITY_VERSION: u8 = 0xc1;

/// An extended attribute as `dot` stores it for an inode that is so until then.
pub fn stored_xattr(name: &[u8], value: Vec<u8>, row: &InodeRow, dot: Dot) -> Vec<u8> {
    if name != CAPABILITY {
        return value;
    }
    let mut out = vec![CAPABILITY_VERSION];
    put_seen(&mut out, &grounds(row, dot));
    out.put_bytes(&value);
    out
}

/// The value of a stored extended attribute, unless it is a capability that does not hold.
pub fn shown_xattr<'a>(name: &[u8], stored: &'a [u8], row: &InodeRow) -> Option<&'a [u8]> {
    if name != CAPABILITY {
        return Some(stored);
    }
    capability(stored).filter(|(seen, _)| holds(seen, row)).map(|(_, value)| value)
}

/// What a stored extended attribute says that its author had seen.
pub fn seen_by_xattr(name: &[u8], stored: &[u8]) -> Vec<Dot> {
    let found = if name == CAPABILITY { capability(stored) } else { None };
    found.map_or_else(Vec::new, |(seen, _)| seen)
}

/// What was stored otherwise is for nothing.
fn capability(stored: &[u8]) -> Option<(Vec<Dot>, &[u8])> {
    let (CAPABILITY_VERSION, rest) = stored.split_first().map(|(first, rest)| (*first, rest))? else { return None };
    let mut reader = Reader::new(rest);
    let seen = get_seen(&mut reader).ok()?;
    let len = reader.remaining();
    reader.bytes(len).ok().map(|value| (seen, value))
}
