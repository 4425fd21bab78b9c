//! Giving space back.
//!
//! Live is what the roots name that are kept: both copies of the superblock, the tables as they are now, every snapshot
//! and branch. What is stored from the beginning of a collection on is live as well, so nobody has to wait for it: the
//! state of now is a checkpoint made after that beginning, and whatever comes later consists of that and of what is new.

use std::collections::HashSet;

use parking_lot::MutexGuard;

use crate::content::Content;
use crate::content::manifest::{Part, visit_glyphs};
use crate::id::{DirId, GlyphId, InodeId};
use crate::merkle::{self, NodeSource};
use crate::meta::{Roots, TableId};
use crate::namespace::derive::dot_of;
use crate::namespace::plan;
use crate::namespace::row::InodeRow;
use crate::namespace::tables::{Rows, Table, malformed};
use crate::namespace::view;
use crate::store::{GlyphKind, Mark, StoreError, SweepReport};
use crate::volume::{Result, VolumeError};

use super::LocalVolume;
use super::history;
use super::state::local_key;
use super::upkeep::Checkpoints;

/// Graves that one operation closes.
const GRAVES_PER_OPERATION: usize = 256;

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
        self.purge_graves()?;
        self.forget_old_versions()?;
        let mark = self.store.begin_mark(&[GlyphKind::Data, GlyphKind::Node]);
        let mut marking = Marking { volume: self, mark, pages: HashSet::new(), live: 0, inodes: 0, progress };
        let (roots, unwritten) = self.roots_in_use()?;
        for roots in &roots {
            marking.keep_state(roots)?;
        }
        if unwritten.is_some() {
            self.each_row(Table::Inodes, &[], &mut |key, row| marking.keep_inode(key, row))?;
            self.each_row(Table::Local, &[], &mut |key, row| marking.keep_version(key, row))?;
        }
        for content in self.contents_in_use() {
            marking.keep_content(&content)?;
        }
        // A crash must not bring back a version that was replaced while marking and so was not marked.
        self.commit_journal()?;
        let live_glyphs = marking.live;
        let sweep = self.store.sweep(marking.mark, min_live_ratio)?;
        Ok(CollectReport { live_glyphs, sweep })
    }

    /// All states that are kept. Where there is no room to write that of now, nobody else makes a checkpoint until the
    /// second of the results is dropped, and its rows have to be looked at one by one.
    fn roots_in_use(&self) -> Result<(Vec<Roots>, Option<MutexGuard<'_, Checkpoints>>)> {
        let mut checkpoints = self.checkpoint.lock();
        let mut is_written = true;
        // Two, so that both copies of the superblock name the state of now.
        for _ in 0..2 {
            match self.make_checkpoint_after(&mut checkpoints, false) {
                // A full disk has no room for a checkpoint, and collecting is what makes room.
                Err(VolumeError::Store(StoreError::Full) | VolumeError::NoSpace(_)) => {
                    self.commit_journal()?;
                    is_written = false;
                }
                other => other?,
            }
        }
        let mut roots = {
            let state = self.state.read();
            let mut roots = vec![state.meta.roots().clone()];
            roots.extend(state.snapshots()?.into_iter().map(|(_, snapshot)| snapshot.cut.roots));
            roots.extend(state.branches()?.into_iter().map(|(_, branch)| branch.base.roots));
            roots
        };
        // The tables are ahead of both copies if the last checkpoint failed at its end.
        roots.extend([checkpoints.last.roots.clone(), checkpoints.previous_roots.clone()]);
        Ok((roots, (!is_written).then_some(checkpoints)))
    }

    /// Forgets inodes without names that nobody else can change any more, as the snapshots are gone that knew them.
    fn purge_graves(&self) -> Result<()> {
        let graves = self.state.read().with_prefix(Table::Local, b"g")?;
        for graves in graves.chunks(GRAVES_PER_OPERATION) {
            let mut state = self.state.write();
            let mut draft = state.draft(self.env.now());
            for (key, _) in graves {
                let id = InodeId(dot_of(key)?);
                if state.is_shared(id.0) || self.is_open(id) {
                    continue;
                }
                if let Some(row) = state.inode(id)? {
                    let is_dir_shown = state.dir(DirId(id.0))?.is_some_and(|row| row.shown);
                    if view::nlink(&*state, id, row.kind())? == 0 && !is_dir_shown {
                        draft.effects.push(plan::purge(&*state, id, &row)?);
                    }
                }
                draft.local.push((local_key(b'g', key), None));
            }
            if !draft.local.is_empty() {
                state.commit(draft, &self.journal)?;
            }
        }
        Ok(())
    }

    /// The sizes of all files, added up, as published.
    pub fn logical_bytes(&self) -> Result<u64> {
        let mut total = 0u64;
        self.each_row(Table::Inodes, &[], &mut |key, row| {
            let row = InodeRow::decode(dot_of(key)?, row).map_err(|e| malformed("inode", key, e))?;
            total += row.versions.latest().map_or(0, |entry| entry.value.content.len_bytes());
            Ok(())
        })?;
        Ok(total)
    }
}

struct Marking<'a> {
    volume: &'a LocalVolume,
    mark: Mark,
    /// The manifest pages seen so far. They are told apart from data, as a file may hold the very bytes of a page, and
    /// what a page lists must be kept all the same.
    pages: HashSet<GlyphId>,
    live: u64,
    inodes: u64,
    progress: &'a dyn Fn(u64),
}

impl Marking<'_> {
    /// Keeps the nodes of all tables, and the bytes of all versions in them. What was seen in another state is not looked
    /// at again.
    fn keep_state(&mut self, roots: &Roots) -> Result<()> {
        for (table, root) in roots.iter() {
            let mut leaves = Vec::new();
            let (is_inodes, is_local) = (table == TableId(Table::Inodes as u8), table == TableId(Table::Local as u8));
            merkle::walk(&*self.volume.nodes, &root, &mut |id, level| {
                let is_new = self.mark.keep(GlyphKind::Node, id);
                self.live += u64::from(is_new);
                if is_new && level == 0 && (is_inodes || is_local) {
                    leaves.push(*id);
                }
                is_new
            })
            .map_err(StoreError::from)?;
            for leaf in leaves {
                for (key, row) in self.volume.nodes.node(&leaf).map_err(StoreError::from)?.rows() {
                    if is_inodes {
                        self.keep_inode(&key, &row)?;
                    } else {
                        self.keep_version(&key, &row)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn keep_inode(&mut self, key: &[u8], row: &[u8]) -> Result<()> {
        let row = InodeRow::decode(dot_of(key)?, row).map_err(|e| malformed("inode", key, e))?;
        for entry in row.versions.entries() {
            self.keep_content(&entry.value.content)?;
        }
        self.inodes += 1;
        if self.inodes.is_multiple_of(4096) {
            (self.progress)(self.inodes);
        }
        Ok(())
    }

    /// A row of the local table, which may be about a superseded version.
    fn keep_version(&mut self, key: &[u8], row: &[u8]) -> Result<()> {
        let Some(rest) = key.strip_prefix(&[history::ABOUT]) else { return Ok(()) };
        let (.., content) = history::content_of(rest, row)?;
        self.keep_content(&content)
    }

    fn keep_content(&mut self, content: &Content) -> Result<()> {
        let Self { volume, mark, pages, live, .. } = self;
        visit_glyphs(&*volume.store, content, &mut |part, id| {
            *live += u64::from(mark.keep(GlyphKind::Data, id));
            part == Part::Page && pages.insert(*id)
        })?;
        Ok(())
    }
}
