//! `phifs snapshot restore`

use std::path::PathBuf;

use super::{Context, diff};
use crate::cli::paths;
use crate::control::Request;
use crate::failure::Failure;
use crate::report::Restored;
use crate::show::{self, Name};

/// Put back what a snapshot holds: everything, or one file or directory
#[derive(clap::Args)]
#[command(
    after_help = "What is there afterwards is what the snapshot has, and nothing else; how it was before is kept as a \
    snapshot with the label before-restore. Programs that have a file open keep the bytes that they see. To copy single \
    files out of a snapshot instead: cp -a /phi/.phi/snapshots/NAME/...\n\nExamples:\n  \
    phifs snapshot restore before-upgrade --dry-run\n  phifs snapshot restore before-upgrade /phi/etc\n  \
    phifs snapshot restore before-upgrade"
)]
pub struct Restore {
    /// Name, or beginning of the id
    name: String,
    /// Only what is at and below this path
    path: Option<PathBuf>,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Restore {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let path = self.path.map(|path| paths::in_volume(context, &path)).transpose()?;
        let path = path.map(|path| Name::new(&path));
        let request = Request::SnapshotRestore { name: self.name, path, dry_run: self.dry_run };
        let restored: Restored = context.ask(&request)?;
        context.output.result(&restored, |restored| diff::lines(&restored.changes));
        match &restored.before {
            Some(before) => {
                context.output.note(&format!("How it was before is the snapshot {}.", show::quote(before.as_bytes())));
            }
            None if restored.changes.is_empty() => context.output.note("There is nothing to change."),
            None => {}
        }
        Ok(())
    }
}
