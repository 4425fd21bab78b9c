//! `phifs snapshot list`

use super::Context;
use crate::cli::output::table;
use crate::control::Request;
use crate::failure::Failure;
use crate::report::Snapshot;
use crate::show;

/// List the snapshots, the latest last
#[derive(clap::Args)]
#[command(after_help = "NEW is what changed files have that the snapshot before did not have.\n\n\
    Examples:\n  phifs snapshot list\n  phifs snapshot list --label weekly --json")]
pub struct List {
    /// Those with this label only
    #[arg(long, value_name = "WORD")]
    label: Option<String>,
}

impl List {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let mut snapshots: Vec<Snapshot> = context.ask(&Request::SnapshotList)?;
        if let Some(label) = &self.label {
            snapshots.retain(|snapshot| snapshot.labels.contains(label));
        }
        context.output.result(&snapshots, |snapshots| describe(snapshots));
        Ok(())
    }
}

fn describe(snapshots: &[Snapshot]) -> String {
    if snapshots.is_empty() {
        return String::new();
    }
    let mut rows = vec![["TIME", "FILES", "SIZE", "NEW", "ID", "NAME"].map(str::to_owned)];
    for snapshot in snapshots {
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        let seal = snapshot.seal.as_ref();
        let mut name = show::quote(snapshot.name.as_bytes());
        for label in &snapshot.labels {
            name.push_str(&format!(" [{label}]"));
        }
        rows.push([
            show::utc(snapshot.millis)[..19].to_owned(),
            or_dash(seal.map(|seal| seal.files.to_string())),
            or_dash(seal.map(|seal| show::size(seal.logical_bytes))),
            or_dash(seal.map(|seal| show::size(seal.new_bytes))),
            or_dash(seal.map(|seal| seal.id[..12].to_owned())),
            name,
        ]);
    }
    table(&rows, &[1, 2, 3])
}
