//! Giving space back.
//!
//! Live is what the roots name that are kept: both copies of the superblock of each line of changes, its tables as they
//! are now, every snapshot, and what an export or import under way reads. What is stored from the beginning of a
//! collection on is live as well, so nobody has to wait for it: the state of now is a checkpoint made after that
//! beginning, and whatever comes later consists of that and of what is new.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::MutexGuard;

use crate::causal::VersionVector;
use crate::content::Content;
use crate::content::manifest::{Part, visit_glyphs};
use crate::id::{DirId, GlyphId, InodeId};
use crate::merkle::{self, NodeSource};
use crate::meta::{Frozen, Roots, TableId};
use crate::namespace::derive::dot_of;
use crate::namespace::plan;
use crate::namespace::row::InodeRow;
use crate::namespace::tables::{Rows, Table, malformed};
use crate::namespace::view::{self, Stat};
use crate::registry::Branch;
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
    /// What was given up of that as others hold it. Its space is free when the rest of its packs is rewritten.
    pub evicted_glyphs: u64,
    pub evicted_bytes: u64,
    pub sweep: SweepReport,
}

/// Says of a glyph of files whether enough of the other members have confirmed that they hold it durably, and will.
pub type Confirmed = Box<dyn Fn(&GlyphId) -> bool>;

impl LocalVolume {
    /// Removes packs without live glyphs, and rewrites those whose live share is below `min_live_ratio` (0 to 1).
    /// `progress` gets the number of inodes looked at.
    pub fn collect(&self, min_live_ratio: f64, progress: &dyn Fn(u64)) -> Result<CollectReport> {
        self.collect_but(None, min_live_ratio, progress)
    }

    /// As `collect`, and gives up contents that only others are to hold, those that were read longest ago first, until no
    /// more is left of them than the setting `glyph_cache_size` says. What is pinned, in use or not confirmed stays, and so
    /// does what snapshots, branches and older versions need: others vouch only for the files as they are. `confirmed` is
    /// given what has to be known to those who confirm.
    pub fn collect_cached(
        &self,
        confirmed: &dyn Fn(&VersionVector) -> Confirmed,
        min_live_ratio: f64,
        progress: &dyn Fn(u64),
    ) -> Result<CollectReport> {
        let limit = self.settings.read().glyph_cache_bytes;
        let cached = limit.zip(self.layout()).map(|(limit_bytes, layout)| {
            let (key, copies) = (self.key.public(), self.settings.read().copies);
            let is_placed_here = move |id: &GlyphId| layout.is_holder(&key, id, copies);
            Cached {
                is_placed_here: Box::new(is_placed_here),
                limit_bytes,
                confirmed,
                pages: HashSet::new(),
                found: HashMap::new(),
            }
        });
        self.collect_but(cached, min_live_ratio, progress)
    }

