//! `phifs why`

use std::path::PathBuf;

use super::output::table;
use super::{Context, paths};
use crate::control::Request;
use crate::failure::Failure;
use crate::report::{Choice, Conflict};
use crate::show::{self, Name};

/// Tell why a file is shown as it is: each state that it may have, and each term of its score
#[derive(clap::Args)]
#[command(
    after_help = "The terms are compared one after the other; the first in which two states differ decides. They are the \
    same on all\nmachines.\n\nExamples:\n  phifs why /phi/report.txt\n  phifs why etc/fstab --json"
)]
pub struct Why {
    /// A path through the mount, else one from the root of the volume
    #[arg(value_name = "PATH", value_hint = clap::ValueHint::FilePath)]
    path: PathBuf,
}

impl Why {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let path = Name::new(&paths::in_volume(context, &self.path)?);
        let found: Conflict = context.ask(&Request::Why { path })?;
        context.output.result(&found, describe);
        Ok(())
    }
}

pub(super) fn describe(found: &Conflict) -> String {
    let path = found.path.quoted();
    let mut text = match (found.matter.as_deref(), found.row) {
        (Some("content"), Some(row)) => format!("{path}: versions that did not know of each other (row {row})\n"),
        (Some("type"), Some(row)) => format!("{path}: its name is also that of a directory (row {row})\n"),
        (_, Some(33)) => format!("{path}: files whose makers each were promised to be the only one (row 33)\n"),
        (_, Some(row)) => format!("{path}: files that got the same name at the same time (row {row})\n"),
        _ => format!("{path}: nothing to decide\n"),
    };
    match found.merge.as_deref() {
        Some("merged") => text.push_str("its versions are merged: what is read is made of all of them\n"),
        Some(why) => text.push_str(&format!("its versions are not merged: {why}\n")),
        None => {}
    }
    let is_merged = found.merge.as_deref() == Some("merged");
    for (rank, choice) in found.choices.iter().enumerate() {
        text.push_str(&format!(
            "\n{rank}{}  {}\n",
            if rank == 0 && !is_merged { " (shown)" } else { "" },
            line(choice)
        ));
        let mut rows = Vec::new();
        for term in &choice.score {
            let decides = choice.ahead_by.as_ref() == Some(&term.name);
            let words = term.words.clone() + if decides { "  <- decides against the next" } else { "" };
            rows.push([format!("   {}", term.name), term.value.to_string(), words]);
        }
        text.push_str(&table(&rows, &[1]));
    }
    text
}

/// What a choice is, in one line.
pub(super) fn line(choice: &Choice) -> String {
    let target = choice.target.as_ref().map(|target| format!(" to {}", target.quoted())).unwrap_or_default();
    let exclusive = if choice.exclusive { ", made with O_EXCL" } else { "" };
    format!(
        "{}{target}{exclusive}, {}, {} by {}",
        choice.kind,
        show::size(choice.bytes),
        show::utc(choice.millis),
        choice.author.get(..8).unwrap_or(&choice.author)
    )
}
