//! `phifs mount`: lists where the volume is mounted and what the kernel grants it, or mounts it in a further place, or a
//! branch of it.

use std::path::{Path, PathBuf};

use super::Context;
use super::output::columns;
use crate::control::Request;
use crate::failure::Failure;
use crate::report::{BranchMount, Features, Status};
use crate::show::{self, Name};
use crate::{mounts, report};

/// List where the volume is mounted, or mount it in a further place, or a branch of it
#[derive(clap::Args)]
#[command(after_help = "A further mount shows the same volume and goes away with it; umount(8) takes it away alone. \
    A branch is served by the same process, until it is unmounted; it is not mounted again by itself.\n\n\
    Examples:\n  phifs mount           List the mounts\n  phifs mount -v        Show what the kernel grants them\n  \
    phifs mount /srv/phi  Mount it there as well (as root)\n  \
    phifs mount --branch trial /mnt/trial")]
pub struct Mount {
    /// Mount on this directory as well
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    dir: Option<PathBuf>,
    /// Mount this branch of the volume
    #[arg(long, value_name = "BRANCH", requires = "dir")]
    branch: Option<String>,
    /// Show what the kernel grants the mount
    #[arg(short, long)]
    verbose: bool,
}

impl Mount {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let mut status: Status = context.ask(&Request::Status)?;
        if let Some(dir) = &self.dir {
            match &self.branch {
                None => mount_further(&status.mounts, dir)?,
                Some(branch) => {
                    let served = status.branches.iter().find(|mounted| mounted.branch == *branch);
                    match served.filter(|mounted| !mounted.mounts.is_empty()) {
                        Some(mounted) => mount_further(&mounted.mounts, dir)?,
                        None => mount_branch(context, branch, dir)?,
                    }
                }
            }
            status = context.ask(&Request::Status)?;
        }
        let Status { mounts, branches, features, .. } = status;
        let mounts = Mounts { mounts, branches, features: self.verbose.then_some(features) };
        context.output.result(&mounts, describe);
        Ok(())
    }
}

#[derive(serde::Serialize)]
struct Mounts {
    mounts: Vec<Name>,
    branches: Vec<BranchMount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    features: Option<report::Features>,
}

fn mount_branch(context: &Context, branch: &str, dir: &Path) -> Result<(), Failure> {
    let unknown = |error| Failure::plain(format!("cannot tell where {} is: {error}", show::path(dir)));
    let dir = Name::of_path(&mounts::absolute(dir).map_err(unknown)?);
    context.ask::<BranchMount>(&Request::BranchMount { branch: branch.to_owned(), dir }).map(drop)
}

fn mount_further(served: &[Name], dir: &Path) -> Result<(), Failure> {
    use std::os::unix::ffi::OsStringExt as _;
    let served = served.first().ok_or_else(|| Failure::plain("the volume is not mounted in this namespace"))?;
    let served = PathBuf::from(std::ffi::OsString::from_vec(served.bytes()));
    mounts::bind(&served, dir).map_err(|error| {
        let message = format!("cannot mount {} on {}: {error}", show::path(&served), show::path(dir));
        let hint = match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                "run it as root; a user has one mount, chosen with phifs up --mount"
            }
            _ => "give a directory that exists",
        };
        Failure::plain(message).hint(hint)
    })
}

fn describe(mounts: &Mounts) -> String {
    let paths: String = mounts.mounts.iter().map(|mount| mount.quoted() + "\n").collect();
    let of_branch = |branch: &BranchMount| -> String {
        let name = show::quote(branch.branch.as_bytes());
        branch.mounts.iter().map(|mount| format!("{} (branch {name})\n", mount.quoted())).collect()
    };
    let branches: String = mounts.branches.iter().map(of_branch).collect();
    paths + &branches + &mounts.features.as_ref().map(features).unwrap_or_default()
}

fn features(features: &Features) -> String {
    let mut rows = vec![
        ("data path", features.describe_data_path()),
        ("FUSE protocol", features.protocol.clone()),
        ("largest write", show::size(features.write_bytes_max.into())),
        ("read-ahead", show::size(features.read_ahead_bytes.into())),
    ];
    let options = features.options.iter();
    rows.extend(options.map(|(name, on)| (name.as_str(), if *on { "yes" } else { "no" }.to_owned())));
    format!("\n{}", columns(&rows))
}
