//! `phifs join`: gets the volume from the machine that invited this one, and mounts it.
//!
//! Command lines are seen by everybody on the machine, so the daemon reads the invitation from its standard input, and its
//! user may give it in the same way.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use phifs_core::ssep::Token;

use super::Context;
use super::up::{Input, Serving};
use crate::daemon::Origin;
use crate::failure::{Failure, Kind};
use crate::show;

/// No invitation is longer, with all blanks in it.
const TOKEN_BYTES_MAX: u64 = 4096;

/// Get the volume from a machine that has it, and mount it
#[derive(clap::Args)]
#[command(
    after_help = "It returns when the volume is mounted. Where its metadata takes more than two seconds to come, it can be \
    read meanwhile, and written to when all is here: see `phifs status`. After a break `phifs up` goes on with it. The machine stays a member: after a restart `phifs up` is \
    enough.\n\nWho is on this machine sees the command lines of others; with `-` or --token-file an invitation is not \
    among them.\n\nExamples:\n  phifs join phi1-aeaq...\n  phifs join - --mount ~/phi --store ~/phi-store\n  \
    phifs invite --quiet | ssh other phifs join -\n  \
    phifs join --token-file invitation --listen 192.0.2.7:7447"
)]
pub struct Join {
    /// What `phifs invite` has printed there; `-` is standard input
    #[arg(required_unless_present = "token_file")]
    token: Option<String>,
    /// Read it from this file
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, conflicts_with = "token")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    serving: Serving,
}

impl Join {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let from_input = || read(io::stdin(), "standard input");
        let text = match (&self.token, &self.token_file) {
            _ if self.serving.is_daemon() => from_input()?,
            (Some(token), _) if token != "-" => token.clone(),
            (_, Some(path)) if path != Path::new("-") => {
                let opened = File::open(path);
                let name = show::path(path);
                read(opened.map_err(|error| Failure::plain(format!("cannot read {name}: {error}")))?, &name)?
            }
            _ => from_input()?,
        };
        let token: Token = text.parse().map_err(|error| {
            Failure::new(Kind::Usage, format!("this is no invitation: {error}"))
                .hint("copy all of what `phifs invite` has printed, or make a new one there")
        })?;
        self.serving.run(context, Input::Secret(&text), false, || Ok(Origin::Invitation(Box::new(token))))
    }
}

fn read(from: impl Read, name: &str) -> Result<String, Failure> {
    let mut text = String::new();
    match from.take(TOKEN_BYTES_MAX).read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(error) => Err(Failure::plain(format!("cannot read {name}: {error}"))),
    }
}
