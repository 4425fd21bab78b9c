//! `phifs leave`: this machine takes part no more.

use super::Context;
use crate::control::Request;
use crate::failure::Failure;
use crate::report::Left;

/// Take part no more, and keep the volume as one of this machine alone
#[derive(clap::Args)]
#[command(
    after_help = "First it is seen to that the members who are connected have everything that was written here. The \
    volume stays mounted, with all that is in it; from then on nothing is exchanged. To come back: phifs down, then \
    phifs join with a new invitation.\n\nExamples:\n  phifs leave\n  \
    phifs leave --force    Whether the others have everything or not"
)]
pub struct Leave {
    /// Go even if nobody else has what was written here
    #[arg(long)]
    force: bool,
}

impl Leave {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let left: Left = context.ask(&Request::Leave { force: self.force })?;
        if left.heard == 0 {
            context.output.note("No other member has heard of it. On one of them: phifs member remove NAME");
        }
        context.output.result(&left, describe);
        Ok(())
    }
}

fn describe(left: &Left) -> String {
    let heard = match left.heard {
        0 => String::new(),
        1 => " One other member has heard of it.".to_owned(),
        n => format!(" {n} other members have heard of it."),
    };
    format!("This machine is no member any more.{heard} The volume stays here, as one of its own.")
}
