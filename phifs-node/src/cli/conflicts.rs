//! `phifs conflicts`

use std::path::PathBuf;

use super::{Context, paths};
use crate::control::Request;
use crate::failure::Failure;
use crate::report::Conflict;
use crate::show::Name;

/// List the files that mean several things, as people changed them at the same time
#[derive(clap::Args)]
#[command(after_help = "One path a line. Nothing waits for you: of each file one state is shown, the others are in \
    .phi/conflicts,\nand any write to the file decides.\n\n\
    Examples:\n  phifs conflicts\n  phifs conflicts /phi/src --json\n  phifs why /phi/src/main.c\n  \
    phifs resolve /phi/src --recursive --policy newest")]
pub struct Conflicts {
    /// Only at and below this path: one through the mount, else one from the root of the volume
    #[arg(value_name = "PATH", value_hint = clap::ValueHint::AnyPath)]
    path: Option<PathBuf>,
}

impl Conflicts {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let path = self.path.map(|path| paths::in_volume(context, &path)).transpose()?;
        let path = Name::new(path.as_deref().unwrap_or(b"/"));
        let conflicts: Vec<Conflict> = context.ask(&Request::Conflicts { path })?;
        context
            .output
            .result(&conflicts, |conflicts| conflicts.iter().map(|found| found.path.quoted() + "\n").collect());
        Ok(())
    }
}
