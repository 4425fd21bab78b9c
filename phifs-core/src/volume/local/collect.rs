//! Giving space back, and looking for decay.
//!
//! Live is what the tables name: the nodes of their maps, the glyphs of every version, and the glyphs under files that
//! are being changed. The nodes of both copies of the superblock are kept. Data needs only the current state, as the
//! journal that leads to it from either copy is durable; two checkpoints before marking make the copies the same.

use std::collections::HashSet;

use crate::content::Content;
use crate::content::manifest::{Part, visit_glyphs};
use crate::content::reader::ContentReader;
use crate::id::{GlyphId, InodeId};
use crate::merkle;
use crate::namespace::derive::dot_of;
use crate::namespace::row::InodeRow;
use crate::namespace::tables::{Table, Tables, malformed};
use crate::store::{Damage, GlyphKind, GlyphSource as _, Mark, ScrubCursor, StoreError, SweepReport};
use crate::volume::{Result, VolumeError};

use super::LocalVolume;
use super::files::inline_bytes;

/// Rows looked at under one hold of the state's lock.
const BATCH: usize = 1024;
const SCRUB_STEP_BYTES: u64 = 16 << 20;

#[derive(Clone, Debug, Default)]
pub struct CollectReport {
    pub live_glyphs: u64,
    pub sweep: SweepReport,
}

#[derive(Clone, Debug, Default)]
pub struct ScrubReport {
    pub glyphs: u64,
    pub bytes: u64,
    pub damage: Vec<Damage>,
    /// Paths of files with a damaged part.
    pub damaged_paths: Vec<Vec<u8>>,
    /// Why not all files could be looked at.
    pub metadata_error: Option<String>,
}

impl LocalVolume {
    /// Removes packs without live glyphs, and rewrites those whose live share is below `min_live_ratio` (0 to 1).
    /// `progress` gets the number of inodes looked at.
    pub fn collect(&self, min_live_ratio: f64, progress: &dyn Fn(u64)) -> Result<CollectReport> {
        // Copies of what is stored anyway go first: on a full disk they are what there is no room for.
        self.evict_all()?;
        for _ in 0..2 {
            match self.make_checkpoint(false) {
                // A full disk has no room for a checkpoint, and collecting is what makes room.
                Err(VolumeError::Store(StoreError::Full) | VolumeError::NoSpace(_)) => self.commit_journal()?,
                other => other?,
            }
        }
        // While it is held no checkpoint replaces the roots that are walked here.
        let checkpoint = self.checkpoint.lock();
        let mut mark = self.store.begin_mark(&[GlyphKind::Data, GlyphKind::Node]);
        let mut live = 0;
        // The tables are ahead of both copies if the last checkpoint failed at its end.
        let current = self.state.read().meta.roots().clone();
        for (_, root) in current.iter().chain(checkpoint.last.roots.iter()).chain(checkpoint.previous_roots.iter()) {
            merkle::walk(&*self.nodes, &root, &mut |id, _| {
                let new = mark.keep(GlyphKind::Node, id);
                live += u64::from(new);
                new
            })
            .map_err(StoreError::from)?;
        }
        let mut pages = HashSet::new();
        let mut looked_at = 0;
        self.each_inode(&mut |_, row| {
            for entry in row.versions.entries() {
                self.keep_content(&mut mark, &mut pages, &entry.value.content, &mut live)?;
            }
            looked_at += 1;
            if looked_at % 4096 == 0 {
                progress(looked_at);
            }
            Ok(())
        })?;
        for content in self.contents_in_use() {
            self.keep_content(&mut mark, &mut pages, &content, &mut live)?;
        }
        // A crash must not bring back a version that was replaced while marking and so was not marked.
        self.commit_journal()?;
        let sweep = self.store.sweep(mark, min_live_ratio)?;
        Ok(CollectReport { live_glyphs: live, sweep })
    }

