//! Merging: one line of changes, or a snapshot, learns all that another one knows.
//!
//! The states are joined; no operation is made of it, so merging the same again changes nothing, and two lines that have
//! merged each other are the same. Into a line it is one record in the journal, and atomic. Two snapshots make a third
//! one, with both as parents.
//!
//! What always holds:
//! - The other state is looked at before anything changes, and refused as a whole if it cannot have come about.
//! - Before a line can change what it learns, everybody else takes that for known elsewhere (`State::note_merged`).
//! - What the journal names is kept from collections until no start replays it (`Checkpoints::merged`).
//! - A file that somebody has open keeps the bytes that it was opened with until the last of its users closes it. What
//!   is written to it becomes a version beside the one that the merge brought.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::causal::VersionVector;
use crate::id::{AuthorId, GlyphId, InodeId, S8Id};
use crate::identity::Author;
use crate::merkle::{self, MapError, Node, NodeSource};
use crate::meta::{Frozen, Roots, TableId};
use crate::namespace::Table;
use crate::namespace::events::Event;
use crate::namespace::row::Closure;
use crate::namespace::suspect::{self, Suspect};
use crate::namespace::tables::{Rows, Tables};
use crate::namespace::union;
use crate::namespace::view::Stat;
use crate::registry::{Cut, Key, NamedSnapshot, check_name};
use crate::snapshot::changes::{Change, changes};
use crate::snapshot::record::roots_of_state;
use crate::store::{GlyphKind, GlyphSink, StoreError};
use crate::volume::VolumeError;

use super::branches::BranchError;
use super::bulk::Changes;
use super::conflicts::Found as FoundConflict;
use super::join::{Joined, Merge, Told, differing, events_of, joined};
use super::lost::path_in;
use super::snapshots::{SnapshotError, check_free, parents_key};
use super::state::State;
use super::{LocalVolume, TABLES};

/// How often a file is published that loses its last name in the merge while somebody writes to it.
const PUBLISH_TRIES: usize = 3;

