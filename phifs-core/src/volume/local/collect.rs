//! Giving space back.
//!
//! Live is what the tables name: the nodes of their maps, the glyphs of every version, and the glyphs under files that
//! are being changed. The nodes of both copies of the superblock are kept. Data needs only the current state, as the
//! journal that leads to it from either copy is durable; two checkpoints before marking make the copies the same.

use std::collections::HashSet;

use crate::content::Content;
use crate::content::manifest::{Part, visit_glyphs};
use crate::id::GlyphId;
use crate::merkle;
use crate::namespace::derive::dot_of;
use crate::namespace::row::InodeRow;
use crate::namespace::tables::{Table, malformed};
use crate::store::{GlyphKind, Mark, StoreError, SweepReport};
use crate::volume::{Result, VolumeError};

use super::LocalVolume;

#[derive(Clone, Debug, Default)]
pub struct CollectReport {
    pub live_glyphs: u64,
    pub sweep: SweepReport,
}

impl LocalVolume {
    /// Removes packs without live glyphs, and rewrites those whose live share is below `min_live_ratio` (0 to 1).
    /// `progress` gets the number of inodes looked at.
    pub fn collect(&self, min_live_ratio: f64, progress: &dyn Fn(u64)) -> Result<CollectReport> {
        let _housekeeping = self.housekeeping.lock();
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
        self.each_inode(&mut |row| {
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
        self.each_inode(&mut |row| {
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

    fn each_inode(&self, each: &mut dyn FnMut(&InodeRow) -> Result<()>) -> Result<()> {
        self.each_row(Table::Inodes, &[], &mut |key, value| {
            each(&InodeRow::decode(dot_of(key)?, value).map_err(|e| malformed("inode", key, e))?)
        })
    }
}
