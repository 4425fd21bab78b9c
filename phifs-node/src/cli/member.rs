//! `phifs member`: one of those who have the volume.

use super::Context;
use super::output::columns;
use crate::control::Request;
use crate::failure::Failure;
use crate::report::Member;
use crate::show;

/// Show or remove one of the machines that have the volume
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  phifs member show cellar\n  phifs member remove cellar\n  phifs member remove 5b2f09a1"
)]
pub struct One {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Show(Show),
    Remove(Remove),
}

/// Show all that is known of a machine
#[derive(clap::Args)]
#[command(after_help = "Example:\n  phifs member show cellar")]
struct Show {
    /// Its name, or at least the first 8 digits of its key
    member: String,
}

/// Let a machine take part no more
#[derive(clap::Args)]
#[command(
    after_help = "All others end their connections to it as soon as they hear of it. It keeps what it has; what was \
    written there and nobody has heard of stays there. It may be invited anew. A machine that is to go in good order does \
    `phifs leave` itself.\n\nExamples:\n  phifs member remove cellar\n  phifs member remove 5b2f09a1"
)]
struct Remove {
    /// Its name, or at least the first 8 digits of its key
    member: String,
}

impl One {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        match self.command {
            Command::Show(Show { member }) => {
                let member: Member = context.ask(&Request::Member { member })?;
                context.output.result(&member, describe);
            }
            Command::Remove(Remove { member }) => {
                let member: Member = context.ask(&Request::MemberRemove { member })?;
                let text = |member: &Member| format!("{} is no member any more.", show::quote(member.name.as_bytes()));
                context.output.result(&member, text);
            }
        }
        Ok(())
    }
}

fn describe(member: &Member) -> String {
    let or_none = |text: &str| if text.is_empty() { "-".to_owned() } else { show::quote(text.as_bytes()) };
    let mut rows = vec![
        ("name", show::quote(member.name.as_bytes())),
        ("key", member.key.clone()),
        ("role", or_none(&member.role)),
        ("zone", or_none(&member.zone)),
        ("addresses", member.addresses.join(", ")),
        ("member since", format!("{} UTC", phifs_core::time::utc(member.since_millis))),
        ("state", super::members::state_of(member)),
    ];
    let standing = &member.standing;
    let since = standing.behind_secs.filter(|secs| *secs > 0);
    let since = since.map(|secs| format!(", for {}", show::span(secs))).unwrap_or_default();
    rows.extend(standing.behind.map(|behind| ("behind", format!("{behind} operations{since}"))));
    rows.extend(standing.behind_bytes.map(|bytes| ("not held", show::size(bytes))));
    rows.extend(standing.heard_secs.map(|secs| ("heard of", format!("{} ago", show::span(secs)))));
    rows.extend(standing.version.clone().map(|version| ("version", version)));
    if standing.clock_ahead_millis.is_some() {
        rows.push(("clock", super::members::clock_of(standing)));
    }
    columns(&rows)
}
