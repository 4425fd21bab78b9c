//! `phifs snapshot diff`

use super::Context;
use crate::cli::paths;
use crate::control::Request;
use crate::failure::Failure;
use crate::report::Change;
use crate::show::{self, Name};

/// Show what changed between two snapshots, or since one
#[derive(clap::Args)]
#[command(
    after_help = "A added, M modified, D deleted, R renamed; a tree that moved is one line. Behind a file that was \
    modified stands how its length changed, or that only attributes did.\n\nExamples:\n  \
    phifs snapshot diff before-upgrade\n  phifs snapshot diff monday tuesday --stat\n  \
    phifs snapshot diff monday tuesday /phi/etc --json"
)]
pub struct Diff {
    /// The older one: name, or beginning of the id
    from: String,
    /// The newer one [default: the volume as it is now]
    to: Option<String>,
    /// Only what is at or below this path, before or after
    path: Option<std::path::PathBuf>,
    /// Only count
    #[arg(long)]
    stat: bool,
}

impl Diff {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let path = self.path.map(|path| paths::in_volume(context, &path)).transpose()?;
        let request = Request::SnapshotDiff { from: self.from, to: self.to };
        let mut changes: Vec<Change> = context.ask(&request)?;
        if let Some(path) = path {
            let is_below = |name: &Name| is_below(&name.bytes(), &path);
            changes.retain(|change| is_below(&change.path) || change.from.as_ref().is_some_and(is_below));
        }
        if self.stat {
            context.output.result(&Stat::of(&changes), Stat::describe);
        } else {
            context.output.result(&changes, |changes| lines(changes));
        }
        Ok(())
    }
}

fn is_below(path: &[u8], top: &[u8]) -> bool {
    top == b"/" || path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

pub fn lines(changes: &[Change]) -> String {
    changes.iter().map(|change| line(change) + "\n").collect()
}

fn line(change: &Change) -> String {
    let slash = if change.kind == "directory" { "/" } else { "" };
    let mut line = match &change.from {
        Some(from) => format!("{} {}{slash} -> {}{slash}", change.what, from.quoted(), change.path.quoted()),
        None => format!("{} {}{slash}", change.what, change.path.quoted()),
    };
    match (change.what, change.old_bytes, change.new_bytes) {
        ('A', _, Some(bytes)) | ('D', Some(bytes), _) => line.push_str(&format!("  {}", show::size(bytes))),
        ('M', Some(old), Some(new)) if change.content => {
            line.push_str(&format!("  {} -> {}", show::size(old), show::size(new)));
        }
        ('M', ..) => line.push_str("  attributes"),
        _ => {}
    }
    line
}

/// How much there is of each kind.
#[derive(Default, serde::Serialize)]
struct Stat {
    added: u64,
    modified: u64,
    deleted: u64,
    renamed: u64,
    /// How much longer all files together became, and how much shorter.
    grown_bytes: u64,
    shrunk_bytes: u64,
}

impl Stat {
    fn of(changes: &[Change]) -> Self {
        let mut stat = Self::default();
        for change in changes {
            match change.what {
                'A' => stat.added += 1,
                'M' => stat.modified += 1,
                'D' => stat.deleted += 1,
                _ => stat.renamed += 1,
            }
            if change.what != 'R' {
                let (old, new) = (change.old_bytes.unwrap_or(0), change.new_bytes.unwrap_or(0));
                stat.grown_bytes += new.saturating_sub(old);
                stat.shrunk_bytes += old.saturating_sub(new);
            }
        }
        stat
    }

    fn describe(stat: &Self) -> String {
        let Self { added, modified, deleted, renamed, grown_bytes, shrunk_bytes } = stat;
        format!(
            "{added} added, {modified} modified, {deleted} deleted, {renamed} renamed; {} longer, {} shorter",
            show::size(*grown_bytes),
            show::size(*shrunk_bytes)
        )
    }
}
