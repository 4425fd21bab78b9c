//! From the stores of others to this one: what a state needs, glyph by glyph.
//!
//! Whoever has the roots can ask anybody for the nodes below, as a node is named by the hash of its bytes. What is here
//! is not asked for, so a pull that broke off goes on where it was, from whomever, and toward a later state as well.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::content::manifest::{Part, visit_glyphs};
use crate::content::{Content, ContentError};
use crate::id::GlyphId;
use crate::merkle::{self, Added, Node, Root};
use crate::meta::TableId;
use crate::meta::{Frozen, Roots};
use crate::namespace::Table;
use crate::namespace::derive::dot_of;
use crate::namespace::row::InodeRow;
use crate::namespace::tables::malformed;
use crate::store::{GlyphKind, GlyphSource as _, GlyphStore, StoreError, StoredGlyph};

use super::record::Record;
use super::rows;
use super::stream::StreamError;
use super::transfer::{Progress, SYNC_BYTES};

/// So many nodes are asked for at a time, of at most 32 KiB with few exceptions; and so many glyphs of contents, of 1 MiB
/// at most.
const NODES_AT_ONCE: usize = 1024;
const DATA_AT_ONCE: usize = 64;
/// So many contents are looked at together.
const CONTENTS_AT_ONCE: usize = 4096;

/// Asks others for glyphs. What nobody has is not among the answers.
pub type Ask<'a> = &'a mut dyn FnMut(GlyphKind, &[GlyphId]) -> io::Result<Vec<(GlyphId, Bytes)>>;

#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("cannot get glyphs: {0}")]
    Ask(#[from] io::Error),
    #[error("nobody who was asked has {count} glyphs, {first} first")]
    Lacking { count: usize, first: GlyphId },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error(transparent)]
    Stream(#[from] StreamError),
}

pub type Result<T> = std::result::Result<T, PullError>;

/// Stores a glyph that somebody has sent. Says whether it was new.
///
/// # Errors
/// `Malformed` if these are not the bytes of this glyph. Then nothing is kept of them.
pub fn take(store: &GlyphStore, kind: GlyphKind, id: GlyphId, bytes: &Bytes) -> std::result::Result<bool, StoreError> {
    let malformed = |source| StoreError::Malformed { what: format!("glyph {id}"), source };
    let glyph = StoredGlyph::decode(id, bytes).map_err(malformed)?;
    if glyph.kind() != kind {
        return Err(malformed(crate::codec::DecodeError::NotCanonical("the kind of a glyph")));
    }
    store.write_stored(&glyph)
}

/// Gets glyphs from others into a store.
pub struct Pull<'a> {
    store: &'a GlyphStore,
    ask: Ask<'a>,
    progress: Progress<'a>,
    rows_here: Option<&'a AtomicU64>,
    bytes: u64,
    synced_at: u64,
}

impl<'a> Pull<'a> {
    /// The caller holds what is put (`GlyphStore::hold`) until something names it.
    pub fn new(store: &'a GlyphStore, ask: Ask<'a>, progress: Progress<'a>) -> Self {
        Self { store, ask, progress, rows_here: None, bytes: 0, synced_at: 0 }
    }

    /// Counts the rows that are here, of those that `nodes` is to bring.
    #[must_use]
    pub fn counting(self, rows_here: &'a AtomicU64) -> Self {
        Self { rows_here: Some(rows_here), ..self }
    }

    /// Asks for glyphs, as many as are asked for at a time, and stores what comes; gives what did not.
    fn get(&mut self, kind: GlyphKind, wanted: &[GlyphId]) -> Result<Vec<GlyphId>> {
        let mut missing: HashSet<GlyphId> = wanted.iter().copied().collect();
        for (id, bytes) in (self.ask)(kind, wanted)? {
            if !missing.contains(&id) {
                continue;
            }
            match take(self.store, kind, id, &bytes) {
                Ok(_) => {
                    missing.remove(&id);
                    self.bytes += bytes.len() as u64;
                }
                // Somebody else may have it.
                Err(StoreError::Malformed { what, .. }) => tracing::warn!(what, "another machine has sent wrong bytes"),
                Err(error) => return Err(error.into()),
            }
        }
        if missing.len() == wanted.len() {
            return Err(PullError::Lacking { count: wanted.len(), first: wanted[0] });
        }
        if self.bytes >= self.synced_at + SYNC_BYTES {
            self.synced_at = self.bytes;
            self.store.sync()?;
            self.store.flush_index();
        }
        (self.progress)(self.bytes)?;
        Ok(wanted.iter().copied().filter(|id| missing.contains(id)).collect())
    }

