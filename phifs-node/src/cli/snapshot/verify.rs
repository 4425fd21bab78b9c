//! `phifs snapshot verify`

use super::Context;
use crate::cli::fsck;
use crate::control::Request;
use crate::failure::{Failure, Kind};
use crate::report::{Snapshot, Verified};
use crate::show;

/// Read and check everything that snapshots hold
#[derive(clap::Args)]
#[command(
    after_help = "Every node and every byte is read and held against its name, the record against its signature, names \
    and directories against what they follow from. The tree root that is printed is the same for all trees that look \
    the same, here or anywhere. Ends with exit code 5 when there is damage.\n\nExamples:\n  \
    phifs snapshot verify before-upgrade\n  phifs snapshot verify --all --json"
)]
pub struct Verify {
    /// Names, or beginnings of ids
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    names: Vec<String>,
    /// Check all snapshots
    #[arg(long)]
    all: bool,
}

impl Verify {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let mut names = self.names;
        if self.all {
            let snapshots: Vec<Snapshot> = context.ask(&Request::SnapshotList)?;
            names = snapshots.into_iter().map(|snapshot| snapshot.name).collect();
        }
        let verify = |name: &String| context.ask(&Request::SnapshotVerify { name: name.clone() });
        let verified = names.iter().map(verify).collect::<Result<Vec<Verified>, Failure>>()?;
        context.output.result(&verified, |verified| verified.iter().map(describe).collect());
        let damaged = verified.iter().filter(|verified| verified.checked.unrepaired() > 0).count();
        match (damaged, verified.len()) {
            (0, _) => Ok(()),
            (damaged, all) => Err(Failure::new(Kind::Damaged, format!("{damaged} of {all} snapshots are damaged"))),
        }
    }
}

fn describe(verified: &Verified) -> String {
    let tree_root = verified.tree_root.as_deref().unwrap_or("cannot be told");
    let name = show::quote(verified.name.as_bytes());
    format!("{name}: tree root {tree_root}\n{}\n", fsck::describe(&verified.checked))
}
