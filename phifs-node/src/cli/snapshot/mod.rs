//! `phifs snapshot`: states of the volume that are kept. One file per subcommand.

mod clone;
mod create;
mod delete;
mod diff;
mod export;
mod import;
mod list;
mod prune;
mod restore;
mod show;
mod verify;

use clap::Subcommand;

pub use diff::lines;

use super::Context;
use crate::failure::Failure;

/// Take, look at and forget snapshots of the volume
#[derive(clap::Args)]
#[command(
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "A snapshot costs nothing when it is taken, and later only what was changed since. Where a NAME is \
    wanted, the first six or more digits of its id do as well.\n\nExamples:\n  phifs snapshot create before-upgrade\n  \
    phifs snapshot list\n  ls /phi/.phi/snapshots/before-upgrade"
)]
pub struct Snapshot {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Create(create::Create),
    Clone(clone::Clone),
    List(list::List),
    Show(show::Show),
    Diff(diff::Diff),
    Restore(restore::Restore),
    Prune(prune::Prune),
    Delete(delete::Delete),
    Export(export::Export),
    Import(import::Import),
    Verify(verify::Verify),
}

impl Snapshot {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        match self.command {
            Command::Create(command) => command.run(context),
            Command::Clone(command) => command.run(context),
            Command::List(command) => command.run(context),
            Command::Show(command) => command.run(context),
            Command::Diff(command) => command.run(context),
            Command::Restore(command) => command.run(context),
            Command::Prune(command) => command.run(context),
            Command::Delete(command) => command.run(context),
            Command::Export(command) => command.run(context),
            Command::Import(command) => command.run(context),
            Command::Verify(command) => command.run(context),
        }
    }
}
