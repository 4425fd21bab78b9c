//! Every glyph that a snapshot needs and another one has not: what an export carries, and what an import must find.
//!
//! The order follows from the two states alone, so the one who writes a stream and the one who reads it walk in step,
//! and a stream that holds anything else, or anything elsewhere, is refused at that very glyph:
//!
//! 1. the nodes of each table, tables by number, nodes in key order and parents before children;
//! 2. the contents of the inodes that differ, in key order, versions in order: manifest pages before what they list.
//!
//! A glyph comes once. Of contents, what any inode that differs had before does not come at all; so a file that was
//! saved as a new one and renamed over the old costs what changed in it. What only other inodes have is not looked for.
//! This order is part of the format of streams.

use std::collections::HashSet;
use std::ops::ControlFlow;

use bytes::Bytes;

use crate::content::manifest::{Part, visit_glyphs};
use crate::id::GlyphId;
use crate::merkle::{self, Added, Node};
use crate::meta::{Frozen, TableId};
use crate::namespace::derive::dot_of;
use crate::namespace::row::InodeRow;
use crate::namespace::tables::{Table, malformed};
use crate::store::{GlyphKind, GlyphSource, StoreError};

use super::facts;

/// What the walk comes to.
pub enum Step<'a> {
    /// A glyph. It is read only after this, so the visitor may just be storing it.
    Glyph(GlyphKind, &'a GlyphId),
    /// The last node was this leaf of a table.
    Leaf(TableId, &'a Node),
}

/// Visits what `after` needs beyond `before`, which is there completely.
pub fn reach<E: From<StoreError>>(
    glyphs: &dyn GlyphSource,
    before: Option<&Frozen>,
    after: &Frozen,
    visit: &mut dyn FnMut(Step<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let empty = after.clone().without_rows();
    let before = before.unwrap_or(&empty);
    for (table, root) in after.roots().iter() {
        merkle::added(after.source(), &before.roots().get(table), &root, &mut |added| match added {
            Added::Node(id) => visit(Step::Glyph(GlyphKind::Node, id)),
            Added::Leaf(leaf) => visit(Step::Leaf(table, leaf)),
        })?;
    }
    let mut seen = Seen::default();
    facts::each_change(before, after, Table::Inodes, &mut |change| {
        each_part(glyphs, &change.key, change.old.as_ref(), &mut |part, id| seen.is_new(part, id).1)
    })?;
    let mut outcome = Ok(());
    let inodes = TableId(Table::Inodes as u8);
    let walked = merkle::diff(after.source(), &before.roots().get(inodes), &after.roots().get(inodes), &mut |change| {
        let walked = each_part(glyphs, &change.key, change.new.as_ref(), &mut |part, id| {
            let (is_new, look_inside) = seen.is_new(part, id);
            if is_new && outcome.is_ok() {
                outcome = visit(Step::Glyph(GlyphKind::Data, id));
            }
            look_inside && outcome.is_ok()
        });
        if outcome.is_ok() {
            outcome = walked.map_err(E::from);
        }
        if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    walked.map_err(|error| E::from(error.into()))?;
    outcome
}

/// Calls `each` for the glyphs of all versions of an inode, as `visit_glyphs` does.
fn each_part(
    glyphs: &dyn GlyphSource,
    key: &[u8],
    row: Option<&Bytes>,
    each: &mut dyn FnMut(Part, &GlyphId) -> bool,
) -> Result<(), StoreError> {
    let Some(row) = row else { return Ok(()) };
    let row = InodeRow::decode(dot_of(key)?, row).map_err(|e| malformed("inode", key, e))?;
    for entry in row.versions.entries() {
        visit_glyphs(glyphs, &entry.value.content, each).map_err(facts::store_error)?;
    }
    Ok(())
}

/// The glyphs of contents that were met. A page is told apart from data, as a file may hold the bytes of a page: the
/// glyph comes once, and what the page lists comes all the same.
#[derive(Default)]
struct Seen {
    glyphs: HashSet<Short>,
    pages: HashSet<Short>,
}

/// Half of an id, which is enough: no one can afford to make two that begin alike.
type Short = [u8; 16];

impl Seen {
    /// Whether this glyph is new, and whether what it lists is.
    fn is_new(&mut self, part: Part, id: &GlyphId) -> (bool, bool) {
        let mut short = [0; 16];
        short.copy_from_slice(&id.0[..16]);
        (self.glyphs.insert(short), part == Part::Page && self.pages.insert(short))
    }
}
