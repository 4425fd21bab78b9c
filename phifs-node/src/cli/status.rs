//! `phifs status`: whether a daemon serves the store, and how its volume is.

use super::Context;
use super::output::columns;
use crate::control::Request;
use crate::failure::Failure;
use crate::report::{self, ToCome};
use crate::show::{self, Name};

/// Show how the volume is
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  phifs status\n  phifs status --watch\n  phifs status --json | jq .volume.read_only"
)]
pub struct Status {
    /// Show it again every second, until interrupted
    #[arg(long)]
    watch: bool,
}

impl Status {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        context.output.watch(self.watch, || {
            let status: report::Status = context.ask(&Request::Status)?;
            Ok(context.output.shown(&status, describe))
        })
    }
}

fn describe(status: &report::Status) -> String {
    let volume = &status.volume;
    let mounts: Vec<String> = status.mounts.iter().map(Name::quoted).collect();
    let state =
        volume.read_only.as_ref().map_or_else(|| "reads and writes".to_owned(), |why| format!("read-only: {why}"));
    let report::Cluster { standing, members, connected, behind, .. } = status.cluster;
    let cluster = match standing {
        report::Standing::Member if members > 1 => {
            let others = members - 1;
            format!("{members} machines, {connected} of {others} others connected, at most {behind} operations behind")
        }
        report::Standing::Alone | report::Standing::Member => "alone; to let others in: phifs invite".to_owned(),
        report::Standing::Former => "no member any more; to come back: phifs down, then phifs join".to_owned(),
    };
    let mut rows = vec![("volume", state), ("mounted on", mounts.join(", "))];
    if let Some(arriving) = &status.arriving {
        rows.push(("on its way", arriving.describe()));
    }
    rows.extend(status.branches.iter().map(|branch| {
        let mounts: Vec<String> = branch.mounts.iter().map(Name::quoted).collect();
        ("branch", format!("{} on {}", show::quote(branch.branch.as_bytes()), mounts.join(", ")))
    }));
    rows.extend([
        ("store", status.store.quoted()),
        ("process", format!("{}, up for {}, phifs {}", status.pid, show::span(status.uptime_secs), status.version)),
        ("data path", status.features.describe_data_path()),
        ("node", volume.node.clone()),
        ("cluster", cluster),
        ("author", format!("{}, {} operations", volume.author, volume.operations)),
        ("inodes", format!("{}, {} files open", volume.inodes, volume.open_files)),
        ("unpublished", format!("{} files", volume.unpublished_files)),
        ("journal", show::size(volume.journal_bytes)),
    ]);
    if members > 1 {
        rows.push(("not everywhere", show::size(status.cluster.under_replicated_bytes)));
    }
    let missing = Some(status.cluster.missing_operations).filter(|missing| *missing > 0);
    rows.extend(missing.map(|missing| ("catching up", format!("{missing} operations still to come"))));
    rows.extend(status.cluster.to_come.map(|ToCome { glyphs, bytes }| {
        ("fetching", format!("{glyphs} glyphs for {} of files still to come", show::size(bytes)))
    }));
    rows.extend(status.cluster.held_up.iter().map(|why| ("held up", format!("what is new elsewhere: {why}"))));
    rows.extend(status.cluster.divergence.iter().map(|what| ("DIVERGENCE", what.clone())));
    columns(&rows)
}
