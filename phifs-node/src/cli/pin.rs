//! `phifs pin`: files that stay on this machine.

use std::path::PathBuf;

use super::{Context, paths};
use crate::control::Request;
use crate::failure::Failure;
use crate::report::Pin as Report;
use crate::show::{self, Name};

/// Keep files on this machine, wherever else they are
#[derive(clap::Args)]
#[command(
    after_help = "A path is kept with all that is below it, whatever it leads to from time to time. What of it is on \
    other\nmachines is fetched now.\n\n\
    Examples:\n  phifs pin /phi/src\n  phifs pin --list\n  phifs pin --remove /phi/src"
)]
pub struct Pin {
    /// A path through the mount, else one from the root of the volume
    #[arg(value_name = "PATH", value_hint = clap::ValueHint::AnyPath, required_unless_present = "list")]
    path: Option<PathBuf>,
    /// List the paths that are kept
    #[arg(long, conflicts_with_all = ["path", "remove"])]
    list: bool,
    /// Keep it no longer than any other
    #[arg(long, requires = "path")]
    remove: bool,
}

impl Pin {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let Some(path) = self.path else {
            let paths: Vec<Name> = context.ask(&Request::PinList)?;
            context.output.result(&paths, |paths| paths.iter().map(|path| path.quoted() + "\n").collect());
            return Ok(());
        };
        let path = Name::new(&paths::in_volume(context, &path)?);
        if self.remove {
            context.ask::<()>(&Request::PinRemove { path })?;
            context.output.result(&(), |()| String::new());
            return Ok(());
        }
        let pin: Report = context.ask(&Request::Pin { path })?;
        context.output.result(&pin, describe);
        Ok(())
    }
}

fn describe(pin: &Report) -> String {
    let size = show::size(pin.bytes);
    match pin.incomplete_files {
        0 => format!("pinned files: {}, with {size}; all of them are here", pin.files),
        many => format!("pinned files: {}; {size} of them are here, and {many} are not complete: try again", pin.files),
    }
}
