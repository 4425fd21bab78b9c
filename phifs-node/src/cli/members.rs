//! `phifs members`: who has the volume.

use super::Context;
use super::output::table;
use crate::control::Request;
use crate::failure::Failure;
use crate::report::{Member, MemberStanding, Standing, Status};
use crate::show;

/// Show the machines that have the volume
#[derive(clap::Args)]
#[command(
    after_help = "BEHIND counts the operations that are known here and were not known there when that machine was heard \
    of last (of this machine: those that the others know), SINCE is the age of the oldest of them. NOT HELD counts the \
    bytes of files that it has not said to hold on its disk.\n\nExamples:\n  phifs members\n  phifs members --watch\n  phifs members --json"
)]
pub struct Members {
    /// Show them again every second, until interrupted
    #[arg(long)]
    watch: bool,
}

impl Members {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        context.output.watch(self.watch, || {
            let members: Vec<Member> = context.ask(&Request::Members)?;
            if members.is_empty() {
                let status: Status = context.ask(&Request::Status)?;
                context.output.note(match status.cluster.standing {
                    Standing::Former => "This machine is no member any more. To come back: phifs down, then phifs join",
                    Standing::Alone | Standing::Member => "This machine is alone. To let others in: phifs invite",
                });
            }
            Ok(context.output.shown(&members, |members| if members.is_empty() { String::new() } else { rows(members) }))
        })
    }
}

pub fn state_of(member: &Member) -> String {
    let state = match (member.this_node, member.standing.connected) {
        (true, _) => "this machine",
        (_, true) => "connected",
        (_, false) => "not connected",
    };
    member.standing.trouble.as_ref().map_or_else(|| state.to_owned(), |trouble| format!("{state}: {trouble}"))
}

/// How far its clock is ahead, as in `+12 ms`.
pub fn clock_of(standing: &MemberStanding) -> String {
    standing.clock_ahead_millis.map_or_else(|| "-".to_owned(), |ahead| format!("{ahead:+} ms"))
}

fn rows(members: &[Member]) -> String {
    let row = |member: &Member| {
        let MemberStanding { behind, behind_bytes, behind_secs, heard_secs, version, .. } = &member.standing;
        let other = |text: &Option<String>| match text {
            _ if member.this_node => "-".to_owned(),
            text => text.clone().unwrap_or_else(|| "?".to_owned()),
        };
        [
            show::quote(member.name.as_bytes()),
            member.key.chars().take(8).collect(),
            member.addresses.join(" "),
            behind.map_or_else(|| "?".to_owned(), |behind| behind.to_string()),
            other(&behind_bytes.map(show::size)),
            other(&behind_secs.map(show::span)),
            other(
                &heard_secs.map_or_else(|| Some("never".to_owned()), |secs| Some(format!("{} ago", show::span(secs)))),
            ),
            version.clone().unwrap_or_else(|| "-".to_owned()),
            clock_of(&member.standing),
            state_of(member),
        ]
    };
    let head = ["NAME", "KEY", "ADDRESS", "BEHIND", "NOT HELD", "SINCE", "HEARD", "VERSION", "CLOCK", ""];
    let rows: Vec<[String; 10]> = std::iter::once(head.map(str::to_owned)).chain(members.iter().map(row)).collect();
    table(&rows, &[3, 4, 5])
}
