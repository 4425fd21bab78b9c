//! `phifs log`: the latest operations of the volume.

use super::Context;
use crate::control::Request;
use crate::failure::Failure;
use crate::report::Operation;
use crate::show::{self, Name};

/// Show the latest operations of the volume
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  phifs log\n  phifs log -n 100 --json")]
pub struct Log {
    /// Show this many
    #[arg(short = 'n', long = "count", value_name = "N", default_value_t = 20)]
    count: u32,
}

impl Log {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let operations: Vec<Operation> = context.ask(&Request::Log { count: self.count })?;
        context.output.result(&operations, |operations| operations.iter().map(line).collect());
        Ok(())
    }
}

fn line(operation: &Operation) -> String {
    let path = operation.path.as_ref().map(Name::quoted).unwrap_or_default();
    format!("{}  {:<16}  {:<10}  {path}\n", show::utc(operation.millis), operation.dot, operation.what)
}
