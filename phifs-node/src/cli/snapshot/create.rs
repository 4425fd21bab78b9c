//! `phifs snapshot create`

use std::time::{SystemTime, UNIX_EPOCH};

use super::Context;
use crate::control::Request;
use crate::engine::name_of;
use crate::failure::Failure;
use crate::report;

/// Take a snapshot of the volume
#[derive(clap::Args)]
#[command(
    after_help = "What has been written and closed is in it, and of a file that is still open for writing what was \
    published last. It is durable when the command ends.\n\nExamples:\n  phifs snapshot create\n  \
    phifs snapshot create before-upgrade --label weekly\n  \
    phifs snapshot create --branch trial trial-done"
)]
pub struct Create {
    /// Call it this [default: the time, as in 2026-11-23T09:30:00Z]
    name: Option<String>,
    /// Mark it with this word, for `list` and `prune`; may be given several times
    #[arg(long = "label", value_name = "WORD")]
    labels: Vec<String>,
    /// Take it of this branch
    #[arg(long, value_name = "BRANCH")]
    branch: Option<String>,
}

impl Create {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let name = self.name.unwrap_or_else(name_of_now);
        let request = Request::SnapshotCreate { name, labels: self.labels, branch: self.branch };
        let snapshot: report::Taken = context.ask(&request)?;
        context.output.result(&snapshot, |snapshot| snapshot.name.clone());
        Ok(())
    }
}

fn name_of_now() -> String {
    name_of(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64))
}
