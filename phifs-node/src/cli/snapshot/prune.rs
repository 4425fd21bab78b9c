//! `phifs snapshot prune`

use phifs_core::snapshot::keep::KeepRules;

use super::Context;
use crate::control::Request;
use crate::failure::{Failure, Kind};
use crate::report::Pruned;
use crate::show;

/// Forget the snapshots that no rule keeps
#[derive(clap::Args)]
#[command(
    after_help = "Of each of the latest N hours, days, weeks, months and years that have any, the last snapshot is kept. \
    A snapshot that one rule names is kept; all others go, also those taken by hand, unless --label or --scheduled says \
    which to look at. `phifs gc` frees what only they held.\n\nExamples:\n  \
    phifs snapshot prune --keep-daily 7 --keep-weekly 4 --dry-run\n  \
    phifs snapshot prune --scheduled --keep-last 3 --keep-within 2days\n  \
    phifs volume set snapshot.keep 'hourly=24 daily=7'   For those that the schedule takes"
)]
pub struct Prune {
    /// Keep the latest N
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_last: u32,
    /// Keep the last of each of the latest N hours
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_hourly: u32,
    /// Keep the last of each of the latest N days
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_daily: u32,
    /// Keep the last of each of the latest N weeks
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_weekly: u32,
    /// Keep the last of each of the latest N months
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_monthly: u32,
    /// Keep the last of each of the latest N years
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_yearly: u32,
    /// Keep those taken in this time before the latest one, as in 2days or 12h
    #[arg(long, value_name = "SPAN", value_parser = humantime::parse_duration)]
    keep_within: Option<std::time::Duration>,
    /// Keep those with this label; may be given several times
    #[arg(long, value_name = "WORD")]
    keep_label: Vec<String>,
    /// Look only at those with this label
    #[arg(long, value_name = "WORD")]
    label: Option<String>,
    /// Look only at those taken by the schedule
    #[arg(long)]
    scheduled: bool,
    /// Show what would go, and forget nothing
    #[arg(long)]
    dry_run: bool,
}

impl Prune {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        if let Some(label) = self.keep_label.iter().find(|label| label.contains(char::is_whitespace)) {
            return Err(Failure::new(Kind::Usage, format!("{label:?} is no label: it has blanks")));
        }
        let rules = KeepRules {
            last: self.keep_last,
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
            yearly: self.keep_yearly,
            within: self.keep_within,
            labels: self.keep_label,
        };
        let (label, scheduled, dry_run) = (self.label, self.scheduled, self.dry_run);
        let request = Request::SnapshotPrune { rules: rules.to_string(), label, scheduled, dry_run };
        let pruned: Vec<Pruned> = context.ask(&request)?;
        context.output.result(&pruned, |pruned| pruned.iter().map(|snapshot| line(snapshot, dry_run)).collect());
        Ok(())
    }
}

fn line(snapshot: &Pruned, dry_run: bool) -> String {
    let name = show::quote(snapshot.name.as_bytes());
    match (snapshot.kept_for.is_empty(), dry_run) {
        (false, _) => format!("kept     {name}  ({})\n", snapshot.kept_for.join(", ")),
        (true, false) => format!("deleted  {name}\n"),
        (true, true) => format!("delete   {name}\n"),
    }
}
