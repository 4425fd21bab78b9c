//! `phifs gc`: frees the space of glyphs that nothing names any more.

use super::Context;
use crate::control::Request;
use crate::failure::Failure;
use crate::report::Collected;
use crate::show;

/// Free the space of what nothing refers to any more
#[derive(clap::Args)]
#[command(after_help = "Works while the volume is in use. Nothing does it by itself.\n\n\
    Examples:\n  phifs gc\n  phifs gc --json | jq .freed_bytes")]
pub struct Gc {}

impl Gc {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let collected: Collected = context.ask(&Request::Gc)?;
        context.output.result(&collected, describe);
        Ok(())
    }
}

fn describe(collected: &Collected) -> String {
    format!(
        "{} freed, {} rewritten; {} packs removed, {} glyphs live",
        show::size(collected.freed_bytes),
        show::size(collected.rewritten_bytes),
        collected.packs_removed,
        collected.live_glyphs
    )
}
