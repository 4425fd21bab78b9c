//! `phifs log`: the latest operations of the volume, what merges came across, or the versions of a file.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::Context;
use super::output::table;
use crate::control::{InodeNumber, Request};
use crate::failure::Failure;
use crate::report::{Event, FileVersion, Operation};
use crate::show::{self, Name};

/// Show the latest operations of the volume, what merges came across, or the versions of a file
#[derive(clap::Args)]
#[command(
    after_help = "The versions of a file are those in .phi/versions and those in snapshots. VIA tells how one came \
    to be:\nby a close, while the file stayed open, or by recovery after a crash; and what became of a file that was in order:\n\
    blank (empty, or nothing but zeroes) or torn (of no valid format).\n\n\
    Examples:\n  phifs log\n  phifs log -n 100 --json\n  phifs log --conflicts\n  phifs log /phi/report.txt\n  phifs log etc/fstab"
)]
pub struct Log {
    /// Show this many
    #[arg(short = 'n', long = "count", value_name = "N", default_value_t = 20)]
    count: u32,
    /// Show what merges came across: things that two sides had changed, and what came of them
    #[arg(long, conflicts_with = "path")]
    conflicts: bool,
    /// Show the versions of this file: a path through the mount, else one from the root of the volume
    #[arg(value_name = "PATH", value_hint = clap::ValueHint::FilePath)]
    path: Option<PathBuf>,
}

impl Log {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        if let Some(path) = &self.path {
            let request = Request::Versions { path: Name::of_path(path), inode: inode_at(path) };
            let mut versions: Vec<FileVersion> = context.ask(&request)?;
            versions.drain(..versions.len().saturating_sub(self.count as usize));
            context.output.result(&versions, |versions| describe(versions));
            return Ok(());
        }
        if self.conflicts {
            let events: Vec<Event> = context.ask(&Request::Events { count: self.count })?;
            context.output.result(&events, |events| events.iter().map(event).collect());
            return Ok(());
        }
        let operations: Vec<Operation> = context.ask(&Request::Log { count: self.count })?;
        context.output.result(&operations, |operations| operations.iter().map(line).collect());
        Ok(())
    }
}

/// What a path leads to here. The daemon knows whether that is a file of its own; it need not know how we see it.
fn inode_at(path: &Path) -> Option<InodeNumber> {
    let found = std::fs::metadata(path).ok()?;
    let (major, minor) = (rustix::fs::major(found.dev()), rustix::fs::minor(found.dev()));
    Some(InodeNumber { device: format!("{major}:{minor}"), number: found.ino() })
}

fn line(operation: &Operation) -> String {
    let path = operation.path.as_ref().map(Name::quoted).unwrap_or_default();
    format!("{}  {:<16}  {:<10}  {path}\n", show::utc(operation.millis), operation.dot, operation.what)
}

/// One event in a line.
pub(super) fn event(event: &Event) -> String {
    let time = event.millis.map(|millis| show::utc(millis) + "  ").unwrap_or_default();
    let other = event.other.as_ref().map(|other| format!("  (not {})", other.quoted())).unwrap_or_default();
    format!("{time}{:<12}  row {:<2}  {}{other}\n", event.what, event.row, event.path.quoted())
}

fn describe(versions: &[FileVersion]) -> String {
    if versions.is_empty() {
        return String::new();
    }
    let mut rows = vec![["TIME", "AUTHOR", "SIZE", "VIA", "SNAPSHOTS"].map(str::to_owned)];
    for version in versions {
        let names: Vec<String> =
            version.snapshots.iter().map(|snapshot| show::quote(snapshot.name.as_bytes())).collect();
        let snapshots = if names.is_empty() { "-".to_owned() } else { names.join(" ") };
        let defect = version.defect.as_ref().map(|defect| format!(", {defect}")).unwrap_or_default();
        let via = version.closure.clone() + &defect + if version.current { ", current" } else { "" };
        rows.push([show::utc(version.millis), version.dot.clone(), show::size(version.bytes), via, snapshots]);
    }
    table(&rows, &[2])
}