    /// The sizes of all files, added up, as published.
    pub fn logical_bytes(&self) -> Result<u64> {
        let mut total = 0u64;
        self.each_inode(&mut |_, row| {
            total += row.versions.latest().map_or(0, |entry| entry.value.content.len_bytes());
            Ok(())
        })?;
        Ok(total)
    }

    /// `pages` are the manifest pages seen so far. They are told apart from data, as a file may hold the very bytes of
    /// a page, and what a page lists must be kept all the same.
    fn keep_content(
        &self,
        mark: &mut Mark,
        pages: &mut HashSet<GlyphId>,
        content: &Content,
        live: &mut u64,
    ) -> Result<()> {
        visit_glyphs(&*self.store, content, &mut |part, id| {
            *live += u64::from(mark.keep(GlyphKind::Data, id));
            part == Part::Page && pages.insert(*id)
        })?;
        Ok(())
    }

    /// Visits every inode, letting others at the tables between batches.
    pub(super) fn each_inode(&self, each: &mut dyn FnMut(InodeId, &InodeRow) -> Result<()>) -> Result<()> {
        let mut from = Vec::new();
        loop {
            let mut batch = Vec::with_capacity(BATCH);
            self.state.read().scan(Table::Inodes, &from, &mut |key, value| {
                batch.push((key.to_vec(), value.clone()));
                if batch.len() < BATCH { std::ops::ControlFlow::Continue(()) } else { std::ops::ControlFlow::Break(()) }
            })?;
            for (key, value) in &batch {
                let dot = dot_of(key)?;
                let row = InodeRow::decode(dot, value).map_err(|e| malformed("inode", key, e))?;
                each(InodeId(dot), &row)?;
            }
            match batch.pop() {
                Some((mut last, _)) if batch.len() + 1 == BATCH => {
                    last.push(0);
                    from = last;
                }
                _ => return Ok(()),
            }
        }
    }

    /// Reads everything that is stored and compares it with its checksums.
    pub fn scrub(&self, progress: &dyn Fn(u64)) -> Result<ScrubReport> {
        let mut report = ScrubReport::default();
        let mut cursor = ScrubCursor::default();
        loop {
            let step = self.store.scrub(cursor, SCRUB_STEP_BYTES)?;
            report.glyphs += step.glyphs;
            report.bytes += step.bytes;
            report.damage.extend(step.damage);
            cursor = step.cursor;
            progress(report.bytes);
            if step.finished {
                break;
            }
        }
        // What was damaged so badly when the store was opened that it is not in the packs' lists any more.
        report.damage.extend(&self.opened.store.damage);
        self.find_unreadable(&mut report, progress);
        Ok(report)
    }

    /// Looks for files that cannot be read, by reading all of them: also what no pack lists any more is missed so.
    fn find_unreadable(&self, report: &mut ScrubReport, progress: &dyn Fn(u64)) {
        let mut good: HashSet<GlyphId> = HashSet::new();
        let mut unreadable = Vec::new();
        let looked = self.each_inode(&mut |id, row| {
            let mut hit = false;
            for entry in row.versions.entries() {
                let content = &entry.value.content;
                let looked = visit_glyphs(&*self.store, content, &mut |_, glyph| {
                    let known = good.contains(glyph);
                    if !known && self.store.read(GlyphKind::Data, glyph).is_ok() {
                        good.insert(*glyph);
                    } else {
                        hit |= !known;
                    }
                    true
                });
                let inline = inline_bytes(&self.state.read(), id, Some(entry.dot), content);
                let inline = inline.and_then(|inline| Ok(ContentReader::new(*content, inline)?));
                hit |= looked.is_err() || inline.is_err();
            }
            if hit {
                unreadable.push(self.path_of(id).unwrap_or_else(|_| format!("(inode {})", id.0).into_bytes()));
            }
            progress(report.bytes);
            Ok(())
        });
        report.damaged_paths = unreadable;
        report.metadata_error = looked.err().map(|error| error.to_string());
    }
}
