//! `phifs merge`

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use super::{Context, log, snapshot, why};
use crate::control::{Request, Side};
use crate::failure::{Failure, Kind};
use crate::findings::count;
use crate::report::{Branch, Merged, Snapshot};
use crate::show;

/// Bring what was done in one line of changes into another one
#[derive(clap::Args)]
#[command(
    after_help = "SOURCE and TARGET are `live` (the volume itself), a branch, a snapshot, or a file that `phifs snapshot \
    export` has written; branch:NAME, snapshot:NAME and file:PATH say which of them a name means. What both sides have \
    done is kept; merging again changes nothing. Programs that have a file open go on seeing its old bytes. A snapshot \
    never changes: merged into one, a new snapshot is made of both.\n\n\
    Examples:\n  phifs merge trial --dry-run\n  phifs merge trial\n  phifs merge live --into trial\n  \
    phifs merge from-the-laptop.phi\n  phifs merge snapshot:monday --into snapshot:tuesday --as both"
)]
pub struct Merge {
    /// Where the changes are
    source: String,
    /// Where they go [default: the volume itself]
    #[arg(long, value_name = "TARGET", default_value = "live", hide_default_value = true)]
    into: String,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Merge even what is of another volume
    #[arg(long)]
    unrelated: bool,
    /// Call the snapshot this that is made of two [default: the name of TARGET with `-merged` behind it]
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// Believe the node whose key begins so, from now on, if it has signed the file: 8 digits or more
    #[arg(long, value_name = "KEYPREFIX")]
    trust: Option<String>,
}

impl Merge {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let (source, source_file) = find(context, &self.source)?;
        let (target, target_file) = find(context, &self.into)?;
        if source_file.is_some() && target_file.is_some() {
            return Err(Failure::new(Kind::Usage, "two files are not merged with each other")
                .hint("import one of them first: phifs snapshot import FILE"));
        }
        if self.name.is_some() && !matches!(target, Side::Snapshot(_) | Side::File) {
            return Err(Failure::new(Kind::Usage, "--as names a snapshot, and none is made")
                .hint("leave it out; or merge into a snapshot: --into snapshot:NAME"));
        }
        let (dry_run, unrelated, trust, name) = (self.dry_run, self.unrelated, self.trust, self.name);
        let request = Request::Merge { source, target, dry_run, unrelated, trust, name };
        let merged: Merged = match source_file.or(target_file) {
            Some(path) => {
                let file = File::open(&path)
                    .map_err(|error| Failure::plain(format!("cannot read {}: {error}", show::path(&path))))?;
                context.ask_with(&request, file.as_fd())?
            }
            None => context.ask(&request)?,
        };
        context.output.result(&merged, describe);
        let disputed = merged.conflicts.len();
        if disputed > 0 && !dry_run {
            let files = if disputed == 1 { "file is" } else { "files are" };
            context
                .output
                .note(&format!("{disputed} {files} disputed: phifs conflicts lists what there is to decide."));
        }
        if merged.operations == 0 {
            context.output.note("There is nothing to merge.");
        }
        Ok(())
    }
}

fn describe(merged: &Merged) -> String {
    if let Some(changes) = &merged.changes {
        let mut text = snapshot::lines(changes);
        if !merged.events.is_empty() {
            text.push_str("\nChanged on both sides:\n");
            merged.events.iter().for_each(|event| text.push_str(&log::event(event)));
        }
        merged.conflicts.iter().for_each(|conflict| text.push_str(&format!("\n{}", why::describe(conflict))));
        return text;
    }
    let operations = count(merged.operations, "operation");
    match (&merged.snapshot, merged.operations) {
        (_, 0) => String::new(),
        (Some(name), _) => format!("{operations} merged into the snapshot {}", show::quote(name.as_bytes())),
        (None, _) => {
            let (names, files) = (count(merged.names, "name"), count(merged.inodes, "file"));
            format!("{operations} merged: {names} and {files} changed")
        }
    }
}

/// What a word of the command line means; if it is a file, which.
fn find(context: &Context, word: &str) -> Result<(Side, Option<PathBuf>), Failure> {
    if word == "live" {
        return Ok((Side::Live, None));
    }
    let file = |path: &str| (Side::File, Some(PathBuf::from(path)));
    match word.split_once(':') {
        Some(("branch", name)) => return Ok((Side::Branch(name.into()), None)),
        Some(("snapshot", name)) => return Ok((Side::Snapshot(name.into()), None)),
        Some(("file", path)) => return Ok(file(path)),
        _ => {}
    }
    let branches: Vec<Branch> = context.ask(&Request::BranchList)?;
    let snapshots: Vec<Snapshot> = context.ask(&Request::SnapshotList)?;
    let mut found = Vec::new();
    if branches.iter().any(|branch| branch.name == word) {
        found.push(("branch", (Side::Branch(word.into()), None)));
    }
    if snapshots.iter().any(|snapshot| snapshot.name == word) {
        found.push(("snapshot", (Side::Snapshot(word.into()), None)));
    }
    if Path::new(word).is_file() {
        found.push(("file", file(word)));
    }
    let quoted = show::quote(word.as_bytes());
    match found.len() {
        1 => Ok(found.remove(0).1),
        0 => Err(Failure::plain(format!("there is no branch, snapshot or file {quoted}"))
            .hint("phifs branch list and phifs snapshot list show what there is")),
        _ => {
            let kinds: Vec<&str> = found.iter().map(|(kind, _)| *kind).collect();
            let choices: Vec<String> = kinds.iter().map(|kind| format!("{kind}:{word}")).collect();
            Err(Failure::new(Kind::Usage, format!("{quoted} is a {}", kinds.join(" and a ")))
                .hint(format!("say which: {}", choices.join(" or "))))
        }
    }
}