    /// Brings the nodes of all tables here. What is below the nodes of `before` is here.
    pub fn nodes(&mut self, before: &Frozen, roots: &Roots) -> Result<()> {
        let mut met = HashSet::new();
        for (_, root) in before.roots().iter() {
            merkle::walk(before.source(), &root, &mut |id, _| met.insert(*id)).map_err(StoreError::from)?;
        }
        // A set, as somebody could make nodes that name each other in more ways than there is time for.
        let mut unmet = |root: &Root| root.id.filter(|id| met.insert(*id)).map(|id| (id, *root));
        let mut next: Vec<(GlyphId, Root)> = roots.iter().filter_map(|(_, root)| unmet(&root)).collect();
        let mut wanted: Vec<(GlyphId, Root)> = Vec::new();
        loop {
            while wanted.len() < NODES_AT_ONCE
                && let Some((id, root)) = next.pop()
            {
                if !self.store.pin_stored(GlyphKind::Node, &id) {
                    wanted.push((id, root));
                } else if root.level > 0 {
                    let node = Node::decode(&id, self.store.read(GlyphKind::Node, &id)?).map_err(StoreError::from)?;
                    next.extend(node.children().filter_map(|child| unmet(&child)));
                } else if let Some(rows_here) = self.rows_here {
                    rows_here.fetch_add(root.rows, Ordering::Relaxed);
                }
            }
            if wanted.is_empty() {
                return Ok(());
            }
            let ids: Vec<GlyphId> = wanted.iter().map(|(id, _)| *id).collect();
            let missing: HashSet<GlyphId> = self.get(GlyphKind::Node, &ids)?.into_iter().collect();
            let (left, came) = wanted.into_iter().partition(|(id, _)| missing.contains(id));
            wanted = left;
            next.extend::<Vec<_>>(came);
        }
    }

    /// Reads the rows that a state has beyond another one, and the nodes that they are in: they must be sound. Brings those
    /// glyphs of the contents of files here that are to be here.
    pub fn contents(
        &mut self,
        before: &Frozen,
        record: &Record,
        after: &Frozen,
        is_to_be_here: &dyn Fn(Part, &GlyphId) -> bool,
    ) -> Result<()> {
        let mut contents: Vec<Content> = Vec::new();
        for (table, root) in after.roots().iter() {
            merkle::added(after.source(), &before.roots().get(table), &root, &mut |added| {
                let Added::Leaf(leaf) = added else { return Ok(()) };
                for (key, value) in leaf.rows() {
                    rows::check(table, &key, &value, &record.context)?;
                    if table == TableId(Table::Inodes as u8) {
                        let row = InodeRow::decode(dot_of(&key)?, &value).map_err(|e| malformed("inode", &key, e))?;
                        contents.extend(row.versions.entries().iter().map(|entry| entry.value.content));
                    }
                }
                if contents.len() < CONTENTS_AT_ONCE {
                    return Ok(());
                }
                self.bring(&std::mem::take(&mut contents), is_to_be_here)
            })?;
        }
        self.bring(&contents, is_to_be_here)
    }

    fn bring(&mut self, contents: &[Content], is_to_be_here: &dyn Fn(Part, &GlyphId) -> bool) -> Result<()> {
        // What lists glyphs comes first, and then what it lists.
        loop {
            let mut missing = missing_of(self.store, contents, is_to_be_here)?;
            if missing.is_empty() {
                return Ok(());
            }
            missing.truncate(DATA_AT_ONCE);
            self.get(GlyphKind::Data, &missing)?;
        }
    }
}

/// The glyphs of contents that are to be here and are not, in the order of the files. Those that are here outlive
/// collections for as long as somebody holds the store. What a list that is missing lists is told when it is here.
pub fn missing_of(
    store: &GlyphStore,
    contents: &[Content],
    is_to_be_here: &dyn Fn(Part, &GlyphId) -> bool,
) -> std::result::Result<Vec<GlyphId>, ContentError> {
    let (mut missing, mut wanted) = (Vec::new(), HashSet::new());
    let (mut met, mut pages) = (HashMap::new(), HashSet::new());
    for content in contents {
        visit_glyphs(store, content, &mut |part, id| {
            let is_here = *met.entry(*id).or_insert_with(|| store.pin_known(id));
            if !is_here && is_to_be_here(part, id) && wanted.insert(*id) {
                missing.push(*id);
            }
            part == Part::Page && is_here && pages.insert(*id)
        })?;
    }
    Ok(missing)
}
