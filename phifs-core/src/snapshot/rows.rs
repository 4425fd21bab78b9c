//! What rows that come from elsewhere must be like, table by table, before anything else relies on them: they decode,
//! and speak of nothing that lies outside the context they come with.

use crate::causal::VersionVector;
use crate::codec::DecodeError;
use crate::content::INLINE_MAX;
use crate::id::Dot;
use crate::meta::TableId;
use crate::namespace::Table;
use crate::namespace::derive::{Child, Children, DirRow, dot_of};
use crate::namespace::position::Move;
use crate::namespace::row::{InodeRow, LinkRow, decode_xattr};
use crate::namespace::tables::malformed;
use crate::store::StoreError;

/// Checks one row of a snapshot.
pub fn check(table: TableId, key: &[u8], value: &[u8], context: &VersionVector) -> Result<(), StoreError> {
    let row = Row { key, context };
    let is = |known: Table| table.0 == known as u8;
    if is(Table::Inodes) {
        let id = row.dot()?;
        let decoded = InodeRow::decode(id, value).map_err(|e| malformed("inode", key, e))?;
        row.covered(decoded.dots())
    } else if is(Table::Links) {
        let id = row.dot()?;
        let decoded = LinkRow::decode(id, value).map_err(|e| malformed("link", key, e))?;
        let places = decoded.places.entries().iter();
        row.covered(places.flat_map(|entry| [entry.dot, entry.value.inode.0, entry.value.parent.0]))
    } else if is(Table::Moves) {
        let decoded = Move::decode(key, value)?;
        row.covered([decoded.id.dot, decoded.dir.0, decoded.parent.0])
    } else if is(Table::Xattrs) {
        let id = row.dot()?;
        let decoded = decode_xattr(id, value).map_err(|e| malformed("xattr", key, e))?;
        row.covered(decoded.dots())
    } else if is(Table::Contents) {
        row.dot()?;
        let version = dot_of(&key[Dot::LEN..])?;
        if value.len() as u64 > INLINE_MAX {
            return Err(malformed("content", key, DecodeError::NotCanonical("the length of a small file")));
        }
        row.covered([version])
    } else if is(Table::Children) {
        row.dot()?;
        let decoded = Children::decode(value).map_err(|e| malformed("child", key, e))?;
        row.covered(decoded.all().iter().flat_map(|child| match child {
            Child::Dir(dir) => [dir.0, dir.0],
            Child::Link { link, inode, .. } => [link.0, inode.0],
        }))
    } else if is(Table::Dirs) {
        row.dot()?;
        let decoded = DirRow::decode(value).map_err(|e| malformed("directory", key, e))?;
        row.covered([decoded.parent.0])
    } else {
        // The others only repeat what the replicated tables say, and are held against them by `verify`.
        Ok(())
    }
}

struct Row<'a> {
    key: &'a [u8],
    context: &'a VersionVector,
}

impl Row<'_> {
    /// The dot that the key begins with.
    fn dot(&self) -> Result<Dot, StoreError> {
        let dot = dot_of(&self.key[..Dot::LEN.min(self.key.len())])?;
        self.covered([dot])?;
        Ok(dot)
    }

    fn covered(&self, dots: impl IntoIterator<Item = Dot>) -> Result<(), StoreError> {
        match dots.into_iter().find(|dot| !self.context.contains(*dot)) {
            Some(_) => {
                let what = DecodeError::NotCanonical("a row that speaks of unknown operations");
                Err(malformed("snapshot", self.key, what))
            }
            None => Ok(()),
        }
    }
}