    fn collect_but(
        &self,
        cached: Option<Cached<'_>>,
        min_live_ratio: f64,
        progress: &dyn Fn(u64),
    ) -> Result<CollectReport> {
        assert!(self.branch.is_none(), "the main line collects for all");
        if self.divergence().is_some() {
            return Err(VolumeError::NotPermitted("another machine has come to another state: see the log"));
        }
        let _housekeeping = self.housekeeping.lock();
        let stay = self.branches.stay();
        let slots: Vec<_> =
            self.branches()?.into_iter().map(|found| (self.branches.slot(found.1.number), found)).collect();
        let mut held = Vec::new();
        for (slot, (name, branch)) in &slots {
            // Nobody opens or closes it while its slot is held.
            let open = slot.lock();
            held.push((self.need_of(name, branch, &open)?, open));
        }
        let line = |held: &(Need, _)| if let Need::Line(line) = &held.0 { Some(line.clone()) } else { None };
        let branches: Vec<Arc<LocalVolume>> = held.iter().filter_map(line).collect();
        let lines: Vec<&LocalVolume> = std::iter::once(self).chain(branches.iter().map(|line| &**line)).collect();
        for line in &lines {
            // Copies of what is stored anyway go first: on a full disk they are what there is no room for.
            line.evict_all()?;
            line.purge_graves()?;
            line.forget_old_versions()?;
        }
        let mark = self.store.begin_mark(&[GlyphKind::Data, GlyphKind::Node]);
        // Whatever is begun from here on consists of what is marked and of what is new.
        drop(stay);
        let mut states = Vec::new();
        held.retain(|(need, _)| match need {
            Need::Line(_) => true,
            Need::Roots(roots) => {
                states.push(roots.clone());
                false
            }
        });
        let (mut unwritten, mut of_main) = (Vec::new(), Vec::new());
        for line in &lines {
            let (roots, checkpoints) = line.roots_in_use()?;
            if line.branch.is_none() { &mut of_main } else { &mut states }.extend(roots);
            unwritten.extend(checkpoints.map(|checkpoints| (line, checkpoints)));
        }
        let mut known = self.context();
        // After the states of the lines: a snapshot that is not there yet is one of a state that comes later.
        states.extend(self.roots_in_registry()?);
        // After the registry: whatever is in use was there when that began.
        states.extend(self.in_use.all());
        let mut marking =
            Marking { volume: self, mark, pages: HashSet::new(), live: 0, inodes: 0, cached: None, progress };
        if cached.is_some() {
            self.each_pinned(&mut |_, content| marking.keep_content(content))?;
        }
        for roots in &states {
            marking.keep_state(roots)?;
        }
        // Of what is met from here on, only what the files of now need may be given up.
        marking.cached = cached;
        for roots in &of_main {
            marking.keep_state(roots)?;
        }
        for (line, _) in &unwritten {
            let of_branch = line.branch.is_some().then(|| marking.cached.take()).flatten();
            line.each_row(Table::Inodes, &[], &mut |key, row| marking.keep_inode(key, row))?;
            line.each_row(Table::Local, &[], &mut |key, row| marking.keep_version(key, row))?;
            marking.cached = marking.cached.take().or(of_branch);
            known = self.context();
        }
        // What is in use stays, even if it was met before.
        let cached = marking.cached.take();
        for line in &lines {
            for content in line.contents_in_use() {
                marking.keep_content(&content)?;
            }
            // A crash must not bring back a version that was replaced while marking and so was not marked.
            line.commit_journal()?;
        }
        let (evicted_glyphs, evicted_bytes) = cached.map_or((0, 0), |cached| marking.evict(cached, &known));
        let live_glyphs = marking.live;
        let sweep = self.store.sweep(marking.mark, min_live_ratio);
        self.remote.whole.lock().clear();
        let sweep = sweep?;
        Ok(CollectReport { live_glyphs, evicted_glyphs, evicted_bytes, sweep })
    }

    /// Finds out what a branch needs whose slot is held. One that was not closed cleanly is recovered.
    fn need_of(&self, name: &str, branch: &Branch, open: &Option<Arc<LocalVolume>>) -> Result<Need> {
        if let Some(line) = open {
            return Ok(Need::Line(line.clone()));
        }
        if let Some(checkpoint) = self.closed_branch(name, branch)? {
            // Opening one takes room.
            if !self.has_room() || !self.has_graves_to_close(&checkpoint.roots)? {
                return Ok(Need::Roots(checkpoint.roots));
            }
        } else if !self.has_room() {
            self.ballast.release(&*self.disk);
        }
        let line = self.open_line_of(name, branch, &|_| {})?;
        if let Err(error) = line.purge_graves().and_then(|()| line.shut_down()) {
            // The disk may be full. It stays as a crash would leave it, and what it needs is asked of it.
            tracing::warn!(%error, branch = name, "a branch could not be closed cleanly");
            return Ok(Need::Line(Arc::new(line)));
        }
        let closed = self.closed_branch(name, branch)?;
        let closed = closed.ok_or_else(|| VolumeError::Internal(format!("the branch {name} does not stay closed")))?;
        Ok(Need::Roots(closed.roots))
    }

