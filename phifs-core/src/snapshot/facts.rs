//! What a snapshot holds, counted along what changed since its parent: the counting takes as long as the change was
//! large, not the volume. Some changes say too little about the whole (the largest file got smaller); then all is counted.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use bytes::Bytes;

use crate::content::manifest::{Cursor, What};
use crate::content::{Content, ContentError};
use crate::id::{DirId, GlyphId, InodeId};
use crate::merkle::{self, Difference};
use crate::meta::{Frozen, TableId};
use crate::namespace::coherence::{Preference, best};
use crate::namespace::derive::{self, Children, DirRow, dot_of};
use crate::namespace::row::InodeRow;
use crate::namespace::tables::{Rows, Table, Tables, malformed};
use crate::store::{GlyphSource, StoreError};
use crate::volume::FileKind;

use super::record::Kappa;

type Result<T> = std::result::Result<T, StoreError>;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub kappa: Kappa,
    pub logical_bytes: u64,
    /// Bytes in glyphs that changed files have and had not before.
    pub new_bytes: u64,
    pub conflicts: u64,
}

/// Counts `after`, from what was counted of `before` if there is something.
///
/// # Errors
/// Nodes of either cannot be read. Those of `before` may have been given back; then count without it.
pub fn count(glyphs: &dyn GlyphSource, before: Option<(&Frozen, &Facts)>, after: &Frozen) -> Result<Facts> {
    let empty = Frozen::clone(after).without_rows();
    let (base, counted) = before.map_or((&empty, Facts::default()), |(base, facts)| (base, *facts));
    let mut facts = Facts { new_bytes: 0, ..counted };
    let mut largest_went = false;
    each_change(base, after, Table::Inodes, &mut |change| {
        let (old, old_conflicts) = contribution(base, &change.key, change.old.as_ref())?;
        let (new, new_conflicts) = contribution(after, &change.key, change.new.as_ref())?;
        facts.conflicts = facts.conflicts + new_conflicts - old_conflicts;
        if let Some(old) = &old {
            facts.kappa.files -= 1;
            facts.logical_bytes -= old.len_bytes();
            let is_smaller = new.is_none_or(|new| new.len_bytes() < old.len_bytes());
            largest_went |= is_smaller && old.len_bytes() >= counted.kappa.largest_bytes;
        }
        if let Some(new) = &new {
            facts.kappa.files += 1;
            facts.logical_bytes += new.len_bytes();
            facts.kappa.largest_bytes = facts.kappa.largest_bytes.max(new.len_bytes());
        }
        if old != new {
            let mut had = HashSet::new();
            facts.kappa.glyphs -= each_glyph(glyphs, old, &mut |id, _| had.extend([id]))?;
            facts.kappa.glyphs += each_glyph(glyphs, new, &mut |id, len_bytes| {
                if had.insert(id) {
                    facts.new_bytes += len_bytes;
                }
            })?;
        }
        Ok(())
    })?;
    if largest_went {
        facts.kappa.largest_bytes = largest(after)?;
    }
    count_directories(base, after, &mut facts.kappa)?;
    count_conflicts(base, after, &mut facts.conflicts)?;
    Ok(facts)
}

