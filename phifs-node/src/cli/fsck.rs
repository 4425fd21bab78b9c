//! `phifs fsck`: checks a store, through its daemon or, when none runs, by itself.

use super::Context;
use crate::config::Settings;
use crate::control::{Client, Progress, Request};
use crate::failure::{Failure, Kind};
use crate::report::Checked;
use crate::store_dir::StoreDir;
use crate::{daemon, show, telemetry};

/// Check that the store is whole
#[derive(clap::Args)]
#[command(
    after_help = "Works while the volume is in use, and on a store that no daemon serves. Ends with exit code 5 when \
    damage is left.\n\nExamples:\n  phifs fsck\n  phifs fsck --repair\n  phifs fsck --rebuild-index"
)]
pub struct Fsck {
    /// Throw the glyph index away and make it anew from the packs
    #[arg(long)]
    rebuild_index: bool,
    /// Mend what can be mended
    #[arg(long)]
    repair: bool,
}

impl Fsck {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let config = context.config(Settings::default())?;
        let store = StoreDir::find(&config.store)?;
        let mut line = context.output.progress();
        let mut progress = |step: Progress| line.show(&step);
        let (rebuild_index, repair) = (self.rebuild_index, self.repair);
        let checked = match Client::connect(&store) {
            Ok(client) => client.call(&Request::Fsck { rebuild_index, repair }, &mut progress)?,
            Err(failure) if failure.kind == Kind::NotRunning => {
                if !store.is_initialised() {
                    let message = format!("there is no store at {} yet", show::path(store.path()));
                    return Err(Failure::plain(message).hint("name it with --store DIR, or make one with: phifs up"));
                }
                telemetry::start(&config);
                let (lock, engine) =
                    daemon::open(&config, &store, daemon::Role { name: "fsck", repair, rebuild_index }, &mut progress)?;
                let checked = engine.fsck(false, repair, &mut progress);
                let closed = engine.shutdown(&mut progress);
                drop(engine);
                drop(lock);
                checked.and_then(|checked| closed.map(|()| checked))?
            }
            Err(failure) => return Err(failure),
        };
        drop(line);
        finish(context, &checked, "phifs fsck --repair")
    }
}

/// Prints what was found; damage that is left is a failure.
pub(super) fn finish(context: &Context, checked: &Checked, remedy: &str) -> Result<(), Failure> {
    context.output.result(checked, describe);
    match checked.unrepaired() {
        0 => Ok(()),
        1 => Err(Failure::new(Kind::Damaged, "1 problem is left").hint(remedy)),
        left => Err(Failure::new(Kind::Damaged, format!("{left} problems are left")).hint(remedy)),
    }
}

fn describe(checked: &Checked) -> String {
    let mut text = String::new();
    for problem in &checked.problems {
        let repaired = if problem.repaired { " (repaired)" } else { "" };
        text += &format!("{}{repaired}\n", problem.what);
        text.extend(problem.paths.iter().map(|path| format!("  {}\n", path.quoted())));
    }
    let found = if checked.problems.is_empty() { "no problems" } else { "problems as above" };
    text + &format!("{} glyphs checked, {}: {found}", checked.checked_glyphs, show::size(checked.checked_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Problem;
    use crate::show::Name;

    #[test]
    fn problems_are_listed_with_their_files() {
        let problem = Problem { what: "glyph 00 is damaged".into(), paths: vec![Name::new(b"a\nb")], repaired: true };
        let checked = Checked { checked_glyphs: 2, checked_bytes: 2048, problems: vec![problem] };
        assert_eq!(checked.unrepaired(), 0);
        assert_eq!(
            describe(&checked),
            "glyph 00 is damaged (repaired)\n  $'a\\nb'\n2 glyphs checked, 2.00 KiB: problems as above"
        );
    }
}
