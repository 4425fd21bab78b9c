//! `phifs resolve`

use std::path::PathBuf;

use super::{Context, paths, why};
use crate::control::{Decision, Request};
use crate::failure::Failure;
use crate::report::Resolution;
use crate::show::Name;

/// Decide what a disputed file is
#[derive(clap::Args)]
#[command(
    group = clap::ArgGroup::new("how").required(true),
    after_help = "What was decided against stays in .phi/versions for as long as versions are kept. Any write to the file \
    decides as\nwell: for what was written.\n\nExamples:\n  phifs resolve /phi/report.txt --pick 1\n  \
    phifs resolve /phi/report.txt --keep-both\n  phifs resolve /phi --recursive --policy newest --dry-run"
)]
pub struct Resolve {
    /// A path through the mount, else one from the root of the volume
    #[arg(value_name = "PATH", value_hint = clap::ValueHint::AnyPath)]
    path: PathBuf,
    /// Keep the state with this number, as phifs why tells them
    #[arg(long, value_name = "N", group = "how")]
    pick: Option<usize>,
    /// Keep all: those that are not shown get names of their own beside it
    #[arg(long, group = "how")]
    keep_both: bool,
    /// Keep the newest, or the one that is shown
    #[arg(long, value_name = "POLICY", group = "how")]
    policy: Option<Policy>,
    /// Everything at the path and below it
    #[arg(short, long)]
    recursive: bool,
    /// Tell what would be decided, and decide nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Policy {
    Newest,
    Coherent,
}

impl Resolve {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let how = match (self.pick, self.policy) {
            (Some(rank), _) => Decision::Pick(rank),
            (None, Some(Policy::Newest)) => Decision::Newest,
            (None, Some(Policy::Coherent)) => Decision::Coherent,
            (None, None) => Decision::KeepBoth,
        };
        let path = Name::new(&paths::in_volume(context, &self.path)?);
        let request = Request::Resolve { path, how, recursive: self.recursive, dry_run: self.dry_run };
        let resolved: Vec<Resolution> = context.ask(&request)?;
        context.output.result(&resolved, |resolved| resolved.iter().map(describe).collect());
        if resolved.is_empty() {
            context.output.note("There is nothing to decide.");
        }
        Ok(())
    }
}

fn describe(resolved: &Resolution) -> String {
    let mut text = format!("{}: {}\n", resolved.path.quoted(), why::line(&resolved.kept));
    for name in &resolved.beside {
        text.push_str(&format!("  beside it: {}\n", name.quoted()));
    }
    text
}
