//! Branches: lines of changes of their own that began as snapshots, over the same glyphs and nodes of maps.
//!
//! A branch has a superblock, a journal, an oplog and staging files of its own, under its number. Making one writes its
//! superblock, with the roots of the snapshot and a new author, and an entry into the registry of the main line.
//!
//! What always holds:
//! - The superblock of a branch is durable before its entry is written, and stays until the entry is durably removed.
//!   So a crash leaves no branch or a whole one; files without an entry are removed at the next start.
//! - No two lines make operations as the same author.
//! - A branch is opened once at a time, by whoever holds its slot; a collection holds the slots of those that are open.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};

use crate::codec::Reader;
use crate::disk::{BranchDisk, Disk, FileName};
use crate::meta::Lsn;
use crate::meta::superblock::Superblock;
use crate::registry::{Branch, Key, NamedSnapshot, check_name};
use crate::store::StoreError;
use crate::volume::VolumeError;

use super::LocalVolume;
use super::incarnation::new_author;
use super::recover::{Common, Descent, OpenError, Opening, Progress};
use super::snapshots::{SnapshotError, head_key};
use super::upkeep::Checkpoint;

#[derive(Debug, thiserror::Error)]
pub enum BranchError {
    #[error("{0:?} is no name for a branch: {1}")]
    BadName(String, &'static str),
    #[error("there is a branch {0:?} already")]
    Exists(String),
    #[error("there is no branch {0:?}")]
    NotFound(String),
    #[error("the branch {0:?} is in use")]
    InUse(String),
    #[error("there are too many branches")]
    TooMany,
    #[error("the branch {name:?} cannot be opened: {source}")]
    Open { name: String, source: OpenError },
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl From<StoreError> for BranchError {
    fn from(error: StoreError) -> Self {
        Self::Volume(error.into())
    }
}

impl From<BranchError> for VolumeError {
    fn from(error: BranchError) -> Self {
        match error {
            BranchError::Volume(error) | BranchError::Snapshot(SnapshotError::Volume(error)) => error,
            BranchError::Open { name, source } => Self::Branch { name, why: source.to_string() },
            error => Self::Internal(error.to_string()),
        }
    }
}

pub type Result<T> = std::result::Result<T, BranchError>;

/// A branch that is open, if it is. Held by whoever opens or closes it, or needs it as it is.
pub(super) type Slot = Mutex<Option<Arc<LocalVolume>>>;

#[derive(Default)]
pub(super) struct Branches {
    /// Held by whoever makes or deletes a branch, or needs all there are.
    making: Mutex<()>,
    slots: Mutex<BTreeMap<u32, Arc<Slot>>>,
    /// Those that were opened and may still be there, so that they can be told without waiting for a slot.
    opened: Mutex<Vec<Weak<LocalVolume>>>,
}

impl Branches {
    pub fn slot(&self, number: u32) -> Arc<Slot> {
        self.slots.lock().entry(number).or_default().clone()
    }

    fn note(&self, volume: &Arc<LocalVolume>) {
        let mut opened = self.opened.lock();
        opened.retain(|line| line.strong_count() > 0);
        opened.push(Arc::downgrade(volume));
    }

    /// The branches that somebody may look at.
    pub fn opened(&self) -> Vec<Arc<LocalVolume>> {
        self.opened.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Keeps branches from being made and deleted.
    pub fn stay(&self) -> MutexGuard<'_, ()> {
        self.making.lock()
    }
}

impl LocalVolume {
    /// The name of the branch that this is; none for the main line.
    pub fn branch(&self) -> Option<&str> {
        self.branch.as_deref()
    }

    /// Makes a branch that begins as this snapshot.
    pub fn clone_snapshot(&self, snapshot: &str, name: &str) -> Result<Branch> {
        check_name(name).map_err(|why| BranchError::BadName(name.into(), why))?;
        let _making = self.branches.stay();
        let (base_name, NamedSnapshot { cut, .. }) = self.find_snapshot(snapshot)?;
        let branches = self.branches()?;
        if branches.iter().any(|(taken, _)| taken == name) {
            return Err(BranchError::Exists(name.into()));
        }
        let number = self.new_number(&branches)?;
        let branch = Branch { number, base: cut, base_name };
        self.make_superblock(&branch).map_err(|source| BranchError::Open { name: name.into(), source })?;
        if let Err(error) = self.register_branch(name, &branch) {
            self.remove_branch_files(number);
            return Err(error);
        }
        // If this fails nobody knows whether the entry is there, so the files stay until the next start.
        self.commit_journal()?;
        Ok(branch)
    }

    /// Above all that there are, with an entry or without.
    fn new_number(&self, branches: &[(String, Branch)]) -> Result<u32> {
        let registered = branches.iter().map(|(_, branch)| branch.number);
        let numbers = self.branch_numbers()?.into_iter().chain(registered);
        numbers.fold(0, u32::max).checked_add(1).ok_or(BranchError::TooMany)
    }

    /// Of all branches that have files.
    fn branch_numbers(&self) -> std::result::Result<Vec<u32>, VolumeError> {
        let names = self.disk.list().map_err(|source| VolumeError::Disk { doing: "listing the store", source })?;
        let number = |name| if let FileName::Branch(number, _) = name { Some(number) } else { None };
        let mut numbers: Vec<u32> = names.into_iter().filter_map(number).collect();
        numbers.dedup();
        Ok(numbers)
    }

    fn make_superblock(&self, branch: &Branch) -> std::result::Result<(), OpenError> {
        let checkpoint = Checkpoint {
            context: branch.base.context.clone(),
            hlc: branch.base.hlc,
            author: new_author(&*self.env, &self.key),
            clean: true,
            lsn: Lsn::default(),
            roots: branch.base.roots.clone(),
        };
        let disk = BranchDisk::new(self.disk.clone(), branch.number);
        if let Err(error) = Superblock::create(&disk, self.store_id, &checkpoint.encode()) {
            self.remove_branch_files(branch.number);
            return Err(error.into());
        }
        Ok(())
    }

    fn register_branch(&self, name: &str, branch: &Branch) -> Result<()> {
        let mut state = self.state.write();
        // A snapshot that is there to this moment keeps what the branch needs from every collection.
        let base = state.snapshot(&branch.base_name)?.filter(|base| base.cut == branch.base);
        let base = base.ok_or_else(|| SnapshotError::NotFound(branch.base_name.clone()))?;
        let mut draft = state.draft(self.env.now());
        draft.registry.push((Key::Branch(name.into()), Some(branch.encode())));
        draft.local.push((head_key(Some(branch.number)), base.id.map(|id| id.0.to_vec())));
        state.commit(draft, &self.journal)?;
        Ok(())
    }

    /// All branches, in the order of their names.
    pub fn branches(&self) -> Result<Vec<(String, Branch)>> {
        Ok(self.state.read().branches()?)
    }

    pub fn find_branch(&self, name: &str) -> Result<Branch> {
        self.state.read().branch(name)?.ok_or_else(|| BranchError::NotFound(name.into()))
    }

    /// Opens a branch until `close_branch`. The caller does the background work of the volume that it gets.
    pub fn open_branch(&self, name: &str, progress: &dyn Fn(Progress)) -> Result<Arc<LocalVolume>> {
        let slot = self.branches.slot(self.find_branch(name)?.number);
        let mut open = slot.lock();
        // It may have gone while we waited.
        let branch = self.find_branch(name)?;
        if open.is_some() {
            return Err(BranchError::InUse(name.into()));
        }
        let volume = Arc::new(self.open_line_of(name, &branch, progress)?);
        self.branches.note(&volume);
        *open = Some(volume.clone());
        Ok(volume)
    }

    /// Publishes, checkpoints and closes a branch. Nobody may use it any more, background threads included.
    pub fn close_branch(&self, name: &str) -> Result<()> {
        let slot = self.branches.slot(self.find_branch(name)?.number);
        let mut open = slot.lock();
        match open.take() {
            Some(volume) => Ok(volume.shut_down()?),
            None => Ok(()),
        }
    }

    /// Forgets a branch and all that was done in it. The next collection frees what only it held.
    pub fn delete_branch(&self, name: &str) -> Result<()> {
        let _making = self.branches.stay();
        let Branch { number, .. } = self.find_branch(name)?;
        let slot = self.branches.slot(number);
        let open = slot.lock();
        if open.is_some() {
            return Err(BranchError::InUse(name.into()));
        }
        {
            let mut state = self.state.write();
            let mut draft = state.draft(self.env.now());
            draft.registry.push((Key::Branch(name.into()), None));
            draft.local.push((head_key(Some(number)), None));
            state.commit(draft, &self.journal)?;
        }
        self.commit_journal()?;
        self.remove_branch_files(number);
        Ok(())
    }

    /// Takes a snapshot of a branch.
    pub fn snapshot_branch(&self, branch: &str, name: &str, labels: Vec<String>) -> Result<NamedSnapshot> {
        let found = self.find_branch(branch)?;
        let slot = self.branches.slot(found.number);
        let open = slot.lock();
        let found = self.find_branch(branch)?;
        self.with_branch(branch, &found, &open, |line| Ok(self.snapshot_line(line, found.number, name, labels)?))
    }

    /// Calls `act` with a branch whose slot is held, and opens it for that long if it is not open.
    pub(super) fn with_branch<T>(
        &self,
        name: &str,
        branch: &Branch,
        open: &Option<Arc<LocalVolume>>,
        act: impl FnOnce(&LocalVolume) -> Result<T>,
    ) -> Result<T> {
        if let Some(volume) = open {
            return act(volume);
        }
        let volume = self.open_line_of(name, branch, &|_| {})?;
        let result = act(&volume);
        if let Err(error) = volume.shut_down() {
            tracing::warn!(%error, branch = name, "a branch could not be closed cleanly; it is recovered when it is opened");
        }
        result
    }

    pub(super) fn open_line_of(&self, name: &str, branch: &Branch, progress: &dyn Fn(Progress)) -> Result<LocalVolume> {
        let ancestors = self.authors_in(&branch.base)?;
        let descent = Descent { name: name.into(), ancestors, registry: self.state.clone() };
        let common = Common {
            env: self.env.clone(),
            store: self.store.clone(),
            nodes: self.nodes.clone(),
            store_id: self.store_id,
            key: self.key.clone(),
            ballast: self.ballast.clone(),
            settings: self.settings.clone(),
            remote: self.remote.clone(),
        };
        let disk = Arc::new(BranchDisk::new(self.disk.clone(), branch.number));
        let opened = open_superblock(&*disk).and_then(|start| {
            Self::open_line(common, Some(descent), disk, start, Opening::default(), self.options.clone(), progress)
        });
        opened.map_err(|source| BranchError::Open { name: name.into(), source })
    }

    /// What a branch that is not open holds, if it was closed cleanly and its superblock is whole.
    pub(super) fn closed_branch(&self, name: &str, branch: &Branch) -> Result<Option<Checkpoint>> {
        let disk = BranchDisk::new(self.disk.clone(), branch.number);
        let start = open_superblock(&disk).map_err(|source| BranchError::Open { name: name.into(), source });
        let (superblock, checkpoint) = start?;
        Ok((checkpoint.clean && superblock.copies_agree()).then_some(checkpoint))
    }

    /// Removes what a crash left of branches that were being made or deleted.
    pub(super) fn remove_unregistered_branches(&self) -> std::result::Result<(), VolumeError> {
        let branches = self.state.read().branches()?;
        for number in self.branch_numbers()? {
            if !branches.iter().any(|(_, branch)| branch.number == number) {
                self.remove_branch_files(number);
            }
        }
        Ok(())
    }

    /// What cannot be removed now is removed at the next start, as no entry names it.
    fn remove_branch_files(&self, number: u32) {
        let disk = BranchDisk::new(self.disk.clone(), number);
        // The superblock, which comes first, goes last.
        let removed = disk.list().and_then(|names| names.into_iter().rev().try_for_each(|name| disk.remove(name)));
        if let Err(error) = removed.and_then(|()| disk.sync_names()) {
            tracing::warn!(%error, number, "files of a branch that is gone could not be removed");
        }
    }
}

fn open_superblock(disk: &dyn Disk) -> std::result::Result<(Superblock, Checkpoint), OpenError> {
    let (superblock, payload) = Superblock::open(disk)?;
    let checkpoint = Checkpoint::decode(&mut Reader::new(&payload))
        .map_err(|source| StoreError::Malformed { what: "the superblock of a branch".into(), source })?;
    Ok((superblock, checkpoint))
}
