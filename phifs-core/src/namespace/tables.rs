//! The tables of a volume and how their rows are keyed.
//!
//! Replicated tables make up an S8 root. Derived ones can be recomputed from them; local ones concern this node alone.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::id::{DirId, Dot, InodeId, LinkId};
use crate::meta::{Frozen, TableId};
use crate::store::StoreError;

use super::coherence::Preference;
use super::derive::{Children, DirRow};
use super::op::MoveId;
use super::row::{InodeRow, LinkRow, XattrRow, decode_xattr, encode_xattr};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// `InodeId` -> `InodeRow`
    Inodes = 1,
    /// `LinkId` -> `LinkRow`
    Links = 2,
    /// `MoveId`, `DirId` -> new parent and name; only directories, only creation and re-parenting
    Moves = 3,
    /// `InodeId`, name -> `XattrRow`
    Xattrs = 4,
    /// `InodeId`, dot of the version -> the bytes of a small file
    Contents = 5,
    /// derived: `DirId`, hash of the name, name -> what the name means
    Children = 32,
    /// derived: `DirId` -> where it is and how much is in it
    Dirs = 33,
    /// derived: `InodeId` -> its links, if one of them has another dot than the inode
    LinksOf = 34,
    /// derived: the keys of those moves that are not made because they would close a cycle
    Skipped = 35,
    /// derived: `DirId` -> all members of its union, if it is one of several
    Unions = 36,
    /// derived: the keys of names that mean several things, and of inodes with several versions
    Conflicts = 37,
    /// what concerns the volume and is no part of its state: see `registry`
    Registry = 48,
    /// local: see `volume::local`
    Local = 64,
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Inodes => "inodes",
            Self::Links => "links",
            Self::Moves => "moves",
            Self::Xattrs => "extended attributes",
            Self::Contents => "contents of small files",
            Self::Children => "names",
            Self::Dirs => "directories",
            Self::LinksOf => "hard links",
            Self::Skipped => "skipped moves",
            Self::Unions => "union directories",
            Self::Conflicts => "conflicts",
            Self::Registry => "snapshots, branches and settings",
            Self::Local => "notes of this machine",
        })
    }
}

/// The replicated tables, in the order in which a root lists them.
pub const REPLICATED: [Table; 5] = [Table::Inodes, Table::Links, Table::Moves, Table::Xattrs, Table::Contents];
pub const DERIVED: [Table; 6] =
    [Table::Children, Table::Dirs, Table::LinksOf, Table::Skipped, Table::Unions, Table::Conflicts];

/// Where the rows are: the metadata database, a snapshot, or a plain map in tests and tools.
pub trait Tables {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError>;
    /// Visits rows in key order from `from` on, across the whole table until told to stop.
    fn scan(
        &self,
        table: Table,
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &Bytes) -> ControlFlow<()>,
    ) -> Result<(), StoreError>;
    /// What is to be shown of concurrent versions. A setting of the live volume: snapshots know of none.
    fn preference(&self) -> Preference {
        Preference::default()
    }
}

impl Tables for Frozen {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.get_row(TableId(table as u8), key)?)
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &Bytes) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        Ok(self.scan_rows(TableId(table as u8), from, visit)?)
    }
}

/// Tables that can be changed.
pub trait TablesMut: Tables {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]);
    fn delete(&mut self, table: Table, key: &[u8]);
}

/// What to say about a row that does not decode.
pub fn malformed(what: &str, key: &[u8], source: crate::codec::DecodeError) -> StoreError {
    let hex: String = key.iter().take(24).map(|byte| format!("{byte:02x}")).collect();
    StoreError::Malformed { what: format!("{what} row {hex}"), source }
}

/// Typed access on top of bytes.
pub trait Rows: Tables {
    fn inode(&self, id: InodeId) -> Result<Option<InodeRow>, StoreError> {
        let key = id.0.to_bytes();
        let bytes = self.get(Table::Inodes, &key)?;
        bytes.map(|bytes| InodeRow::decode(id.0, &bytes).map_err(|e| malformed("inode", &key, e))).transpose()
    }