    /// Whether a closed branch has inodes without names that nobody else knows any more.
    fn has_graves_to_close(&self, roots: &Roots) -> Result<bool> {
        let branch = Frozen::new(self.nodes.clone(), roots.clone());
        let known = self.state.read().known();
        for (key, _) in branch.with_prefix(Table::Local, b"g")? {
            let dot = dot_of(&key)?;
            if !known.read().contains(dot) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The states that a line of changes needs. Where there is no room to write that of now, nobody else makes a
    /// checkpoint until the second of the results is dropped, and its rows have to be looked at one by one.
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
        // The tables are ahead of both copies if the last checkpoint failed at its end.
        let mut roots = vec![
            self.state.read().meta.roots().clone(),
            checkpoints.last.roots.clone(),
            checkpoints.previous_roots.clone(),
        ];
        roots.extend(checkpoints.merged.iter().map(|(_, roots)| roots.clone()));
        Ok((roots, (!is_written).then_some(checkpoints)))
    }

    /// What snapshots and branches began as.
    fn roots_in_registry(&self) -> Result<Vec<Roots>> {
        let state = self.state.read();
        let snapshots = state.snapshots()?.into_iter().map(|(_, snapshot)| snapshot.cut.roots);
        let bases = state.branches()?.into_iter().map(|(_, branch)| branch.base.roots);
        Ok(snapshots.chain(bases).collect())
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
            total += Stat::of(&row).version.map_or(0, |(_, version)| version.content.len_bytes());
            Ok(())
        })?;
        Ok(total)
    }
}

/// What a branch needs: what it has open, or only what its superblock says.
enum Need {
    Line(Arc<LocalVolume>),
    Roots(Roots),
}

struct Marking<'a> {
    volume: &'a LocalVolume,
    mark: Mark,
    /// The manifest pages seen so far. They are told apart from data, as a file may hold the very bytes of a page, and
    /// what a page lists must be kept all the same.
    pages: HashSet<GlyphId>,
    live: u64,
    inodes: u64,
    /// What may be given up is noted here instead of being marked.
    cached: Option<Cached<'a>>,
    progress: &'a dyn Fn(u64),
}

/// Contents that are here and not to be here, with the space that they take.
struct Cached<'a> {
    is_placed_here: Box<dyn Fn(&GlyphId) -> bool + 'a>,
    limit_bytes: u64,
    confirmed: &'a dyn Fn(&VersionVector) -> Confirmed,
    /// Which manifest pages were looked through for them.
    pages: HashSet<GlyphId>,
    found: HashMap<GlyphId, u32>,
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
        let Some(decoded) = history::decode_row(key, row) else { return Ok(()) };
        let (_, kept) = decoded?;
        let cached = self.cached.take();
        let outcome = self.keep_content(&kept.version.content);
        self.cached = cached;
        outcome
    }

    fn keep_content(&mut self, content: &Content) -> Result<()> {
        let Self { volume, mark, pages, live, cached, .. } = self;
        visit_glyphs(&*volume.store, content, &mut |part, id| {
            match cached {
                Some(cached) if part == Part::Data && !(cached.is_placed_here)(id) => {
                    let bytes = volume.store.stored_bytes(GlyphKind::Data, id);
                    cached.found.extend(bytes.map(|bytes| (*id, bytes)));
                }
                _ => *live += u64::from(mark.keep(GlyphKind::Data, id)),
            }
            let pages = cached.as_mut().map_or(&mut *pages, |cached| &mut cached.pages);
            part == Part::Page && pages.insert(*id)
        })?;
        Ok(())
    }

    /// Marks what stays of that, and says how many glyphs and bytes go.
    fn evict(&mut self, cached: Cached<'_>, known: &VersionVector) -> (u64, u64) {
        let confirmed = (cached.confirmed)(known);
        let mut uses = self.volume.remote.uses.lock();
        // What is a page of something else, pinned or in use is marked by now.
        let found = cached.found.into_iter().filter(|(id, _)| !self.mark.is_kept(GlyphKind::Data, id));
        let mut found: Vec<(u64, GlyphId, u32)> = found.map(|(id, bytes)| (uses.last(&id), id, bytes)).collect();
        found.sort_unstable();
        let mut total: u64 = found.iter().map(|(_, _, bytes)| u64::from(*bytes)).sum();
        let (mut glyphs, before) = (0, total);
        for (_, id, bytes) in found {
            if total > cached.limit_bytes && confirmed(&id) {
                total -= u64::from(bytes);
                glyphs += 1;
                uses.forget(&id);
            } else {
                self.live += u64::from(self.mark.keep(GlyphKind::Data, &id));
            }
        }
        (glyphs, before - total)
    }
}
