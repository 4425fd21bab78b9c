//! Snapshots, as the control socket asks for them.

use std::time::Duration;

use parking_lot::Mutex;
use phifs_core::registry::NamedSnapshot;
use phifs_core::snapshot::SealedRecord;
use phifs_core::snapshot::changes::{self, What};
use phifs_core::snapshot::keep::KeepRules;
use phifs_core::snapshot::record::root_of;
use phifs_core::volume::local::{SnapshotError, candidates};

use super::{Engine, counted};
use crate::control::Progress;
use crate::failure::{Failure, Kind};
use crate::hex;
use crate::report::{Change, Pruned, Restored, Seal, Snapshot, Taken};
use crate::show::{self, Name};

impl Engine {
    pub fn create_snapshot(&self, name: &str, labels: Vec<String>) -> Result<Taken, Failure> {
        let time = self.volume.take_snapshot(name, labels, false).map_err(explain)?;
        Ok(Taken { name: name.to_owned(), millis: time.millis() })
    }

    /// All snapshots, the latest last.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>, Failure> {
        let snapshots = self.volume.snapshots().map_err(explain)?;
        snapshots.iter().map(|(name, snapshot)| self.described(name, snapshot)).collect()
    }

    /// One snapshot, sealed.
    pub fn snapshot(&self, name: &str) -> Result<Snapshot, Failure> {
        let (_, snapshot) = self.volume.find_snapshot(name).map_err(explain)?;
        if snapshot.id.is_none() {
            self.volume.seal_snapshots().map_err(explain)?;
        }
        let (name, snapshot) = self.volume.find_snapshot(name).map_err(explain)?;
        self.described(&name, &snapshot)
    }

    /// Forgets all of these, or none. Returns their names.
    pub fn delete_snapshots(&self, names: &[String]) -> Result<Vec<String>, Failure> {
        let found = names.iter().map(|name| Ok(self.volume.find_snapshot(name).map_err(explain)?.0));
        let mut names = found.collect::<Result<Vec<String>, Failure>>()?;
        names.sort_unstable();
        names.dedup();
        self.volume.delete_snapshots(&names).map_err(explain)?;
        Ok(names)
    }

    /// Takes a snapshot if the schedule wants one by now. Says how long it will want none, if there is a schedule.
    pub fn snapshot_by_schedule(&self) -> Result<Option<Duration>, Failure> {
        let wait = self.volume.snapshot_by_schedule(|millis| format!("auto-{}", name_of(millis)));
        wait.map_err(explain)
    }

    /// Forgets what no rule keeps.
    pub fn prune_snapshots(
        &self,
        rules: &str,
        label: Option<&str>,
        scheduled: bool,
        dry_run: bool,
    ) -> Result<Vec<Pruned>, Failure> {
        let usage = |why: String| Failure::new(Kind::Usage, why);
        let rules: KeepRules = rules.parse().map_err(usage)?;
        if rules.is_empty() {
            return Err(usage("no rule says what to keep".to_owned())
                .hint("give at least one, as in --keep-daily 7; `phifs snapshot delete` deletes by name"));
        }
        let mut snapshots = self.volume.snapshots().map_err(explain)?;
        snapshots.retain(|(_, snapshot)| {
            let has_label = label.is_none_or(|label| snapshot.labels.iter().any(|known| known == label));
            has_label && (!scheduled || snapshot.scheduled)
        });
        let reasons = rules.reasons(&candidates(&snapshots));
        let pruned: Vec<Pruned> = snapshots
            .iter()
            .zip(reasons)
            .map(|((name, snapshot), kept_for)| Pruned {
                name: name.clone(),
                millis: snapshot.cut.time.millis(),
                kept_for,
            })
            .collect();
        let gone: Vec<String> =
            pruned.iter().filter(|snapshot| snapshot.kept_for.is_empty()).map(|gone| gone.name.clone()).collect();
        if !dry_run && !gone.is_empty() {
            self.volume.delete_snapshots(&gone).map_err(explain)?;
        }
        Ok(pruned)
    }

    /// What turns one snapshot into another, or into the volume.
    pub fn snapshot_diff(&self, from: &str, to: Option<&str>) -> Result<Vec<Change>, Failure> {
        let changes = self.volume.snapshot_changes(from, to).map_err(explain)?;
        Ok(changes.iter().map(change).collect())
    }

    pub fn restore_snapshot(
        &self,
        name: &str,
        path: Option<&[u8]>,
        dry_run: bool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Restored, Failure> {
        let progress = Mutex::new(progress);
        let tell = |done, total| (progress.lock())(counted("restoring", done, Some(total), "steps"));
        let restored = self.volume.restore(name, path, dry_run, &tell).map_err(explain)?;
        Ok(Restored { changes: restored.changes.iter().map(change).collect(), before: restored.before })
    }

    fn described(&self, name: &str, snapshot: &NamedSnapshot) -> Result<Snapshot, Failure> {
        let sealed = snapshot.id.map(|id| self.volume.sealed_record(id)).transpose().map_err(explain)?.flatten();
        Ok(report(name, snapshot, sealed.as_ref()))
    }
}

