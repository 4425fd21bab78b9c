//! `phifs join`: gets the volume from the machine that invited this one, and mounts it.

use phifs_core::ssep::Token;

use super::Context;
use super::up::Serving;
use crate::daemon::Origin;
use crate::failure::{Failure, Kind};

/// Get the volume from a machine that has it, and mount it
#[derive(clap::Args)]
#[command(
    after_help = "It returns when the volume is mounted. The machine stays a member: after a restart `phifs up` is \
    enough.\n\nExamples:\n  phifs join phi1-aeaq...\n  phifs join phi1-aeaq... --mount ~/phi --store ~/phi-store\n  \
    phifs join phi1-aeaq... --listen 192.0.2.7:7447"
)]
pub struct Join {
    /// What `phifs invite` has printed there
    token: String,
    #[command(flatten)]
    serving: Serving,
}

impl Join {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let token: Token = self.token.parse().map_err(|error| {
            Failure::new(Kind::Usage, format!("this is no invitation: {error}"))
                .hint("copy all of what `phifs invite` has printed, or make a new one there")
        })?;
        self.serving.run(context, false, false, || Ok(Origin::Invitation(Box::new(token))))
    }
}
