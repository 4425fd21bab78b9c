//! `phifs mount`: lists where the volume is mounted and what the kernel grants it, or mounts it in a further place.

use std::path::{Path, PathBuf};

use super::Context;
use super::output::columns;
use crate::control::Request;
use crate::failure::Failure;
use crate::report::{Features, Status};
use crate::show::{self, Name};
use crate::{mounts, report};

/// List where the volume is mounted, or mount it in a further place
#[derive(clap::Args)]
#[command(
    after_help = "A further mount shows the same volume and goes away with it; umount(8) takes it away alone.\n\n\
    Examples:\n  phifs mount           List the mounts\n  phifs mount -v        Show what the kernel grants them\n  \
    phifs mount /srv/phi  Mount it there as well (as root)"
)]
pub struct Mount {
    /// Mount on this directory as well
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    dir: Option<PathBuf>,
    /// Show what the kernel grants the mount
    #[arg(short, long)]
    verbose: bool,
}

impl Mount {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let mut status: Status = context.ask(&Request::Status)?;
        if let Some(dir) = &self.dir {
            mount_further(&status, dir)?;
            status = context.ask(&Request::Status)?;
        }
        let verbose = self.verbose;
        let mounts = Mounts { mounts: status.mounts, features: verbose.then_some(status.features) };
        context.output.result(&mounts, describe);
        Ok(())
    }
}

#[derive(serde::Serialize)]
struct Mounts {
    mounts: Vec<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    features: Option<report::Features>,
}

fn mount_further(status: &Status, dir: &Path) -> Result<(), Failure> {
    use std::os::unix::ffi::OsStringExt as _;
    let served = status.mounts.first().ok_or_else(|| Failure::plain("the volume is not mounted in this namespace"))?;
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
    paths + &mounts.features.as_ref().map(features).unwrap_or_default()
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
