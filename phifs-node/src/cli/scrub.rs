//! `phifs scrub`: reads and verifies all that is stored, while the volume is in use.

use super::{Context, fsck};
use crate::control::Request;
use crate::failure::Failure;
use crate::report::Checked;

/// Read and verify every stored glyph
#[derive(clap::Args)]
#[command(
    after_help = "Lists files with lost bytes as fsck does, which checks the metadata against each other as well. \
    Ends with exit code 5 when damage is left.\n\nExamples:\n  phifs scrub\n  phifs scrub --json"
)]
pub struct Scrub {}

impl Scrub {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let checked: Checked = context.ask(&Request::Scrub)?;
        fsck::finish(context, &checked)
    }
}