/// A name for what is taken now: the time to the second, so that names sort by it.
pub fn name_of(millis: u64) -> String {
    format!("{}Z", show::utc(millis)[..19].replace(' ', "T"))
}

pub(super) fn report(name: &str, snapshot: &NamedSnapshot, sealed: Option<&SealedRecord>) -> Snapshot {
    Snapshot {
        name: name.to_owned(),
        millis: snapshot.cut.time.millis(),
        root: hex::encode(&root_of(&snapshot.cut.roots)),
        labels: snapshot.labels.clone(),
        scheduled: snapshot.scheduled,
        seal: sealed.map(seal),
    }
}

fn seal(sealed: &SealedRecord) -> Seal {
    let record = &sealed.record;
    let (delta_phi, kappa, coherence) = (record.delta_phi, record.kappa, record.coherence);
    Seal {
        id: sealed.id().to_string(),
        parents: record.parents.iter().map(ToString::to_string).collect(),
        context: record.context.iter().map(|(author, n)| (author.to_string(), n)).collect(),
        theta: record.theta.hlc.to_string(),
        lag_micros: record.theta.lag_micros,
        logical_bytes: delta_phi.logical_bytes,
        unique_bytes: delta_phi.unique_bytes,
        new_bytes: delta_phi.new_bytes,
        files: kappa.files,
        directories: kappa.directories,
        depth: kappa.depth,
        mean_bytes: kappa.mean_bytes(delta_phi.logical_bytes),
        largest_bytes: kappa.largest_bytes,
        glyphs: kappa.glyphs,
        conflicts: coherence.conflicts,
        coherence: format!("{}.{:06}", coherence.r_millionths / 1_000_000, coherence.r_millionths % 1_000_000),
        author: record.author.id().to_string(),
        node: record.author.node.to_string(),
        volume: hex::encode(&record.volume),
    }
}

pub(super) fn change(change: &changes::Change) -> Change {
    let kind = show::kind(change.kind);
    Change {
        what: match change.what {
            What::Added => 'A',
            What::Modified => 'M',
            What::Deleted => 'D',
            What::Renamed => 'R',
        },
        kind: kind.to_owned(),
        path: Name::new(&change.path),
        from: change.from.as_ref().map(|from| Name::new(from)),
        old_bytes: change.old_bytes,
        new_bytes: change.new_bytes,
        content: change.content,
    }
}

pub(super) fn explain(error: SnapshotError) -> Failure {
    if let SnapshotError::Halfway { before, .. } = &error {
        let hint = format!("once the cause is gone: phifs snapshot restore {}", show::quote(before.as_bytes()));
        return Failure::plain(&error).hint(hint);
    }
    let (kind, hint) = match &error {
        SnapshotError::BadName(..) => (Kind::Usage, "take letters, digits, dashes and colons, at most 200 bytes"),
        SnapshotError::Exists(_) => (Kind::Failed, "choose another name, or delete that one first"),
        SnapshotError::NotFound(_) => (Kind::Failed, "phifs snapshot list shows what there is"),
        SnapshotError::NoPath(_) => (Kind::Failed, "paths are those of the volume; look into .phi/snapshots/NAME"),
        SnapshotError::Ambiguous(_) => (Kind::Failed, "give more of the id, or the name"),
        SnapshotError::Halfway { .. } | SnapshotError::Volume(_) => return Failure::plain(error),
    };
    Failure::new(kind, error).hint(hint)
}
