//! `phifs snapshot import`

use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use super::Context;
use crate::control::Request;
use crate::failure::{Failure, Kind};
use crate::report::Imported;
use crate::show;

/// Take a snapshot from an export
#[derive(clap::Args)]
#[command(
    after_help = "The snapshot gets its name when all of it is here and checked; a stream that is damaged, forged or of \
    another volume changes nothing. After an interruption the same command finds what had come by then, unless \
    `phifs gc` ran in between. If the snapshot is here, whatever is missing or damaged of it is stored again.\n\n\
    Examples:\n  phifs snapshot import tuesday.phi\n  phifs snapshot import tuesday.phi --name from-the-laptop\n  \
    ssh laptop phifs snapshot export tuesday - --since monday | phifs snapshot import - --trust 1f9ac02e8b7d6c5e"
)]
pub struct Import {
    /// Read this file; `-` is standard input
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// Call it this [default: as it was called]
    #[arg(long)]
    name: Option<String>,
    /// Believe the node whose key begins so, from now on: 8 digits or more
    #[arg(long, value_name = "KEYPREFIX")]
    trust: Option<String>,
}

impl Import {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let request = Request::SnapshotImport { name: self.name, trust: self.trust };
        let imported: Imported = if self.file == Path::new("-") {
            let input = io::stdin();
            if input.is_terminal() {
                let failure = Failure::new(Kind::Usage, "an export does not come from a terminal");
                return Err(failure.hint("name a file, or send it through a pipe"));
            }
            context.ask_with(&request, input.as_fd())?
        } else {
            let file = File::open(&self.file)
                .map_err(|error| Failure::plain(format!("cannot read {}: {error}", show::path(&self.file))))?;
            context.ask_with(&request, file.as_fd())?
        };
        context.output.result(&imported, describe);
        Ok(())
    }
}

fn describe(imported: &Imported) -> String {
    let name = show::quote(imported.name.as_bytes());
    let (glyphs, new) = (imported.glyphs, imported.new_glyphs);
    let what = if imported.was_here { "was here already" } else { "imported" };
    format!("{name} {what}: {glyphs} glyphs, {new} of them new ({})", show::size(imported.new_bytes))
}
