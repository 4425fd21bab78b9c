//! Merging, as the control socket asks for it.

use phifs_core::namespace::events;
use phifs_core::volume::local::{ImportOptions, MergeError, MergeOptions, Side as Line};

use super::{Engine, branches, conflicts, snapshots};
use crate::control::{Handed, Progress, Side};
use crate::env::random;
use crate::failure::{Failure, Kind};
use crate::hex;
use crate::report::{Event, Merged};
use crate::show::Name;

/// How two sides are merged.
pub struct Merging {
    pub dry_run: bool,
    pub unrelated: bool,
    pub trust: Option<String>,
    pub name: Option<String>,
}

impl Engine {
    /// Merges one side into another. What is in a file has a name for so long.
    pub fn merge(
        &self,
        source: Side,
        target: Side,
        file: Option<Handed>,
        how: Merging,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Merged, Failure> {
        let Merging { dry_run, unrelated, trust, name } = how;
        if source == Side::File && target == Side::File {
            return Err(Failure::new(Kind::Usage, "two files are not merged with each other")
                .hint("import one of them first: phifs snapshot import FILE"));
        }
        let mut temporary = None;
        let mut from_file = String::new();
        if let Some(file) = file {
            let name = Some(format!("importing-{}", hex::encode(&random()[..8])));
            let options = ImportOptions { name, trust, under_any_name: true, unrelated };
            let came = self.import(file, &options, progress)?;
            from_file.clone_from(&came.name);
            temporary = (!came.was_here).then_some(came.name);
        }
        let line = |side: Side| match side {
            Side::Live => Line::Live,
            Side::Branch(name) => Line::Branch(name),
            Side::Snapshot(name) => Line::Snapshot(name),
            Side::File => Line::Snapshot(from_file.clone()),
        };
        progress(Progress::step("merging"));
        let options = MergeOptions { dry_run, unrelated, name };
        let merged = self.volume.merge(&line(source), &line(target), &options).map_err(explain);
        if let Some(name) = temporary {
            self.volume.delete_snapshots(&[name]).map_err(snapshots::explain)?;
        }
        let merged = merged?;
        Ok(Merged {
            operations: merged.operations,
            names: merged.names,
            inodes: merged.inodes,
            changes: dry_run.then(|| merged.changes.iter().map(snapshots::change).collect()),
            events: merged.events.iter().map(|event| event_of(event, None)).collect(),
            conflicts: merged
                .conflicts
                .iter()
                .map(|found| {
                    conflicts::described(Name::new(&found.path), Some(found.conflict.matter), &found.conflict.choices)
                })
                .collect(),
            snapshot: merged.snapshot,
        })
    }

    /// What merges came across lately, the latest last.
    pub fn events(&self, count: u32) -> Result<Vec<Event>, Failure> {
        let mut events = self.volume.events().map_err(Failure::plain)?;
        events.drain(..events.len().saturating_sub(count as usize));
        Ok(events.iter().map(|(millis, event)| event_of(event, Some(*millis))).collect())
    }
}

fn event_of(event: &events::Event, millis: Option<u64>) -> Event {
    Event {
        millis,
        what: event.what.word().into(),
        row: event.row,
        path: Name::new(&event.path),
        other: event.other.as_ref().map(|other| Name::new(other)),
    }
}

fn explain(error: MergeError) -> Failure {
    let message = error.to_string();
    let (kind, hint) = match error {
        MergeError::Suspect(_) => (Kind::Damaged, "do not trust where it comes from; take it from somewhere else"),
        MergeError::OtherVolume(_) => (Kind::Failed, "if the two are to become one all the same: --unrelated"),
        MergeError::AheadOfAuthor { .. } => {
            (Kind::Damaged, "somebody runs a copy of this store; merge with another snapshot than that of the copy")
        }
        MergeError::BeingWritten(_) => (Kind::InUse, "close the file, then merge again"),
        MergeError::Snapshot(error) => return snapshots::explain(error),
        MergeError::Branch(error) => return branches::explain(error),
        MergeError::Volume(error) => return Failure::plain(error),
    };
    Failure::new(kind, message).hint(hint)
}
