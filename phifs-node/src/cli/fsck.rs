//! `phifs fsck`: checks a store, through its daemon or, when none runs, by itself.

use super::Context;
use crate::config::{Config, LogLevel, Settings};
use crate::control::{Client, Progress, Request};
use crate::failure::{Failure, Kind};
use crate::report::{Affected, Checked, LostBytes};
use crate::store_dir::StoreDir;
use crate::{daemon, show, telemetry};

/// Check that the store is whole
#[derive(clap::Args)]
#[command(
    after_help = "Works while the volume is in use, and on a store that no daemon serves. Files with lost bytes are \
    listed with the lost ranges, and with each problem what helps. Ends with exit code 5 when damage is left.\n\nExamples:\n  phifs fsck\n  phifs fsck --repair\n  phifs fsck --rebuild-index"
)]
pub struct Fsck {
    /// Throw the glyph index away and make it anew from the packs
    #[arg(long)]
    rebuild_index: bool,
    /// Mend what can be mended here: metadata that follows from other metadata, and a damaged journal by dropping what
    /// follows the damage
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
                // The answer is printed; changes of state are for the log of a daemon.
                let log_level = if config.log_level == LogLevel::Info { LogLevel::Error } else { config.log_level };
                telemetry::start(&Config { log_level, ..config.clone() });
                let role = daemon::Role { name: "fsck", repair, rebuild_index };
                let (lock, engine) = daemon::open(&config, &store, role, &mut progress)?;
                let checked = engine.fsck(false, repair, &mut progress);
                let closed = engine.shutdown(&mut progress);
                drop(engine);
                drop(lock);
                checked.and_then(|checked| closed.map(|()| checked))?
            }
            Err(failure) => return Err(failure),
        };
        drop(line);
        finish(context, &checked)
    }
}

/// Prints what was found; damage that is left is a failure.
pub(super) fn finish(context: &Context, checked: &Checked) -> Result<(), Failure> {
    context.output.result(checked, describe);
    match checked.unrepaired() {
        0 => Ok(()),
        1 => Err(Failure::new(Kind::Damaged, "1 problem is left")),
        left => Err(Failure::new(Kind::Damaged, format!("{left} problems are left"))),
    }
}

pub(super) fn describe(checked: &Checked) -> String {
    let mut text = String::new();
    for problem in &checked.problems {
        let repaired = if problem.repaired { " (repaired)" } else { "" };
        text += &format!("{}{repaired}\n", problem.what);
        text.extend(problem.files.iter().map(|file| format!("  {}\n", affected(file))));
        if let Some(remedy) = problem.remedy.as_ref().filter(|_| !problem.repaired) {
            text += &format!("  try: {remedy}\n");
        }
    }
    if !checked.unused_damage.is_empty() {
        text += "damaged bytes that nothing needs; a power cut leaves some, a disk that decays leaves more\n";
        text.extend(checked.unused_damage.iter().map(|place| format!("  {place}\n")));
    }
    let found = if checked.problems.is_empty() { "no problems" } else { "problems as above" };
    text + &format!("{} glyphs checked, {}: {found}", checked.checked_glyphs, show::size(checked.checked_bytes))
}

/// `/a/b: bytes 0 to 4095, 8192 to 9000: glyph .. is damaged`.
fn affected(file: &Affected) -> String {
    let range = |lost: &LostBytes| format!("{} to {}", lost.offset_bytes, lost.offset_bytes + lost.len_bytes - 1);
    let ranges: Vec<String> = file.lost.iter().filter(|lost| lost.len_bytes > 0).map(range).collect();
    let ranges = if ranges.is_empty() { String::new() } else { format!(": bytes {}", ranges.join(", ")) };
    let why = file.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    format!("{}{ranges}{why}", file.path.quoted())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Problem;
    use crate::show::Name;

    #[test]
    fn problems_are_listed_with_their_files_and_with_what_helps() {
        let lost = vec![LostBytes { offset_bytes: 0, len_bytes: 4096 }, LostBytes { offset_bytes: 8192, len_bytes: 1 }];
        let file = Affected { path: Name::new(b"/a\nb"), lost, why: Some("glyph 00 is damaged".into()) };
        let problem = |what: &str, repaired| Problem {
            what: what.into(),
            files: vec![file.clone()],
            repaired,
            remedy: Some("a backup".into()),
        };
        let checked = Checked {
            checked_glyphs: 2,
            checked_bytes: 2048,
            problems: vec![problem("lost bytes", false), problem("derived", true)],
            unused_damage: vec!["8 bytes of pack 1 at byte 64".into()],
        };
        assert_eq!(checked.unrepaired(), 1);
        let file = "  $'/a\\nb': bytes 0 to 4095, 8192 to 8192: glyph 00 is damaged\n";
        let unused = "damaged bytes that nothing needs; a power cut leaves some, a disk that decays leaves more\n";
        assert_eq!(
            describe(&checked),
            format!(
                "lost bytes\n{file}  try: a backup\nderived (repaired)\n{file}{unused}  8 bytes of pack 1 at byte 64\n\
                2 glyphs checked, 2.00 KiB: problems as above"
            )
        );
    }
}