/// Visits the rows of a table that differ.
pub fn each_change(
    before: &Frozen,
    after: &Frozen,
    table: Table,
    each: &mut dyn FnMut(Difference) -> Result<()>,
) -> Result<()> {
    let id = TableId(table as u8);
    let mut outcome = Ok(());
    merkle::diff(after.source(), &before.roots().get(id), &after.roots().get(id), &mut |change| {
        outcome = each(change);
        if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    outcome
}

/// What an inode contributes: its content, if it is a file with a name, and 1 if it has concurrent versions.
fn contribution(tables: &Frozen, key: &[u8], row: Option<&Bytes>) -> Result<(Option<Content>, u64)> {
    let Some(row) = row else { return Ok((None, 0)) };
    let id = dot_of(key)?;
    let row = InodeRow::decode(id, row).map_err(|e| malformed("inode", key, e))?;
    let conflicts = u64::from(row.versions.entries().len() > 1);
    if row.kind() == FileKind::Directory || derive::links_of(tables, InodeId(id))?.is_empty() {
        return Ok((None, conflicts));
    }
    Ok((Some(best(&row, Preference::default()).map_or(Content::Empty, |entry| entry.value.content)), conflicts))
}

/// Calls `each` with the stretches of data of a file, and says how many of them are glyphs: inline bytes are none.
fn each_glyph(glyphs: &dyn GlyphSource, content: Option<Content>, each: &mut dyn FnMut(GlyphId, u64)) -> Result<u64> {
    let content = content.unwrap_or(Content::Empty);
    let mut cursor = Cursor::new(content);
    let (mut at, mut references) = (0, 0);
    while let Some(span) = cursor.find(glyphs, at).map_err(store_error)? {
        if let What::Glyph(id) = span.extent.what {
            each(id, span.extent.len_bytes);
            references += u64::from(!matches!(content, Content::Inline { .. }));
        }
        at = span.end();
    }
    Ok(references)
}

pub(super) fn store_error(error: ContentError) -> StoreError {
    match error {
        ContentError::Store(error) => error,
        error => StoreError::Malformed {
            what: error.to_string(),
            source: crate::codec::DecodeError::NotCanonical("a file's content"),
        },
    }
}

fn largest(tables: &Frozen) -> Result<u64> {
    let mut largest = 0;
    let mut failed = None;
    tables.scan(Table::Inodes, &[], &mut |key, row| {
        match contribution(tables, key, Some(row)) {
            Ok((content, _)) => largest = largest.max(content.map_or(0, |content| content.len_bytes())),
            Err(error) => failed = Some(error),
        }
        if failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    failed.map_or(Ok(largest), Err)
}

fn count_directories(before: &Frozen, after: &Frozen, kappa: &mut Kappa) -> Result<()> {
    let mut depths = Depths { tables: after, known: HashMap::from([(DirId::ROOT, 0)]) };
    let mut depth_is_known = true;
    each_change(before, after, Table::Dirs, &mut |change| {
        let decode = |row: &Bytes| DirRow::decode(row).map_err(|e| malformed("directory", &change.key, e));
        let old = change.old.as_ref().map(decode).transpose()?.filter(|row| row.shown);
        let new = change.new.as_ref().map(decode).transpose()?.filter(|row| row.shown);
        kappa.directories = kappa.directories + u64::from(new.is_some()) - u64::from(old.is_some());
        match (&old, &new) {
            (Some(old), Some(new)) if old.position() == new.position() => {}
            // It may have been on the longest path, or have taken others along.
            (Some(_), _) => depth_is_known = false,
            (None, Some(_)) => kappa.depth = kappa.depth.max(depths.of(DirId(dot_of(&change.key)?))?),
            (None, None) => {}
        }
        Ok(())
    })?;
    if !depth_is_known {
        kappa.depth = 0;
        for (key, row) in after.with_prefix(Table::Dirs, &[])? {
            if DirRow::decode(&row).map_err(|e| malformed("directory", &key, e))?.shown {
                kappa.depth = kappa.depth.max(depths.of(DirId(dot_of(&key)?))?);
            }
        }
    }
    Ok(())
}

/// How far directories are from the root.
struct Depths<'a> {
    tables: &'a Frozen,
    known: HashMap<DirId, u32>,
}

impl Depths<'_> {
    fn of(&mut self, dir: DirId) -> Result<u32> {
        let mut way = Vec::new();
        let mut at = dir;
        let mut depth = loop {
            if let Some(depth) = self.known.get(&at) {
                break *depth;
            }
            way.push(at);
            match self.tables.dir(at)?.and_then(|row| row.position()) {
                Some((parent, _)) => at = parent,
                None => break 0,
            }
        };
        for below in way.into_iter().rev() {
            depth += 1;
            self.known.insert(below, depth);
        }
        Ok(depth)
    }
}

/// Names with several meanings.
fn count_conflicts(before: &Frozen, after: &Frozen, conflicts: &mut u64) -> Result<()> {
    each_change(before, after, Table::Children, &mut |change| {
        let meanings = |row: &Option<Bytes>| -> Result<u64> {
            let Some(row) = row else { return Ok(0) };
            let children = Children::decode(row).map_err(|e| malformed("child", &change.key, e))?;
            Ok(u64::from(children.all().len() > 1))
        };
        *conflicts = *conflicts + meanings(&change.new)? - meanings(&change.old)?;
        Ok(())
    })
}
