//! `phifs snapshot clone`

use super::Context;
use crate::control::Request;
use crate::failure::Failure;
use crate::report::Branch;
use crate::show;

/// Make a writable branch of a snapshot
#[derive(clap::Args)]
#[command(
    after_help = "It takes no time and no space, however large the snapshot is. What is done in the branch does not show \
    in the volume, and the other way round. The snapshot may be deleted afterwards.\n\nExamples:\n  \
    phifs snapshot clone before-upgrade trial && phifs mount --branch trial /mnt/trial"
)]
pub struct Clone {
    /// Name of the snapshot, or the beginning of its id
    name: String,
    /// Call the branch this
    branch: String,
}

impl Clone {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let made: Branch = context.ask(&Request::SnapshotClone { name: self.name, branch: self.branch })?;
        context.output.result(&made, |made| {
            let (name, base) = (show::quote(made.name.as_bytes()), show::quote(made.base.as_bytes()));
            format!("branch {name} of {base}; phifs mount --branch {name} DIR mounts it")
        });
        Ok(())
    }
}