    fn link(&self, id: LinkId) -> Result<Option<LinkRow>, StoreError> {
        let key = id.0.to_bytes();
        let bytes = self.get(Table::Links, &key)?;
        bytes.map(|bytes| LinkRow::decode(id.0, &bytes).map_err(|e| malformed("link", &key, e))).transpose()
    }

    fn xattr(&self, id: InodeId, name: &[u8]) -> Result<XattrRow, StoreError> {
        let key = suffixed_key(id.0, name);
        let bytes = self.get(Table::Xattrs, &key)?;
        let row = bytes.map(|bytes| decode_xattr(id.0, &bytes).map_err(|e| malformed("xattr", &key, e)));
        Ok(row.transpose()?.unwrap_or_default())
    }

    /// All rows whose key starts with `prefix`: what follows the prefix, and the value.
    fn with_prefix(&self, table: Table, prefix: &[u8]) -> Result<Vec<(Vec<u8>, Bytes)>, StoreError> {
        let mut rows = Vec::new();
        self.scan(table, prefix, &mut |key, value| match key.strip_prefix(prefix) {
            Some(rest) => {
                rows.push((rest.to_vec(), value.clone()));
                ControlFlow::Continue(())
            }
            None => ControlFlow::Break(()),
        })?;
        Ok(rows)
    }

    fn dir(&self, id: DirId) -> Result<Option<DirRow>, StoreError> {
        let key = id.0.to_bytes();
        let bytes = self.get(Table::Dirs, &key)?;
        bytes.map(|bytes| DirRow::decode(&bytes).map_err(|e| malformed("directory", &key, e))).transpose()
    }

    fn children(&self, key: &[u8]) -> Result<Children, StoreError> {
        let bytes = self.get(Table::Children, key)?;
        let row = bytes.map(|bytes| Children::decode(&bytes).map_err(|e| malformed("child", key, e)));
        Ok(row.transpose()?.unwrap_or_default())
    }
}

impl<T: Tables + ?Sized> Rows for T {}

/// Typed changes on top of bytes.
pub trait RowsMut: TablesMut {
    /// Stores a row; an empty one is removed.
    fn set_inode(&mut self, id: InodeId, row: &InodeRow) {
        let key = id.0.to_bytes();
        if row.is_empty() {
            self.delete(Table::Inodes, &key);
        } else {
            self.put(Table::Inodes, &key, &row.encode(id.0));
        }
    }

    fn set_link(&mut self, id: LinkId, row: &LinkRow) {
        let key = id.0.to_bytes();
        if row.places.is_empty() {
            self.delete(Table::Links, &key);
        } else {
            self.put(Table::Links, &key, &row.encode(id.0));
        }
    }

    fn set_xattr(&mut self, id: InodeId, name: &[u8], row: &XattrRow) {
        let key = suffixed_key(id.0, name);
        if row.is_empty() {
            self.delete(Table::Xattrs, &key);
        } else {
            self.put(Table::Xattrs, &key, &encode_xattr(id.0, row));
        }
    }
}

impl<T: TablesMut + ?Sized> RowsMut for T {}

/// A dot, then bytes of any length.
pub fn suffixed_key(dot: Dot, suffix: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(Dot::LEN + suffix.len());
    key.extend_from_slice(&dot.to_bytes());
    key.extend_from_slice(suffix);
    key
}

pub fn content_key(inode: InodeId, version: Dot) -> Vec<u8> {
    suffixed_key(inode.0, &version.to_bytes())
}

/// Byte order is the order in which moves are folded.
pub fn move_key(id: MoveId, dir: DirId) -> Vec<u8> {
    let mut key = Vec::with_capacity(8 + 2 * Dot::LEN);
    key.extend_from_slice(&id.hlc.0.to_be_bytes());
    key.extend_from_slice(&id.dot.to_bytes());
    key.extend_from_slice(&dir.0.to_bytes());
    key
}
