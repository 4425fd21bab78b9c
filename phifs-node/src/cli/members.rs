//! `phifs members`: who has the volume.

use super::Context;
use super::output::table;
use crate::control::Request;
use crate::failure::Failure;
use crate::report::{Member, Standing, Status};
use crate::show;

/// Show the machines that have the volume
#[derive(clap::Args)]
#[command(
    after_help = "BEHIND counts the operations that are known here and were not known there when that machine asked \
    last.\n\nExamples:\n  phifs members\n  phifs members --watch\n  phifs members --json"
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
    match (member.this_node, member.connected, &member.trouble) {
        (true, ..) => "this machine".to_owned(),
        (_, true, _) => "connected".to_owned(),
        (_, _, Some(trouble)) => format!("not connected: {trouble}"),
        (_, _, None) => "not connected".to_owned(),
    }
}

/// How far its clock is ahead, as in `+12 ms`.
pub fn clock_of(member: &Member) -> String {
    member.clock_ahead_millis.map_or_else(|| "-".to_owned(), |ahead| format!("{ahead:+} ms"))
}

fn rows(members: &[Member]) -> String {
    let row = |member: &Member| {
        let behind = member.behind.map_or_else(|| "?".to_owned(), |behind| behind.to_string());
        let name = show::quote(member.name.as_bytes());
        let heard = match (member.this_node, member.heard_secs) {
            (true, _) => "-".to_owned(),
            (_, Some(secs)) => format!("{} ago", show::span(secs)),
            (_, None) => "never".to_owned(),
        };
        let version = member.version.clone().unwrap_or_else(|| "-".to_owned());
        let key = member.key.chars().take(8).collect();
        [name, key, member.addresses.join(" "), behind, heard, version, clock_of(member), state_of(member)]
    };
    let head = ["NAME", "KEY", "ADDRESS", "BEHIND", "HEARD", "VERSION", "CLOCK", ""].map(str::to_owned);
    let rows: Vec<[String; 8]> = std::iter::once(head).chain(members.iter().map(row)).collect();
    table(&rows, &[3])
}
