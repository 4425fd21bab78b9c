//! Branches, as the control socket asks for them.

use parking_lot::Mutex;
use phifs_core::registry;
use phifs_core::volume::local::BranchError;

use super::{Engine, describe, explain_open, report_opening, snapshots};
use crate::control::Progress;
use crate::failure::{Failure, Kind};
use crate::report::{Branch, Taken};

impl Engine {
    pub fn clone_snapshot(&self, snapshot: &str, branch: &str) -> Result<Branch, Failure> {
        let made = self.volume.clone_snapshot(snapshot, branch).map_err(explain)?;
        Ok(report(branch, &made))
    }

    /// Whether this is one of the branches: then what concerns all lines is for others to do.
    pub fn is_branch(&self) -> bool {
        self.volume.branch().is_some()
    }

    /// All branches by name; where they are mounted is for others to say.
    pub fn branches(&self) -> Result<Vec<Branch>, Failure> {
        let branches = self.volume.branches().map_err(explain)?;
        Ok(branches.iter().map(|(name, branch)| report(name, branch)).collect())
    }

    /// Opens a branch, to be closed with `close_branch`.
    pub fn open_branch(&self, name: &str, progress: &mut dyn FnMut(Progress)) -> Result<Self, Failure> {
        progress(Progress::step(format!("opening the branch {}", crate::show::quote(name.as_bytes()))));
        let progress = Mutex::new(progress);
        let volume = self.volume.open_branch(name, &|step| (progress.lock())(describe(step))).map_err(explain)?;
        report_opening(volume.opening());
        Ok(Self { disk: self.disk.clone(), volume, closing: Default::default() })
    }

    /// Nobody may use what `open_branch` gave any more.
    pub fn close_branch(&self, name: &str) -> Result<(), Failure> {
        self.volume.close_branch(name).map_err(explain)
    }

    pub fn delete_branch(&self, name: &str) -> Result<(), Failure> {
        self.volume.delete_branch(name).map_err(explain)
    }

    pub fn snapshot_branch(&self, branch: &str, name: &str, labels: Vec<String>) -> Result<Taken, Failure> {
        let snapshot = self.volume.snapshot_branch(branch, name, labels).map_err(explain)?;
        Ok(Taken { name: name.to_owned(), millis: snapshot.cut.time.millis() })
    }
}

fn report(name: &str, branch: &registry::Branch) -> Branch {
    Branch {
        name: name.to_owned(),
        base: branch.base_name.clone(),
        base_millis: branch.base.time.millis(),
        mounts: Vec::new(),
    }
}

pub(super) fn explain(error: BranchError) -> Failure {
    let message = error.to_string();
    let (kind, hint) = match error {
        BranchError::BadName(..) => (Kind::Usage, "take letters, digits, dashes and colons, at most 200 bytes"),
        BranchError::Exists(_) => (Kind::Failed, "choose another name, or delete that one first"),
        BranchError::NotFound(_) => (Kind::Failed, "phifs branch list shows what there is"),
        BranchError::InUse(_) => (Kind::InUse, "unmount it with umount(8); phifs mount shows where it is"),
        BranchError::TooMany => (Kind::Failed, "make a new store"),
        BranchError::Open { source, .. } => return Failure { message, ..explain_open(source) },
        BranchError::Snapshot(error) => return snapshots::explain(error),
        BranchError::Volume(_) => return Failure::plain(message),
    };
    Failure::new(kind, message).hint(hint)
}
