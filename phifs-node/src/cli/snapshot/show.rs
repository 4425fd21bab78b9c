//! `phifs snapshot show`

use super::Context;
use crate::cli::output::columns;
use crate::control::Request;
use crate::failure::Failure;
use crate::report;
use crate::show;

/// Show the fields of a snapshot
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  phifs snapshot show before-upgrade\n  phifs snapshot show 1f9ac02e --json")]
pub struct Show {
    /// Name, or beginning of the id
    name: String,
}

impl Show {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let snapshot: report::Snapshot = context.ask(&Request::SnapshotShow { name: self.name })?;
        context.output.result(&snapshot, describe);
        Ok(())
    }
}

fn describe(snapshot: &report::Snapshot) -> String {
    let mut rows = vec![
        ("name", show::quote(snapshot.name.as_bytes())),
        ("taken", show::utc(snapshot.millis) + if snapshot.scheduled { ", by the schedule" } else { "" }),
        ("labels", if snapshot.labels.is_empty() { "-".into() } else { snapshot.labels.join(", ") }),
        ("root", snapshot.root.clone()),
    ];
    if let Some(seal) = &snapshot.seal {
        let context: Vec<String> = seal.context.iter().map(|(author, n)| format!("{author}.{n}")).collect();
        let parents = if seal.parents.is_empty() { "none".to_owned() } else { seal.parents.join(", ") };
        rows.extend([
            ("id", seal.id.clone()),
            ("parents", parents),
            ("context", context.join(", ")),
            ("theta", format!("{}, {} us behind the others", seal.theta, seal.lag_micros)),
            (
                "delta phi",
                format!(
                    "{} in files, {} in glyphs, {} new",
                    show::size(seal.logical_bytes),
                    show::size(seal.unique_bytes),
                    show::size(seal.new_bytes)
                ),
            ),
            (
                "kappa",
                format!(
                    "{} files, {} directories, {} deep, mean {}, largest {}, {} glyphs",
                    seal.files,
                    seal.directories,
                    seal.depth,
                    show::size(seal.mean_bytes),
                    show::size(seal.largest_bytes),
                    seal.glyphs
                ),
            ),
            ("coherence", format!("{}, {} conflicts", seal.coherence, seal.conflicts)),
            ("seal", format!("signed by node {} as author {}", seal.node, seal.author)),
            ("volume", seal.volume.clone()),
        ]);
    }
    columns(&rows)
}