#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error("it is refused, and nothing has changed: {0}")]
    Suspect(#[from] Suspect),
    #[error("it is a snapshot of another volume, {}", hex(.0))]
    OtherVolume([u8; 16]),
    /// Whoever made it is a copy of this store that went on by itself, or lies.
    #[error("it has {claimed} operations of author {author}, who has made {made}")]
    AheadOfAuthor { author: AuthorId, claimed: u64, made: u64 },
    #[error("somebody is writing to a file that the merge removes: {}", .0.escape_ascii())]
    BeingWritten(Vec<u8>),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Branch(#[from] BranchError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl From<StoreError> for MergeError {
    fn from(error: StoreError) -> Self {
        Self::Volume(error.into())
    }
}

pub type Result<T> = std::result::Result<T, MergeError>;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is merged, or merged into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side {
    /// The main line.
    Live,
    Branch(String),
    Snapshot(String),
}

#[derive(Clone, Debug, Default)]
pub struct MergeOptions {
    /// Only tell what would change.
    pub dry_run: bool,
    /// Even if it is of another volume.
    pub unrelated: bool,
    /// The name of the snapshot that is made of two.
    pub name: Option<String>,
}

/// What a merge did, or would do.
#[derive(Clone, Debug, Default)]
pub struct Merged {
    /// Operations that the target did not know; 0 if there was nothing to do.
    pub operations: u64,
    /// Names that mean something else now, and inodes that look different.
    pub names: u64,
    pub inodes: u64,
    /// What would change, if it was only to be told.
    pub changes: Vec<Change>,
    /// What both sides had changed, and which rule said what comes of it.
    pub events: Vec<Event>,
    /// What is disputed afterwards at the names that the events are about.
    pub conflicts: Vec<FoundConflict>,
    /// The snapshot that was made.
    pub snapshot: Option<String>,
}

/// The state that is merged.
pub(super) struct Source {
    pub cut: Cut,
    pub authors: Vec<Author>,
    /// Of a snapshot that is counted and signed.
    pub id: Option<S8Id>,
    /// Keeps it from collections.
    pub _kept: Arc<Roots>,
}

impl LocalVolume {
    /// Merges one side into another one.
    pub fn merge(&self, source: &Side, target: &Side, options: &MergeOptions) -> Result<Merged> {
        assert!(self.branch.is_none(), "the main line merges for all");
        // No collection may take what is compared, and there is no other merge.
        let _housekeeping = self.housekeeping.lock();
        if source == target {
            return Ok(Merged::default());
        }
        let is_named = |side: &Side| matches!(side, Side::Snapshot(_));
        if is_named(target) && !is_named(source) && !options.dry_run {
            // A parent has a name, if only for so long.
            let name = self.snapshot_of_source(source)?;
            let merged = self.merge_held(&Side::Snapshot(name.clone()), target, options);
            return self.delete_snapshots(&[name]).map_err(MergeError::from).and(merged);
        }
        self.merge_held(source, target, options)
    }

    fn snapshot_of_source(&self, source: &Side) -> Result<String> {
        let millis = self.env.now().millis();
        for n in 0.. {
            let name = format!("merging-{}", millis + n);
            let taken = match source {
                Side::Branch(branch) => self.snapshot_branch(branch, &name, Vec::new()).map(drop),
                _ => self.create_snapshot(&name, Vec::new(), false).map(drop).map_err(BranchError::from),
            };
            match taken {
                Err(BranchError::Snapshot(SnapshotError::Exists(_))) => {}
                other => return Ok(other.map(|()| name)?),
            }
        }
        unreachable!("the numbers do not end")
    }

    fn merge_held(&self, source: &Side, target: &Side, options: &MergeOptions) -> Result<Merged> {
        let source = self.source_of(source, options)?;
        self.check_authors(&source.cut.context)?;
        self.commit_journal()?;
        match target {
            Side::Live => self.merge_into_line(self, &source, options),
            Side::Branch(name) => self.in_branch(name, |line| self.merge_into_line(line, &source, options)),
            Side::Snapshot(name) => self.merge_snapshots(name, &source, options),
        }
    }

    /// Merges a state from elsewhere into the main line.
    pub(super) fn merge_source(&self, source: &Source, options: &MergeOptions) -> Result<Merged> {
        let _housekeeping = self.housekeeping.lock();
        self.change_author_if_behind(&mut self.state.write(), &source.cut.context)?;
        self.check_authors(&source.cut.context)?;
        self.state.write().note_merged(&source.cut.context, self.env.now(), &self.journal)?;
        self.commit_journal()?;
        self.merge_into_line(self, source, options)
    }

    fn in_branch<T>(&self, name: &str, act: impl FnOnce(&LocalVolume) -> Result<T>) -> Result<T> {
        let slot = self.branches.slot(self.find_branch(name)?.number);
        let open = slot.lock();
        let branch = self.find_branch(name)?;
        let mut outcome = None;
        self.with_branch(name, &branch, &open, |line| {
            outcome = Some(act(line));
            Ok(())
        })?;
        outcome.unwrap_or_else(|| Err(VolumeError::Internal("a branch was not looked at".into()).into()))
    }

    fn source_of(&self, side: &Side, options: &MergeOptions) -> Result<Source> {
        match side {
            Side::Live => self.line_as_source(self),
            Side::Branch(name) => self.in_branch(name, |line| self.line_as_source(line)),
            Side::Snapshot(name) => self.snapshot_as_source(name, options),
        }
    }

    /// The state of a line as it is now, which others are about to learn.
    pub(super) fn line_as_source(&self, line: &LocalVolume) -> Result<Source> {
        line.publish_closed()?;
        let mut checkpoints = line.checkpoint.lock();
        line.state.write().is_being_cut = true;
        let cut = line.cut(&mut checkpoints).map_err(MergeError::from).and_then(|cut| {
            self.state.write().note_merged(&cut.context, self.env.now(), &self.journal)?;
            Ok(cut)
        });
        line.state.write().is_being_cut = false;
        let cut = cut?;
        let authors = line.authors_in(&cut)?;
        let _kept = self.in_use.keep(&cut.roots);
        Ok(Source { cut, authors, id: None, _kept })
    }

    fn snapshot_as_source(&self, name: &str, options: &MergeOptions) -> Result<Source> {
        let (name, sealed, _kept) = self.sealed_snapshot(name)?;
        let record = &sealed.record;
        {
            let mut state = self.state.write();
            if record.volume != self.volume_id(&state)? && !options.unrelated {
                return Err(MergeError::OtherVolume(record.volume));
            }
            state.note_merged(&record.context, self.env.now(), &self.journal)?;
        }
        // It was known for as long as it had its name.
        self.find_snapshot(&name)?;
        let cut = record.cut();
        Ok(Source { cut, authors: record.authors.clone(), id: Some(sealed.id()), _kept })
    }

    /// Nobody knows more of what the authors do who are at work in this store.
    fn check_authors(&self, theirs: &VersionVector) -> Result<()> {
        let check = |author: AuthorId, context: &VersionVector| {
            let (claimed, made) = (theirs.get(author), context.get(author));
            if claimed > made { Err(MergeError::AheadOfAuthor { author, claimed, made }) } else { Ok(()) }
        };
        let at_work = |line: &LocalVolume| {
            let state = line.state.read();
            check(state.author_id(), &state.context)
        };
        at_work(self)?;
        for (name, branch) in self.branches()? {
            let slot = self.branches.slot(branch.number);
            let open = slot.lock();
            match &*open {
                Some(line) => at_work(line)?,
                // One that was not closed cleanly will go on as another author.
                None => {
                    if let Some(closed) = self.closed_branch(&name, &branch)? {
                        check(closed.author.id(), &closed.context)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn merge_into_line(&self, line: &LocalVolume, source: &Source, options: &MergeOptions) -> Result<Merged> {
        line.publish_closed()?;
        for _ in 0..PUBLISH_TRIES {
            match self.try_merge_into_line(line, source, options) {
                // What was written becomes a version, which keeps the name.
                Err(MergeError::BeingWritten(_)) => line.publish_all()?,
                other => return other,
            }
        }
        self.try_merge_into_line(line, source, options)
    }

    fn try_merge_into_line(&self, line: &LocalVolume, source: &Source, options: &MergeOptions) -> Result<Merged> {
        let theirs = self.frozen(&source.cut);
        let mut checkpoints = line.checkpoint.lock();
        if options.dry_run {
            let cut = line.cut(&mut checkpoints)?;
            drop(checkpoints);
            return self.tell_merge(&cut, source);
        }
        line.finish_cut(&mut checkpoints)?;
        let _hold = line.store.hold();
        // The long part without a lock: nobody else makes a checkpoint.
        let roots = line.state.read().meta.roots().clone();
        let mut rows = differing(&roots, &theirs)?;
        line.check_room_for(rows.len() as u64)?;
        let _showing = line.showing.read();
        let (told, merged) = {
            let mut state = line.state.write();
            let context = &source.cut.context;
            state.add_changed(&mut rows, &theirs, context)?;
            if state.context == *context {
                suspect::check_same(&*state, &rows)?;
            }
            let operations = context.count_missing_from(&state.context);
            if operations == 0 {
                return Ok(Merged::default());
            }
            if context.get(state.author_id()) > state.context.get(state.author_id()) {
                let (author, made) = (state.author_id(), state.context.get(state.author_id()));
                return Err(MergeError::AheadOfAuthor { author, claimed: context.get(author), made });
            }
            let theirs = Cut { time: line.env.now(), ..source.cut.clone() };
            let merge = Merge { theirs, authors: source.authors.clone(), retention: line.retention() };
            let joined = state.rehearse_merge(&merge, &rows, false)?;
            let told = line.take_in(&mut state, joined, |state, joined| {
                let lsn = state.commit_merge(&merge, joined, &line.journal);
                checkpoints.merged.push((lsn, source.cut.roots.clone()));
            })?;
            let merged = Merged {
                operations,
                names: told.names.len() as u64,
                inodes: told.inodes.len() as u64,
                conflicts: disputed(&*state, &told.events)?,
                events: told.events.clone(),
                ..Merged::default()
            };
            (told, merged)
        };
        drop(checkpoints);
        line.commit_journal()?;
        line.show(&told)?;
        Ok(merged)
    }

    /// Carries out what was rehearsed, with an eye on the files that are open.
    pub(super) fn take_in(
        &self,
        state: &mut State,
        joined: Joined,
        commit: impl FnOnce(&mut State, Joined),
    ) -> Result<Told> {
        self.check_not_written(state, &joined.told)?;
        let pinned = self.pinned(state, &joined.told)?;
        for id in &joined.told.contents {
            if state.inode(*id)?.is_some() {
                self.misjudge(*id);
            }
        }
        let told = joined.told.clone();
        commit(state, joined);
        self.pin(state, pinned)?;
        Ok(told)
    }

    /// From here on everybody sees it.
    pub(super) fn show(&self, told: &Told) -> Result<()> {
        for id in told.contents.iter().chain(&told.nameless) {
            self.evict(*id)?;
        }
        self.tell_kernel(told)?;
        if let Some(kernel) = self.kernel() {
            kernel.settle();
        }
        self.still_misjudged();
        Ok(())
    }

    /// What would change.
    fn tell_merge(&self, target: &Cut, source: &Source) -> Result<Merged> {
        let operations = source.cut.context.count_missing_from(&target.context);
        if operations == 0 {
            return Ok(Merged::default());
        }
        let mine = self.frozen(target);
        let made = Arc::new(NodesInMemory { made: Mutex::default(), under: self.nodes.clone() });
        let (roots, events) = self.join_frozen(&mine, target, source, &mut |plain| Ok(made.add(plain)))?;
        let joined = Frozen::new(made, roots);
        let changes = changes(&mine, &joined)?;
        Ok(Merged { operations, changes, conflicts: disputed(&joined, &events)?, events, ..Merged::default() })
    }

    /// Joins two states that never change. Says the roots of the result, whose new nodes go to `sink`.
    fn join_frozen(
        &self,
        mine: &Frozen,
        target: &Cut,
        source: &Source,
        sink: &mut dyn FnMut(&[u8]) -> std::result::Result<GlyphId, StoreError>,
    ) -> Result<(Roots, Vec<Event>)> {
        let rows = differing(&target.roots, &self.frozen(&source.cut))?;
        let joined = joined(mine, &target.context, &source.cut, &rows)?;
        let events = events_of(&joined, &target.context, &source.cut.context, &rows)?;
        Ok((write_changes(mine, joined.into_changes(), sink)?, events))
    }

    /// What merges came across, the latest last: when, and what.
    pub fn events(&self) -> std::result::Result<Vec<(u64, Event)>, VolumeError> {
        Ok(self.state.read().noted_events()?)
    }

    fn merge_snapshots(&self, target: &str, source: &Source, options: &MergeOptions) -> Result<Merged> {
        let (target_name, sealed, _kept) = self.sealed_snapshot(target)?;
        let target = sealed.record.cut();
        if options.dry_run {
            return self.tell_merge(&target, source);
        }
        let operations = source.cut.context.count_missing_from(&target.context);
        if operations == 0 {
            return Ok(Merged::default());
        }
        let name = options.name.clone().unwrap_or_else(|| format!("{target_name}-merged"));
        check_name(&name).map_err(|why| SnapshotError::BadName(name.clone(), why))?;
        check_free(&self.state.read(), &name)?;
        let parent =
            source.id.ok_or_else(|| VolumeError::Internal("a snapshot is merged with an unnamed state".into()))?;
        let _hold = self.store.hold();
        let mine = self.frozen(&target);
        let (roots, events) =
            self.join_frozen(&mine, &target, source, &mut |plain| self.store.write(GlyphKind::Node, plain))?;
        let conflicts = disputed(&self.frozen(&Cut { roots: roots.clone(), ..target.clone() }), &events)?;
        let mut context = target.context.clone();
        context.join(&source.cut.context);
        let cut =
            Cut { roots: roots_of_state(&roots), context, hlc: target.hlc.max(source.cut.hlc), time: self.env.now() };
        let snapshot = NamedSnapshot { cut, id: None, scheduled: false, labels: Vec::new() };
        {
            let mut state = self.state.write();
            check_free(&state, &name)?;
            let mut draft = state.draft(self.env.now());
            draft.local = state.meet(&source.authors);
            draft.local.push((parents_key(&name), Some([sealed.id().0, parent.0].concat())));
            draft.registry.push((Key::Snapshot(name.clone()), Some(snapshot.encode())));
            state.commit(draft, &self.journal)?;
        }
        self.commit_journal()?;
        self.seal_snapshots()?;
        self.snapshots_changed();
        Ok(Merged { operations, snapshot: Some(name), events, conflicts, ..Merged::default() })
    }

    /// Publishes all that was written, however long it is and whoever writes on.
    pub fn publish_all(&self) -> Result<()> {
        for cell in self.cells() {
            let closure = if cell.has_writers() { Closure::IdleFlush } else { Closure::Close };
            match self.publish(&cell, closure) {
                Ok(_) | Err(VolumeError::LostWrite) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Bytes that nobody could ever get at again must not be dropped without a word.
    fn check_not_written(&self, state: &State, told: &Told) -> Result<()> {
        for id in told.nameless.iter().copied().filter(|id| self.is_written(*id)) {
            // One that had no name before was unlinked by whoever writes to it.
            let Some(row) = state.inode(id)? else { continue };
            if crate::namespace::view::nlink(state, id, row.kind())? > 0 {
                return Err(MergeError::BeingWritten(path_in(state, id)?));
            }
        }
        Ok(())
    }

    fn tell_kernel(&self, told: &Told) -> Result<()> {
        if let Some(kernel) = self.kernel() {
            let state = self.state.read();
            for (dir, name) in &told.names {
                for member in union::members(&*state, *dir)? {
                    kernel.entry(state.ino(member.inode()), name);
                }
            }
            for id in told.inodes.iter().chain(&told.nameless) {
                kernel.inode(state.ino(*id), false);
            }
        }
        // Of those that are open the kernel hears when they are closed.
        let closed = told.contents.iter().filter(|id| !self.is_open(**id));
        closed.into_iter().try_for_each(|id| Ok(self.forget_in_kernel(&self.state.read(), *id)?))
    }

    /// The files that are loaded and have another version afterwards, or none, with what they look like until then.
    fn pinned(&self, state: &State, told: &Told) -> Result<Vec<(InodeId, Stat, crate::volume::Attr)>> {
        let mut pinned = Vec::new();
        for id in told.contents.iter().copied().filter(|id| self.is_loaded(*id)) {
            let Some(row) = state.inode(id)? else { continue };
            pinned.push((id, Stat::of(&row), self.attr_of(state, state, id, &row, 0)?));
        }
        Ok(pinned)
    }

    fn pin(&self, state: &State, pinned: Vec<(InodeId, Stat, crate::volume::Attr)>) -> Result<()> {
        for (id, stat, attr) in pinned {
            self.outdate(id, &stat);
            if state.inode(id)?.is_none() {
                self.departed.lock().insert(id, attr);
            }
        }
        Ok(())
    }
}

/// What there is to decide about where something happened.
fn disputed<T: Tables + ?Sized>(tables: &T, events: &[Event]) -> Result<Vec<FoundConflict>> {
    let mut found = Vec::new();
    for event in events.iter().filter(|event| event.is_dispute()) {
        found.extend(super::conflicts::found_at(tables, &event.path)?);
    }
    Ok(found)
}

/// Makes the maps of a state with these changes.
fn write_changes(
    mine: &Frozen,
    mut changes: BTreeMap<Table, Changes>,
    sink: &mut dyn FnMut(&[u8]) -> std::result::Result<GlyphId, StoreError>,
) -> std::result::Result<Roots, StoreError> {
    let mut roots = mine.roots().clone();
    for spec in &TABLES {
        let table = changes.keys().copied().find(|table| TableId(*table as u8) == spec.id);
        let Some(rows) = table.and_then(|table| changes.remove(&table)) else { continue };
        let rows = rows.into_iter().map(|(key, value)| (Bytes::copy_from_slice(&key), value));
        let root = merkle::apply(mine.source(), &mut |node, _| sink(node), spec.shape, &roots.get(spec.id), rows)?;
        roots.set(spec.id, root);
    }
    Ok(roots)
}

/// Nodes that are only looked at.
struct NodesInMemory {
    made: Mutex<HashMap<GlyphId, Bytes>>,
    under: Arc<dyn NodeSource>,
}

impl NodesInMemory {
    fn add(&self, plain: &[u8]) -> GlyphId {
        let id = GlyphId::of(plain);
        self.made.lock().insert(id, Bytes::copy_from_slice(plain));
        id
    }
}

impl NodeSource for NodesInMemory {
    fn node(&self, id: &GlyphId) -> std::result::Result<Node, MapError> {
        let made = self.made.lock().get(id).cloned();
        made.map_or_else(|| self.under.node(id), |plain| Node::decode(id, plain))
    }
}
