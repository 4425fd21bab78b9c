//! `phifs branch`: what there is, and forgetting one.

use clap::Subcommand;

use super::Context;
use super::output::table;
use crate::control::Request;
use crate::failure::Failure;
use crate::report::Branch;
use crate::show::{self, Name};

/// List and forget branches of the volume
#[derive(clap::Args)]
#[command(
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "A branch begins as a snapshot and goes its own way. `phifs snapshot clone` makes one, and `phifs mount \
    --branch` shows it.\n\nExamples:\n  phifs snapshot clone before-upgrade trial\n  \
    phifs mount --branch trial /mnt/trial\n  phifs branch list"
)]
pub struct Branches {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    List(List),
    Delete(Delete),
}

/// List the branches
#[derive(clap::Args)]
#[command(after_help = "BASE is the snapshot that it began as, and TIME when that was taken.\n\n\
    Examples:\n  phifs branch list\n  phifs branch list --json")]
struct List {}

/// Forget a branch and all that was done in it
#[derive(clap::Args)]
#[command(after_help = "It must not be mounted. Snapshots that were taken of it stay. `phifs gc` frees what only the \
    branch held.\n\nExamples:\n  phifs branch delete trial && phifs gc")]
struct Delete {
    /// Its name
    branch: String,
}

impl Branches {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        match self.command {
            Command::List(List {}) => {
                let branches: Vec<Branch> = context.ask(&Request::BranchList)?;
                context.output.result(&branches, |branches| describe(branches));
            }
            Command::Delete(Delete { branch }) => {
                context.ask::<()>(&Request::BranchDelete { branch: branch.clone() })?;
                context.output.result(&branch, |branch| format!("deleted {}", show::quote(branch.as_bytes())));
            }
        }
        Ok(())
    }
}

fn describe(branches: &[Branch]) -> String {
    if branches.is_empty() {
        return String::new();
    }
    let head = ["NAME", "BASE", "TIME", "MOUNTED ON"].map(str::to_owned);
    let row = |branch: &Branch| {
        let mounts: Vec<String> = branch.mounts.iter().map(Name::quoted).collect();
        [
            show::quote(branch.name.as_bytes()),
            show::quote(branch.base.as_bytes()),
            show::utc(branch.base_millis)[..19].to_owned(),
            if mounts.is_empty() { "-".to_owned() } else { mounts.join(", ") },
        ]
    };
    let rows: Vec<[String; 4]> = std::iter::once(head).chain(branches.iter().map(row)).collect();
    table(&rows, &[])
}
