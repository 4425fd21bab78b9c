//! `phifs snapshot export`

use std::fs::{self, File};
use std::io::{self, IsTerminal as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::Context;
use crate::control::Request;
use crate::failure::{Failure, Kind};
use crate::report::Exported;
use crate::show;

/// Write a snapshot to a file
#[derive(clap::Args)]
#[command(
    after_help = "With --since, only what the other snapshot has not: whoever imports it must have that one. The file is \
    written as FILE.partial and gets its name when it is durable, in place of an older FILE; an export that was \
    interrupted goes on where it was.\n\nExamples:\n  phifs snapshot export monday monday.phi\n  \
    phifs snapshot export tuesday tuesday.phi --since monday\n  \
    phifs snapshot export tuesday - --since monday | ssh backup phifs snapshot import -\n  \
    phifs up --store /srv/copy --mount /mnt/copy --from monday.phi"
)]
pub struct Export {
    /// Name, or beginning of the id
    name: String,
    /// Write this file; `-` is standard output
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// Write only what this snapshot has not
    #[arg(long, value_name = "NAME")]
    since: Option<String>,
}

impl Export {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        if self.file == Path::new("-") {
            let out = io::stdout();
            if out.is_terminal() {
                let failure = Failure::new(Kind::Usage, "an export is nothing for a terminal");
                return Err(failure.hint("name a file, or send it through a pipe"));
            }
            let exported = self.export(context, out.as_fd(), false)?;
            context.output.note(&describe(&exported));
            return Ok(());
        }
        let at = show::path(&self.file);
        let failed = |doing: &str, error: io::Error| Failure::plain(format!("cannot {doing} {at}: {error}"));
        let exported = if fs::metadata(&self.file).is_ok_and(|meta| !meta.is_file()) {
            // A device or a named pipe cannot get its name later.
            let out = File::options().write(true).open(&self.file).map_err(|error| failed("write", error))?;
            self.export(context, out.as_fd(), false)?
        } else {
            let partial = partial_of(&self.file);
            // What is in it is nobody else's business.
            let mut how = File::options();
            let out = how.read(true).write(true).create(true).truncate(false).mode(0o600).open(&partial);
            let out = out.map_err(|error| failed("make", error))?;
            // The daemon has a copy of this descriptor, and holds the lock as long as it writes.
            rustix::fs::flock(&out, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
                let failure = Failure::new(Kind::InUse, format!("another export writes {}", show::path(&partial)));
                failure.hint("wait for it, or choose another file")
            })?;
            let exported = self.export(context, out.as_fd(), true)?;
            out.sync_all().map_err(|error| failed("write", error))?;
            fs::rename(&partial, &self.file).map_err(|error| failed("name", error))?;
            let folder = self.file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| failed("name", error))?;
            exported
        };
        context.output.result(&exported, describe);
        Ok(())
    }

    fn export(&self, context: &Context, out: BorrowedFd<'_>, resume: bool) -> Result<Exported, Failure> {
        let request = Request::SnapshotExport { name: self.name.clone(), since: self.since.clone(), resume };
        context.ask_with(&request, out)
    }
}

fn partial_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

fn describe(exported: &Exported) -> String {
    let name = show::quote(exported.name.as_bytes());
    let since = exported.since.as_ref().map(|since| format!(" since {}", show::quote(since.as_bytes())));
    let resumed = match exported.resumed_bytes {
        0 => String::new(),
        bytes => format!(", {} of them from before", show::size(bytes)),
    };
    let (since, size) = (since.unwrap_or_default(), show::size(exported.bytes));
    format!("exported {name}{since}: {} glyphs, {size}{resumed}", exported.glyphs)
}
