//! `phifs snapshot delete`

use super::Context;
use crate::control::Request;
use crate::failure::Failure;
use crate::show;

/// Forget snapshots
#[derive(clap::Args)]
#[command(
    after_help = "All of them are forgotten, or none if one is not there. `phifs gc` frees what only they held.\n\n\
    Examples:\n  phifs snapshot delete before-upgrade\n  phifs snapshot delete monday tuesday && phifs gc"
)]
pub struct Delete {
    /// Names, or beginnings of ids
    #[arg(required = true)]
    names: Vec<String>,
}

impl Delete {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let deleted: Vec<String> = context.ask(&Request::SnapshotDelete { names: self.names })?;
        context.output.result(&deleted, |names| {
            names.iter().map(|name| format!("deleted {}\n", show::quote(name.as_bytes()))).collect()
        });
        Ok(())
    }
}
