//! Named snapshots of a volume: taken, listed, sealed, deleted.
//!
//! Taking one publishes the closed files, makes a checkpoint and enters its roots into the registry under a name. It is
//! durable then; the record with the eight fields is counted and signed afterwards, by `seal_snapshots`, in the order in
//! which the snapshots were taken.
//!
//! One of a branch is cut from the branch and entered into the registry of the main line. Its parent is the one of the
//! same line before it; the first of a branch has the snapshot for parent that the branch began as.
//!
//! What always holds: from before the state is cut until the entry is in the journal nobody makes a checkpoint of that
//! line. A collection makes one of each line, and reads the registry afterwards, so it finds the roots either there or
//! still current. And what happens in the line meanwhile takes everything for known to others.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::codec::Reader;
use crate::id::S8Id;
use crate::identity::Author;
use crate::meta::{Frozen, Roots, TableId};
use crate::namespace::row::Closure;
use crate::namespace::tables::{DERIVED, REPLICATED, malformed};
use crate::namespace::{Table, Tables};
use crate::registry::{Cut, Key, NamedSnapshot, check_name};
use crate::snapshot::facts;
use crate::snapshot::keep::Candidate;
use crate::snapshot::record::{authors_of, roots_of_state};
use crate::snapshot::{Coherence, DeltaPhi, Record, SealedRecord, Theta};
use crate::store::{GlyphStore, StoreError};
use crate::time::Timestamp;
use crate::volume::VolumeError;

use super::LocalVolume;
use super::publication::Publication;
use super::state::{State, decode_snapshots, local_key};
use super::upkeep::{FrozenState, PendingCut};

/// A file that somebody stores to through a mapping may change again and again; then its last version counts.
const PUBLISH_TRIES: usize = 3;
/// Up to this length a file is published at once even if it is open for writing.
const SHORT_BYTES_MAX: u64 = 4 << 20;
/// How often, and how long each time, one snapshot waits for long files to be released.
const RELEASE_LOOKS_MAX: u32 = 100;
const RELEASE_LOOK: Duration = Duration::from_millis(2);

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("{0:?} is no name for this: {1}")]
    BadName(String, &'static str),
    #[error("there is a snapshot {0:?} already")]
    Exists(String),
    #[error("there is no snapshot {0:?}")]
    NotFound(String),
    #[error("{0:?} is not in the snapshot")]
    NoPath(String),
    #[error("the restore stopped half-way: {source}")]
    Halfway { before: String, source: Box<SnapshotError> },
    #[error("{0:?} is the beginning of several ids of snapshots")]
    Ambiguous(String),
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl From<StoreError> for SnapshotError {
    fn from(error: StoreError) -> Self {
        Self::Volume(error.into())
    }
}

pub type Result<T> = std::result::Result<T, SnapshotError>;

impl LocalVolume {
    /// Takes a snapshot of everything that is done by now. It is durable when this returns.
    pub fn create_snapshot(&self, name: &str, labels: Vec<String>, scheduled: bool) -> Result<NamedSnapshot> {
        self.take_snapshot(name, labels, scheduled)?;
        Ok(self.find_snapshot(name)?.1)
    }

    /// The same, without waiting for its maps to be made: the journal has all that they are made of, and is durable. Whoever
    /// looks at a snapshot waits for them, or makes them.
    pub fn take_snapshot(&self, name: &str, labels: Vec<String>, scheduled: bool) -> Result<Timestamp> {
        check_name(name).map_err(|why| SnapshotError::BadName(name.into(), why))?;
        check_free(&self.state.read(), name)?;
        self.hurry(|| self.publish_closed())?;
        let time = {
            let mut checkpoints = self.checkpoint.lock();
            self.finish_cut(&mut checkpoints)?;
            let is_unchanged = self.is_as_in(&checkpoints.last.roots);
            let mut state = self.state.write();
            check_free(&state, name)?;
            let time = self.env.now();
            let mut draft = state.draft(time);
            let last = &checkpoints.last;
            let (cut, frozen) = if is_unchanged && state.context == last.context {
                let roots = roots_of_state(&last.roots);
                checkpoints.kept = roots.clone();
                let last = &checkpoints.last;
                (Cut { roots, context: last.context.clone(), hlc: last.hlc, time }, None)
            } else {
                let frozen = self.freeze(&mut state, false);
                let FrozenState { next, .. } = &frozen;
                let cut = Cut { roots: Roots::default(), context: next.context.clone(), hlc: next.hlc, time };
                (cut, Some(frozen))
            };
            let snapshot = NamedSnapshot { cut, id: None, scheduled, labels };
            draft.registry.push((Key::Snapshot(name.into()), Some(snapshot.encode())));
            if let Err(error) = state.commit(draft, &self.journal) {
                state.meta.abandon();
                return Err(error.into());
            }
            self.cut_pending.store(frozen.is_some(), Ordering::Release);
            checkpoints.pending = frozen.map(|frozen| PendingCut { name: name.into(), frozen });
            time
        };
        self.commit_journal()?;
        self.snapshots_changed();
        Ok(time)
    }

    /// Takes a snapshot of the line of changes that is the branch with this number.
    pub(super) fn snapshot_line(
        &self,
        line: &LocalVolume,
        branch: u32,
        name: &str,
        labels: Vec<String>,
    ) -> Result<NamedSnapshot> {
        check_name(name).map_err(|why| SnapshotError::BadName(name.into(), why))?;
        check_free(&self.state.read(), name)?;
        line.hurry(|| line.publish_closed())?;
        let taken = {
            let mut checkpoints = line.checkpoint.lock();
            line.state.write().is_being_cut = true;
            let cut = line.cut(&mut checkpoints);
            let taken = cut.and_then(|cut| {
                let snapshot = NamedSnapshot { cut, id: None, scheduled: false, labels };
                self.register_snapshot(line, branch, name, &snapshot)?;
                Ok(snapshot)
            });
            line.state.write().is_being_cut = false;
            taken?
        };
        self.commit_journal()?;
        self.snapshots_changed();
        Ok(taken)
    }

    fn register_snapshot(&self, line: &LocalVolume, branch: u32, name: &str, snapshot: &NamedSnapshot) -> Result<()> {
        let authors = line.authors_in(&snapshot.cut)?;
        let mut state = self.state.write();
        check_free(&state, name)?;
        let mut draft = state.draft(self.env.now());
        draft.local = state.meet(&authors);
        draft.local.push((line_key(name), Some(branch.to_be_bytes().to_vec())));
        draft.registry.push((Key::Snapshot(name.into()), Some(snapshot.encode())));
        state.commit(draft, &self.journal)?;
        Ok(())
    }

    /// Everybody who made something that is in it.
    pub(super) fn authors_in(&self, cut: &Cut) -> Result<Vec<Author>> {
        let state = self.state.read();
        let authors = authors_of(&cut.context, |id| state.author_of(id));
        Ok(authors.map_err(|id| VolumeError::Internal(format!("nobody knows who author {id} is")))?)
    }

    /// Takes the snapshot that the schedule wants, unless nothing has changed since the latest one; then forgets those
    /// of the schedule that the rules do not keep. Says for how long it need not be asked again, if there is a schedule.
    pub fn snapshot_by_schedule(&self, name: impl FnOnce(u64) -> String) -> Result<Option<Duration>> {
        let settings = self.settings();
        let Some(every) = settings.snapshot_every else { return Ok(None) };
        let every = u64::try_from(every.as_millis()).unwrap_or(u64::MAX);
        let now = self.env.now().millis();
        let snapshots = self.snapshots()?;
        let last = snapshots.iter().filter(|(_, snapshot)| snapshot.scheduled).map(|(_, s)| s.cut.time.millis()).max();
        let due = last.map_or(now, |last| last.saturating_add(every));
        // A clock that went back is no reason to wait for long.
        if now < due && due - now <= every {
            return Ok(Some(Duration::from_millis(due - now)));
        }
        if snapshots.last().is_some_and(|(_, latest)| self.is_as_in(&latest.cut.roots)) {
            return Ok(Some(Duration::from_millis(every)));
        }
        self.create_snapshot(&name(now), Vec::new(), true)?;
        if !settings.snapshot_keep.is_empty() {
            let scheduled: Vec<_> = self.snapshots()?.into_iter().filter(|(_, snapshot)| snapshot.scheduled).collect();
            let reasons = settings.snapshot_keep.reasons(&candidates(&scheduled));
            let gone = scheduled.iter().zip(reasons).filter(|(_, reasons)| reasons.is_empty());
            let gone: Vec<String> = gone.map(|((name, _), _)| name.clone()).collect();
            if !gone.is_empty() {
                self.delete_snapshots(&gone)?;
            }
        }
        Ok(Some(Duration::from_millis(every)))
    }

    /// Publishes what was written to files that nobody has open any more, and what can be read of the others.
    ///
    /// close(2) returns before the kernel tells of it. So a short file is published whether it seems open or not, and a
    /// long one, which would take a while, gets a moment to be released; if somebody really goes on writing to it, its
    /// last version counts.
    pub fn publish_closed(&self) -> Result<()> {
        let mut patience = RELEASE_LOOKS_MAX;
        for cell in self.cells() {
            let takes_a_while = || cell.has_writers() && cell.staged_bytes() > SHORT_BYTES_MAX;
            while takes_a_while() && patience > 0 {
                std::thread::sleep(RELEASE_LOOK);
                patience -= 1;
            }
            if takes_a_while() {
                continue;
            }
            let closure = if cell.has_writers() { Closure::IdleFlush } else { Closure::Close };
            for _ in 0..PUBLISH_TRIES {
                match self.publish(&cell, closure) {
                    Ok(Publication::Changing) => {}
                    // Its writer is told by fsync and close.
                    Ok(_) | Err(VolumeError::LostWrite) => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// The state of now, durable in the store.
    pub(super) fn cut(&self, checkpoints: &mut super::upkeep::Checkpoints) -> Result<Cut> {
        if !self.is_as_in(&checkpoints.last.roots) {
            self.make_checkpoint_after(checkpoints, false)?;
        }
        let last = &checkpoints.last;
        let roots = roots_of_state(&last.roots);
        checkpoints.kept = roots.clone();
        let last = &checkpoints.last;
        Ok(Cut { roots, context: last.context.clone(), hlc: last.hlc, time: self.env.now() })
    }

    /// Whether nothing that a snapshot holds has changed since a checkpoint.
    fn is_as_in(&self, roots: &Roots) -> bool {
        let state = self.state.read();
        REPLICATED.into_iter().chain(DERIVED).all(|table| {
            let id = TableId(table as u8);
            !state.meta.is_changed(id) && state.meta.roots().get(id) == roots.get(id)
        })
    }

    /// All named snapshots, in the order in which they were taken.
    pub fn snapshots(&self) -> Result<Vec<(String, NamedSnapshot)>> {
        self.settle_cuts()?;
        // Decoding very many takes longer than anybody should wait for the lock.
        let written = self.registry.read().written_snapshots()?;
        let mut snapshots = decode_snapshots(written)?;
        snapshots.sort_by_key(|(_, snapshot)| snapshot.cut.hlc);
        Ok(snapshots)
    }

    /// The snapshot of this name, or the one whose id begins so.
    pub fn find_snapshot(&self, name: &str) -> Result<(String, NamedSnapshot)> {
        /// Shorter beginnings are more likely mistyped names.
        const PREFIX_MIN: usize = 6;
        self.settle_cuts()?;
        let state = self.registry.read();
        if let Some(snapshot) = state.snapshot(name)? {
            return Ok((name.into(), snapshot));
        }
        let mut found = state.snapshots()?;
        found.retain(|(_, snapshot)| snapshot.id.is_some_and(|id| id.to_string().starts_with(name)));
        match found.len() {
            1 if name.len() >= PREFIX_MIN => Ok(found.remove(0)),
            2.. if name.len() >= PREFIX_MIN => Err(SnapshotError::Ambiguous(name.into())),
            _ => Err(SnapshotError::NotFound(name.into())),
        }
    }

    /// Forgets these names, all or none. What only they hold goes with the next collection.
    pub fn delete_snapshots(&self, names: &[String]) -> Result<()> {
        {
            let mut checkpoints = self.checkpoint.lock();
            if let Err(error) = self.finish_cut(&mut checkpoints) {
                // On a full disk it may be the one that is to go.
                let is_named = |pending: &PendingCut| names.contains(&pending.name);
                if checkpoints.pending.take_if(|pending| is_named(pending)).is_none() {
                    return Err(error.into());
                }
                self.cut_pending.store(false, Ordering::Release);
                self.state.write().meta.abandon();
            }
            let mut state = self.state.write();
            let mut draft = state.draft(self.env.now());
            for name in names {
                let snapshot = state.snapshot(name)?.ok_or_else(|| SnapshotError::NotFound(name.clone()))?;
                draft.registry.push((Key::Snapshot(name.clone()), None));
                draft.registry.extend(snapshot.id.map(|id| (Key::Record(id), None)));
                draft.local.push((line_key(name), None));
                draft.local.push((parents_key(name), None));
            }
            state.commit(draft, &self.journal)?;
        }
        self.commit_journal()?;
        self.snapshots_changed();
        Ok(())
    }

    /// The tables of a snapshot.
    pub fn frozen(&self, cut: &Cut) -> Frozen {
        Frozen::new(self.nodes.clone(), cut.roots.clone())
    }

    /// Where the bytes are that the tables name.
    pub fn glyphs(&self) -> &GlyphStore {
        &self.store
    }

    pub fn sealed_record(&self, id: S8Id) -> Result<Option<SealedRecord>> {
        let Some(bytes) = self.registry.read().entry(&Key::Record(id))? else { return Ok(None) };
        let sealed = SealedRecord::decode(&bytes).map_err(|error| VolumeError::Internal(error.to_string()))?;
        Ok(Some(sealed))
    }

    /// Seals snapshots as they are taken, until the volume stops.
    pub fn run_sealer(&self) {
        let stopping = || self.stopping.load(Ordering::Acquire);
        loop {
            {
                let mut wanted = self.seal_wanted.lock();
                while !*wanted && !stopping() {
                    self.seal_asked.wait(&mut wanted);
                }
                if stopping() {
                    return;
                }
                *wanted = false;
            }
            if let Err(error) = self.seal_snapshots() {
                tracing::error!(%error, "a snapshot could not be sealed; it is kept, and tried again with the next one");
            }
        }
    }

    /// Counts and signs the snapshots that are not sealed yet, the oldest first.
    pub fn seal_snapshots(&self) -> Result<()> {
        let _one_at_a_time = self.sealing_snapshots.lock();
        loop {
            let unsealed = self.snapshots()?.into_iter().find(|(_, snapshot)| snapshot.id.is_none());
            let Some((name, snapshot)) = unsealed else { return Ok(()) };
            self.seal_snapshot(&name, snapshot)?;
        }
    }

    fn seal_snapshot(&self, name: &str, mut snapshot: NamedSnapshot) -> Result<()> {
        let authors = self.authors_in(&snapshot.cut)?;
        let (head_key, parents) = {
            let state = self.state.read();
            // What was merged is no step of any line.
            let (head_key, parents) = match merged_parents(&state, name)? {
                Some(parents) => (None, parents),
                None => {
                    let branch = branch_of(&state, name)?;
                    let parent = match (head(&state, branch)?, branch) {
                        (None, Some(number)) => base_of(&state, number)?,
                        (head, _) => head,
                    };
                    (Some(head_key(branch)), parent.into_iter().collect())
                }
            };
            (head_key, parents)
        };
        let parent = parents.first().map(|parent| self.sealed_record(*parent)).transpose()?.flatten();
        let before = parent.as_ref().map(|sealed| &sealed.record);
        let sealed = self.seal_state(&snapshot.cut, authors, parents, before, name)?;
        let id = sealed.id();
        let mut state = self.state.write();
        // Deleted, or made anew under the same name, in the meantime.
        if state.snapshot(name)?.is_none_or(|now| now != snapshot) {
            return Ok(());
        }
        snapshot.id = Some(id);
        let mut draft = state.draft(self.env.now());
        draft.registry.push((Key::Record(id), Some(sealed.encode())));
        draft.registry.push((Key::Snapshot(name.into()), Some(snapshot.encode())));
        draft.local.extend(head_key.map(|key| (key, Some(id.0.to_vec()))));
        draft.local.push((line_key(name), None));
        draft.local.push((parents_key(name), None));
        state.commit(draft, &self.journal)?;
        Ok(())
    }

    /// Counts and signs a state, along what changed since `before` if there is such a record.
    pub(super) fn seal_state(
        &self,
        cut: &Cut,
        authors: Vec<Author>,
        mut parents: Vec<S8Id>,
        before: Option<&Record>,
        label: &str,
    ) -> Result<SealedRecord> {
        let facts = match before {
            Some(record) => {
                let frozen = Frozen::new(self.nodes.clone(), record.roots.clone());
                facts::count(&*self.store, Some((&frozen, &record.facts())), &self.frozen(cut))?
            }
            None => facts::count(&*self.store, None, &self.frozen(cut))?,
        };
        let (volume, author) = {
            let state = self.state.read();
            (self.volume_id(&state)?, state.author)
        };
        parents.sort_unstable();
        let record = Record {
            volume,
            roots: cut.roots.clone(),
            parents,
            context: cut.context.clone(),
            authors,
            theta: Theta { hlc: cut.hlc, time: cut.time, lag_micros: 0 },
            delta_phi: DeltaPhi {
                logical_bytes: facts.logical_bytes,
                unique_bytes: self.store.usage().data_plain_bytes,
                new_bytes: facts.new_bytes,
            },
            kappa: facts.kappa,
            coherence: Coherence { conflicts: facts.conflicts, r_millionths: 1_000_000 },
            author,
            label: label.into(),
        };
        Ok(SealedRecord::seal(record, &self.key))
    }

    /// Names the volume, on every node and in every copy of it.
    pub(super) fn volume_id(&self, state: &State) -> Result<[u8; 16]> {
        let Some(value) = state.entry(&Key::Volume)? else { return Ok(self.store_id.0) };
        let id = <[u8; 16]>::try_from(&value[..]);
        id.map_err(|_| VolumeError::Internal("the id of the volume is damaged".into()).into())
    }

    /// To be called after each change of the list of snapshots: tells those who have something to do with it.
    pub(super) fn snapshots_changed(&self) {
        self.leave_deleted_snapshots();
        self.branches.opened().iter().for_each(|branch| branch.leave_deleted_snapshots());
        *self.seal_wanted.lock() = true;
        self.seal_asked.notify_all();
    }
}

/// What the rules about keeping need to know.
pub fn candidates(snapshots: &[(String, NamedSnapshot)]) -> Vec<Candidate<'_>> {
    let taken = |snapshot: &NamedSnapshot| snapshot.cut.time.millis();
    snapshots.iter().map(|(_, snapshot)| Candidate { millis: taken(snapshot), labels: &snapshot.labels }).collect()
}

pub(super) fn check_free(state: &State, name: &str) -> Result<()> {
    if state.snapshot(name)?.is_some() { Err(SnapshotError::Exists(name.into())) } else { Ok(()) }
}

/// Where it is kept which branch a snapshot is of, until that is sealed.
fn line_key(name: &str) -> Vec<u8> {
    local_key(b'l', name.as_bytes())
}

/// Where it is kept which two snapshots one was merged of, until it is sealed.
pub(super) fn parents_key(name: &str) -> Vec<u8> {
    local_key(b'p', name.as_bytes())
}

/// The one that the other was merged into comes first.
fn merged_parents(state: &State, name: &str) -> Result<Option<Vec<S8Id>>> {
    let key = parents_key(name);
    let Some(value) = state.get(Table::Local, &key)? else { return Ok(None) };
    let mut reader = Reader::new(&value);
    let parents = [reader.array(), reader.array()].into_iter().map(|id| id.map(S8Id)).collect();
    Ok(Some(parents).transpose().map_err(|e| malformed("the parents of a snapshot", &key, e))?)
}

/// Where it is kept which snapshot of a line was sealed last.
pub(super) fn head_key(branch: Option<u32>) -> Vec<u8> {
    branch.map_or_else(|| local_key(b'h', &[]), |number| local_key(b'h', &number.to_be_bytes()))
}

fn branch_of(state: &State, name: &str) -> Result<Option<u32>> {
    let key = line_key(name);
    let Some(value) = state.get(Table::Local, &key)? else { return Ok(None) };
    let number = Reader::new(&value).array().map(u32::from_be_bytes);
    Ok(Some(number.map_err(|e| malformed("the branch of a snapshot", &key, e))?))
}

fn head(state: &State, branch: Option<u32>) -> Result<Option<S8Id>> {
    let key = head_key(branch);
    let Some(value) = state.get(Table::Local, &key)? else { return Ok(None) };
    let id = Reader::new(&value).array().map(S8Id);
    Ok(Some(id.map_err(|e| malformed("last snapshot", &key, e))?))
}

/// The sealed snapshot that a branch began as, if it is still there.
fn base_of(state: &State, number: u32) -> Result<Option<S8Id>> {
    let Some((_, branch)) = state.branches()?.into_iter().find(|(_, branch)| branch.number == number) else {
        return Ok(None);
    };
    let base = state.snapshot(&branch.base_name)?.filter(|base| base.cut == branch.base);
    Ok(base.and_then(|base| base.id))
}
